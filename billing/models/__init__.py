"""The books: accounts, entries, postings, and what settlement makes of a finished lease.

Append-only, balance, sealing and guards are enforced by PostgreSQL (migration `0002_guard_the_books`).
"""

from billing.models.approval_limits import ApprovalLimit, LimitRequest, LimitRequestTransition
from billing.models.books import Account, Entry, Posting
from billing.models.budgets import Budget, BudgetQuerySet, ProjectFreeze
from billing.models.connect import PayoutAccount, Reversal, Transfer
from billing.models.controls import Approval, ApprovalTransition, BooksRun, Parking
from billing.models.credit import (
    NET_DAYS,
    CreditSale,
    CreditTerms,
    DunningCase,
    DunningTransition,
)
from billing.models.deposits import Deposit
from billing.models.disputes import (
    CardInquiry,
    Dispute,
    DisputeCharge,
    DisputeReturn,
    DisputeTransition,
)
from billing.models.earnings import EarnedHour
from billing.models.exports import ExportDigest
from billing.models.fee_shares import FeeShare, Resale, ResalePart
from billing.models.idle import IdleStretch
from billing.models.invoices import (
    BillingProfile,
    Invoice,
    InvoiceLine,
    InvoiceQuerySet,
    InvoiceSeries,
    MonthClose,
)
from billing.models.payments import CardRefund, Payer, Payment, PaymentQuerySet, TopUpDispute
from billing.models.payouts import Payout, PayoutQuerySet, PayoutTransition, Reserve
from billing.models.promotions import Promotion, PromotionQuerySet
from billing.models.provider import (
    BalanceTransaction,
    Difference,
    Dismissal,
    InboxEvent,
    Intent,
    ProviderTransition,
    Watermark,
)
from billing.models.purchase_requests import (
    PurchaseRequest,
    PurchaseRequestTransition,
    WalletHold,
    WalletHoldQuerySet,
)
from billing.models.refunds import Refund, RefundQuerySet, RefundTransition
from billing.models.settlements import Correction, Settlement, SettlementQuerySet
from billing.models.silences import SilentLease
from billing.models.suspense import SuspenseItem
from billing.models.tags import LabelChange, TagRule
from billing.models.tax import ReservationTax, TaxLine, TaxRemittance, TaxRule, TaxStatus
from billing.models.withdrawals import Withdrawal, WithdrawalPart, WithdrawalQuerySet

__all__ = [
    "NET_DAYS",
    "Account",
    "Approval",
    "ApprovalLimit",
    "ApprovalTransition",
    "BalanceTransaction",
    "BillingProfile",
    "BooksRun",
    "Budget",
    "BudgetQuerySet",
    "CardInquiry",
    "CardRefund",
    "Correction",
    "CreditSale",
    "CreditTerms",
    "Deposit",
    "Difference",
    "Dismissal",
    "Dispute",
    "DisputeCharge",
    "DisputeReturn",
    "DisputeTransition",
    "DunningCase",
    "DunningTransition",
    "EarnedHour",
    "Entry",
    "ExportDigest",
    "FeeShare",
    "IdleStretch",
    "InboxEvent",
    "Intent",
    "Invoice",
    "InvoiceLine",
    "InvoiceQuerySet",
    "InvoiceSeries",
    "LabelChange",
    "LimitRequest",
    "LimitRequestTransition",
    "MonthClose",
    "Parking",
    "Payer",
    "Payment",
    "PaymentQuerySet",
    "Payout",
    "PayoutAccount",
    "PayoutQuerySet",
    "PayoutTransition",
    "Posting",
    "ProjectFreeze",
    "Promotion",
    "PromotionQuerySet",
    "ProviderTransition",
    "PurchaseRequest",
    "PurchaseRequestTransition",
    "Refund",
    "RefundQuerySet",
    "RefundTransition",
    "Resale",
    "ResalePart",
    "ReservationTax",
    "Reserve",
    "Reversal",
    "Settlement",
    "SettlementQuerySet",
    "SilentLease",
    "SuspenseItem",
    "TagRule",
    "TaxLine",
    "TaxRemittance",
    "TaxRule",
    "TaxStatus",
    "TopUpDispute",
    "Transfer",
    "WalletHold",
    "WalletHoldQuerySet",
    "Watermark",
    "Withdrawal",
    "WithdrawalPart",
    "WithdrawalQuerySet",
]
