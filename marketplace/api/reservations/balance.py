"""`POST /v1/reservations/{id}/balance-payments`: pay a balance early, or by another card."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework.request import Request

from billing import provider
from billing.deposits import collecting
from billing.models import Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from marketplace.api.fields import StrictSerializer, SwitchField
from marketplace.api.payments import CardPaymentSerializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope


class BalancePaymentWishSerializer(StrictSerializer):
    """Which card pays."""

    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )


class BalancePaymentsView(ApiView):
    scopes: ClassVar = {"POST": Scope.RESERVATIONS_WRITE}

    @operation(
        summary="Pay the balance of a reservation now",
        description="Before it is due, or after the saved card could not be charged. Where a payment of it "
        "waits already, the answer is that one: any card can pay it.",
        request=BalancePaymentWishSerializer,
        responses={201: CardPaymentSerializer},
        refusals=("not_found", "state_conflict", "no_saved_card", "payment_method_unavailable"),
        idempotency_key="required",
        operation_id="create_balance_payment",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        body = self.body(BalancePaymentWishSerializer)
        asked: list[Payment] = []

        def ask() -> tuple[int, Any]:
            payment = collecting.pay_early(
                organization=self.organization,
                reservation_id=reservation_id,
                wishes=Wishes(
                    means=PaymentMeans.CARD,
                    with_saved_card=body["use_saved_card"],
                    saves_card=body["save_card"],
                ),
                at=self.now,
            )
            asked.append(payment)
            return HTTPStatus.CREATED, CardPaymentSerializer(payment).data

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that it is written down; what fails here is tried again later."""
            provider.drive_payment(payment_id=asked[-1].pk, at=self.now)
            asked[-1].refresh_from_db()
            return HTTPStatus.CREATED, CardPaymentSerializer(asked[-1]).data

        return self.once(key_required=True, action=ask, then=ask_provider)
