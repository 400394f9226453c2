"""Turn finished leases into final money and GPU-seconds: once each, to the minor unit.

The hours of a lease that were closed while it ran have posted what they earned; its settlement posts the
rest, so that both together are what the whole evidence says. What no lease of a finished reservation accounts
for goes back to the tenant as undelivered. How a price is divided is told in `billing.amounts`, what a tenant
gets beyond its refund in `billing.service_credits`.
"""

import datetime as dt
import logging
from functools import partial

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef

from agents import grants, health
from billing import (
    accounts,
    ledger,
    parking,
    receivables,
    service_credits,
    silences,
    steps,
    tax,
    undelivered,
)
from billing.amounts import (
    Amounts,
    LeasesExceedReservation,
    amounts_for,
    amounts_of,
    share_delivered,
)
from billing.deliveries import Delivery, delivery_of, is_refunded
from billing.earnings import Posted, money_rows, posted_so_far, seconds_rows
from billing.models import Account, Settlement
from billing.month_movements import filed_at, moment_of_lease
from billing.states import AccountKind, EntryKind
from marketplace import contention
from scheduler.models import Lease, Reservation
from scheduler.states import LEASE_ARROWS, RESERVATION_ARROWS, LeaseStatus, ReservationStatus

logger = logging.getLogger(__name__)

# About ten seconds of work: a tick that overlaps the next does no harm.
SETTLEMENTS_PER_RUN_MAX = 500
# Ids; so many may wait or fail before they hold up those behind them.
CANDIDATES_PER_RUN_MAX = 5_000
# A GPU that flaps at every look of a week has more; the sums of the settlement count them all.
EVIDENCE_OUTAGES_MAX = 500
# Every change of what a reservation buys rounds once more; so many minor units cannot be a mistake.
ROUNDING_SLACK_MINOR = 20
# When evidence is looked for that came late: an agent's spool holds a week.
REVIEWS_AFTER_SECONDS = (3_600, 6 * 3_600, 86_400, 3 * 86_400, 8 * 86_400)

FINAL_LEASE_STATUSES = tuple(s for s in LeaseStatus if LEASE_ARROWS.is_final(s))
FINAL_RESERVATION_STATUSES = tuple(s for s in ReservationStatus if RESERVATION_ARROWS.is_final(s))


def grace_seconds(*, at: dt.datetime) -> int:
    """Return how long after a lease has closed its last meter readings are waited for.

    They travel with the return receipt, or in one of the next reports. Once a node that sends none counts
    as silent, the receipts stand without them; where the operator is patient, it gets longer than that.
    """
    return max(health.stale_seconds(at=at), settings.SETTLEMENT_PATIENCE_SECONDS)


def settle_ended(*, at: dt.datetime) -> int:
    """Settle the finished leases whose evidence is in, then what finished reservations have left over.

    Safe to run twice or side by side: each is claimed by its row lock. One that cannot be settled is
    logged, found by the check of the books, and does not hold up the others.
    """
    settled = 0
    for lease_id in _candidate_leases(at=at):
        if settled >= SETTLEMENTS_PER_RUN_MAX:
            return settled
        verb = partial(settle, lease_id=lease_id, at=at)
        try:
            settled += contention.repeated(verb, name="settle") is not None
        except Exception:
            logger.exception("lease %s could not be settled", lease_id)
    for reservation_id in _candidate_reservations():
        if settled >= SETTLEMENTS_PER_RUN_MAX:
            return settled
        try:
            settled += refund_rest(reservation_id=reservation_id, at=at)
        except Exception:
            logger.exception("reservation %s could not be closed", reservation_id)
    return settled


@transaction.atomic
def settle(*, lease_id: str, at: dt.datetime) -> Settlement | None:
    """Settle one finished lease; None when somebody else does, did, or readings are still on the way.

    None too while the money of its tenant or owner is parked, or nobody tells what became of its GPUs.

    :raises LeasesExceedReservation: when the leases promise more than the reservation bought.
    """
    lease = (
        Lease.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=lease_id, status__in=FINAL_LEASE_STATUSES, closed_at__isnull=False)
        .select_related(
            "reservation__organization",
            "reservation__quote",
            "reservation__tax_terms",
            "node__organization",
        )
        .first()
    )
    if lease is None or Settlement.objects.filter(lease=lease).exists():
        return None
    assert lease.closed_at is not None
    reservation, owner = lease.reservation, lease.node.organization
    if parking.is_parked(organizations=[reservation.organization, owner]):
        return None
    delivery = delivery_of(lease=lease)
    is_patient = at < lease.closed_at + dt.timedelta(seconds=grace_seconds(at=at))
    if is_patient and not delivery.is_fully_metered:
        return None
    if silences.is_waiting(lease=lease):
        return None
    is_owed = receivables.lock_for_credit(reservation=reservation)
    before = posted_so_far(lease=lease)
    amounts = _within_books(
        lease=lease,
        delivery=delivery,
        before=before,
        wanted=amounts_for(lease=lease, delivery=delivery),
    )
    key = f"settlement:{lease.id}"
    part = tax.part_of(reservation=reservation, key=key, refunded=amounts.refunded)
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.SETTLEMENT,
        subject_id=lease.id,
        effective_at=lease.closed_at,
        legs=_legs(lease=lease, delivery=delivery, amounts=amounts, before=before, part=part),
    )
    moment = moment_of_lease(ends_at=lease.ends_at, closed_at=lease.closed_at)
    tax.note(part, reservation=reservation, entry=entry, at=filed_at(moment=moment, at=at))
    steps.reached("settlement.posted")
    credit, credit_of_owner = service_credits.post_for_lease(
        lease=lease, delivery=delivery, amounts=amounts, at=lease.closed_at
    )
    if is_owed:
        receivables.set_credit_off(reservation=reservation, amount_minor=credit, at=at)
    steps.reached("settlement.credited")
    settlement = Settlement.objects.create(
        lease=lease,
        owner=owner,
        entry=entry,
        currency=reservation.currency,
        gpu_seconds_bought=delivery.bought,
        gpu_seconds_delivered=delivery.delivered,
        gpu_seconds_busy=delivery.busy,
        gpu_seconds_metered=delivery.metered,
        bought_minor=amounts.bought,
        earned_minor=amounts.earned,
        fee_minor=amounts.fee,
        owner_minor=amounts.owner,
        refunded_minor=amounts.refunded,
        credit_minor=credit,
        credit_of_owner_minor=credit_of_owner,
        evidence=evidence_of(lease=lease, delivery=delivery),
        settled_at=at,
        release_due_at=_release_due_at(closed_at=lease.closed_at, settled_at=at),
        review_due_at=at + dt.timedelta(seconds=REVIEWS_AFTER_SECONDS[0]),
    )
    steps.reached("settlement.stored")
    return settlement


@transaction.atomic
def refund_rest(*, reservation_id: str, at: dt.datetime) -> bool:
    """Give back what no lease of a finished reservation accounts for; say whether there was any.

    A reservation that failed before it had leases is returned whole. Nothing happens while a lease is
    open or not settled, or the tenant's money is parked.
    """
    reservation = (
        Reservation.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=reservation_id, status__in=FINAL_RESERVATION_STATUSES)
        .select_related("organization", "tax_terms")
        .first()
    )
    if reservation is None or reservation.leases.filter(settlement__isnull=True).exists():
        return False
    if parking.is_parked(organizations=[reservation.organization]):
        return False
    is_owed = receivables.lock_for_credit(reservation=reservation)
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=reservation.currency
    )
    still_open = accounts.of_reservation(kind=AccountKind.U_OPEN, reservation=reservation)
    not_delivered = accounts.of_reservation(kind=AccountKind.U_UNDELIVERED, reservation=reservation)
    back = accounts.refunds_of(reservation=reservation)
    rest = ledger.balance(account=deferred)
    key = f"refund:{reservation.id}"
    part = tax.part_of(reservation=reservation, key=key, refunded=rest)
    legs = ledger.differences(
        [
            (deferred, back, rest),
            *tax.rows(part, reservation=reservation, payer=back, payee=back),
            (not_delivered, still_open, ledger.balance(account=still_open)),
        ]
    )
    if not legs:
        return False
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.REFUND,
        subject_id=reservation.id,
        effective_at=at,
        legs=legs,
    )
    tax.note(part, reservation=reservation, entry=entry, at=at)
    steps.reached("rest.refunded")
    credit = service_credits.post_for_rest(reservation=reservation, refunded_minor=rest, at=at)
    if is_owed:
        receivables.set_credit_off(reservation=reservation, amount_minor=credit, at=at)
    steps.reached("rest.credited")
    return True


def _release_due_at(*, closed_at: dt.datetime, settled_at: dt.datetime) -> dt.datetime:
    """Return when what a lease earned becomes payable: the dispute buffer counts from the lease's end.

    What was settled late waits for the last look at its evidence all the same, unless the market's buffer is
    shorter than that: until then nobody could have objected to it.
    """
    buffer_seconds = settings.PAYOUT_DELAY_SECONDS
    looked_at = settled_at + dt.timedelta(seconds=min(buffer_seconds, REVIEWS_AFTER_SECONDS[-1]))
    return max(closed_at + dt.timedelta(seconds=buffer_seconds), looked_at)


def _within_books(*, lease: Lease, delivery: Delivery, before: Posted, wanted: Amounts) -> Amounts:
    """Return the amounts, brought down to what the books still hold for the reservation.

    :raises LeasesExceedReservation: when that is more than rounding can explain.
    """
    reservation = lease.reservation
    held = before.earned + ledger.kept_balance(
        account=accounts.of_reservation(
            kind=AccountKind.DEFERRED, reservation=reservation, currency=reservation.currency
        )
    )
    if wanted.bought <= held:
        return wanted
    if wanted.bought - held > ROUNDING_SLACK_MINOR:
        raise LeasesExceedReservation(f"{reservation.id}: {wanted.bought} of {held} minor units")
    return amounts_of(
        bought_minor=held,
        delivered=share_delivered(lease=lease, worth=delivery.worth),
        fee_basis_points=reservation.fee_basis_points,
    )


def _legs(
    *,
    lease: Lease,
    delivery: Delivery,
    amounts: Amounts,
    before: Posted,
    part: tax.TaxPart,
) -> list[ledger.Leg]:
    """Return what the settlement adds to what the hours have posted."""
    reservation = lease.reservation
    back = accounts.refunds_of(reservation=reservation)
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=reservation.currency
    )
    idle, idle_before = delivery.delivered - delivery.busy, before.delivered - before.busy
    return ledger.differences(
        [
            *money_rows(
                lease=lease, owner=amounts.owner - before.owner, fee=amounts.fee - before.fee
            ),
            (deferred, back, amounts.refunded),
            *tax.rows(part, reservation=reservation, payer=back, payee=back),
            *seconds_rows(
                lease=lease,
                busy=delivery.busy - before.busy,
                idle=idle - idle_before,
                undelivered=delivery.bought - delivery.delivered,
            ),
        ]
    )


def evidence_of(*, lease: Lease, delivery: Delivery) -> dict[str, object]:
    """Return what the settlement rests on, so that anyone can repeat it."""
    receipts = grants.receipts_for(lease_ids=[lease.id])
    return {
        "lease_status": lease.status,
        "handed_over_at": lease.handed_over_at and lease.handed_over_at.isoformat(),
        "returned_at": lease.returned_at and lease.returned_at.isoformat(),
        "receipts": {
            kind.value: {"id": receipt.pk, "at": receipt.at.isoformat(), "clean": receipt.is_clean}
            for (_, epoch, kind), receipt in sorted(receipts.items())
            if epoch == lease.epoch
        },
        "fee_basis_points": lease.reservation.fee_basis_points,
        "energy_millijoules": delivery.energy_millijoules,
        "gpu_seconds_measured": delivery.measured,
        "gpu_seconds_attached": delivery.attached,
        undelivered.EVIDENCE_KEY: undelivered.as_evidence(
            undelivered.of_lease(lease=lease, delivery=delivery)
        ),
        "outage_count": len(delivery.outages),
        "outages": [
            {
                "gpu_uuid": outage.gpu_uuid,
                "starts_at": outage.window.starts_at.isoformat(),
                "ends_at": outage.window.ends_at.isoformat(),
                "health": outage.health.value,
                "cause": outage.cause.value,
                "reason": outage.reason,
                "refunded": is_refunded(lease=lease, outage=outage),
            }
            for outage in delivery.outages[:EVIDENCE_OUTAGES_MAX]
        ],
    }


def _candidate_leases(*, at: dt.datetime) -> list[str]:
    """Return finished leases without a settlement, of reservations that have GPU-seconds open in the books.

    Those are found by a partial index: the cost follows the open business and not the history.
    """
    still_open = Account.objects.filter(kind=AccountKind.U_OPEN, balance__gt=0)
    return list(
        Lease.objects.filter(
            reservation__in=still_open.values("subject_id"),
            status__in=FINAL_LEASE_STATUSES,
            closed_at__lte=at,
            settlement__isnull=True,
        )
        .order_by("closed_at")
        .values_list("pk", flat=True)[:CANDIDATES_PER_RUN_MAX]
    )


def _candidate_reservations() -> list[str]:
    open_seconds = Account.objects.filter(
        kind=AccountKind.U_OPEN, balance__gt=0, subject_id=OuterRef("pk")
    )
    unsettled = Lease.objects.filter(reservation=OuterRef("pk"), settlement__isnull=True)
    return list(
        Reservation.objects.filter(
            Exists(open_seconds), ~Exists(unsettled), status__in=FINAL_RESERVATION_STATUSES
        )
        .order_by("ends_at")
        .values_list("pk", flat=True)[:CANDIDATES_PER_RUN_MAX]
    )
