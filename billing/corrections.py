"""Correct settlements by evidence that came after them: a settlement stands, and the difference is posted.

A settled lease is looked at again some times while an agent may still hold readings of it. What the whole
evidence says then, less what has been posted, is the correction. It is dated when it was found, so that it
falls into the period that is open then and changes no bill that is closed.

In the tenant's favour it is refunded like the settlement's, with its credit, which the same party bears.
Against the tenant it is taken from the wallet with its tax as far as that covers it, and the market bears the
rest, untaxed because nobody paid it: nobody is billed twice for one hour. Readings that change neither money
nor what was busy, as those of an idle hour that a node had kept back, are noted without an entry, so that a
bill says what was measured.
"""

import datetime as dt
import logging
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Sum

from billing import accounts, ledger, parking, receivables, service_credits, steps, tax
from billing.amounts import Amounts, amounts_of, floor_minor, share_delivered
from billing.deliveries import Delivery, delivery_of
from billing.models import Correction, Settlement
from billing.settlements import REVIEWS_AFTER_SECONDS, evidence_of
from billing.states import AccountKind, EntryKind
from scheduler.models import Lease

logger = logging.getLogger(__name__)

REVIEWS_PER_RUN_MAX = 500  # about ten seconds of work; the next tick takes the rest
_LOOKED_AT = ("delivered", "busy", "metered", "energy_millijoules", "measured", "attached")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """What a settlement and its corrections have posted together, and what the last of them knew.

    `energy_millijoules`, `measured` and `attached` are sums and no differences, None where nothing told.
    """

    number: int
    delivered: int
    busy: int
    metered: int
    earned: int
    fee: int
    owner: int
    refunded: int
    credit: int
    credit_of_owner: int
    energy_millijoules: int | None
    measured: int | None
    attached: int | None


def review_due(*, at: dt.datetime) -> int:
    """Look at the settlements that are due; return how many corrections that made.

    Safe to run twice or side by side. One that cannot be looked at is logged, and does not hold up the rest.
    """
    due = Settlement.objects.filter(review_due_at__lte=at).order_by("review_due_at")
    corrected = 0
    for settlement_id in due.values_list("pk", flat=True)[:REVIEWS_PER_RUN_MAX]:
        try:
            corrected += review(settlement_id=settlement_id, at=at) is not None
        except Exception:
            logger.exception("settlement %s could not be reviewed", settlement_id)
    return corrected


@transaction.atomic
def review(*, settlement_id: str, at: dt.datetime) -> Correction | None:
    """Compare a settlement with the evidence of today; correct it where they differ."""
    settlement = (
        Settlement.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=settlement_id, review_due_at__lte=at)
        .select_related(
            "owner",
            "lease__node",
            "lease__reservation__organization",
            "lease__reservation__quote",
            "lease__reservation__tax_terms",
        )
        .first()
    )
    if settlement is None:
        return None
    lease = settlement.lease
    if parking.is_parked(organizations=[lease.reservation.organization, settlement.owner]):
        return None
    Settlement.objects.filter(pk=settlement.pk).update(
        review_due_at=_next_review(settlement, at=at)
    )
    delivery = delivery_of(lease=lease)
    standing = _standing(settlement)
    amounts = amounts_of(
        bought_minor=settlement.bought_minor,
        delivered=share_delivered(lease=lease, worth=delivery.worth),
        fee_basis_points=lease.reservation.fee_basis_points,
        floor=floor_minor(reservation=lease.reservation, owed=delivery.floor),
    )
    if all(getattr(delivery, name) == getattr(standing, name) for name in _LOOKED_AT):
        return None
    return _correct(
        settlement=settlement, delivery=delivery, amounts=amounts, standing=standing, at=at
    )


def latest_evidence(settlement: Settlement) -> dict[str, Any]:
    """Return what a lease rests on as it was last looked at: the newest correction's, or the settlement's."""
    corrections = sorted(settlement.corrections.all(), key=lambda each: each.number)
    evidence: dict[str, Any] = (corrections[-1] if corrections else settlement).evidence
    return evidence


def _correct(
    *,
    settlement: Settlement,
    delivery: Delivery,
    amounts: Amounts,
    standing: _Standing,
    at: dt.datetime,
) -> Correction:
    lease, reservation = settlement.lease, settlement.lease.reservation
    is_owed = receivables.lock_for_credit(reservation=reservation)
    refunded = amounts.refunded - standing.refunded
    purse = accounts.wallet(organization=reservation.organization, currency=settlement.currency)
    charged = 0
    if refunded < 0:
        charged = tax.net_within(
            reservation=reservation,
            net_minor=-refunded,
            gross_minor=ledger.kept_balance(account=purse),
        )
    borne = max(-refunded, 0) - charged
    key = f"correction:{settlement.id}:{standing.number + 1}"
    part = tax.part_of(reservation=reservation, key=key, charged=charged, refunded=max(refunded, 0))
    credit, credit_of_owner = service_credits.added_by_evidence(
        lease=lease,
        delivery=delivery,
        amounts=amounts,
        given=standing.credit,
        of_owner=standing.credit_of_owner,
    )
    cost = accounts.shared(kind=AccountKind.SLA_CREDITS, currency=settlement.currency)
    fee = accounts.shared(kind=AccountKind.PLATFORM_FEE, currency=settlement.currency)
    back = accounts.refunds_of(reservation=reservation)
    # What had not been released yet will be, together with the settlement's.
    for_owner = amounts.owner - standing.owner - credit_of_owner
    is_due_apart = settlement.released_at is not None and for_owner > 0
    share = _owners_account(settlement, difference=for_owner)
    # The clearing account of the entry is the tenant's: what owner and fee gain or lose passes through it.
    tenant = back if refunded > 0 else purse
    legs = ledger.differences(
        [
            (tenant, share, amounts.owner - standing.owner),
            (tenant, fee, amounts.fee - standing.fee),
            (cost, tenant, borne),
            (cost, purse, credit),
            (share, cost, credit_of_owner),
            *tax.rows(part, reservation=reservation, payer=purse, payee=back),
            *_seconds(lease=lease, delivery=delivery, standing=standing),
        ]
    )
    entry = None
    if legs:
        entry = ledger.post(
            idempotency_key=key,
            kind=EntryKind.CORRECTION,
            subject_id=lease.id,
            effective_at=at,
            legs=legs,
        )
        tax.note(part, reservation=reservation, entry=entry, at=at)
    if is_owed:
        receivables.set_credit_off(reservation=reservation, amount_minor=credit, at=at)
    steps.reached("correction.posted")
    correction = Correction.objects.create(
        settlement=settlement,
        entry=entry,
        number=standing.number + 1,
        gpu_seconds_delivered=delivery.delivered - standing.delivered,
        gpu_seconds_busy=delivery.busy - standing.busy,
        gpu_seconds_metered=delivery.metered - standing.metered,
        earned_minor=amounts.earned - standing.earned,
        fee_minor=amounts.fee - standing.fee,
        owner_minor=amounts.owner - standing.owner,
        refunded_minor=refunded,
        borne_minor=borne,
        credit_minor=credit,
        credit_of_owner_minor=credit_of_owner,
        evidence=evidence_of(lease=lease, delivery=delivery),
        released_at=None if is_due_apart else at,
        corrected_at=at,
    )
    steps.reached("correction.stored")
    return correction


def _owners_account(settlement: Settlement, *, difference: int) -> ledger.AccountRef:
    """Return where an owner's difference goes: what it was paid and loses again, it owes."""
    if settlement.released_at is not None and difference < 0:
        return accounts.of_owner(
            kind=AccountKind.OWNER_CLAWBACK,
            owner=settlement.owner,
            currency=settlement.currency,
        )
    return accounts.owner_accrued(
        lease_id=settlement.lease_id, owner=settlement.owner, currency=settlement.currency
    )


def _seconds(
    *, lease: Lease, delivery: Delivery, standing: _Standing
) -> list[tuple[ledger.AccountRef, ledger.AccountRef, int]]:
    """Return what GPU-seconds change their place: between busy, idle and undelivered."""
    undelivered = accounts.of_reservation(
        kind=AccountKind.U_UNDELIVERED, reservation=lease.reservation
    )
    busy = delivery.busy - standing.busy
    idle = (delivery.delivered - delivery.busy) - (standing.delivered - standing.busy)
    return [
        (accounts.of_reservation(kind=kind, reservation=lease.reservation), undelivered, seconds)
        for kind, seconds in ((AccountKind.U_BUSY, busy), (AccountKind.U_IDLE, idle))
    ]


def _standing(settlement: Settlement) -> _Standing:
    seconds = ("delivered", "busy", "metered")
    money = ("earned", "fee", "owner", "refunded", "credit", "credit_of_owner")
    names = (*seconds, *money)
    columns = (
        *(f"gpu_seconds_{name}" for name in seconds),
        *(f"{name}_minor" for name in money),
    )
    corrections = settlement.corrections.all()
    sums = corrections.aggregate(**{name: Sum(name) for name in columns})
    totals = {
        name: getattr(settlement, column) + (sums[column] or 0)
        for name, column in zip(names, columns, strict=True)
    }
    known = latest_evidence(settlement)
    return _Standing(
        number=corrections.count(),
        **totals,
        energy_millijoules=known.get("energy_millijoules"),
        measured=known.get("gpu_seconds_measured"),
        attached=known.get("gpu_seconds_attached"),
    )


def _next_review(settlement: Settlement, *, at: dt.datetime) -> dt.datetime | None:
    """Return when the settlement is looked at next; None when no evidence can come any more."""
    reviews = (settlement.settled_at + dt.timedelta(seconds=s) for s in REVIEWS_AFTER_SECONDS)
    return next((instant for instant in reviews if instant > at), None)
