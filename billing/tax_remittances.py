"""Paying collected tax to the tax office: per place and month, at most what is owed, decided by two people.

A month is filed once it is closed, so that it stays as it was filed. What is owed of it is the
tax of its lines less relief, less what was remitted before and did not come back. A transfer that the bank
returns is taken back by a reversal, and the month is owed again.
"""

import datetime as dt
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, QuerySet, Sum

from billing import accounts, ledger
from billing.invoices import MonthNotOver
from billing.models import Account, Approval, TaxLine, TaxRemittance
from billing.month_movements import closes_at, month_window
from billing.states import AccountKind, EntryKind
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.money import Money


class NothingToRemit(InvalidValue):
    """The tax office of this place is not owed so much of this month."""

    code = "nothing_to_remit"
    title = "So much is not owed to this tax office"


class RemittanceReversed(StateConflict):
    """The remittance was taken back before."""

    code = "remittance_reversed"
    title = "The remittance was taken back before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What a tax office is owed of a month, in minor units: `open = due - remitted`."""

    jurisdiction: str
    month: str
    currency: str
    due: int
    remitted: int
    open: int


def subject_of(*, jurisdiction: str, month: str) -> str:
    """Return by which name a place's month is asked for: one request at a time waits for its decision."""
    return f"{jurisdiction}:{month}"


def periods(*, month: str) -> list[Period]:
    """Return what each tax office is owed of a month of UTC, by place and currency; two queries.

    :raises ValueError: when `month` names no month.
    """
    window = month_window(month=month)
    lines = (
        TaxLine.objects.filter(at__gte=window.starts_at, at__lt=window.ends_at)
        .values("currency", jurisdiction=F("reservation__jurisdiction"))
        .annotate(due=Sum(F("tax_charged_minor") - F("tax_refunded_minor")))
        .order_by("jurisdiction", "currency")
    )
    remitted = {
        (jurisdiction, currency): amount
        for jurisdiction, currency, amount in standing()
        .filter(month=month)
        .values_list("jurisdiction", "currency")
        .annotate(amount=Sum("amount_minor"))
        .order_by()
    }
    return [
        _period(
            line["jurisdiction"],
            month,
            line["currency"],
            due=line["due"],
            remitted=remitted.get((line["jurisdiction"], line["currency"]), 0),
        )
        for line in lines
    ]


def period(*, jurisdiction: str, month: str, currency: str) -> Period:
    """Return what one tax office is owed of a month; nothing where nothing was sold.

    :raises ValueError: when `month` names no month.
    """
    for each in periods(month=month):
        if (each.jurisdiction, each.currency) == (jurisdiction, currency):
            return each
    return _period(jurisdiction, month, currency, due=0, remitted=0)


def _period(jurisdiction: str, month: str, currency: str, *, due: int, remitted: int) -> Period:
    return Period(
        jurisdiction=jurisdiction,
        month=month,
        currency=currency,
        due=due,
        remitted=remitted,
        open=due - remitted,
    )


def standing() -> "QuerySet[TaxRemittance]":
    """Return the remittances that were not taken back."""
    return TaxRemittance.objects.filter(entry__reversed_by__isnull=True)


def require_open(*, subject_id: str, amount: Money, at: dt.datetime) -> Period:
    """Refuse to remit what is not owed: of a month that may still change, or more than is open of it.

    What earlier months gave back more than they took is carried forward, and is not owed again.

    :raises InvalidValue: when the subject names no place and month, or without an amount.
    :raises MonthNotOver: before all of the month's documents are due.
    :raises NothingToRemit: when so much is not owed.
    """
    jurisdiction, _, month = subject_id.partition(":")
    try:
        window = month_window(month=month)
    except ValueError:
        raise InvalidValue(
            "a place and a month, such as DE:2026-11", pointer="/subject_id"
        ) from None
    filed_after = closes_at(ends_at=window.ends_at)
    if at < filed_after:
        raise MonthNotOver(f"{month} is filed after {filed_after:%Y-%m-%d %H:%M} UTC.")
    found = period(jurisdiction=jurisdiction, month=month, currency=amount.currency)
    open_minor = max(min(found.open, _open_through(found, ends_at=window.ends_at)), 0)
    if not 0 < amount.amount_minor <= open_minor:
        raise NothingToRemit(
            f"{jurisdiction} is owed {Money(open_minor, amount.currency)} of {month}.",
            pointer="/amount_minor",
        )
    return found


def _open_through(found: Period, *, ends_at: dt.datetime) -> int:
    """Return what is open of a month and of all months before it."""
    due = TaxLine.objects.filter(
        reservation__jurisdiction=found.jurisdiction, currency=found.currency, at__lt=ends_at
    ).aggregate(sum=Sum(F("tax_charged_minor") - F("tax_refunded_minor")))["sum"]
    remitted = (
        standing()
        .filter(jurisdiction=found.jurisdiction, currency=found.currency, month__lte=found.month)
        .aggregate(sum=Sum("amount_minor"))["sum"]
    )
    return (due or 0) - (remitted or 0)


@transaction.atomic
def remit(*, approval: Approval, at: dt.datetime) -> TaxRemittance:
    """Post what was transferred to a tax office: tax_payable → bank; once per approval.

    :raises DomainError: as `require_open`.
    """
    amount = Money(approval.amount_minor, approval.currency)
    jurisdiction = approval.subject_id.partition(":")[0]
    _lock(jurisdiction=jurisdiction, currency=amount.currency)
    found = require_open(subject_id=approval.subject_id, amount=amount, at=at)
    entry = ledger.post(
        idempotency_key=f"remit:{approval.pk}",
        kind=EntryKind.TAX_REMITTANCE,
        subject_id=approval.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.tax_payable(jurisdiction=jurisdiction, currency=amount.currency),
            credited=accounts.shared(kind=AccountKind.BANK, currency=amount.currency),
            amount=amount.amount_minor,
        ),
    )
    return TaxRemittance.objects.create(
        approval=approval,
        entry=entry,
        jurisdiction=found.jurisdiction,
        month=found.month,
        currency=found.currency,
        amount_minor=amount.amount_minor,
        at=at,
    )


def require_standing(*, remittance_id: str, amount: Money) -> TaxRemittance:
    """Return a remittance that can be taken back: as a whole, and once.

    :raises NotFound: when there is none.
    :raises RemittanceReversed: when it was taken back before.
    :raises InvalidValue: when the amount is another.
    """
    found = TaxRemittance.objects.filter(pk=remittance_id).first()
    if found is None:
        raise NotFound(f"{remittance_id} is no remittance.")
    if not standing().filter(pk=found.pk).exists():
        raise RemittanceReversed(f"{remittance_id} was taken back before.")
    if amount != Money(found.amount_minor, found.currency):
        raise InvalidValue("A remittance comes back as a whole.", pointer="/amount_minor")
    return found


@transaction.atomic
def take_back(*, approval: Approval, at: dt.datetime) -> None:
    """Post that a transfer to a tax office came back: the mirror image of its entry, once.

    :raises DomainError: as `require_standing`.
    """
    remittance = require_standing(
        remittance_id=approval.subject_id,
        amount=Money(approval.amount_minor, approval.currency),
    )
    _lock(jurisdiction=remittance.jurisdiction, currency=remittance.currency)
    ledger.reverse(entry=remittance.entry, idempotency_key=f"remit:{remittance.pk}:reversal", at=at)


def _lock(*, jurisdiction: str, currency: str) -> None:
    """Let nobody else remit to the office until the transaction ends; sales may still be posted."""
    code = accounts.tax_payable(jurisdiction=jurisdiction, currency=currency).code
    list(Account.objects.select_for_update(no_key=True).filter(code=code, currency=currency))
