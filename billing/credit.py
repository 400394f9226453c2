"""Buying on account: how much a tenant may owe, what it owes, and what refuses it more.

Terms are versions that nobody edits; to grant them takes two people (`billing.approvals`). What is owed is
what the accounts of the invoices hold. Whoever adds to it locks the organization first, so that two bookings
side by side do not both see the same room; the order of locks is reservation, organization, capacity.
"""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet, Sum

from billing import invoices, parking, purchases, receivables
from billing.models import (
    Account,
    Approval,
    CreditSale,
    CreditTerms,
    DunningCase,
    DunningTransition,
    Invoice,
)
from billing.states import AccountKind
from marketplace import audit, events
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Change, Reservation

ACTOR = "billing.credit"
OVERDUE_SHOWN_MAX = 100  # nobody pays more of them in one go, and the next look shows the rest


class CreditNotGranted(DomainError):
    """The organization has no terms in this currency, or none any more."""

    code = "credit_not_granted"
    title = "Nothing can be bought on account"


class CreditLimitExceeded(DomainError):
    """What is owed and what this costs are more than the limit; `extra` says by how much."""

    code = "credit_limit_exceeded"
    title = "The credit limit does not cover the price"


class InvoiceOverdue(DomainError):
    """An invoice was to be paid by now: nothing more is sold on account until it is."""

    code = "invoice_overdue"
    title = "An invoice is overdue"


def terms_in_force(*, organization: Organization, currency: str) -> CreditTerms | None:
    """Return the terms by which an organization may owe; None where it was never granted any."""
    known = CreditTerms.objects.filter(organization=organization, currency=currency)
    return known.order_by("-version").first()


def grant(*, approval: Approval, at: dt.datetime) -> CreditTerms:
    """Put the terms in force that two people agreed on; a limit of 0 ends the credit.

    What is owed already stays owed.
    """
    assert approval.organization is not None, approval.pk
    organization = receivables.lock(approval.organization)
    before = terms_in_force(organization=organization, currency=approval.currency)
    assert approval.net_days is not None, approval.pk
    terms = CreditTerms.objects.create(
        organization=organization,
        currency=approval.currency,
        version=before.version + 1 if before else 1,
        limit_minor=approval.amount_minor,
        net_days=approval.net_days,
        approval=approval,
        granted_at=at,
    )
    detail = {
        "limit_minor": terms.limit_minor,
        "currency": terms.currency,
        "net_days": terms.net_days,
    }
    audit.record(
        at=at,
        actor=approval.decided_by,
        action="credit.granted" if terms.limit_minor else "credit.ended",
        object_id=terms.pk,
        organization=organization,
        detail={**detail, "version": terms.version},
    )
    events.record(
        organization=organization,
        kind=EventKind.CREDIT_CHANGED,
        object_id=terms.pk,
        data=detail,
        at=at,
        key=f"{terms.pk}:changed",
    )
    return terms


def owed_minor(*, organization: Organization, currency: str) -> int:
    """Return what an organization owes on all its invoices, in minor units."""
    owed = Account.objects.filter(
        organization=organization, currency=currency, kind=AccountKind.RECEIVABLE, balance__gt=0
    )
    return owed.aggregate(sum=Sum("balance"))["sum"] or 0


def overdue(*, organization: Organization, at: dt.datetime) -> QuerySet[CreditSale]:
    """Return what an organization bought on account and should have paid by `at`, the oldest first."""
    late = still_open().filter(organization=organization, due_at__lte=at)
    return late.select_related("invoice").order_by("due_at", "pk")


def still_open() -> QuerySet[CreditSale]:
    """Return what was bought on account and is not paid, given back or written off in full."""
    owed = Account.objects.filter(
        subject_id=OuterRef("invoice_id"),
        organization=OuterRef("organization"),
        kind=AccountKind.RECEIVABLE,
        balance__gt=0,
    )
    return CreditSale.objects.filter(Exists(owed))


def require(*, organization: Organization, amount: Money, at: dt.datetime) -> CreditTerms:
    """Return the terms by which an amount can be bought on account, and keep others from it meanwhile.

    The lock lasts until the caller's transaction ends.

    :raises CreditNotGranted: when the organization may owe nothing.
    :raises InvoiceOverdue: when it should have paid something by now.
    :raises CreditLimitExceeded: with the missing amount, when the limit does not cover it.
    :raises parking.MoneyParked: while its money is parked.
    """
    receivables.lock(organization)
    parking.require_moving(organizations=[organization])
    terms = terms_in_force(organization=organization, currency=amount.currency)
    if terms is None or not terms.limit_minor:
        raise CreditNotGranted(
            "This organization has no credit limit; pay from the wallet or by card, or ask the market "
            "for one.",
            pointer="/payment_method",
        )
    late = overdue(organization=organization, at=at).first()
    if late is not None:
        raise InvoiceOverdue(
            f"{late.invoice.number} was due on {late.due_at:%Y-%m-%d}; pay it, then buy on account again.",
            pointer="/payment_method",
            extra={"invoice_id": late.invoice_id},
        )
    owed = owed_minor(organization=organization, currency=amount.currency)
    _check_limit(terms=terms, owed_minor=owed, added_minor=amount.amount_minor)
    return terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How much an organization may owe, owes, and may still buy; a limit of zero: nothing."""

    limit: Money
    owed: Money
    available: Money
    net_days: int | None
    overdue: list[CreditSale]


def standing(*, organization: Organization, at: dt.datetime) -> Standing:
    """Return how an organization stands with what it may buy on account, in the market's currency."""
    currency = settings.CURRENCY
    terms = terms_in_force(organization=organization, currency=currency)
    limit = terms.limit_minor if terms else 0
    owed = owed_minor(organization=organization, currency=currency)
    late = list(overdue(organization=organization, at=at)[:OVERDUE_SHOWN_MAX])
    return Standing(
        limit=Money(limit, currency),
        owed=Money(owed, currency),
        available=Money(0 if late else max(limit - owed, 0), currency),
        net_days=terms.net_days if terms and limit else None,
        overdue=late,
    )


def due_at(*, terms: CreditTerms, at: dt.datetime) -> dt.datetime:
    """Return by when an invoice that is issued at `at` is to be paid."""
    return at + dt.timedelta(days=terms.net_days)


def buy(*, terms: CreditTerms, reservation: Reservation, at: dt.datetime) -> CreditSale:
    """Buy a reservation on account: issue its invoice, and owe it. The caller has `require`d it.

    :raises CreditLimitExceeded: when what is owed then is more than the limit.
    """
    invoice = invoices.issue_for_purchase(
        reservation=reservation, due_at=due_at(terms=terms, at=at), at=at
    )
    purchases.capture_invoice(reservation=reservation, invoice_id=invoice.id, at=at)
    return note_sale(terms=terms, reservation=reservation, change=None, invoice=invoice, at=at)


def note_sale(
    *,
    terms: CreditTerms,
    reservation: Reservation,
    change: Change | None,
    invoice: Invoice,
    at: dt.datetime,
) -> CreditSale:
    """Remember what was bought on account, and watch it, in the transaction in which it became owed.

    :raises CreditLimitExceeded: when what is owed now is more than the limit.
    """
    organization, currency = reservation.organization, reservation.currency
    _check_limit(
        terms=terms,
        owed_minor=owed_minor(organization=organization, currency=currency),
        added_minor=0,
    )
    sale = CreditSale.objects.create(
        organization=organization,
        reservation=reservation,
        change=change,
        invoice=invoice,
        terms=terms,
        amount_minor=receivables.open_minor(
            organization=organization, invoice_id=invoice.id, currency=currency
        ),
        currency=currency,
        due_at=due_at(terms=terms, at=at),
        created_at=at,
    )
    case = DunningCase.objects.create(sale=sale, act_due_at=sale.due_at)
    DunningTransition.objects.create(
        case=case, from_status="", to_status=case.status, actor=ACTOR, at=at
    )
    return sale


def _check_limit(*, terms: CreditTerms, owed_minor: int, added_minor: int) -> None:
    missing = owed_minor + added_minor - terms.limit_minor
    if missing <= 0:
        return
    limit, owed, short = (
        Money(minor, terms.currency) for minor in (terms.limit_minor, owed_minor, missing)
    )
    raise CreditLimitExceeded(
        f"Of a limit of {limit}, {owed} are owed; {short} are missing.",
        pointer="/payment_method",
        extra={
            name: {"amount_minor": money.amount_minor, "currency": money.currency}
            for name, money in (("missing", short), ("owed", owed))
        },
    )
