"""What a tenant may do with what it has bought: ask what it costs, then do it, by quote and by key."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request

from billing import changes as money
from billing import purchase_requests, tax
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PriceBreakdownField,
    RateField,
    SecondsAsDurationField,
    StrictSerializer,
    TextField,
)
from marketplace.api.owner_listings import NoFields
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.money import Money
from marketplace.states import Scope
from scheduler import cancellations, extensions, rebookings
from scheduler.models import Change, ChangeQuote
from scheduler.states import ChangeKind, ExtensionLimit, PaymentMethod

WAIVERS = (cancellations.NOT_PAID, cancellations.NOT_DELIVERED, cancellations.RECLAIMED)
QUOTE_REFUSALS = ("not_found", "state_conflict", "limit_exceeded")
CHANGE_REFUSALS = (
    "not_found",
    "quote_used",
    "quote_expired",
    "state_conflict",
    "money_parked",
)


class LadderStepSerializer(serializers.Serializer[Any]):
    """With at least this notice before the start, this part of what goes back is kept."""

    notice = SecondsAsDurationField()
    fee_basis_points = serializers.IntegerField()


class ChangeQuoteSerializer(serializers.Serializer[ChangeQuote]):
    """What a change will cost or bring, promised until `expires_at` for the reservation as it is.

    `total_after = total_before + charge - refund - fee`. `starts_at` and `ends_at` are null where nothing is
    left of the window.
    """

    id = serializers.CharField()
    kind = ChoiceField(choices=ChangeKind.choices)
    reservation_id = serializers.CharField()
    from_starts_at = InstantField()
    from_ends_at = InstantField()
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    longest_ends_at = InstantField(
        allow_null=True, help_text="of an extension: how far it could have gone"
    )
    longest_limited_by = serializers.SerializerMethodField()
    added_rate = RateField(
        allow_null=True, help_text="per GPU-hour, the mean of what is added; locked"
    )
    price_breakdown = serializers.ListField(
        child=PriceBreakdownField(), help_text="of each part that is added"
    )
    total_before = MoneyField(minor="from_total_minor", help_text="zero before the payment")
    total_after = MoneyField(minor="total_minor")
    charge = MoneyField(minor="charge_minor", help_text="to be paid for what is added")
    refund = MoneyField(
        minor="refund_minor", help_text="owed no more, or goes back to where it was paid from"
    )
    fee = MoneyField(minor="fee_minor", help_text="kept of what is given back")
    charge_tax = serializers.SerializerMethodField(help_text="paid with the charge")
    refund_tax = serializers.SerializerMethodField(help_text="goes back with the refund")
    fee_basis_points = serializers.IntegerField(help_text="of what is given back")
    fee_waived_because = serializers.SerializerMethodField()
    notice = SecondsAsDurationField(
        source="notice_seconds", help_text="until the first start that was bought"
    )
    rule_version = serializers.IntegerField(source="rule.version")
    ladder = serializers.SerializerMethodField()
    created_at = InstantField()
    expires_at = InstantField()

    @extend_schema_field(ChoiceField(choices=[(w, w) for w in WAIVERS], allow_null=True))
    def get_fee_waived_because(self, quote: ChangeQuote) -> str | None:
        return quote.fee_waived_because or None

    @extend_schema_field(ChoiceField(choices=ExtensionLimit.choices, allow_null=True))
    def get_longest_limited_by(self, quote: ChangeQuote) -> str | None:
        return quote.longest_limited_by or None

    @extend_schema_field(MoneySerializer)
    def get_charge_tax(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        part = tax.preview(reservation=quote.reservation, charged=quote.charge_minor)
        return MoneySerializer(Money(part.charged, quote.currency)).data

    @extend_schema_field(MoneySerializer)
    def get_refund_tax(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        part = tax.preview(reservation=quote.reservation, refunded=quote.refund_minor)
        return MoneySerializer(Money(part.refunded, quote.currency)).data

    @extend_schema_field(LadderStepSerializer(many=True))
    def get_ladder(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        steps = [{"notice": n, "fee_basis_points": fee} for n, fee in quote.rule.ladder]
        return LadderStepSerializer(steps, many=True).data


class ChangeSerializer(serializers.Serializer[Any]):
    """A change that was made."""

    id = serializers.CharField()
    kind = ChoiceField(choices=ChangeKind.choices)
    reservation_id = serializers.CharField()
    quote_id = serializers.CharField()
    from_starts_at = InstantField()
    from_ends_at = InstantField()
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    charged = MoneyField(minor="charged_minor")
    refunded = MoneyField(minor="refunded_minor")
    fee = MoneyField(minor="fee_minor")
    invoice_id = serializers.SerializerMethodField(
        help_text="by which it is owed, where it was bought on account"
    )
    at = InstantField()

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_invoice_id(self, change: Change) -> str | None:
        sale = getattr(change, "credit_sale", None)
        return sale.invoice_id if sale else None


class ByQuoteSerializer(StrictSerializer):
    """On the terms of which quote."""

    quote_id = TextField(max_length=32)


class ExtensionWishSerializer(StrictSerializer):
    """Until when, and at which rate at most."""

    ends_at = InstantField(help_text="on the market's grid, later than the end so far")
    max_rate = RateField(
        required=False,
        allow_null=True,
        default=None,
        help_text="refuse a higher rate per GPU-hour of what is added",
    )


class WindowWishSerializer(StrictSerializer):
    """The window to have instead; an end that is not named stays."""

    starts_at = InstantField(required=False, default=None, help_text="on the market's grid")
    ends_at = InstantField(required=False, default=None, help_text="on the market's grid")
    max_rate = RateField(
        required=False,
        allow_null=True,
        default=None,
        help_text="refuse a higher rate per GPU-hour of what is added",
    )


class PaidByQuoteSerializer(ByQuoteSerializer):
    """On the terms of which quote, and how what is added is paid."""

    payment_method = ChoiceField(
        choices=PaymentMethod.choices, required=False, default=PaymentMethod.WALLET.value
    )


class _ChangeView(ApiView):
    scopes: ClassVar = {"POST": Scope.RESERVATIONS_WRITE}

    def quoted(self, make: Callable[[], ChangeQuote]) -> HttpResponse:
        """Answer with the quote that `make` returns."""

        def action() -> tuple[int, Any]:
            return HTTPStatus.CREATED, ChangeQuoteSerializer(make()).data

        return self.once(key_required=False, action=action)

    def changed(self, make: Callable[[], Change]) -> HttpResponse:
        """Answer with the change that `make` returns."""

        def action() -> tuple[int, Any]:
            return HTTPStatus.CREATED, ChangeSerializer(make()).data

        return self.once(key_required=True, action=action)

    def ask(self, reservation_id: str, *, quote_id: str) -> None:
        """Ask for what takes a second person, before the key is used: it may be ordered again with it."""
        purchase_requests.ask_for_change(
            organization=self.organization,
            reservation_id=reservation_id,
            quote_id=quote_id,
            at=self.now,
            actor=self.caller.actor,
        )


class CancellationQuoteView(_ChangeView):
    @operation(
        summary="Ask what comes back if you leave now",
        description="The terms are promised for 15 minutes. The fee depends on the time until the start; "
        "nothing is asked before the payment, or where the promise is not kept in full. Once the "
        "reservation has begun the amounts are those of leaving at this second.",
        request=NoFields,
        responses={201: ChangeQuoteSerializer},
        refusals=QUOTE_REFUSALS,
        idempotency_key="optional",
        operation_id="create_cancellation_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        self.body(NoFields)
        return self.quoted(
            lambda: cancellations.quote(
                organization=self.organization, reservation_id=reservation_id, at=self.now
            )
        )


class CancellationView(_ChangeView):
    @operation(
        summary="Leave on the terms of a quote",
        description="Before the start the GPUs are on sale again at once. After it the leases end now, and "
        "the GPUs are on sale again when they have come back.",
        request=ByQuoteSerializer,
        responses={201: ChangeSerializer},
        refusals=CHANGE_REFUSALS,
        idempotency_key="required",
        operation_id="cancel_reservation",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        quote_id = self.body(ByQuoteSerializer)["quote_id"]
        return self.changed(
            lambda: money.cancel(
                organization=self.organization,
                reservation_id=reservation_id,
                quote_id=quote_id,
                at=self.now,
                actor=self.caller.actor,
            )
        )


class ExtensionQuoteView(_ChangeView):
    @operation(
        summary="Ask what a later end on the same GPUs costs",
        description="The price of what is added is locked for ten minutes; the GPUs are not held. The answer "
        "says how far the reservation could be extended, and what ends it there. A refusal says the same: "
        "`reason` and `longest_ends_at`, null where it cannot be extended at all.",
        request=ExtensionWishSerializer,
        responses={201: ChangeQuoteSerializer},
        refusals=(
            *QUOTE_REFUSALS,
            "off_grid",
            "window_upside_down",
            "beyond_horizon",
            "extension_too_early",
            "extension_too_late",
            "extension_refused",
            "payment_held",
            "price_above_max",
        ),
        idempotency_key="optional",
        operation_id="create_extension_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        body = self.body(ExtensionWishSerializer)
        return self.quoted(
            lambda: extensions.quote(
                organization=self.organization, reservation_id=reservation_id, at=self.now, **body
            )
        )


class ExtensionsView(_ChangeView):
    @operation(
        summary="Buy a later end on the terms of a quote",
        description="All its GPUs, or nothing happens. The old end stands if the payment fails.",
        request=PaidByQuoteSerializer,
        responses={201: ChangeSerializer},
        refusals=(
            *CHANGE_REFUSALS,
            "capacity_taken",
            "payment_held",
            "extension_refused",
            "limit_exceeded",
            "approval_required",
            "approval_refused",
            "budget_exceeded",
            "project_frozen",
            "payment_required",
            "payment_method_unavailable",
            "credit_not_granted",
            "credit_limit_exceeded",
            "invoice_overdue",
            "invalid_value",
        ),
        idempotency_key="required",
        operation_id="extend_reservation",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        body = self.body(PaidByQuoteSerializer)
        self.ask(reservation_id, quote_id=body["quote_id"])
        return self.changed(
            lambda: money.extend(
                organization=self.organization,
                reservation_id=reservation_id,
                at=self.now,
                actor=self.caller.actor,
                **body,
            )
        )


class ChangeQuoteView(_ChangeView):
    @operation(
        summary="Ask what another window costs, before the reservation begins",
        description="Hours that are kept keep their price; hours that are added cost what they cost today, "
        "locked for ten minutes. The difference is charged, or goes back less the ladder's fee. The GPUs are "
        "not held.",
        request=WindowWishSerializer,
        responses={201: ChangeQuoteSerializer},
        refusals=(
            *QUOTE_REFUSALS,
            "invalid_value",
            "off_grid",
            "window_upside_down",
            "window_in_past",
            "beyond_horizon",
            "move_too_late",
            "payment_held",
            "window_too_short",
            "not_enough_capacity",
            "price_above_max",
        ),
        idempotency_key="optional",
        operation_id="create_change_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        wish = rebookings.WindowWish(**self.body(WindowWishSerializer))
        return self.quoted(
            lambda: rebookings.quote(
                organization=self.organization,
                reservation_id=reservation_id,
                wish=wish,
                at=self.now,
            )
        )


class ChangesView(_ChangeView):
    @operation(
        summary="Take the window of a quote",
        description="All GPUs of the reservation in the new window, or the old one stands.",
        request=PaidByQuoteSerializer,
        responses={201: ChangeSerializer},
        refusals=(
            *CHANGE_REFUSALS,
            "capacity_taken",
            "payment_held",
            "limit_exceeded",
            "approval_required",
            "approval_refused",
            "budget_exceeded",
            "project_frozen",
            "payment_required",
            "payment_method_unavailable",
            "credit_not_granted",
            "credit_limit_exceeded",
            "invoice_overdue",
            "invalid_value",
        ),
        idempotency_key="required",
        operation_id="change_reservation_window",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        body = self.body(PaidByQuoteSerializer)
        self.ask(reservation_id, quote_id=body["quote_id"])
        return self.changed(
            lambda: money.rebook(
                organization=self.organization,
                reservation_id=reservation_id,
                at=self.now,
                actor=self.caller.actor,
                **body,
            )
        )
