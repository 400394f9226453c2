"""A tenant's prepaid money."""

import datetime as dt
import hashlib

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from billing import accounts, ledger
from billing.models import Entry, Posting
from billing.states import AccountKind, EntryKind
from marketplace import audit
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Organization

# Ten million dollars at once is a slip of the keyboard; a larger sum comes in parts.
DEPOSIT_MINOR_MAX = 1_000_000_000

account = accounts.wallet


class DepositRefused(InvalidValue):
    """The amount is not one that a deposit can have, or the organization has no wallet."""


def balance(*, organization: Organization) -> Money:
    """Return what the wallet holds in the market's currency, as its guard keeps it."""
    currency = settings.CURRENCY
    code = account(organization=organization, currency=currency).code
    kept = organization.accounts.filter(code=code, currency=currency).values_list(
        "balance", flat=True
    )
    return Money(kept.first() or 0, currency)


def locked_balance(*, organization: Organization) -> Money:
    """Return what the wallet holds, and let nobody else move it until the caller's transaction ends."""
    currency = settings.CURRENCY
    wanted = account(organization=organization, currency=currency)
    return Money(ledger.locked_balance(account=wanted), currency)


@transaction.atomic
def record_deposit(
    *,
    organization: Organization,
    amount: Money,
    idempotency_key: str,
    at: dt.datetime,
    actor: str,
) -> Entry:
    """Record money that arrived on the bank account for a tenant's wallet: once per key.

    The key is the caller's and counts per organization.

    :raises DepositRefused: when the amount is not positive, too large, or of another currency than the
        market's, or the organization buys nothing.
    :raises ledger.EntryMismatch: when the key was used for another amount.
    """
    if not organization.is_tenant:
        raise DepositRefused(
            "Only an organization that buys has a wallet.", pointer="/organization"
        )
    if amount.currency != settings.CURRENCY:
        raise DepositRefused(
            f"This market keeps its wallets in {settings.CURRENCY.upper()}.", pointer="/currency"
        )
    if not 0 < amount.amount_minor <= DEPOSIT_MINOR_MAX:
        raise DepositRefused(
            f"A deposit is from 1 to {DEPOSIT_MINOR_MAX} minor units.", pointer="/amount_minor"
        )
    entry = ledger.post(
        idempotency_key=_deposit_key(organization_id=organization.id, key=idempotency_key),
        kind=EntryKind.DEPOSIT,
        subject_id=organization.id,
        effective_at=at,
        legs=ledger.transfer(
            debited=ledger.AccountRef(AccountKind.BANK, amount.currency),
            credited=account(organization=organization, currency=amount.currency),
            amount=amount.amount_minor,
        ),
    )
    # Whoever came second waited for the first to commit, and sees its line in the trail.
    if not AuditEvent.objects.filter(object_id=entry.id).exists():
        audit.record(
            at=at,
            actor=actor,
            action="wallet.deposited",
            object_id=entry.id,
            organization=organization,
            detail={"amount_minor": amount.amount_minor, "currency": amount.currency},
        )
    return entry


def require_unused(*, idempotency_key: str, but: Organization) -> None:
    """Refuse a form whose deposit was recorded for another tenant than the one that it names now.

    :raises ledger.EntryMismatch: then; what was recorded for the wrong tenant is not its correction.
    """
    others = Organization.objects.filter(is_tenant=True).exclude(pk=but.pk)
    keys = [
        _deposit_key(organization_id=organization_id, key=idempotency_key)
        for organization_id in others.values_list("pk", flat=True)
    ]
    before = Entry.objects.filter(idempotency_key__in=keys).first()
    if before is not None:
        raise ledger.EntryMismatch(
            f"This was recorded for {before.subject_id} before, as {before.pk}; begin anew to record another "
            "deposit.",
            pointer="/organization",
        )


def _deposit_key(*, organization_id: str, key: str) -> str:
    return f"deposit:{organization_id}:{hashlib.sha256(key.encode()).hexdigest()}"


def entries(*, organization: Organization) -> QuerySet[Posting]:
    """Return what moved the wallet, newest first: a posting per movement, its entry at hand.

    A credit put money in, a debit took it out.
    """
    return (
        Posting.objects.filter(account__kind=AccountKind.WALLET, account__organization=organization)
        .select_related("entry", "account")
        .order_by("-id")
    )
