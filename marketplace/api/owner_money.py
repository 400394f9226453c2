"""`/v1/owner/earnings` and `/v1/payouts`: what the machines brought in, and what is due to their owner."""

import datetime as dt
from typing import Any, ClassVar

from django.conf import settings
from django.db.models import Count, DateField, F, Func, QuerySet, Sum, Value
from django.db.models.functions import Coalesce
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing.models import Correction, FeeShare, Payout, Resale, Reserve, Settlement
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
_SUMS_OF_BOTH = {
    name: Coalesce(Sum(name), 0)
    for name in (
        "gpu_seconds_delivered",
        "gpu_seconds_busy",
        "earned_minor",
        "fee_minor",
        "owner_minor",
        "credit_of_owner_minor",
    )
}
_SUMS = {
    "leases": Count("id"),
    "gpu_seconds_sold": Coalesce(Sum("gpu_seconds_bought"), 0),
    **_SUMS_OF_BOTH,
}
_SUMS_OF_SHARES = {"share_minor": Coalesce(Sum("amount_minor"), 0)}
_SUMS_OF_RESALES = {"taken_minor": Coalesce(Sum("taken_minor"), 0)}
_NO_NODE = "none"  # a part of a fee is of time that no machine gave; so is what goes back of it


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
        help_text="a day (UTC), a GPU model, a region or a node's id, `none` for what is of no node; or "
        "`total`"
    )
    leases = serializers.IntegerField()
    gpu_seconds_sold = serializers.IntegerField()
    gpu_seconds_delivered = serializers.IntegerField()
    gpu_seconds_busy = serializers.IntegerField()
    earned = MoneySerializer(help_text="for what was delivered, the platform's fee included")
    fee = MoneySerializer()
    credits = MoneySerializer(
        help_text="the owner's share of what tenants got beyond refunds, compensation for reclaims included"
    )
    fee_shares = MoneySerializer(help_text="of what tenants paid for giving time back")
    resales = MoneySerializer(
        help_text="of what was paid twice, because time that was left for a fee was sold again"
    )
    net = MoneySerializer(
        help_text="the owner's part: `earned - fee - credits + fee_shares - resales`"
    )


class EarningsSerializer(serializers.Serializer[Any]):
    """Earnings of leases that were settled in a period, of what was corrected in it, and shares of fees.

    What was paid out, kept in reserve or set off, the statement of a month tells.
    """

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
        corrections = Correction.objects.filter(
            settlement__owner=self.organization,
            settlement__currency=settings.CURRENCY,
            corrected_at__gte=starts_at,
            corrected_at__lt=ends_at,
        )
        shares = FeeShare.objects.filter(
            owner=self.organization,
            currency=settings.CURRENCY,
            created_at__gte=starts_at,
            created_at__lt=ends_at,
        )
        resales = Resale.objects.filter(
            settlement__owner=self.organization,
            currency=settings.CURRENCY,
            shared_at__gte=starts_at,
            shared_at__lt=ends_at,
        )
        total = _added(
            settlements.aggregate(**_SUMS),
            corrections.aggregate(**_SUMS_OF_BOTH),
            shares.aggregate(**_SUMS_OF_SHARES),
            resales.aggregate(**_SUMS_OF_RESALES),
        )
        answer = {
            "from": starts_at,
            "to": ends_at,
            "group_by": self.query["group_by"],
            "total": _row(key="total", sums=total),
            "groups": _rows(
                settlements, corrections, shares, resales, group_by=self.query["group_by"]
            ),
        }
        return Response(EarningsSerializer(answer).data)


def _rows(
    settlements: QuerySet[Settlement],
    corrections: QuerySet[Correction],
    shares: QuerySet[FeeShare],
    resales: QuerySet[Resale],
    *,
    group_by: str,
) -> list[dict[str, Any]]:
    """Return a row per group. Groups are as many as days in the period, or the owner's machines."""
    groups: dict[str, dict[str, Any]] = {}
    for rows, instant, of, node, sums in (
        (settlements, "settled_at", "lease__reservation", F("lease__node_id"), _SUMS),
        (
            corrections,
            "corrected_at",
            "settlement__lease__reservation",
            F("settlement__lease__node_id"),
            _SUMS_OF_BOTH,
        ),
        (shares, "created_at", "change__reservation", Value(_NO_NODE), _SUMS_OF_SHARES),
        (
            resales,
            "shared_at",
            "settlement__lease__reservation",
            Value(_NO_NODE),
            _SUMS_OF_RESALES,
        ),
    ):
        key = {
            "day": Func(
                Func(Value("UTC"), F(instant), function="timezone"),
                function="date",
                output_field=DateField(),
            ),
            "gpu_model": F(f"{of}__gpu_model_id"),
            "region": F(f"{of}__region"),
            "node": node,
        }[group_by]
        for found in rows.order_by().annotate(key=key).values("key").annotate(**sums):
            name = str(found.pop("key"))
            if not any(found.values()):
                continue  # no share at all: a constant makes one group of nothing
            groups[name] = _added(groups.get(name, {}), found)
    return [_row(key=name, sums=_added(sums)) for name, sums in sorted(groups.items())]


def _added(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return the sums of all; a correction and a share of a fee are of no lease of their own."""
    names = (*_SUMS, *_SUMS_OF_SHARES, *_SUMS_OF_RESALES)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def _row(*, key: str, sums: dict[str, Any]) -> dict[str, Any]:
    net = sums["owner_minor"] - sums["credit_of_owner_minor"] + sums["share_minor"]
    net -= sums["taken_minor"]
    return {
        **sums,
        "key": key,
        "earned": Money(sums["earned_minor"], settings.CURRENCY),
        "fee": Money(sums["fee_minor"], settings.CURRENCY),
        "credits": Money(sums["credit_of_owner_minor"], settings.CURRENCY),
        "fee_shares": Money(sums["share_minor"], settings.CURRENCY),
        "resales": Money(sums["taken_minor"], settings.CURRENCY),
        "net": Money(net, settings.CURRENCY),
    }


_PAYOUT_REASONS = ("settlement", "reserve", "correction", "fee_share", "dispute_return")


def _settlement_of(payout: Payout) -> Settlement | None:
    """Return the settlement that a payout is of, by way of its reserve or correction too."""
    of = payout.settlement or payout.reserve or payout.correction
    return of.settlement if isinstance(of, Reserve | Correction) else of


class PayoutSerializer(serializers.Serializer[Any]):
    """Money to the owner: of one settled lease, a part of a fee, or of a charge that was given back."""

    id = serializers.CharField()
    lease_id = serializers.SerializerMethodField(
        help_text="null for a part of a fee or of a charge"
    )
    reason = serializers.SerializerMethodField(help_text="what became payable")
    settlement_id = serializers.CharField(allow_null=True)
    fee_share_id = serializers.CharField(allow_null=True)
    status = ChoiceField(choices=PayoutStatus.choices)
    amount = serializers.SerializerMethodField()
    due_at = InstantField()
    created_at = InstantField()

    def get_lease_id(self, payout: Payout) -> str | None:
        settlement = _settlement_of(payout)
        return settlement.lease_id if settlement else None

    @extend_schema_field(ChoiceField(choices=[(word, word) for word in _PAYOUT_REASONS]))
    def get_reason(self, payout: Payout) -> str:
        return next(word for word in _PAYOUT_REASONS if getattr(payout, f"{word}_id") is not None)

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
        rows = Payout.objects.visible_to(self.organization).select_related(
            "settlement", "reserve__settlement", "correction__settlement"
        )
        if "status" in self.query:
            rows = rows.filter(status=self.query["status"])
        page = page_of(rows, query=self.query)
        data = PayoutSerializer(page.data, many=True).data
        return Response({"data": data, "next_cursor": page.next_cursor})
