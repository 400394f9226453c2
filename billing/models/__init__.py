"""The books: accounts, entries, postings, and what settlement makes of a finished lease.

Append-only, balance, sealing and guards are enforced by PostgreSQL (migration `0002_guard_the_books`).
"""

from billing.models.books import Account, Entry, Posting
from billing.models.connect import PayoutAccount, Transfer
from billing.models.payments import CardRefund, Payer, Payment, PaymentQuerySet, TopUpDispute
from billing.models.payouts import Payout, PayoutQuerySet, PayoutTransition
from billing.models.provider import (
    BalanceTransaction,
    Difference,
    InboxEvent,
    Intent,
    ProviderTransition,
    Watermark,
)
from billing.models.settlements import Settlement, SettlementQuerySet

__all__ = [
    "Account",
    "BalanceTransaction",
    "CardRefund",
    "Difference",
    "Entry",
    "InboxEvent",
    "Intent",
    "Payer",
    "Payment",
    "PaymentQuerySet",
    "Payout",
    "PayoutAccount",
    "PayoutQuerySet",
    "PayoutTransition",
    "Posting",
    "ProviderTransition",
    "Settlement",
    "SettlementQuerySet",
    "TopUpDispute",
    "Transfer",
    "Watermark",
]
