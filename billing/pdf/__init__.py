"""Documents as PDF: invoices, credit notes, bills, statements of owners. The same one is the same bytes."""

from billing.pdf.invoice_page import invoice
from billing.pdf.layout import sha256
from billing.pdf.month_page import month_bill
from billing.pdf.owner_page import owner_statement
from billing.pdf.reservation_page import reservation_bill

__all__ = ["invoice", "month_bill", "owner_statement", "reservation_bill", "sha256"]
