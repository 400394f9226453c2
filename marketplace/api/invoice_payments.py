"""`/v1/invoices/{id}/payments`: pay what is owed; `/v1/credit`: how much more may be."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import chargeable, credit, invoice_payments, payment_methods, payments, provider
from billing.models import CreditSale, Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans, PaymentPurpose, PaymentStatus
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    StrictSerializer,
    SwitchField,
    TextField,
    WholeNumberField,
)
from marketplace.api.payments import (
    BankTransferSerializer,
    FailureSerializer,
    bank_transfer_of,
    failure_of,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.states import Scope
from scheduler.states import PaymentMethod

_MEANS = (PaymentMethod.WALLET, PaymentMethod.CARD, PaymentMethod.BANK_TRANSFER)


class PartSerializer(StrictSerializer):
    """A part of an invoice, in integer minor units."""

    amount_minor = WholeNumberField(min_value=1, max_value=chargeable.MOST_MINOR)
    currency = TextField(max_length=3, form=r"[a-z]{3}")


class InvoicePaymentRequestSerializer(StrictSerializer):
    """How to pay, and how much: all that is open where nothing is said."""

    payment_method = ChoiceField(choices=[(means.value, means.label) for means in _MEANS])
    amount = PartSerializer(required=False, default=None, allow_null=True)
    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )


class InvoicePaymentSerializer(serializers.Serializer[Any]):
    """A payment of an invoice; from the wallet it is made at once, and there is nothing more to read."""

    id = serializers.CharField()
    invoice_id = serializers.CharField()
    status = ChoiceField(choices=PaymentStatus.choices)
    payment_method = ChoiceField(choices=[(means.value, means.label) for means in _MEANS])
    amount = MoneyField()
    client_secret = serializers.CharField(
        allow_null=True, help_text="for the provider's own fields in a page of yours"
    )
    checkout_url = serializers.CharField(
        allow_null=True, help_text="a page on which it can be paid"
    )
    bank_transfer = BankTransferSerializer(allow_null=True, help_text="where to send the money")
    failure = FailureSerializer(allow_null=True, help_text="why the last attempt did not work")
    due_at = InstantField(allow_null=True, help_text="given up then, unless paid")
    created_at = InstantField()


class CreditSerializer(serializers.Serializer[credit.Standing]):
    """What may be bought on account. A limit of zero: nothing."""

    limit = MoneyField()
    owed = MoneyField(help_text="on invoices that are not paid yet")
    available = MoneyField(help_text="nothing while an invoice is overdue")
    net_days = serializers.IntegerField(
        allow_null=True, help_text="from an invoice to the day on which it is due"
    )
    overdue_invoices = serializers.SerializerMethodField(
        help_text="to be paid before anything more is bought on account, the oldest first"
    )

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_overdue_invoices(self, held: credit.Standing) -> list[str]:
        return [sale.invoice_id for sale in held.overdue]


class InvoicePaymentsView(ApiView):
    scopes: ClassVar = {"POST": Scope.BILLING_WRITE}

    @operation(
        summary="Pay an invoice",
        description="From the wallet at once. By card or bank transfer the answer says how to pay, as for a "
        "top-up; the money comes into the wallet and pays the invoice from there, as far as it is open then.",
        request=InvoicePaymentRequestSerializer,
        responses={201: InvoicePaymentSerializer},
        refusals=(
            "not_found",
            "nothing_receivable",
            "payment_required",
            "payment_method_unavailable",
            "no_saved_card",
            "money_parked",
            "invalid_value",
        ),
        idempotency_key="required",
        operation_id="pay_invoice",
    )
    def post(self, request: Request, invoice_id: str) -> HttpResponse:
        body = self.body(InvoicePaymentRequestSerializer)
        made: list[Payment] = []

        def pay() -> tuple[int, Any]:
            sale = invoice_payments.sale_of(organization=self.organization, invoice_id=invoice_id)
            amount_minor = _amount(body["amount"], sale=sale)
            if body["payment_method"] == PaymentMethod.WALLET:
                return self._from_wallet(sale, amount_minor=amount_minor)
            if not provider.is_connected():
                raise payment_methods.PaymentMethodUnavailable(
                    "No payment provider is connected here; pay from the wallet.",
                    pointer="/payment_method",
                )
            wishes = Wishes(
                means=PaymentMeans(body["payment_method"]),
                with_saved_card=body["use_saved_card"],
                saves_card=body["save_card"],
            )
            made.append(
                invoice_payments.through_provider(
                    sale=sale, amount_minor=amount_minor, wishes=wishes, at=self.now
                )
            )
            return HTTPStatus.CREATED, _rendered(made[-1])

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that it is written down; what fails here is tried again later."""
            provider.drive_payment(payment_id=made[-1].pk, at=self.now)
            made[-1].refresh_from_db()
            return HTTPStatus.CREATED, _rendered(made[-1])

        waits = body["payment_method"] != PaymentMethod.WALLET
        return self.once(key_required=True, action=pay, then=ask_provider if waits else None)

    def _from_wallet(self, sale: CreditSale, *, amount_minor: int | None) -> tuple[int, Any]:
        payment_id, paid = invoice_payments.from_wallet(
            sale=sale, amount_minor=amount_minor, at=self.now
        )
        answer = {
            "id": payment_id,
            "invoice_id": sale.invoice_id,
            "status": PaymentStatus.SUCCEEDED.value,
            "payment_method": PaymentMethod.WALLET.value,
            "amount": Money(paid, sale.currency),
            "client_secret": None,
            "checkout_url": None,
            "bank_transfer": None,
            "failure": None,
            "due_at": None,
            "created_at": self.now,
        }
        return HTTPStatus.CREATED, InvoicePaymentSerializer(answer).data


class InvoicePaymentView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One payment of an invoice through the provider",
        responses={200: InvoicePaymentSerializer},
        refusals=("not_found",),
        operation_id="get_invoice_payment",
    )
    def get(self, request: Request, invoice_id: str, payment_id: str) -> Response:
        rows = Payment.objects.visible_to(self.organization).filter(
            purpose=PaymentPurpose.INVOICE, invoice_id=invoice_id
        )
        return Response(_rendered(find(rows, payment_id)))


class CreditView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="What may be bought on account",
        responses={200: CreditSerializer},
        operation_id="get_credit",
    )
    def get(self, request: Request) -> Response:
        return Response(
            CreditSerializer(credit.standing(organization=self.organization, at=self.now)).data
        )


def _amount(wish: dict[str, Any] | None, *, sale: CreditSale) -> int | None:
    """Return the part of an invoice that a tenant names, None where it names none."""
    if wish is None:
        return None
    if wish["currency"] != sale.currency:
        raise InvalidValue(f"the invoice is in {sale.currency}", pointer="/amount/currency")
    return int(wish["amount_minor"])


def _rendered(payment: Payment) -> Any:  # noqa: ANN401 - plain values to render
    is_open = payment.status in payments.OPEN_STATUSES
    return InvoicePaymentSerializer(
        {
            "id": payment.pk,
            "invoice_id": payment.invoice_id,
            "status": payment.status,
            "payment_method": payment.means,
            "amount": Money(payment.amount_minor, payment.currency),
            "client_secret": (payment.client_secret or None) if is_open else None,
            "checkout_url": payments.page_url(payment=payment),
            "bank_transfer": bank_transfer_of(payment),
            "failure": failure_of(payment),
            "due_at": payment.due_at,
            "created_at": payment.created_at,
        }
    ).data
