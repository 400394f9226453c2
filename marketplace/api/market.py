"""`GET /v1/market`: the rules of this market that a client needs before it asks for anything."""

from typing import Any, ClassVar

from django.conf import settings
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api import simulation
from marketplace.api.fields import InstantField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView


class MarketSerializer(serializers.Serializer[Any]):
    """The rules of this market."""

    grid_seconds = serializers.IntegerField(help_text="windows start and end on multiples of this")
    horizon_days = serializers.IntegerField(help_text="how far ahead a window may end")
    currency = serializers.CharField(help_text="ISO 4217, lower case")
    simulated_hardware = serializers.BooleanField(help_text="GPUs that do not exist are sold here")
    simulated_payments = serializers.BooleanField(help_text="money here is play money")
    now = InstantField(help_text="the market's clock")


class MarketView(ApiView):
    scopes: ClassVar = {"GET": None}

    @operation(
        summary="The rules of this market",
        responses={200: MarketSerializer},
        public=True,
        operation_id="get_market",
    )
    def get(self, request: Request) -> Response:
        rules = {
            "grid_seconds": settings.GRID_SECONDS,
            "horizon_days": settings.HORIZON_DAYS,
            "currency": settings.CURRENCY,
            "simulated_hardware": simulation.simulated_hardware(),
            "simulated_payments": simulation.simulated_payments(),
            "now": self.now,
        }
        return Response(MarketSerializer(rules).data)
