"""The books: accounts, entries, postings, and what settlement makes of a finished lease.

Append-only, balance, sealing and guards are enforced by PostgreSQL (migration `0002_guard_the_books`).
"""

from billing.models.books import Account, Entry, Posting
from billing.models.controls import Approval, ApprovalTransition, BooksRun, Parking
from billing.models.disputes import Dispute, DisputeTransition
from billing.models.earnings import EarnedHour
from billing.models.fee_shares import FeeShare
from billing.models.payouts import Payout, PayoutQuerySet, PayoutTransition, Reserve
from billing.models.refunds import Refund, RefundQuerySet, RefundTransition
from billing.models.settlements import Correction, Settlement, SettlementQuerySet

__all__ = [
    "Account",
    "Approval",
    "ApprovalTransition",
    "BooksRun",
    "Correction",
    "Dispute",
    "DisputeTransition",
    "EarnedHour",
    "Entry",
    "FeeShare",
    "Parking",
    "Payout",
    "PayoutQuerySet",
    "PayoutTransition",
    "Posting",
    "Refund",
    "RefundQuerySet",
    "RefundTransition",
    "Reserve",
    "Settlement",
    "SettlementQuerySet",
]
