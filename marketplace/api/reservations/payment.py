"""How far the payment of a reservation has come, as its answer shows it."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing import payments
from billing.models import CreditSale, Payment
from marketplace.api.fields import ChoiceField, InstantField, MoneyField
from marketplace.api.payment_plans import DepositSerializer
from marketplace.api.payments import (
    BankTransferSerializer,
    FailureSerializer,
    bank_transfer_of,
    failure_of,
)
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus

_PAYMENT_STATUSES = ("pending", "held", "deposit_paid", "paid", "owed", "failed", "expired")
_UNPAID = {
    ReservationStatus.PAYMENT_PENDING: "pending",
    ReservationStatus.PAYMENT_FAILED: "failed",
    ReservationStatus.EXPIRED: "expired",
}


class OwedInvoiceSerializer(serializers.Serializer[CreditSale]):
    """The invoice by which a reservation is owed."""

    id = serializers.CharField(source="invoice_id")
    number = serializers.CharField(source="invoice.number", help_text="as it is printed")
    due_at = InstantField(help_text="to be paid by then")
    open = MoneyField(minor="open_minor", help_text="not paid yet")


class PaymentSerializer(serializers.Serializer[Reservation]):
    """How far the payment has come."""

    method = ChoiceField(choices=PaymentMethod.choices, source="payment_method")
    status = serializers.SerializerMethodField(
        help_text="owed: bought on account, not paid yet; held: on the card, taken before the start"
    )
    due_at = InstantField(source="payment_due_at", help_text="an unpaid reservation ends here")
    client_secret = serializers.SerializerMethodField(help_text="for card payments")
    checkout_url = serializers.SerializerMethodField(help_text="a page on which it can be paid")
    bank_transfer = serializers.SerializerMethodField(help_text="where to send the money")
    failure = serializers.SerializerMethodField(help_text="why the last attempt did not work")
    invoice = serializers.SerializerMethodField(help_text="of what was bought on account")
    plan = serializers.SerializerMethodField(help_text="of a price that is paid in two parts")

    @extend_schema_field(ChoiceField(choices=[(s, s) for s in _PAYMENT_STATUSES]))
    def get_status(self, reservation: Reservation) -> str:
        sale = _sale_of(reservation)
        is_owed = sale is not None and vars(sale)["open_minor"] > 0
        if reservation.status == ReservationStatus.SCHEDULED and reservation.is_payment_held:
            return "held"
        if reservation.unpaid_minor and reservation.status not in _UNPAID:
            return "deposit_paid"
        return _UNPAID.get(ReservationStatus(reservation.status), "owed" if is_owed else "paid")

    def get_client_secret(self, reservation: Reservation) -> str | None:
        payment = _open_of(reservation)
        return (payment.client_secret or None) if payment else None

    def get_checkout_url(self, reservation: Reservation) -> str | None:
        payment = _open_of(reservation)
        return payments.page_url(payment=payment) if payment else None

    @extend_schema_field(BankTransferSerializer(allow_null=True))
    def get_bank_transfer(self, reservation: Reservation) -> object:
        payment = _open_of(reservation)
        return bank_transfer_of(payment) if payment else None

    @extend_schema_field(FailureSerializer(allow_null=True))
    def get_failure(self, reservation: Reservation) -> object:
        shown = _shown_of(reservation)
        return failure_of(shown[0]) if shown else None

    @extend_schema_field(DepositSerializer(allow_null=True))
    def get_plan(self, reservation: Reservation) -> object:
        plan = getattr(reservation, "deposit", None)
        return DepositSerializer(plan).data if plan is not None else None

    @extend_schema_field(OwedInvoiceSerializer(allow_null=True))
    def get_invoice(self, reservation: Reservation) -> object:
        sale = _sale_of(reservation)
        return OwedInvoiceSerializer(sale).data if sale else None


def _sale_of(reservation: Reservation) -> CreditSale | None:
    shown: list[CreditSale] = vars(reservation)["shown_sales"]
    return shown[0] if shown else None


def _shown_of(reservation: Reservation) -> list[Payment]:
    """Return the payments through the provider for a reservation's own price, the newest first."""
    shown: list[Payment] = vars(reservation)["shown_payments"]
    return shown


def _open_of(reservation: Reservation) -> Payment | None:
    """Return the payment that a reservation still waits for, None when it waits for none."""
    return next((p for p in _shown_of(reservation) if p.status in payments.OPEN_STATUSES), None)
