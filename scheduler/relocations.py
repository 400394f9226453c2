"""Other GPUs for what has not started: off a node that its owner drains, off GPUs that are not fit to serve.

A reservation names no nodes, so a move before the start breaks nothing of the promise. Where no others keep
it, the reservation stays where it is and its node honours it: it is never given up on a guess.
"""

import datetime as dt
from collections import Counter
from collections.abc import Sequence

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from agents.models import Gpu
from agents.protocol import Health
from agents.states import NodeStatus
from marketplace.states import Tier
from scheduler import calendar, placement, replacements, ticks
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Lease, Relocation, Reservation
from scheduler.placement import Demand
from scheduler.states import LeaseStatus, RelocationReason, ReservationStatus, Spread

PROTECT_AHEAD_SECONDS = 1_800  # where a reservation stands is final half an hour before its start
# A return takes seconds, and three minutes where the driver hangs; who is next cannot wait longer.
OVERRUN_SECONDS = 180
NOT_STARTED = (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED)
SYSTEM = "scheduler"


def protect_due(*, at: dt.datetime) -> int:
    """Move what starts soon off GPUs that could not be handed over to it; return how many places moved.

    Unfit is a GPU that is known to be broken, withdrawn or gone, and one that another lease overruns.
    """
    unfit = _unfit(at=at)
    places = Allocation.objects.filter(reservation=OuterRef("pk"), live=True, lease=None).filter(
        Exists(unfit)
    )
    due = Reservation.objects.filter(
        Exists(places),
        status=ReservationStatus.SCHEDULED,
        starts_at__lte=at + dt.timedelta(seconds=PROTECT_AHEAD_SECONDS),
        ends_at__gt=at,
    ).order_by("starts_at", "pk")
    moved = 0

    def protect(reservation: Reservation) -> None:
        nonlocal moved
        held = Allocation.objects.filter(reservation=reservation, live=True, lease=None)
        for node_id in held.filter(Exists(unfit)).values_list("node", flat=True).distinct():
            overrun = _overrun(at=at).filter(node=node_id).exists()
            reason = RelocationReason.OVERRUN if overrun else RelocationReason.GPU_UNFIT
            moved += move(
                reservation_id=reservation.pk, node_id=node_id, reason=reason, at=at, actor=SYSTEM
            )

    ticks.drain(due=due, advance=protect, name="protect", once=True)
    return moved


@transaction.atomic
def move(
    *, reservation_id: str, node_id: str, reason: RelocationReason, at: dt.datetime, actor: str
) -> bool:
    """Move what a reservation has on a node to other nodes; say whether that was possible.

    The reservation is locked first: it neither starts nor changes meanwhile. Nothing moves once it started.
    """
    reservation = Reservation.objects.select_for_update(no_key=True, of=("self",)).get(
        pk=reservation_id
    )
    if reservation.status not in NOT_STARTED:
        return False
    held = Allocation.objects.filter(reservation=reservation, live=True)
    old = list(held.filter(node=node_id, lease=None))
    if not old:
        return False
    gpus: Counter[int] = Counter()
    for place in old:
        gpus[place.lot] += place.slots.upper - place.slots.lower

    def take(places: Sequence[calendar.Place]) -> None:
        change = calendar.Move(
            allocation_ids=tuple(place.pk for place in old),
            places=tuple(places),
            window=reservation.window,
        )
        calendar.replace_places(moves=[change], at=at)

    spread = Spread(reservation.spread)
    rest = held.exclude(node=node_id)
    demand = Demand(
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
        spread=spread,
        window=reservation.window,
        asks=placement.asks_of(reservation.lots, gpus=gpus),
        without_nodes=frozenset({node_id}),
        islands=replacements.islands_of(places=rest) if spread is Spread.SAME_FABRIC else None,
    )
    try:
        placement.assign(demand=demand, take=take, at=at)
    except CapacityTaken:
        return False
    Relocation.objects.create(
        reservation=reservation,
        from_node_id=node_id,
        gpus=gpus.total(),
        reason=reason,
        actor=actor,
        at=at,
    )
    return True


def _unfit(*, at: dt.datetime) -> QuerySet[Gpu]:
    """Return the unfit GPUs of the place around the query."""
    overrun = _overrun(at=at).filter(node=OuterRef("node"), gpu_uuids__contains=[OuterRef("uuid")])
    return Gpu.objects.filter(
        Exists(overrun)
        | Q(health__in=[Health.QUARANTINED.value, Health.LOST.value])
        | ~Q(quarantined_by_market="")
        | Q(present=False)
        | Q(node__status=NodeStatus.REVOKED),
        node=OuterRef("node"),
        slot__contained_by=OuterRef("slots"),
    )


def _overrun(*, at: dt.datetime) -> QuerySet[Lease]:
    """Return the leases whose GPUs should be back and are not."""
    return Lease.objects.filter(
        status__in=[LeaseStatus.RETURNING, LeaseStatus.RECLAIMING],
        ends_at__lte=at - dt.timedelta(seconds=OVERRUN_SECONDS),
    )
