"""Money of ours that a tenant may spend: granted, spent before anything else, expired."""

import datetime as dt

from billing import accounts, ledger, purchases
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Reservation


def grant(*, organization: Organization, grant_id: str, amount: Money, at: dt.datetime) -> None:
    """Let a tenant spend an amount of ours, under a grant's name; once per grant."""
    ledger.post(
        idempotency_key=f"promo:{grant_id}",
        kind=EntryKind.PROMOTION,
        subject_id=grant_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.PROMO_COST, currency=amount.currency),
            credited=account(
                organization=organization, grant_id=grant_id, currency=amount.currency
            ),
            amount=amount.amount_minor,
        ),
    )


def spend(*, reservation: Reservation, grant_id: str, at: dt.datetime) -> int:
    """Pay what a grant still holds of a reservation's price and tax into the wallet, ahead of its purchase.

    Returns how much that was. The purchase then finds it in the wallet: both belong into one transaction.
    """
    promo = account(
        organization=reservation.organization, grant_id=grant_id, currency=reservation.currency
    )
    price = purchases.price_with_tax(reservation=reservation)
    amount = min(ledger.kept_balance(account=promo), price)
    if amount:
        ledger.post(
            idempotency_key=f"promo:{grant_id}:{reservation.id}",
            kind=EntryKind.PROMOTION_SPENT,
            subject_id=reservation.id,
            effective_at=at,
            legs=ledger.transfer(
                debited=promo,
                credited=accounts.wallet(
                    organization=reservation.organization, currency=reservation.currency
                ),
                amount=amount,
            ),
        )
    return amount


def expire(*, organization: Organization, grant_id: str, currency: str, at: dt.datetime) -> int:
    """Take back what nobody has spent of a grant; return how much that was."""
    promo = account(organization=organization, grant_id=grant_id, currency=currency)
    left = ledger.kept_balance(account=promo)
    if left:
        ledger.post(
            idempotency_key=f"promo_expired:{grant_id}",
            kind=EntryKind.PROMOTION_EXPIRY,
            subject_id=grant_id,
            effective_at=at,
            legs=ledger.transfer(
                debited=promo,
                credited=accounts.shared(kind=AccountKind.BREAKAGE, currency=currency),
                amount=left,
            ),
        )
    return left


def account(*, organization: Organization, grant_id: str, currency: str) -> ledger.AccountRef:
    """Return the name of the account of one grant."""
    return accounts.of_object(
        kind=AccountKind.PROMO, object_id=grant_id, currency=currency, organization=organization
    )
