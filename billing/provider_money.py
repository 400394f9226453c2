"""What the payment provider does with our money, as entries: each object there has a clearing account here.

A clearing account that stays open is a payment of which the provider's books do not tell, or the reverse.
"""

import datetime as dt

from billing import accounts, ledger
from billing.models import Entry
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money


def match(
    *, object_id: str, transaction_id: str, amount: Money, fee_minor: int, at: dt.datetime
) -> Entry | None:
    """Match an object with the provider's own transaction: the money is there, less what it keeps.

    None where the transaction moved nothing.
    """
    clearing = _clearing(object_id, amount.currency)
    pending = accounts.shared(kind=AccountKind.STRIPE_PENDING, currency=amount.currency)
    fees = accounts.shared(kind=AccountKind.PSP_FEES, currency=amount.currency)
    legs = ledger.differences(
        [(pending, clearing, amount.amount_minor - fee_minor), (fees, clearing, fee_minor)]
    )
    if not legs:
        return None
    return ledger.post(
        idempotency_key=f"bt:{transaction_id}",
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=object_id,
        effective_at=at,
        legs=legs,
    )


def make_available(*, transaction_id: str, amount: Money, at: dt.datetime) -> Entry | None:
    """Record that what a transaction brought can be used from now on, or what its fee cost beyond that.

    None where that is nothing.
    """
    available, pending = (
        accounts.shared(kind=kind, currency=amount.currency)
        for kind in (AccountKind.STRIPE_AVAILABLE, AccountKind.STRIPE_PENDING)
    )
    legs = ledger.differences([(available, pending, amount.amount_minor)])
    if not legs:
        return None
    return ledger.post(
        idempotency_key=f"available:{transaction_id}",
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=transaction_id,
        effective_at=at,
        legs=legs,
    )


def put_aside(*, account: ledger.AccountRef, at: dt.datetime) -> Entry | None:
    """Empty a clearing account that nothing will clear any more into suspense; None where it is empty.

    It may have to be emptied again, when the booking that nobody waited for any more comes after all.
    """
    # Counted first: whoever empties it meanwhile either made it zero, or wrote the entry of this key.
    before = Entry.objects.filter(kind=EntryKind.SUSPENSE, subject_id=account.subject_id).count()
    left = ledger.balance(account=account)
    if not left:
        return None
    number = f":{before + 1}" if before else ""
    return ledger.post(
        idempotency_key=f"suspense:{account.subject_id}{number}",
        kind=EntryKind.SUSPENSE,
        subject_id=account.subject_id,
        effective_at=at,
        legs=ledger.differences(
            [
                (
                    accounts.shared(kind=AccountKind.SUSPENSE, currency=account.currency),
                    account,
                    left,
                )
            ]
        ),
    )


def _clearing(object_id: str, currency: str) -> ledger.AccountRef:
    return accounts.of_object(kind=AccountKind.PSP_CLEARING, object_id=object_id, currency=currency)
