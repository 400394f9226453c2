"""`GET /v1/gpu-models`, `/v1/offerings` and `/v1/price-curve`: what is for sale, when and for how much."""

import datetime as dt
from decimal import Decimal
from typing import Any, ClassVar

from django.conf import settings
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.authentication import Caller
from marketplace.api.fields import (
    ChoiceField,
    DurationField,
    InstantField,
    MoneyField,
    PriceBreakdownField,
    RateField,
    SecondsAsDurationField,
    StartField,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.catalog import NoSuchModel
from marketplace.core.limits import GPUS_PER_REQUEST_MAX, LIST_LIMIT_MAX
from marketplace.core.windows import Window, grid_floor
from marketplace.states import Tier
from scheduler import availability, demand
from scheduler.availability import OfferingQuery
from scheduler.calendar import WindowUpsideDown
from scheduler.states import DemandKind, Spread

CURVE_DEFAULT = dt.timedelta(days=1)


class GpuModelSerializer(serializers.Serializer[Any]):
    """A kind of GPU that the market knows, and what is listed of it now."""

    id = serializers.CharField(source="gpu_model.id")
    name = serializers.CharField(source="gpu_model.name")
    memory_gib = serializers.IntegerField(source="gpu_model.memory_gib")
    regions = serializers.ListField(child=serializers.CharField())
    gpus_listed = serializers.IntegerField()
    gpus_free_now = serializers.IntegerField()
    rate_from = RateField(allow_null=True, help_text="per GPU-hour; null where nothing is listed")
    rate_to = RateField(allow_null=True)
    currency = serializers.CharField()
    simulated = serializers.BooleanField(help_text="some of these GPUs do not exist")


class GpuModelPage(serializers.Serializer[Any]):
    """The whole catalogue: it fits on one page."""

    data = GpuModelSerializer(many=True)  # type: ignore[assignment] # every list of the contract calls it so
    next_cursor = serializers.CharField(allow_null=True)


class OfferingSerializer(serializers.Serializer[Any]):
    """A priced window that can be reserved now."""

    gpu_model = serializers.CharField()
    gpus = serializers.IntegerField()
    nodes = serializers.IntegerField(help_text="on how many machines")
    region = serializers.CharField()
    fabric = serializers.CharField(allow_null=True)
    tier = ChoiceField(choices=Tier.choices)
    reclaim_notice = SecondsAsDurationField(
        source="reclaim_notice_seconds", help_text="PT0S for the firm tier"
    )
    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    rate = RateField(help_text="per GPU-hour")
    total = MoneyField()
    price_breakdown = PriceBreakdownField()
    simulated = serializers.BooleanField(help_text="on GPUs that do not exist")


class OfferingPage(serializers.Serializer[Any]):
    """The best offers; without any, why, and the nearest thing that would work."""

    data = OfferingSerializer(many=True, source="offers")  # type: ignore[assignment] # every list of the contract calls it so
    next_cursor = serializers.CharField(allow_null=True, default=None)
    no_offer_reason = serializers.CharField(allow_null=True, help_text="a code; null with offers")
    nearest = OfferingSerializer(allow_null=True, help_text="the nearest thing that would work")
    nearest_change = ChoiceField(
        choices=[(change.value, change.value) for change in availability.Change],
        allow_null=True,
        help_text="in what it differs from what was asked for",
    )


class OfferingsQuery(StrictSerializer):
    """What to look for."""

    gpu_model = TextField(max_length=60)
    gpus = WholeNumberField(from_text=True, min_value=1, max_value=GPUS_PER_REQUEST_MAX)
    duration = DurationField(help_text="PT48H, 48h, 90m or 2d; a multiple of the grid")
    earliest_start = StartField(required=False, default=None, help_text="by default now")
    latest_end = InstantField(required=False, default=None, help_text="by default the horizon")
    region = TextField(max_length=60, required=False, default=None)
    tier = ChoiceField(choices=Tier.choices, required=False, default=Tier.FIRM.value)
    max_rate = RateField(required=False, default=None, help_text="per GPU-hour")
    spread = ChoiceField(
        choices=Spread.choices,
        required=False,
        default=None,
        help_text="by default single_node where one node suffices, else same_fabric",
    )
    limit = WholeNumberField(
        from_text=True,
        required=False,
        default=availability.OFFERS_MAX,
        min_value=1,
        max_value=LIST_LIMIT_MAX,
        help_text=f"how many offers at most; never more than {availability.OFFERS_MAX} are returned",
    )


class CurvePointSerializer(serializers.Serializer[Any]):
    """One step of the curve."""

    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    rate = RateField(allow_null=True, help_text="what one GPU-hour costs; null where none is free")
    floor = RateField(allow_null=True, help_text="what its owner asks, fee excluded")
    multiplier = serializers.SerializerMethodField(allow_null=True)
    gpus_listed = serializers.IntegerField()
    gpus_free = serializers.IntegerField()
    gpus_sold = serializers.IntegerField(help_text="sold or held")

    def get_multiplier(self, point: availability.CurvePoint) -> str | None:
        return None if point.multiplier is None else _plain(point.multiplier)


class CurvePage(serializers.Serializer[Any]):
    """The whole curve, on one page."""

    data = CurvePointSerializer(many=True)  # type: ignore[assignment] # every list of the contract calls it so
    next_cursor = serializers.CharField(allow_null=True)


# `from` is a word of Python, so this class cannot be written with a class statement.
PriceCurveQuery: type[StrictSerializer] = type(
    "PriceCurveQuery",
    (StrictSerializer,),
    {
        "__module__": __name__,
        "__doc__": "Which curve.",
        "gpu_model": TextField(max_length=60),
        "region": TextField(max_length=60, required=False, default=None),
        "tier": ChoiceField(choices=Tier.choices, required=False, default=Tier.FIRM.value),
        "from": InstantField(
            required=False, default=None, help_text="by default the running grid step"
        ),
        "to": InstantField(required=False, default=None, help_text="by default a day after `from`"),
    },
)


class GpuModelsView(ApiView):
    scopes: ClassVar = {"GET": None}

    @operation(
        summary="The catalogue of GPU models",
        responses={200: GpuModelPage},
        public=True,
        operation_id="list_gpu_models",
    )
    def get(self, request: Request) -> Response:
        models = availability.market_summary(at=self.now)
        return Response(GpuModelPage({"data": models, "next_cursor": None}).data)


class OfferingsView(ApiView):
    scopes: ClassVar = {"GET": None}
    queries: ClassVar = {"GET": OfferingsQuery}

    @operation(
        summary="Windows that can be reserved now, the cheapest first",
        responses={200: OfferingPage},
        query=OfferingsQuery,
        refusals=("off_grid", "window_upside_down", "invalid_value"),
        public=True,
        operation_id="list_offerings",
    )
    def get(self, request: Request) -> Response:
        wish = dict(self.query)
        wish["earliest_start"] = wish["earliest_start"] or self.now
        wish["latest_end"] = wish["latest_end"] or max(
            self.now + dt.timedelta(days=settings.HORIZON_DAYS),
            wish["earliest_start"] + wish["duration"],
        )
        wish["limit"] = min(wish["limit"], availability.OFFERS_MAX)
        query = OfferingQuery(**wish)
        try:
            found = availability.search(query=query, at=self.now)
            self._sample(query)
        except (
            NoSuchModel
        ) as refusal:  # a search that finds nothing is an answer, whatever the reason
            found = availability.SearchResult(offers=[], no_offer_reason=refusal.code)
        return Response(OfferingPage(found).data)

    def _sample(self, query: OfferingQuery) -> None:
        """Sample the search of whoever is signed in; anybody else's moves nothing."""
        user: object = self.request.user
        if isinstance(user, Caller):
            starts_at = max(query.earliest_start, self.now)
            demand.record(
                organization=user.organization,
                kind=DemandKind.SEARCH,
                gpu_model_id=query.gpu_model,
                region=query.region or "",
                tier=Tier(query.tier),
                window=Window(starts_at, starts_at + query.duration),
                gpus=query.gpus,
                at=self.now,
            )


class PriceCurveView(ApiView):
    scopes: ClassVar = {"GET": None}
    queries: ClassVar = {"GET": PriceCurveQuery}

    @operation(
        summary="What a GPU-hour costs, step by step",
        responses={200: CurvePage},
        query=PriceCurveQuery,
        refusals=("no_such_model", "off_grid", "window_upside_down", "invalid_value"),
        public=True,
        operation_id="get_price_curve",
    )
    def get(self, request: Request) -> Response:
        starts_at = self.query["from"] or grid_floor(self.now, grid_seconds=settings.GRID_SECONDS)
        ends_at = self.query["to"] or starts_at + CURVE_DEFAULT
        if not starts_at < ends_at:
            raise WindowUpsideDown("must be later than from", pointer="/to")
        points = availability.price_curve(
            gpu_model=self.query["gpu_model"],
            region=self.query["region"],
            tier=self.query["tier"],
            window=Window(starts_at, ends_at),
            at=self.now,
        )
        return Response(CurvePage({"data": points, "next_cursor": None}).data)


def _plain(number: Decimal) -> str:
    return f"{number:f}"
