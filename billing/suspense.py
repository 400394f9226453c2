"""Money of which nobody knows yet whose it is: put aside by one entry each, and resolved by two people.

A booking of the provider's that matches nothing, and what a clearing account keeps that nothing clears any
more, are put aside by `provider_books` and `provider_money`. Whoever finds out what it was asks for it to go
where it belongs: from or to our own bank account, into a tenant's wallet, to the provider's fees, or to what
nobody can explain. An item may be resolved in parts; what is left of it is derived from postings.
"""

import datetime as dt
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import (
    BigIntegerField,
    Case,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    When,
)
from django.db.models.functions import Coalesce

from billing import accounts, ledger
from billing.models import Account, Approval, Posting, SuspenseItem
from billing.states import AccountKind, ApprovalKind, EntryKind, Side
from marketplace import events
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import EventKind

# Where it goes that is the market's own; a wallet is its tenant's.
_OWN = {
    ApprovalKind.SUSPENSE_BANK: AccountKind.BANK,
    ApprovalKind.SUSPENSE_FEES: AccountKind.PSP_FEES,
    ApprovalKind.SUSPENSE_MARKET: AccountKind.ROUNDING_FX,
}


def items() -> "QuerySet[SuspenseItem, Any]":
    """Return what was put aside, the oldest first: its `currency`, `amount_minor`, and what is `left_minor`.

    Minor units; positive is money that came, negative what has gone.
    """
    own = Posting.objects.filter(entry=OuterRef("pk"), account__kind=AccountKind.SUSPENSE)
    resolved = Posting.objects.filter(
        entry__kind=EntryKind.SUSPENSE_RESOLVED,
        entry__subject_id=OuterRef("pk"),
        entry__reversed_by__isnull=True,
        account__kind=AccountKind.SUSPENSE,
    )
    return SuspenseItem.objects.filter(kind=EntryKind.SUSPENSE, reversed_by__isnull=True).annotate(
        currency=Subquery(own.order_by().values("account__currency")[:1]),
        amount_minor=_sum(own),
        left_minor=_sum(own) + _sum(resolved),
    )


def open_items() -> "QuerySet[SuspenseItem, Any]":
    """Return the items of which something is left."""
    return items().exclude(Q(left_minor=0))


def require_open(
    *, kind: ApprovalKind, organization: Organization | None, item_id: str, amount: Money
) -> int:
    """Refuse to resolve what cannot be resolved so; return what is left of the item, in minor units, signed.

    :raises InvalidValue: when nothing of this id was put aside, less of it is left, a wallet would pay for
        what has gone, or the organization buys nothing.
    """
    found = items().filter(pk=item_id).first()
    if found is None:
        raise InvalidValue("Nothing of this id was put aside.", pointer="/subject_id")
    left, currency = int(found.left_minor), str(found.currency)
    if amount.currency != currency or not 0 < amount.amount_minor <= abs(left):
        raise InvalidValue(
            f"{Money(abs(left), currency)} of it are left to be resolved.", pointer="/amount_minor"
        )
    if kind == ApprovalKind.SUSPENSE_WALLET:
        if left < 0:
            raise InvalidValue("No wallet pays for what has gone.", pointer="/kind")
        if organization is None or not organization.is_tenant or currency != settings.CURRENCY:
            raise InvalidValue(
                f"Only who buys has a wallet, in {settings.CURRENCY.upper()}.",
                pointer="/organization",
            )
    return left


@transaction.atomic
def resolve(*, approval: Approval, at: dt.datetime) -> None:
    """Post where money that was put aside belongs, as two people decided; once per approval.

    A tenant that gets it is told.

    :raises DomainError: as `require_open`.
    :raises parking.MoneyParked: while the money of the tenant that gets it is parked.
    """
    kind = ApprovalKind(approval.kind)
    amount = Money(approval.amount_minor, approval.currency)
    aside = accounts.shared(kind=AccountKind.SUSPENSE, currency=amount.currency)
    destination = _destination(approval, kind=kind)
    if approval.organization is not None:
        ledger.locked_balance(account=destination)  # a wallet comes before accounts that many share
    _lock(aside)
    left = require_open(
        kind=kind, organization=approval.organization, item_id=approval.subject_id, amount=amount
    )
    entry = ledger.post(
        idempotency_key=f"suspense_resolved:{approval.pk}",
        kind=EntryKind.SUSPENSE_RESOLVED,
        subject_id=approval.subject_id,
        effective_at=at,
        legs=ledger.differences(
            [
                (
                    aside,
                    destination,
                    amount.amount_minor if left > 0 else -amount.amount_minor,
                )
            ]
        ),
    )
    if approval.organization is not None:
        events.record(
            organization=approval.organization,
            kind=EventKind.WALLET_CREDITED,
            object_id=entry.pk,
            data={"amount_minor": amount.amount_minor, "currency": amount.currency},
            at=at,
            key=f"{approval.pk}:{EventKind.WALLET_CREDITED.value}",
        )


def _destination(approval: Approval, *, kind: ApprovalKind) -> ledger.AccountRef:
    if approval.organization is None:
        return accounts.shared(kind=_OWN[kind], currency=approval.currency)
    return accounts.wallet(organization=approval.organization, currency=approval.currency)


def _lock(aside: ledger.AccountRef) -> None:
    """Let nobody else resolve anything of this currency until the transaction ends."""
    known = Account.objects.filter(code=aside.code, currency=aside.currency)
    list(known.select_for_update(no_key=True))


def _sum(postings: "QuerySet[Posting]") -> Coalesce:
    """Return what postings of one entry, or of all that resolve it, put into suspense."""
    signed = Case(When(side=Side.CREDIT, then=F("amount")), default=-F("amount"))
    sums = postings.order_by().values("account__kind").annotate(sum=Sum(signed)).values("sum")
    return Coalesce(Subquery(sums, output_field=BigIntegerField()), 0)
