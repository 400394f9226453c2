"""Documents as PDF: invoices, credit notes, the bill of a month. The same document is the same bytes."""

from billing.pdf.invoice_page import invoice
from billing.pdf.layout import sha256
from billing.pdf.month_page import month_bill

__all__ = ["invoice", "month_bill", "sha256"]
