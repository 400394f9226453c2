"""`GET /v1/price-history`: what an hour cost, as seen from each day before it."""

from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    RateField,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Tier
from scheduler.pool_keys import PoolKey
from scheduler.prices import history

DAYS_DEFAULT = 30


class PriceHistoryQuery(StrictSerializer):
    """Which hour, and how many days before it."""

    gpu_model = TextField(max_length=60)
    region = TextField(max_length=60, help_text="prices belong to a region")
    tier = ChoiceField(choices=Tier.choices, required=False, default=Tier.FIRM.value)
    hour = InstantField(
        required=False, default=None, help_text="a whole hour, by default the running one"
    )
    days = WholeNumberField(
        from_text=True,
        required=False,
        default=DAYS_DEFAULT,
        min_value=0,
        max_value=history.DAYS_MAX,
        help_text="how many days to look back from the hour",
    )


class SeenSerializer(serializers.Serializer[Any]):
    """What the hour cost by the table of one day."""

    seen_at = InstantField()
    days_before = serializers.IntegerField(help_text="days before the hour")
    rate = RateField(
        allow_null=True, help_text="per GPU-hour; null where there was no price table yet"
    )
    other_tier_rate = RateField(
        allow_null=True, help_text="the same hour in the other tier, as the table reckons it"
    )
    price_table = serializers.CharField(allow_null=True)


class PriceHistoryPage(serializers.Serializer[Any]):
    """The whole history of an hour, the earliest first, on one page."""

    data = SeenSerializer(many=True)  # type: ignore[assignment] # every list of the contract calls it so
    next_cursor = serializers.CharField(allow_null=True)


class PriceHistoryView(ApiView):
    scopes: ClassVar = {"GET": None}
    queries: ClassVar = {"GET": PriceHistoryQuery}

    @operation(
        summary="What an hour cost, as seen from each day before it",
        responses={200: PriceHistoryPage},
        query=PriceHistoryQuery,
        refusals=("no_such_model", "off_grid", "invalid_value"),
        public=True,
        operation_id="get_price_history",
    )
    def get(self, request: Request) -> Response:
        seen = history.of_hour(
            key=PoolKey(
                gpu_model_id=self.query["gpu_model"],
                region=self.query["region"],
                tier=Tier(self.query["tier"]),
            ),
            hour=self.query["hour"] or history.running_hour(at=self.now),
            days=self.query["days"],
            at=self.now,
        )
        return Response(PriceHistoryPage({"data": seen, "next_cursor": None}).data)
