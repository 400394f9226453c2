"""`GET /v1/market`: the rules of this market that a client needs before it asks for anything."""

from typing import Any, ClassVar

from django.conf import settings
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import provider
from marketplace.api import simulation
from marketplace.api.fields import InstantField, MoneySerializer, SecondsAsDurationField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.money import Money


class DepositRulesSerializer(serializers.Serializer[Any]):
    """For which prices a deposit is enough at booking, and when the balance is charged."""

    share_basis_points = serializers.IntegerField(help_text="of the price, paid at booking")
    price_min = MoneySerializer(help_text="with tax")
    starts_after = SecondsAsDurationField(help_text="for a start more than this ahead")
    balance_due_before_start = SecondsAsDurationField()
    time_to_return = SecondsAsDurationField(
        help_text="to pay a balance that could not be charged; then the deposit is kept"
    )


class MarketSerializer(serializers.Serializer[Any]):
    """The rules of this market."""

    grid_seconds = serializers.IntegerField(help_text="windows start and end on multiples of this")
    horizon_days = serializers.IntegerField(help_text="how far ahead a window may end")
    currency = serializers.CharField(help_text="ISO 4217, lower case")
    simulated_hardware = serializers.BooleanField(help_text="GPUs that do not exist are sold here")
    simulated_payments = serializers.BooleanField(help_text="money here is play money")
    deposits = DepositRulesSerializer(
        allow_null=True, help_text="what is paid by card in two parts; null: nothing"
    )
    resale_share_basis_points = serializers.IntegerField(
        help_text="of what an owner got twice, because time that was left for a fee was sold again: the part "
        "of who left; as it is when the fee is kept"
    )
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
            "deposits": _deposit_rules(),
            "resale_share_basis_points": settings.RESALE_SHARE_BASIS_POINTS,
            "now": self.now,
        }
        return Response(MarketSerializer(rules).data)


def _deposit_rules() -> dict[str, object] | None:
    """Return the rules of prices in two parts; None where this market sells for none."""
    if not settings.DEPOSIT_BASIS_POINTS or not provider.is_connected():
        return None
    return {
        "share_basis_points": settings.DEPOSIT_BASIS_POINTS,
        "price_min": Money(settings.DEPOSIT_PRICE_MINOR_MIN, settings.CURRENCY),
        "starts_after": settings.DEPOSIT_AHEAD_SECONDS,
        "balance_due_before_start": settings.BALANCE_AHEAD_SECONDS,
        "time_to_return": settings.BALANCE_RETURN_SECONDS,
    }
