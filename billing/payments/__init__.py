"""Money that tenants send through the payment provider: for their wallets, or for a reservation.

`apply` is the one function that learns from the provider: the answer of a call, a webhook, the poller and
the reconciliation all end in it. It is given the object as it is now and moves forward only, so that
hints may come twice, late and in any order. What arrives is booked into the wallet, and a reservation is
bought from there in the same transaction; so what can no longer be bought is the tenant's all the same.
"""

from billing.payments.asking import (
    NoSavedCard,
    Wishes,
    capture_due,
    customer_made,
    end_untaken,
    get,
    give_up_due,
    open_for_added_hours,
    open_for_balance,
    open_for_invoice,
    open_for_reservation,
    open_top_up,
)
from billing.payments.learning import apply, declined_at_once, pay_invoices_due, refused
from billing.payments.moves import OPEN_STATUSES, clearing, page_url

__all__ = [
    "OPEN_STATUSES",
    "NoSavedCard",
    "Wishes",
    "apply",
    "capture_due",
    "clearing",
    "customer_made",
    "declined_at_once",
    "end_untaken",
    "get",
    "give_up_due",
    "open_for_added_hours",
    "open_for_balance",
    "open_for_invoice",
    "open_for_reservation",
    "open_top_up",
    "page_url",
    "pay_invoices_due",
    "refused",
]
