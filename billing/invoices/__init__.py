"""Invoices and credit notes: numbered without gaps, unchanged once issued, paid as the ledger says."""

from billing.invoices.added import issue_for_change
from billing.invoices.issuing import InvoiceRefused, LineDraft, issue
from billing.invoices.on_account import issue_for_purchase

__all__ = ["InvoiceRefused", "LineDraft", "issue", "issue_for_change", "issue_for_purchase"]
