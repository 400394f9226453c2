"""Relief for tax that was owed on a sale which nobody paid: the market's choice, off unless a law gives it.

The tax in what is written off of an invoice is its share of the invoice's tax, and never more than the tax
that the sale still keeps. It is no part of what was sold: the sale stands, and so does its tax. Where a later
refund gives tax back, or what was written off comes after all, the relief that is more than the tax which is
left, or than that in what is still given up, is withdrawn, and is the market's loss again.
"""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db.models import F, QuerySet, Sum

from billing import accounts, bad_debts, ledger
from billing.models import Entry, Posting, ReservationTax, TaxLine
from billing.states import AccountKind, EntryKind, Side
from marketplace.core.money import share_of

Row = tuple[ledger.AccountRef, ledger.AccountRef, int]  # debited, credited, amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """The tax in what is written off, of which sale, and the net price in it; nothing without a sale."""

    sale: ReservationTax | None = None
    currency: str = ""
    net_minor: int = 0
    tax_minor: int = 0


NO_RELIEF = Relief()


def of_write_off(*, owed: ledger.AccountRef, amount_minor: int) -> Relief:
    """Return the relief for an amount of the invoice whose account is `owed`, before it is written off.

    Nobody else moves tax of the sale until the transaction ends.
    """
    if not settings.TAX_RELIEF_ON_BAD_DEBT:
        return NO_RELIEF
    asked = _asked().filter(account__code=owed.code, account__currency=owed.currency).first()
    if asked is None:
        return NO_RELIEF
    sale = _locked(asked)
    before = bad_debts.given_up_minor(owed=owed)
    in_it = _tax_in(asked, amount_minor=before + amount_minor) - _tax_in(asked, amount_minor=before)
    relief = min(in_it, _tax_kept(sale))
    if relief <= 0:
        return NO_RELIEF
    return Relief(
        sale=sale, currency=owed.currency, net_minor=amount_minor - relief, tax_minor=relief
    )


def rows(relief: Relief, *, owed: ledger.AccountRef) -> list[Row]:
    """Return the leg of a relief as rows for `ledger.differences`."""
    if relief.sale is None:
        return []
    office = accounts.tax_payable(jurisdiction=relief.sale.jurisdiction, currency=relief.currency)
    return [(office, owed, relief.tax_minor)]


def note(relief: Relief, *, entry: Entry, at: dt.datetime) -> None:
    """Write down a relief, in the transaction of its entry; `at` is the period in which it is filed."""
    if relief.sale is None:
        return
    TaxLine.objects.create(
        reservation=relief.sale,
        entry=entry,
        currency=relief.currency,
        net_charged_minor=0,
        net_refunded_minor=relief.net_minor,
        tax_charged_minor=0,
        tax_refunded_minor=relief.tax_minor,
        is_relief=True,
        at=at,
    )


def withdraw_recovered(*, owed: ledger.AccountRef, cause: Entry, at: dt.datetime) -> None:
    """Withdraw the relief for what was given up of an invoice and `cause` recovered, in its transaction.

    Nobody else moves tax of the sale until the transaction ends.
    """
    asked = _asked().filter(account__code=owed.code, account__currency=owed.currency).first()
    if asked is not None:
        withdraw_excess(sale=_locked(asked), currency=owed.currency, cause=cause, at=at)


def withdraw_excess(*, sale: ReservationTax, currency: str, cause: Entry, at: dt.datetime) -> None:
    """Withdraw the relief that is more than the tax which a sale keeps after `cause`, in its transaction.

    Neither is it more than the tax in what is still given up of the sale.

    Nobody else moves tax of the sale until the transaction ends.
    """
    relieved = sale.lines.filter(is_relief=True).aggregate(
        net=Sum(F("net_refunded_minor") - F("net_charged_minor")),
        tax=Sum(F("tax_refunded_minor") - F("tax_charged_minor")),
    )
    stands = relieved["tax"] or 0
    if not stands:
        return
    excess = min(max(-_tax_kept(sale), stands - _tax_given_up(sale)), stands)
    if excess <= 0:
        return
    office = accounts.tax_payable(jurisdiction=sale.jurisdiction, currency=currency)
    cost = accounts.shared(kind=AccountKind.BAD_DEBT, currency=currency)
    entry = ledger.post(
        idempotency_key=f"relief_back:{cause.pk}",
        kind=EntryKind.RELIEF_WITHDRAWN,
        subject_id=sale.pk,
        effective_at=at,
        legs=ledger.transfer(debited=cost, credited=office, amount=excess),
    )
    TaxLine.objects.create(
        reservation=sale,
        entry=entry,
        currency=currency,
        net_charged_minor=share_of(total_minor=relieved["net"], part=excess, whole=relieved["tax"]),
        net_refunded_minor=0,
        tax_charged_minor=excess,
        tax_refunded_minor=0,
        is_relief=True,
        at=at,
    )


def _tax_in(asked: Posting, *, amount_minor: int) -> int:
    """Return the tax in the first so many minor units of an invoice, and no more than it asked."""
    return share_of(
        total_minor=asked.entry.tax_line.tax_charged_minor,
        part=min(amount_minor, asked.amount),
        whole=asked.amount,
    )


def _asked() -> QuerySet[Posting]:
    """Return the postings that made somebody owe a price with its tax on an invoice, the first one first."""
    return (
        Posting.objects.filter(
            account__kind=AccountKind.RECEIVABLE,
            side=Side.DEBIT,
            entry__tax_line__tax_charged_minor__gt=0,
        )
        .select_related("entry__tax_line", "account__organization")
        .order_by("id")
    )


def _locked(asked: Posting) -> ReservationTax:
    sale_id = asked.entry.tax_line.reservation_id
    return ReservationTax.objects.select_for_update(no_key=True).get(pk=sale_id)


def _tax_given_up(sale: ReservationTax) -> int:
    """Return the tax in what is given up of the invoices of a sale."""
    return sum(
        _tax_in(
            asked,
            amount_minor=bad_debts.given_up_minor(
                owed=ledger.AccountRef(
                    AccountKind.RECEIVABLE, asked.account.currency, asked.account.subject_id
                )
            ),
        )
        for asked in _asked().filter(entry__tax_line__reservation=sale)
    )


def _tax_kept(sale: ReservationTax) -> int:
    """Return the tax of a sale that is still owed, relief and refunds taken off."""
    moved = sale.lines.aggregate(kept=Sum(F("tax_charged_minor") - F("tax_refunded_minor")))
    return int(moved["kept"] or 0)
