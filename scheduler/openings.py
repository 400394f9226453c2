"""The beginning of leases: one per node of a reservation, and the grant that asks its node for them."""

import datetime as dt
from collections import defaultdict
from collections.abc import Mapping, Sequence

from django.db.models import Max

from agents import grants
from agents.models import Gpu
from scheduler import calendar
from scheduler.models import Allocation, Lease, LeaseTransition, Reservation
from scheduler.states import LEASE_ARROWS, LeaseReason

SYSTEM = "scheduler"


def open_all(*, reservations: Sequence[Reservation], at: dt.datetime) -> list[Lease]:
    """Open one lease per node of each reservation and grant its GPUs, within the caller's transaction.

    The number of statements does not depend on how many they are.
    """
    rows = {reservation.pk: reservation for reservation in reservations}
    places = Allocation.objects.filter(reservation__in=rows, live=True, lease=None)
    opened = _open(
        places=list(places.select_related("node")),
        reservations=rows,
        reason=LeaseReason.WINDOW_STARTED,
        at=at,
    )
    gpus: dict[str, int] = defaultdict(int)
    for lease in opened:
        gpus[lease.reservation_id] += len(lease.gpu_uuids)
    assert gpus == {row.pk: row.gpus for row in reservations}, gpus
    return opened


def open_in_place_of(
    *, lease: Lease, reservation: Reservation, starts_at: dt.datetime, at: dt.datetime
) -> list[Lease]:
    """Open leases on the places that a reservation got instead of a lease's, within the transaction."""
    places = Allocation.objects.filter(reservation=reservation, live=True, lease=None)
    return _open(
        places=list(places.select_related("node")),
        reservations={reservation.pk: reservation},
        reason=LeaseReason.REPLACED,
        at=at,
        replaces=lease,
        starts_at=starts_at,
    )


def _open(
    *,
    places: Sequence[Allocation],
    reservations: Mapping[str, Reservation],
    reason: LeaseReason,
    at: dt.datetime,
    replaces: Lease | None = None,
    starts_at: dt.datetime | None = None,
) -> list[Lease]:
    by_node: dict[tuple[str, str], list[Allocation]] = defaultdict(list)
    for place in sorted(places, key=lambda row: row.slots.lower):
        assert place.reservation_id is not None, place
        by_node[place.reservation_id, place.node_id].append(place)
    slots = {slot for row in places for slot in range(row.slots.lower, row.slots.upper)}
    uuid_of = dict(Gpu.objects.filter(slot__in=slots).values_list("slot", "uuid"))
    opened: list[Lease] = []
    lease_of: dict[int, str] = {}
    for (reservation_id, _), rows in sorted(by_node.items()):
        reservation = reservations[reservation_id]
        lease = Lease(
            reservation=reservation,
            node=rows[0].node,
            status=LEASE_ARROWS.initial[0],
            epoch=1 if replaces is None else _next_epoch(reservation),
            gpu_uuids=[
                uuid_of[slot] for row in rows for slot in range(row.slots.lower, row.slots.upper)
            ],
            gpu_lots=_lots_of(rows),
            starts_at=starts_at or reservation.starts_at,
            ends_at=reservation.ends_at,
            created_at=at,
            replaces=replaces,
        )
        opened.append(lease)
        lease_of |= {row.pk: lease.pk for row in rows}
    Lease.objects.bulk_create(opened)
    LeaseTransition.objects.bulk_create(
        LeaseTransition(
            lease=lease, from_status="", to_status=lease.status, reason=reason, actor=SYSTEM, at=at
        )
        for lease in opened
    )
    calendar.bind(lease_of=lease_of)
    grants.issue_all(wishes=[_wish(lease) for lease in opened], at=at)
    return opened


def _lots_of(rows: Sequence[Allocation]) -> list[int]:
    """Return the lot of each GPU of some places; nothing where all are of the first."""
    lots = [row.lot for row in rows for _ in range(row.slots.lower, row.slots.upper)]
    return lots if any(lots) else []


def _wish(lease: Lease) -> grants.Wish:
    return grants.Wish(
        node=lease.node,
        lease_id=lease.pk,
        lease_epoch=lease.epoch,
        gpu_uuids=lease.gpu_uuids,
        window=lease.window,
        ssh_public_keys=lease.reservation.ssh_public_keys,
        image=lease.reservation.image,
    )


def _next_epoch(reservation: Reservation) -> int:
    highest = Lease.objects.filter(reservation=reservation).aggregate(epoch=Max("epoch"))["epoch"]
    return int(highest or 0) + 1
