"""The books: accounts, entries, postings, and what settlement makes of a finished lease.

Append-only, balance, sealing and guards are enforced by PostgreSQL (migration `0002_guard_the_books`).
"""

from billing.models.books import Account, Entry, Posting
from billing.models.fee_shares import FeeShare
from billing.models.payouts import Payout, PayoutQuerySet, PayoutTransition
from billing.models.settlements import Settlement, SettlementQuerySet

__all__ = [
    "Account",
    "Entry",
    "FeeShare",
    "Payout",
    "PayoutQuerySet",
    "PayoutTransition",
    "Posting",
    "Settlement",
    "SettlementQuerySet",
]
