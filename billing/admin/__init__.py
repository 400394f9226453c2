"""The books as operators see them: everything searchable, nothing editable but through its verb.

Each room registers its own tables; `shown` holds what they share.
"""

from billing.admin import (
    approvals,
    budgets,
    checks,
    credit,
    deposits,
    invoices,
    ledger,
    limits,
    payouts,
    promotions,
    provider,
    refunds,
    remittances,
    resales,
    settlements,
    silences,
    suspense,
    taxes,
    withdrawals,
)

__all__ = [
    "approvals",
    "budgets",
    "checks",
    "credit",
    "deposits",
    "invoices",
    "ledger",
    "limits",
    "payouts",
    "promotions",
    "provider",
    "refunds",
    "remittances",
    "resales",
    "settlements",
    "silences",
    "suspense",
    "taxes",
    "withdrawals",
]
