"""`/v1/owner/earnings` and `/v1/payouts`: what the machines brought in, and what is due to their owner."""

import datetime as dt
from collections.abc import Iterable
from typing import Any, ClassVar

from django.conf import settings
from django.db.models import Count, DateField, F, Func, QuerySet, Sum, Value
from django.db.models.functions import Coalesce
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing.models import Payout, Settlement
from billing.states import PayoutStatus
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneySerializer,
    PageQuery,
    StrictSerializer,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.states import Scope

EARNINGS_DAYS_MAX = 366  # a year of days is the longest table that one answer holds
EARNINGS_DAYS_DEFAULT = 30
_SUMS = {
    "leases": Count("id"),
    "gpu_seconds_sold": Coalesce(Sum("gpu_seconds_bought"), 0),
    "gpu_seconds_delivered": Coalesce(Sum("gpu_seconds_delivered"), 0),
    "gpu_seconds_busy": Coalesce(Sum("gpu_seconds_busy"), 0),
    "earned_minor": Coalesce(Sum("earned_minor"), 0),
    "fee_minor": Coalesce(Sum("fee_minor"), 0),
    "owner_minor": Coalesce(Sum("owner_minor"), 0),
}


class EarningsQuery(StrictSerializer):
    """Which settlements, and by what they are added up."""

    vars()["from"] = InstantField(
        required=False, default=None, help_text="settled at or after this; 30 days ago by default"
    )
    to = InstantField(required=False, default=None, help_text="settled before this; now by default")
    group_by = ChoiceField(
        choices=[(word, word) for word in ("day", "gpu_model", "region", "node")],
        required=False,
        default="day",
    )


class EarningsRowSerializer(serializers.Serializer[Any]):
    """The sum of some settlements."""

    key = serializers.CharField(
        help_text="a day (UTC), a GPU model, a region or a node's id; or `total`"
    )
    leases = serializers.IntegerField()
    gpu_seconds_sold = serializers.IntegerField()
    gpu_seconds_delivered = serializers.IntegerField()
    gpu_seconds_busy = serializers.IntegerField()
    earned = MoneySerializer(help_text="for what was delivered, the platform's fee included")
    fee = MoneySerializer()
    net = MoneySerializer(help_text="the owner's part")


class EarningsSerializer(serializers.Serializer[Any]):
    """Earnings of settled leases in a period."""

    vars()["from"] = InstantField()
    to = InstantField()
    group_by = serializers.CharField()
    total = EarningsRowSerializer()
    groups = EarningsRowSerializer(many=True)


class EarningsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": EarningsQuery}

    @operation(
        summary="What the machines brought in",
        responses={200: EarningsSerializer},
        query=EarningsQuery,
        refusals=("invalid_value",),
        operation_id="get_earnings",
    )
    def get(self, request: Request) -> Response:
        ends_at = self.query["to"] or self.now
        starts_at = self.query["from"] or ends_at - dt.timedelta(days=EARNINGS_DAYS_DEFAULT)
        if not starts_at < ends_at <= starts_at + dt.timedelta(days=EARNINGS_DAYS_MAX):
            raise InvalidValue(
                f"the period must be above zero and at most {EARNINGS_DAYS_MAX} days",
                pointer="/from",
            )
        settlements = Settlement.objects.filter(
            owner=self.organization,
            currency=settings.CURRENCY,
            settled_at__gte=starts_at,
            settled_at__lt=ends_at,
        )
        total = _row(key="total", sums=settlements.aggregate(**_SUMS))
        answer = {
            "from": starts_at,
            "to": ends_at,
            "group_by": self.query["group_by"],
            "total": total,
            "groups": list(_rows(settlements, group_by=self.query["group_by"])),
        }
        return Response(EarningsSerializer(answer).data)


def _rows(settlements: QuerySet[Settlement], *, group_by: str) -> Iterable[dict[str, Any]]:
    """Yield a row per group. Groups are as many as days in the period, or the owner's machines."""
    keys = {
        "day": Func(
            Func(Value("UTC"), F("settled_at"), function="timezone"),
            function="date",
            output_field=DateField(),
        ),
        "gpu_model": F("lease__reservation__gpu_model_id"),
        "region": F("lease__node__region"),
        "node": F("lease__node_id"),
    }
    grouped = settlements.annotate(key=keys[group_by]).values("key").annotate(**_SUMS)
    for sums in grouped.order_by("key"):
        yield _row(key=str(sums["key"]), sums=sums)


def _row(*, key: str, sums: dict[str, Any]) -> dict[str, Any]:
    return {
        **sums,
        "key": key,
        "earned": Money(sums["earned_minor"], settings.CURRENCY),
        "fee": Money(sums["fee_minor"], settings.CURRENCY),
        "net": Money(sums["owner_minor"], settings.CURRENCY),
    }


class PayoutSerializer(serializers.Serializer[Any]):
    """Money to the owner for one settled lease, or for its part of the fee of one change."""

    id = serializers.CharField()
    lease_id = serializers.CharField(source="settlement.lease_id", allow_null=True, default=None)
    settlement_id = serializers.CharField(allow_null=True)
    fee_share_id = serializers.CharField(allow_null=True)
    status = ChoiceField(choices=PayoutStatus.choices)
    amount = serializers.SerializerMethodField()
    due_at = InstantField()
    created_at = InstantField()

    def get_amount(self, payout: Payout) -> MoneySerializer:
        return MoneySerializer(Money(payout.amount_minor, payout.currency)).data  # type: ignore[return-value] # the annotation is what the OpenAPI document shows


class PayoutsQuery(PageQuery):
    """Which payouts."""

    status = ChoiceField(choices=PayoutStatus.choices, required=False)


class PayoutsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": PayoutsQuery}

    @operation(
        summary="List what is due or was paid to the owner",
        responses={200: page_serializer(PayoutSerializer, name="PayoutPage")},
        query=PayoutsQuery,
        operation_id="list_payouts",
    )
    def get(self, request: Request) -> Response:
        rows = Payout.objects.visible_to(self.organization).select_related("settlement")
        if "status" in self.query:
            rows = rows.filter(status=self.query["status"])
        page = page_of(rows, query=self.query)
        data = PayoutSerializer(page.data, many=True).data
        return Response({"data": data, "next_cursor": page.next_cursor})
