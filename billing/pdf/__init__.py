"""Documents as PDF: invoices, credit notes, bills. The same document is the same bytes."""

from billing.pdf.invoice_page import invoice
from billing.pdf.layout import sha256
from billing.pdf.month_page import month_bill
from billing.pdf.reservation_page import reservation_bill

__all__ = ["invoice", "month_bill", "reservation_bill", "sha256"]
