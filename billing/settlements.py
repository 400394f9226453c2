"""Turn finished leases into final money and GPU-seconds: once each, to the minor unit.

A lease's part of the reservation's price is the difference of two rounded sums over the leases in the
order of their ids, taken of everything the reservation bought. So a part depends on no later lease, the
parts of leases that make up the whole add up to the price exactly, and they may settle in any order. What
no lease of a finished reservation accounts for goes back to the wallet as undelivered.
"""

import datetime as dt
import logging
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef

from agents import grants, health, metering
from billing import ledger, wallet
from billing.models import Account, Settlement
from billing.purchases import gpu_seconds_bought, reservation_account
from billing.states import AccountKind, EntryKind
from marketplace.core.money import share_of
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import LEASE_ARROWS, RESERVATION_ARROWS, LeaseStatus, ReservationStatus

logger = logging.getLogger(__name__)

# About ten seconds of work: a tick that overlaps the next does no harm.
SETTLEMENTS_PER_RUN_MAX = 500
# Ids; so many may wait or fail before they hold up those behind them.
CANDIDATES_PER_RUN_MAX = 5_000
BASIS_POINTS = 10_000

FINAL_LEASE_STATUSES = tuple(s for s in LeaseStatus if LEASE_ARROWS.is_final(s))
FINAL_RESERVATION_STATUSES = tuple(s for s in ReservationStatus if RESERVATION_ARROWS.is_final(s))


def grace_seconds(*, at: dt.datetime) -> int:
    """Return how long after a lease has closed its last meter readings are waited for.

    They travel with the return receipt, or in one of the next reports. Once a node that sends none counts
    as silent, the receipts stand without them.
    """
    return health.stale_seconds(at=at)


class LeasesExceedReservation(Exception):
    """The leases promise more GPU-seconds than was bought: no division of the price would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the evidence says of a lease, in whole GPU-seconds: `busy <= delivered <= bought`.

    `metered` are the delivered GPU-seconds that meter readings cover; `is_fully_metered` says that every
    GPU has readings up to the end, so that none is still on its way.
    """

    bought: int
    delivered: int
    metered: int
    busy: int
    energy_millijoules: int | None
    is_fully_metered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """A lease's part of the price and what becomes of it, in minor units.

    `bought = earned + refunded`, `earned = owner + fee`.
    """

    bought: int
    earned: int
    fee: int
    owner: int
    refunded: int


def settle_ended(*, at: dt.datetime) -> int:
    """Settle the finished leases whose evidence is in, then what finished reservations have left over.

    Safe to run twice or side by side: each is claimed by its row lock. One that cannot be settled is
    logged, found by the check of the books, and does not hold up the others.
    """
    settled = 0
    for lease_id in _candidate_leases(at=at):
        if settled >= SETTLEMENTS_PER_RUN_MAX:
            return settled
        try:
            settled += settle(lease_id=lease_id, at=at) is not None
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

    :raises LeasesExceedReservation: when the leases promise more than the reservation bought.
    """
    lease = (
        Lease.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=lease_id, status__in=FINAL_LEASE_STATUSES, closed_at__isnull=False)
        .select_related("reservation__organization", "node__organization")
        .first()
    )
    if lease is None or Settlement.objects.filter(lease=lease).exists():
        return None
    assert lease.closed_at is not None
    delivery = delivery_of(lease=lease)
    is_patient = at < lease.closed_at + dt.timedelta(seconds=grace_seconds(at=at))
    if is_patient and not delivery.is_fully_metered:
        return None
    reservation = lease.reservation
    amounts = amounts_of(
        bought_minor=part_of_price(lease=lease),
        delivery=delivery,
        fee_basis_points=reservation.fee_basis_points,
    )
    entry = ledger.post(
        idempotency_key=f"settlement:{lease.id}",
        kind=EntryKind.SETTLEMENT,
        subject_id=lease.id,
        effective_at=lease.closed_at,
        legs=_legs(lease=lease, delivery=delivery, amounts=amounts),
    )
    return Settlement.objects.create(
        lease=lease,
        owner=lease.node.organization,
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
        evidence=_evidence(lease=lease, delivery=delivery),
        settled_at=at,
        release_due_at=lease.closed_at + dt.timedelta(seconds=settings.PAYOUT_DELAY_SECONDS),
    )


@transaction.atomic
def refund_rest(*, reservation_id: str, at: dt.datetime) -> bool:
    """Return to the wallet what no lease of a finished reservation accounts for; say whether there was any.

    A reservation that failed before it had leases is returned whole. Nothing happens while a lease is
    open or not settled.
    """
    reservation = (
        Reservation.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=reservation_id, status__in=FINAL_RESERVATION_STATUSES)
        .select_related("organization")
        .first()
    )
    if reservation is None or reservation.leases.filter(settlement__isnull=True).exists():
        return False
    deferred = reservation_account(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=reservation.currency
    )
    still_open = reservation_account(kind=AccountKind.U_OPEN, reservation=reservation)
    undelivered = reservation_account(kind=AccountKind.U_UNDELIVERED, reservation=reservation)
    legs = [
        *ledger.transfer(
            debited=deferred,
            credited=wallet.account(
                organization=reservation.organization, currency=reservation.currency
            ),
            amount=ledger.balance(account=deferred),
        ),
        *ledger.transfer(
            debited=undelivered, credited=still_open, amount=ledger.balance(account=still_open)
        ),
    ]
    if not legs:
        return False
    ledger.post(
        idempotency_key=f"refund:{reservation.id}",
        kind=EntryKind.REFUND,
        subject_id=reservation.id,
        effective_at=at,
        legs=legs,
    )
    return True


def delivery_of(*, lease: Lease) -> Delivery:
    """Read the evidence of a lease that is over.

    Delivered is the time between the two receipts, which the lease carries clipped to its promise, less
    what the node itself says that a GPU was lost. A lease that was handed over and has no instant of return
    delivered what its meters cover: that much is known, and no more. Busy is what the meters saw.
    """
    bought = lease.gpu_seconds_bought
    end = lease.returned_at or lease.ends_at
    if lease.handed_over_at is None or not lease.handed_over_at < end:
        return Delivery(
            bought=bought,
            delivered=0,
            metered=0,
            busy=0,
            energy_millijoules=None,
            is_fully_metered=True,
        )
    window = Window(lease.handed_over_at, end)
    meters = metering.lease_meters(lease_id=lease.id, window=window)
    between_receipts = min(len(lease.gpu_uuids) * window.seconds, bought)
    metered = min(meters.gpu_seconds_metered, between_receipts)
    had = max(metered, between_receipts - meters.gpu_seconds_down)
    delivered = metered if lease.returned_at is None else had
    return Delivery(
        bought=bought,
        delivered=delivered,
        metered=metered,
        busy=min(meters.gpu_seconds_busy, delivered),
        energy_millijoules=meters.energy_millijoules,
        is_fully_metered=set(meters.gpus) >= set(lease.gpu_uuids)
        and meters.readings_until is not None
        and meters.readings_until >= end,
    )


def part_of_price(*, lease: Lease) -> int:
    """Return the lease's part of what the reservation cost, in minor units.

    :raises LeasesExceedReservation: when this lease and those before it promise more than was bought.
    """
    reservation = lease.reservation
    whole = gpu_seconds_bought(reservation=reservation)
    before = sum(
        earlier.gpu_seconds_bought for earlier in reservation.leases.filter(pk__lt=lease.pk)
    )
    until = before + lease.gpu_seconds_bought
    if until > whole:
        raise LeasesExceedReservation(f"{reservation.id}: {until} of {whole} GPU-seconds")
    total = reservation.total_minor
    return share_of(total_minor=total, part=until, whole=whole) - share_of(
        total_minor=total, part=before, whole=whole
    )


def amounts_of(*, bought_minor: int, delivery: Delivery, fee_basis_points: int) -> Amounts:
    """Divide a lease's part of the price: two roundings, and differences for the rest."""
    earned = share_of(total_minor=bought_minor, part=delivery.delivered, whole=delivery.bought)
    fee = share_of(total_minor=earned, part=fee_basis_points, whole=BASIS_POINTS)
    return Amounts(
        bought=bought_minor,
        earned=earned,
        fee=fee,
        owner=earned - fee,
        refunded=bought_minor - earned,
    )


def owner_accrued(*, lease_id: str, owner: Organization, currency: str) -> ledger.AccountRef:
    """Return the name of the account of what a lease earned for its owner and is not yet payable."""
    return ledger.AccountRef(AccountKind.OWNER_ACCRUED, currency, lease_id, owner)


def _legs(*, lease: Lease, delivery: Delivery, amounts: Amounts) -> list[ledger.Leg]:
    reservation, currency = lease.reservation, lease.reservation.currency
    money = [
        (
            owner_accrued(lease_id=lease.id, owner=lease.node.organization, currency=currency),
            amounts.owner,
        ),
        (ledger.AccountRef(AccountKind.PLATFORM_FEE, currency), amounts.fee),
        (
            wallet.account(organization=reservation.organization, currency=currency),
            amounts.refunded,
        ),
    ]
    seconds = [
        (AccountKind.U_BUSY, delivery.busy),
        (AccountKind.U_IDLE, delivery.delivered - delivery.busy),
        (AccountKind.U_UNDELIVERED, delivery.bought - delivery.delivered),
    ]
    legs = [
        ledger.debit(
            reservation_account(
                kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
            ),
            amount=amounts.bought,
        ),
        *(ledger.credit(account, amount=amount) for account, amount in money),
        ledger.credit(
            reservation_account(kind=AccountKind.U_OPEN, reservation=reservation),
            amount=delivery.bought,
        ),
        *(
            ledger.debit(reservation_account(kind=kind, reservation=reservation), amount=amount)
            for kind, amount in seconds
        ),
    ]
    return [leg for leg in legs if leg.amount]


def _evidence(*, lease: Lease, delivery: Delivery) -> dict[str, object]:
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
