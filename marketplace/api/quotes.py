"""`POST /v1/quotes` and `GET /v1/quotes/{id}`: a price promise, and with `hold` a capacity promise."""

import datetime as dt
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import deposits, tax
from billing.tax import TaxTerms
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PriceBreakdownField,
    RateField,
    StartField,
    StrictSerializer,
    SwitchField,
    TextField,
    WholeNumberField,
)
from marketplace.api.payment_plans import PaymentPlanSerializer, plans_of
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.errors import DomainError
from marketplace.core.limits import GPUS_PER_REQUEST_MAX
from marketplace.core.money import Money
from marketplace.states import Scope, Tier
from scheduler import quotes
from scheduler.models import Quote
from scheduler.prices import inputs
from scheduler.states import QuoteStatus, Spread

PRICING_REFUSALS = (
    "no_such_model",
    "off_grid",
    "window_in_past",
    "window_upside_down",
    "beyond_horizon",
    "invalid_value",
)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Eight GPUs for a night",
            value={
                "gpu_model": "h100-sxm-80gb",
                "gpus": 8,
                "starts_at": "2026-11-24T20:00:00Z",
                "ends_at": "2026-11-25T06:00:00Z",
                "hold": True,
            },
            request_only=True,
        )
    ]
)
class QuoteWishSerializer(StrictSerializer):
    """What to price."""

    gpu_model = TextField(max_length=60, help_text="an id of the catalogue: h100-sxm-80gb")
    gpus = WholeNumberField(min_value=1, max_value=GPUS_PER_REQUEST_MAX)
    starts_at = StartField(help_text="on the market's grid, or `now`")
    ends_at = InstantField(help_text="on the market's grid; the window is half-open")
    region = TextField(max_length=60, required=False, allow_null=True, default=None)
    tier = ChoiceField(choices=Tier.choices, required=False, default=Tier.FIRM.value)
    spread = ChoiceField(
        choices=Spread.choices,
        required=False,
        allow_null=True,
        default=None,
        help_text="by default single_node where one node suffices, else same_fabric",
    )
    max_rate = RateField(
        required=False, allow_null=True, default=None, help_text="refuse a higher rate per GPU-hour"
    )
    hold = SwitchField(
        required=False, default=False, help_text="keep the GPUs until the quote expires"
    )


class QuoteSerializer(serializers.Serializer[Quote]):
    """A promise of a price, and with `held` of capacity, until `expires_at`."""

    id = serializers.CharField()
    status = serializers.SerializerMethodField()
    gpu_model = serializers.CharField(source="gpu_model_id")
    gpus = serializers.IntegerField()
    region = serializers.CharField()
    tier = ChoiceField(choices=Tier.choices)
    spread = ChoiceField(choices=Spread.choices)
    starts_at = InstantField()
    ends_at = InstantField()
    rate = RateField(help_text="per GPU-hour, locked")
    total = MoneyField(minor="total_minor", help_text="without tax")
    tax = serializers.SerializerMethodField(help_text="on the total, if it is bought now")
    total_with_tax = serializers.SerializerMethodField(help_text="what is charged")
    payment_plans = serializers.SerializerMethodField(
        help_text="how its price can be divided if it is bought by card now"
    )
    price_breakdown = PriceBreakdownField()
    expires_at = InstantField()
    held = serializers.SerializerMethodField(help_text="the GPUs are kept until `expires_at`")
    created_at = InstantField()
    simulated = serializers.BooleanField(help_text="priced on GPUs that do not exist")

    @extend_schema_field(ChoiceField(choices=QuoteStatus.choices))
    def get_status(self, quote: Quote) -> str:
        return status_at(quote, at=self.context["now"]).value

    def get_held(self, quote: Quote) -> bool:
        return quote.hold and status_at(quote, at=self.context["now"]) == QuoteStatus.OPEN

    @extend_schema_field(MoneySerializer)
    def get_tax(self, quote: Quote) -> dict[str, object]:
        return _money(quote, tax.tax_minor(net_minor=quote.total_minor, terms=self._terms))

    @extend_schema_field(MoneySerializer)
    def get_total_with_tax(self, quote: Quote) -> dict[str, object]:
        return _money(quote, tax.gross_minor(net_minor=quote.total_minor, terms=self._terms))

    @extend_schema_field(PaymentPlanSerializer(many=True))
    def get_payment_plans(self, quote: Quote) -> Any:  # noqa: ANN401 - plain values to render
        price = Money(
            tax.gross_minor(net_minor=quote.total_minor, terms=self._terms), quote.currency
        )
        parts = deposits.offered(quote=quote, terms=self._terms, at=self.context["now"])
        return PaymentPlanSerializer(list(plans_of(price=price, parts=parts)), many=True).data

    def to_representation(self, instance: Quote) -> dict[str, Any]:
        """Add to the breakdown of a price what the tenant is taxed, where that is anything."""
        shown: dict[str, Any] = super().to_representation(instance)
        taxed = shown["tax"]["amount_minor"]
        if taxed:
            shown["price_breakdown"] = {
                **shown["price_breakdown"],
                "tax_note": self._terms.note,
                "tax_basis_points": self._terms.rate_basis_points,
                "tax_minor": taxed,
                "total_with_tax_minor": shown["total_with_tax"]["amount_minor"],
            }
        return shown

    @property
    def _terms(self) -> TaxTerms:
        terms: TaxTerms = self.context["terms"]
        return terms


class PriceInputHourSerializer(serializers.Serializer[Any]):
    """One or more hours that are priced alike."""

    starts_at = serializers.CharField(help_text="an instant; the first hour")
    hours = serializers.IntegerField()
    hours_ahead = serializers.IntegerField(help_text="of the hour in which the table was made")
    gpus_on_offer_by_floor = serializers.ListField(
        child=serializers.IntegerField(), help_text="in the order of `floors`"
    )
    gpus_sold = serializers.IntegerField(help_text="or held")
    demand_milligpus = serializers.IntegerField(
        allow_null=True, help_text="forecast, if free of charge; null without a forecast"
    )
    firm_rate = serializers.CharField(allow_null=True, help_text="for the reclaimable tier")
    rate_when_the_hour_began = serializers.CharField(
        allow_null=True, help_text="limits count from it; null for an hour that is new"
    )
    rate_before = serializers.CharField(allow_null=True)
    target_rate = serializers.CharField(allow_null=True, help_text="without a limit on the pace")
    rate = serializers.CharField(allow_null=True)


class PriceInputsSerializer(serializers.Serializer[Any]):
    """What the hours of a quote were priced from: enough to compute them again."""

    price_table = serializers.CharField()
    number = serializers.IntegerField(help_text="of the pool's tables")
    made_at = serializers.CharField()
    cause = serializers.CharField()
    method = serializers.CharField()
    method_version = serializers.IntegerField()
    rule_version = serializers.IntegerField(help_text="0 is the built-in rule")
    rule = serializers.DictField(child=serializers.CharField())
    fee_basis_points = serializers.IntegerField()
    base_rate = serializers.CharField()
    floors = serializers.ListField(child=serializers.CharField())
    facts = serializers.DictField(child=serializers.IntegerField())
    hours = PriceInputHourSerializer(many=True)


class QuoteDetailSerializer(QuoteSerializer):
    """A quote, and what its price follows from."""

    price_inputs = serializers.SerializerMethodField(
        help_text="null where the price is the floor with the fee on top"
    )

    @extend_schema_field(PriceInputsSerializer(allow_null=True))
    def get_price_inputs(self, quote: Quote) -> dict[str, Any] | None:
        return inputs.of_quote(quote)


def status_at(quote: Quote, *, at: dt.datetime) -> QuoteStatus:
    """Return a quote's status; one whose time is over is expired, whether or not a task has noted it."""
    status = QuoteStatus(quote.status)
    if status == QuoteStatus.OPEN and quote.expires_at <= at:
        return QuoteStatus.EXPIRED
    return status


class QuotesView(ApiView):
    scopes: ClassVar = {"POST": Scope.RESERVATIONS_WRITE}

    @operation(
        summary="Lock a price",
        description="Locks the price for ten minutes; with `hold: true` also the GPUs, and then the call "
        "needs an Idempotency-Key, because it moves capacity.",
        request=QuoteWishSerializer,
        responses={201: QuoteSerializer},
        refusals=(
            *PRICING_REFUSALS,
            "price_above_max",
            "not_enough_capacity",
            "capacity_taken",
            "limit_exceeded",
            "idempotency_key_required",
        ),
        idempotency_key="optional",
        operation_id="create_quote",
    )
    def post(self, request: Request) -> HttpResponse:
        body = self.body(QuoteWishSerializer)
        wish = quotes.QuoteRequest(**body)
        refusals: list[DomainError] = []

        def create() -> tuple[int, Any]:
            try:
                quote = quotes.create(organization=self.organization, request=wish, at=self.now)
            except DomainError as refusal:
                refusals.append(refusal)
                raise
            return HTTPStatus.CREATED, QuoteSerializer(quote, context=_context(self, quote)).data

        try:
            return self.once(key_required=body["hold"], action=create)
        finally:
            # Past the transaction that the refusal undid.
            for refusal in refusals:
                quotes.note_refusal(
                    organization=self.organization, request=wish, refusal=refusal, at=self.now
                )


class QuoteView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}

    @operation(
        summary="A quote, with the inputs from which its price can be recomputed",
        responses={200: QuoteDetailSerializer},
        refusals=("not_found",),
        operation_id="get_quote",
    )
    def get(self, request: Request, quote_id: str) -> Response:
        known = Quote.objects.visible_to(self.organization).select_related("price_version")
        quote = find(known, quote_id)
        return Response(QuoteDetailSerializer(quote, context=_context(self, quote)).data)


def _context(view: ApiView, quote: Quote) -> dict[str, Any]:
    """Return what a quote is shown by: the clock, and the taxes of now, or of when it was bought."""
    if quote.status == QuoteStatus.USED:
        terms = tax.terms_of(reservation=quote.reservation)
    else:
        terms = tax.current_terms(organization=view.organization, at=view.now)
    return {"now": view.now, "terms": terms}


def _money(quote: Quote, amount_minor: int) -> dict[str, object]:
    return dict(MoneySerializer(Money(amount_minor, quote.currency)).data)
