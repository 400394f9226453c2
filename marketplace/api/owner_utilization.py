"""`GET /v1/owner/utilization`: did my machines work."""

import datetime as dt
from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import owner_utilization
from billing.owner_utilization import Use
from marketplace.api.fields import ChoiceField, InstantField, MoneySerializer, StrictSerializer
from marketplace.api.owner_money import EARNINGS_DAYS_DEFAULT, EARNINGS_DAYS_MAX
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window
from marketplace.states import Scope


class OwnerUtilizationQuery(StrictSerializer):
    """Which period, and by what it is added up."""

    vars()["from"] = InstantField(
        required=False, default=None, help_text="30 days before the end by default"
    )
    to = InstantField(required=False, default=None, help_text="not included; now by default")
    group_by = ChoiceField(
        choices=[(word, word) for word in owner_utilization.GROUPS], required=False, default="day"
    )


class OwnerUseSerializer(serializers.Serializer[Any]):
    """What some machines did in the period."""

    key = serializers.CharField(
        help_text="a day (UTC), a GPU model, a region or a node's id; or `total`"
    )
    gpu_seconds_idle = serializers.IntegerField(
        allow_null=True,
        help_text="how long those have been free that are free now; null where nothing is known",
    )
    gpu_seconds_listed = serializers.IntegerField(
        allow_null=True,
        help_text="under published listings as they select today; null where one is on offer only when idle",
    )
    gpu_seconds_sold = serializers.IntegerField(help_text="leased or booked")
    gpu_seconds_delivered = serializers.IntegerField(
        allow_null=True, help_text="of closed hours and settled leases; null before the first"
    )
    gpu_seconds_busy = serializers.IntegerField(
        allow_null=True, help_text="a kernel ran; null where nothing measured it"
    )
    income = MoneySerializer(help_text="the owner's part, less the credits that it bears")


class OwnerUtilizationSerializer(serializers.Serializer[Any]):
    """The machines of an owner in a period."""

    vars()["from"] = InstantField()
    to = InstantField()
    group_by = serializers.CharField()
    total = OwnerUseSerializer()
    groups = OwnerUseSerializer(many=True)


class UtilizationView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ}
    queries: ClassVar = {"GET": OwnerUtilizationQuery}

    @operation(
        summary="Idle, listed, sold, delivered and busy GPU-seconds, and income",
        responses={200: OwnerUtilizationSerializer},
        query=OwnerUtilizationQuery,
        refusals=("invalid_value",),
        operation_id="get_owner_utilization",
    )
    def get(self, request: Request) -> Response:
        ends_at = self.query["to"] or self.now
        starts_at = self.query["from"] or ends_at - dt.timedelta(days=EARNINGS_DAYS_DEFAULT)
        if not starts_at < ends_at <= starts_at + dt.timedelta(days=EARNINGS_DAYS_MAX):
            raise InvalidValue(
                f"the period must be above zero and at most {EARNINGS_DAYS_MAX} days",
                pointer="/from",
            )
        found = owner_utilization.utilization(
            owner=self.organization,
            window=Window(starts_at, ends_at),
            group_by=self.query["group_by"],
            at=self.now,
        )
        answer = {
            "from": starts_at,
            "to": ends_at,
            "group_by": self.query["group_by"],
            "total": _row("total", found.total),
            "groups": [_row(key, use) for key, use in found.groups],
        }
        return Response(OwnerUtilizationSerializer(answer).data)


def _row(key: str, use: Use) -> dict[str, Any]:
    return {
        "key": key,
        "gpu_seconds_idle": use.idle,
        "gpu_seconds_listed": use.listed,
        "gpu_seconds_sold": use.sold,
        "gpu_seconds_delivered": use.delivered,
        "gpu_seconds_busy": use.busy,
        "income": owner_utilization.income(use),
    }
