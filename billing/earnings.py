"""Close the hours of running leases: what was delivered in an hour is earned once its evidence is in.

Every entry is the difference between what a lease has earned up to the end of an hour and what its entries
before it have posted. So hours add up whatever their number, a price or a window that changed in between
rights itself with the next one, and the settlement has only the rest to post.
"""

import datetime as dt
import logging
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from django.db import transaction
from django.db.models import DateTimeField, F, Max, Sum
from django.db.models.functions import Coalesce, Least

from billing import accounts, ledger, parking, steps
from billing.amounts import amounts_for
from billing.deliveries import Delivery, delivery_within
from billing.models import EarnedHour
from billing.states import AccountKind, EntryKind
from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import Window, grid_floor
from scheduler.models import Lease
from scheduler.states import LEASE_ARROWS, LeaseStatus
from scheduler.tariffs import MICROS

logger = logging.getLogger(__name__)

# A node that was cut off for an hour has sent its readings by then; what comes later the settlement finds.
CLOSE_AFTER_SECONDS = 7_200
# Half a minute of work: the next tick takes the rest, and a deployment in between waits for it.
HOURS_PER_RUN_MAX = 2_000
CANDIDATES_PER_RUN_MAX = 20_000
OPEN_LEASE_STATUSES = tuple(s for s in LeaseStatus if not LEASE_ARROWS.is_final(s))
_HOUR = dt.timedelta(seconds=SECONDS_PER_HOUR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What a lease's entries have posted so far: GPU-seconds, minor units, and the exact worth of it.

    `floor` is what the owner's floors ask for it.
    """

    delivered: int = 0
    busy: int = 0
    earned: int = 0
    fee: int = 0
    owner: int = 0
    worth: Fraction = Fraction(0)
    floor: Fraction = Fraction(0)


def close_due(*, at: dt.datetime) -> int:
    """Close the hours that are due; return how many. Safe to run twice, late, or side by side.

    A lease whose hour cannot be closed is logged and does not hold up the others.
    """
    closed = 0
    for lease_id in _candidates(at=at):
        if closed >= HOURS_PER_RUN_MAX:
            break
        try:
            closed += close_next(lease_id=lease_id, at=at)
        except Exception:
            logger.exception("an hour of lease %s could not be closed", lease_id)
    return closed


@transaction.atomic
def close_next(*, lease_id: str, at: dt.datetime) -> bool:
    """Close the next hour of a running lease; say whether it was this call that did it.

    An hour without readings up to its end waits: silence earns nothing, and the settlement decides.
    """
    lease = (
        Lease.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=lease_id, status__in=OPEN_LEASE_STATUSES, handed_over_at__isnull=False)
        .select_related("reservation__organization", "reservation__quote", "node__organization")
        .first()
    )
    if lease is None:
        return False
    window = _next_hour(lease)
    if window is None or window.ends_at + dt.timedelta(seconds=CLOSE_AFTER_SECONDS) > at:
        return False
    if parking.is_parked(organizations=[lease.reservation.organization, lease.node.organization]):
        return False
    delivery = delivery_within(lease=lease, window=window)
    if not delivery.is_fully_metered:
        return False
    before = posted_so_far(lease=lease)
    amounts = amounts_for(
        lease=lease,
        delivery=Delivery(
            bought=lease.gpu_seconds_bought,
            delivered=before.delivered + delivery.delivered,
            metered=0,
            busy=before.busy + delivery.busy,
            energy_millijoules=None,
            is_fully_metered=True,
            worth=before.worth + delivery.worth,
            floor=before.floor + delivery.floor,
        ),
    )
    idle = delivery.delivered - delivery.busy
    legs = ledger.differences(
        [
            *money_rows(
                lease=lease, owner=amounts.owner - before.owner, fee=amounts.fee - before.fee
            ),
            *seconds_rows(lease=lease, busy=delivery.busy, idle=idle, undelivered=0),
        ]
    )
    entry = (
        ledger.post(
            idempotency_key=f"earn:{lease.id}:{window.starts_at:%Y%m%dT%H%M%S}",
            kind=EntryKind.EARNING,
            subject_id=lease.id,
            effective_at=window.ends_at,
            legs=legs,
        )
        if legs
        else None
    )
    steps.reached("hour.posted")
    EarnedHour.objects.create(
        lease=lease,
        entry=entry,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        gpu_seconds_delivered=delivery.delivered,
        gpu_seconds_busy=delivery.busy,
        worth_micros=_exact_micros(delivery.worth),
        floor_micros=_exact_micros(delivery.floor),
        earned_minor=amounts.earned - before.earned,
        fee_minor=amounts.fee - before.fee,
        owner_minor=amounts.owner - before.owner,
        gpu_seconds_metered=delivery.metered,
        gpu_seconds_measured=delivery.measured,
        gpu_seconds_attached=delivery.attached,
        energy_millijoules=delivery.energy_millijoules,
        closed_at=at,
    )
    steps.reached("hour.stored")
    return True


def posted_so_far(*, lease: Lease) -> Posted:
    """Return what the closed hours of a lease have posted."""
    sums = EarnedHour.objects.filter(lease=lease).aggregate(
        delivered=Sum("gpu_seconds_delivered"),
        busy=Sum("gpu_seconds_busy"),
        earned=Sum("earned_minor"),
        fee=Sum("fee_minor"),
        owner=Sum("owner_minor"),
        worth=Sum("worth_micros"),
        floor=Sum("floor_micros"),
    )
    if sums["delivered"] is None:
        return Posted()
    worth, floor = (
        Fraction(sums.pop(name)) / (MICROS * SECONDS_PER_HOUR) for name in ("worth", "floor")
    )
    return Posted(**sums, worth=worth, floor=floor)


def money_rows(
    *, lease: Lease, owner: int, fee: int
) -> list[tuple[ledger.AccountRef, ledger.AccountRef, int]]:
    """Return what moves out of what is deferred, as rows for `ledger.differences`."""
    reservation, currency = lease.reservation, lease.reservation.currency
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
    )
    accrued = accounts.owner_accrued(
        lease_id=lease.id, owner=lease.node.organization, currency=currency
    )
    return [
        (deferred, accrued, owner),
        (deferred, accounts.shared(kind=AccountKind.PLATFORM_FEE, currency=currency), fee),
    ]


def seconds_rows(
    *, lease: Lease, busy: int, idle: int, undelivered: int
) -> list[tuple[ledger.AccountRef, ledger.AccountRef, int]]:
    """Return what GPU-seconds of the reservation found their place, as rows for `ledger.differences`."""
    still_open = accounts.of_reservation(kind=AccountKind.U_OPEN, reservation=lease.reservation)
    places = {
        AccountKind.U_BUSY: busy,
        AccountKind.U_IDLE: idle,
        AccountKind.U_UNDELIVERED: undelivered,
    }
    return [
        (accounts.of_reservation(kind=kind, reservation=lease.reservation), still_open, seconds)
        for kind, seconds in places.items()
    ]


def _next_hour(lease: Lease) -> Window | None:
    """Return the first hour of UTC that is not closed, from the lease's start on.

    None for the last: it ends with the lease and is the settlement's.
    """
    closed_until = EarnedHour.objects.filter(lease=lease).aggregate(until=Max("ends_at"))["until"]
    starts_at = closed_until or lease.starts_at
    ends_at = grid_floor(starts_at, grid_seconds=SECONDS_PER_HOUR) + _HOUR
    return Window(starts_at, ends_at) if ends_at < lease.ends_at else None


def _exact_micros(worth: Fraction) -> Decimal:
    micros = worth * MICROS * SECONDS_PER_HOUR
    assert micros.denominator == 1, worth
    return Decimal(micros.numerator)


def _candidates(*, at: dt.datetime) -> list[str]:
    """Return the running leases of which an hour may be due, those that wait longest first."""
    due_before = at - dt.timedelta(seconds=CLOSE_AFTER_SECONDS)
    return list(
        Lease.objects.filter(status__in=OPEN_LEASE_STATUSES, handed_over_at__isnull=False)
        .annotate(closed_until=Coalesce(Max("earned_hours__ends_at"), F("starts_at")))
        .filter(closed_until__lt=Least(F("ends_at"), due_before, output_field=DateTimeField()))
        .order_by("closed_until")
        .values_list("pk", flat=True)[:CANDIDATES_PER_RUN_MAX]
    )
