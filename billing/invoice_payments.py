"""Pay an invoice: from the wallet, through the provider, or by a transfer that an operator records."""

import datetime as dt
import hashlib

from django.db import transaction

from billing import chargeable, payments, receivables
from billing.models import CreditSale, Payment
from billing.payments import Wishes
from marketplace import audit
from marketplace.core import ids
from marketplace.core.errors import NotFound
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Organization


def sale_of(*, organization: Organization, invoice_id: str) -> CreditSale:
    """Return what a tenant owes by an invoice.

    :raises NotFound: when it has no such invoice.
    """
    known = CreditSale.objects.visible_to(organization).select_related("organization")
    found = known.filter(invoice_id=invoice_id).first() if "\x00" not in invoice_id else None
    if found is None:
        raise NotFound(f"no invoice {invoice_id}")
    return found


@transaction.atomic
def from_wallet(*, sale: CreditSale, amount_minor: int | None, at: dt.datetime) -> tuple[str, int]:
    """Pay an invoice, all of it or an amount, from the wallet; return the payment's id and the amount.

    :raises receivables.NothingReceivable: when the invoice is not open by so much.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover it.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    receivables.lock(sale.organization)
    amount = _payable(sale, amount_minor=amount_minor)
    payment_id = ids.new_payment_id()
    receivables.pay_from_wallet(
        organization=sale.organization,
        invoice_id=sale.invoice_id,
        payment_id=payment_id,
        amount=Money(amount, sale.currency),
        at=at,
    )
    return payment_id, amount


@transaction.atomic
def through_provider(
    *, sale: CreditSale, amount_minor: int | None, wishes: Wishes, at: dt.datetime
) -> Payment:
    """Ask for the payment of an invoice by card or bank transfer; whoever drives its intents gets the answer.

    The money comes into the wallet and pays the invoice from there, as far as it is still open then; what the
    provider's steps add to the amount stays in the wallet.

    :raises receivables.NothingReceivable: when the invoice is not open by so much.
    :raises InvalidValue: when the amount is not one that the provider takes.
    :raises payments.NoSavedCard: when the payment is to be made with one and there is none.
    """
    receivables.lock(sale.organization)
    amount = chargeable.rounded_up(
        amount_minor=_payable(sale, amount_minor=amount_minor), currency=sale.currency
    )
    return payments.open_for_invoice(
        organization=sale.organization,
        invoice_id=sale.invoice_id,
        amount=Money(amount, sale.currency),
        wishes=wishes,
        at=at,
    )


@transaction.atomic
def record_transfer(
    *, sale: CreditSale, amount: Money, idempotency_key: str, at: dt.datetime, actor: str
) -> str:
    """Record money that arrived on the bank account for an invoice, once per key; return the payment's id.

    What is beyond the invoice goes to the wallet.

    :raises receivables.NothingReceivable: when the amount is not positive, or of another currency.
    :raises ledger.EntryMismatch: when the key was used for another tenant, invoice or amount.
    """
    if amount.amount_minor <= 0 or amount.currency != sale.currency:
        raise receivables.NothingReceivable(
            f"At least one minor unit of {sale.currency.upper()}.", pointer="/amount_minor"
        )
    digest = hashlib.sha256(idempotency_key.encode()).hexdigest()[:26]
    payment_id = f"pay_{digest}"
    receivables.pay(
        organization=sale.organization,
        invoice_id=sale.invoice_id,
        payment_id=payment_id,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        at=at,
        is_by_bank=True,
    )
    # Whoever came second waited for the first to commit, and sees its line in the trail.
    if not AuditEvent.objects.filter(object_id=payment_id).exists():
        audit.record(
            at=at,
            actor=actor,
            action="invoice.paid_by_transfer",
            object_id=payment_id,
            organization=sale.organization,
            detail={
                "invoice_id": sale.invoice_id,
                "amount_minor": amount.amount_minor,
                "currency": amount.currency,
            },
        )
    return payment_id


def _payable(sale: CreditSale, *, amount_minor: int | None) -> int:
    """Return the amount to pay: all that is open where none is named.

    :raises receivables.NothingReceivable: when the invoice is not open by so much.
    """
    still_open = receivables.open_minor(
        organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
    )
    amount = still_open if amount_minor is None else amount_minor
    if not 0 < amount <= still_open:
        raise receivables.NothingReceivable(
            f"{sale.invoice_id} is open by {Money(still_open, sale.currency)}.", pointer="/amount"
        )
    return amount
