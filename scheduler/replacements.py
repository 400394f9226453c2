"""Other GPUs for a lease whose own failed: on any owner's node that keeps the same promise.

The promise is the reservation's region, model, tier and spread, and its price. A listing serves in the place
of another only if its floor is one that the quote admitted, so nobody bears a dearer one: neither the tenant,
whose rate is locked, nor the owner whose GPUs failed, nor the market. Where that leaves nothing, the tenant
is released and what was not delivered goes back.

A running lease is left alone until its replacement stands: a machine with one bad GPU of eight is worth more
than none, and what is down is credited from telemetry meanwhile.
"""

import datetime as dt
from collections import Counter

from django.db import transaction
from django.db.models import QuerySet

from marketplace import events
from marketplace.core.windows import Window, format_instant, grid_ceiling
from marketplace.states import EventKind, Tier
from scheduler import calendar, faults, leases, openings, placement, ticks
from scheduler.calendar import CapacityTaken
from scheduler.models import Allocation, Lease, Replacement, Reservation
from scheduler.placement import Demand
from scheduler.pools import Island
from scheduler.states import (
    LEASE_ARROWS,
    LeaseReason,
    LeaseStatus,
    ReplacementOutcome,
    ReservationStatus,
    Spread,
)

# A chain of leases in each other's place: whatever fails six machines in a row is not the machines.
CHAIN_MAX = 5
# While a lease runs, or was delivered in part, room may yet come free; the search slows down.
RETRY_SECONDS = 60
RETRY_SECONDS_MAX = 900
PATIENCE_SECONDS = 3_600  # a tenant without GPUs is released then
USEFUL_SECONDS_MIN = 600  # what is left must outlast the time that a handover may take


def advance(*, at: dt.datetime) -> int:
    """Find the leases that lost their GPUs, and put others in their place; return the number of moves."""
    return leases.lose_due(at=at) + seek_due(at=at) + replace_due(at=at)


def seek_due(*, at: dt.datetime) -> int:
    """Open a search for each active firm lease whose GPUs failed; return how many are new."""
    due = (
        faults.suspects(at=at)
        .exclude(replacements__closed_at__isnull=True, replacements__isnull=False)
        .select_related("node")
        .order_by("pk")
    )
    opened = 0

    def seek(lease: Lease) -> None:
        nonlocal opened
        if faults.has_fault(lease=lease, at=at):
            Replacement.objects.create(lease=lease, opened_at=at, due_at=at)
            opened += 1

    ticks.drain(due=due, advance=seek, name="seek_replacement", once=True)
    return opened


def replace_due(*, at: dt.datetime) -> int:
    """Try the searches whose time has come; return how many came to an end."""
    due = Replacement.objects.filter(closed_at__isnull=True, due_at__lte=at).order_by(
        "due_at", "pk"
    )
    closed = 0

    def attempt(row: Replacement) -> None:
        nonlocal closed
        closed += replace(replacement=row, at=at)

    ticks.drain(due=due, advance=attempt, name="replace")
    return closed


@transaction.atomic
def replace(*, replacement: Replacement, at: dt.datetime) -> bool:
    """Try once to put other GPUs in the place of a lease's; say whether the search is over with that.

    The reservation is locked first, as by everybody who changes what it has.
    """
    lease = Lease.objects.select_related("node").get(pk=replacement.lease_id)
    reservation = Reservation.objects.select_for_update(no_key=True).get(pk=lease.reservation_id)
    outcome = _obstacle(lease=lease, reservation=reservation, at=at)
    if outcome is None:
        if _place(lease=lease, reservation=reservation, at=at):
            outcome = ReplacementOutcome.PLACED
        elif _is_hopeless(replacement=replacement, lease=lease, at=at):
            outcome = ReplacementOutcome.NO_ROOM
    replacement.attempts += 1
    if outcome is None:
        pause = min(RETRY_SECONDS * 2 ** (replacement.attempts - 1), RETRY_SECONDS_MAX)
        replacement.due_at = at + dt.timedelta(seconds=pause)
    else:
        replacement.closed_at, replacement.outcome = at, outcome
    replacement.save(update_fields=["attempts", "due_at", "closed_at", "outcome"])
    return outcome is not None


def _obstacle(
    *, lease: Lease, reservation: Reservation, at: dt.datetime
) -> ReplacementOutcome | None:
    """Return why nothing is to be placed any more, or `None`."""
    is_closed = LEASE_ARROWS.is_final(LeaseStatus(lease.status))
    left = reservation.ends_at - at
    if (
        reservation.status != ReservationStatus.ACTIVE
        or left < dt.timedelta(seconds=USEFUL_SECONDS_MIN)
        or not (is_closed or lease.status == LeaseStatus.ACTIVE)
        or lease.replaced_by.exists()
    ):
        return ReplacementOutcome.OVER
    if not is_closed and not faults.has_fault(lease=lease, at=at):
        return ReplacementOutcome.HEALED
    if _chain_length(lease) >= CHAIN_MAX:
        return ReplacementOutcome.TOO_MANY
    return None


def _is_hopeless(*, replacement: Replacement, lease: Lease, at: dt.datetime) -> bool:
    """Say whether to release the tenant: at once if it never had anything, later if it had.

    While the lease runs there is nothing to lose by waiting.
    """
    if not LEASE_ARROWS.is_final(LeaseStatus(lease.status)):
        return False
    if lease.handed_over_at is None and not _was_delivered(lease):
        return True
    return at >= replacement.opened_at + dt.timedelta(seconds=PATIENCE_SECONDS)


def _was_delivered(lease: Lease) -> bool:
    delivered = Lease.objects.filter(
        reservation_id=lease.reservation_id, handed_over_at__isnull=False
    )
    return delivered.exists()


def _place(*, lease: Lease, reservation: Reservation, at: dt.datetime) -> bool:
    """Find GPUs for the rest of the window and hand the promise over to them; say whether there were any."""
    begin = max(grid_ceiling(at, grid_seconds=1), lease.starts_at + dt.timedelta(seconds=1))
    rest = Window(begin, reservation.ends_at)
    try:
        placement.assign(
            demand=_demand(lease=lease, reservation=reservation, rest=rest),
            take=lambda places: calendar.take_for_reservation(
                places=places, window=rest, reservation_id=reservation.pk, at=at
            ),
            at=at,
        )
    except CapacityTaken:
        return False
    if lease.status == LeaseStatus.ACTIVE:
        leases.interrupt(lease=lease, reason=LeaseReason.NODE_FAULT, at=at)
    opened = openings.open_in_place_of(lease=lease, reservation=reservation, starts_at=begin, at=at)
    events.record(
        organization=reservation.organization,
        kind=EventKind.LEASE_REPLACED,
        object_id=lease.pk,
        data={
            "reservation_id": reservation.pk,
            "replaced_by": [new.pk for new in opened],
            "from": format_instant(begin),
        },
        at=at,
        key=f"{lease.pk}:replaced",
    )
    return True


def _demand(*, lease: Lease, reservation: Reservation, rest: Window) -> Demand:
    """Return what the promise asks of other GPUs.

    A node that could not hand over is left out for this reservation, and so is one whose GPU fell off under
    the lease: the cure is a restart, which would hit the others. Parts of a block stay together.
    """
    spread = Spread(reservation.spread)
    islands = None
    if spread is Spread.SAME_FABRIC:
        islands = islands_of(
            places=Allocation.objects.filter(reservation=reservation, live=True).exclude(
                lease=lease
            )
        )
    unable = set(
        Lease.objects.filter(reservation=reservation, status=LeaseStatus.FAILED).values_list(
            "node_id", flat=True
        )
    )
    if lease.status == LeaseStatus.ACTIVE:
        unable.add(lease.node_id)
    return Demand(
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
        spread=spread,
        window=rest,
        asks=placement.asks_of(reservation.lots, gpus=Counter(lease.lot_numbers)),
        without_nodes=frozenset(unable),
        islands=islands,
    )


def islands_of(*, places: QuerySet[Allocation]) -> frozenset[Island] | None:
    """Return the islands on which places stand; `None` where there are no places."""
    rows = places.values_list("node__organization", "node__region", "node__fabric", "node")
    found = frozenset((owner, region, fabric or node) for owner, region, fabric, node in rows)
    return found or None


def _chain_length(lease: Lease) -> int:
    length, link = 0, lease
    while link.replaces is not None and length < CHAIN_MAX:
        length, link = length + 1, link.replaces
    return length
