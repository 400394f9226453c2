"""Invoices and credit notes: numbered without gaps, unchanged once issued, paid as the ledger says."""

from billing.invoices.credit_notes import CreditExceedsInvoice, credit_note, credit_on_account
from billing.invoices.issuing import InvoiceRefused, LineDraft, issue
from billing.invoices.month_close import MonthNotOver, issue_month, run_due
from billing.invoices.on_account import issue_for_change, issue_for_purchase

__all__ = [
    "CreditExceedsInvoice",
    "InvoiceRefused",
    "LineDraft",
    "MonthNotOver",
    "credit_note",
    "credit_on_account",
    "issue",
    "issue_for_change",
    "issue_for_purchase",
    "issue_month",
    "run_due",
]
