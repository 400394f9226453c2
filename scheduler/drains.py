"""Draining: an owner takes a machine off the market, and every window that is sold on it is kept.

What runs goes on to its end. What has not started moves to other nodes that keep the same promise, the
owner's own or another's; what no other can keep stays, and the machine honours it. A promise that slipped in
while the drain began is met by the sweep.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.db import transaction

from agents import inventory
from agents.models import Gpu, Node
from agents.states import NodeStatus
from marketplace.core.windows import Window
from scheduler import relocations
from scheduler.models import Allocation, Lease
from scheduler.relocations import NOT_STARTED
from scheduler.states import LEASE_ARROWS, LeaseStatus, RelocationReason

log = structlog.get_logger(__name__)

# A move takes some 20 ms and keeps its GPUs locked until the answer is given; the sweep goes on.
MOVES_PER_REQUEST_MAX = 20
MOVES_PER_SWEEP_MAX = 200
SYSTEM = "scheduler"
_OPEN_LEASES = [status for status in LeaseStatus if not LEASE_ARROWS.is_final(status)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """A window that is sold on some of a node's GPUs and has not begun."""

    window: Window
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What a drain found: what runs until when, what moved away, and what the machine still has to serve."""

    running: tuple[Lease, ...]
    moved: tuple[Sold, ...]
    kept: tuple[Sold, ...]

    @property
    def free_at(self) -> dt.datetime | None:
        """Return when the last promise on the machine ends; `None` when there is none."""
        ends = [lease.ends_at for lease in self.running]
        return max([*ends, *(sold.window.ends_at for sold in self.kept)], default=None)


@transaction.atomic
def drain(*, node: Node, at: dt.datetime, actor: str) -> Drained:
    """Stop selling a node's GPUs and move what has not started away, as far as others keep its promise.

    :raises NodeStateConflict: when the node is not active.
    """
    inventory.drain(node=node, at=at, actor=actor)
    # Whoever reserves holds the GPUs until he is done: his promise is seen below.
    list(Gpu.objects.filter(node=node).held_in_order().values_list("pk", flat=True))
    moved = _move_off(node_id=node.pk, at=at, actor=actor, moves_max=MOVES_PER_REQUEST_MAX)
    return Drained(
        running=tuple(
            Lease.objects.filter(node=node, status__in=_OPEN_LEASES).order_by("ends_at", "pk")
        ),
        moved=tuple(moved),
        kept=tuple(_sold(places=sold_on(node_id=node.pk))),
    )


def sweep(*, at: dt.datetime) -> int:
    """Go on moving what has not started off nodes that are not active; return how many places moved.

    In no order, so that what cannot be moved keeps nothing waiting that can.
    """
    places = (
        Allocation.objects.filter(
            live=True, lease=None, reservation__status__in=NOT_STARTED, reservation__ends_at__gt=at
        )
        .exclude(node__status=NodeStatus.ACTIVE)
        .order_by("?")
        .values_list("reservation", "node")
    )
    moved = 0
    for reservation_id, node_id in places[:MOVES_PER_SWEEP_MAX]:
        try:
            moved += relocations.move(
                reservation_id=reservation_id,
                node_id=node_id,
                reason=RelocationReason.NODE_DRAINED,
                at=at,
                actor=SYSTEM,
            )
        except Exception:
            log.exception("sweep_left_a_place", reservation_id=reservation_id, node_id=node_id)
    return moved


def sold_on(*, node_id: str) -> list[Allocation]:
    """Return the places on a node that are sold and have not begun, the earliest first."""
    return list(
        Allocation.objects.filter(
            node=node_id, live=True, lease=None, reservation__status__in=NOT_STARTED
        )
        .select_related("reservation")
        .order_by("period", "pk")
    )


def _move_off(*, node_id: str, at: dt.datetime, actor: str, moves_max: int) -> list[Sold]:
    moved = []
    by_reservation: dict[str, list[Allocation]] = {}
    for place in sold_on(node_id=node_id):
        assert place.reservation_id is not None, place
        by_reservation.setdefault(place.reservation_id, []).append(place)
    for reservation_id, places in list(by_reservation.items())[:moves_max]:
        if relocations.move(
            reservation_id=reservation_id,
            node_id=node_id,
            reason=RelocationReason.NODE_DRAINED,
            at=at,
            actor=actor,
        ):
            moved += _sold(places=places)
    return moved


def _sold(*, places: Sequence[Allocation]) -> list[Sold]:
    """Return one row per reservation: the tenant's business is not the owner's."""
    gpus: dict[str, int] = {}
    windows: dict[str, Window] = {}
    for place in places:
        assert place.reservation_id is not None, place
        slots = place.slots.upper - place.slots.lower
        gpus[place.reservation_id] = gpus.get(place.reservation_id, 0) + slots
        windows[place.reservation_id] = Window(place.period.lower, place.period.upper)
    return [Sold(window=windows[key], gpus=gpus[key]) for key in windows]
