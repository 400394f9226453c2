"""`/v1/budgets` and `/v1/project-freezes`: what an organization lets itself spend."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import budgets
from billing.budgets import BudgetWish
from billing.models import ProjectFreeze
from billing.states import BudgetMode, BudgetPeriod
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PageQuery,
    StrictListField,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.states import Scope

AMOUNT_MINOR_MAX = 10**15  # what every column and every sum of ours holds; no company spends it
_ETAG_HELP = "Replace the budgets only if they are still those of this ETag; else 412."


class MoneyWishSerializer(StrictSerializer):
    """An amount in minor units of the market's currency."""

    amount_minor = WholeNumberField(min_value=0, max_value=AMOUNT_MINOR_MAX)
    currency = TextField(max_length=3)


class BudgetWishSerializer(StrictSerializer):
    """One budget; without a project it is the whole organization's."""

    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    period = ChoiceField(choices=BudgetPeriod.choices)
    mode = ChoiceField(
        choices=BudgetMode.choices,
        required=False,
        default=BudgetMode.HARD,
        help_text="`hard` refuses what does not fit, `notify` only tells",
    )
    amount = MoneyWishSerializer()
    thresholds = StrictListField(
        child=WholeNumberField(min_value=1, max_value=budgets.THRESHOLD_PERCENT_MAX),
        max_length=budgets.THRESHOLDS_MAX,
        required=False,
        default=lambda: list(budgets.THRESHOLDS_DEFAULT),
        help_text="percent of the amount, each told once in a period; default 50, 80 and 100",
    )


class BudgetsWishSerializer(StrictSerializer):
    """All budgets of the organization; what is not in the list is no budget any more."""

    budgets = StrictListField(child=BudgetWishSerializer(), max_length=budgets.BUDGETS_MAX)


class BudgetsQuery(StrictSerializer):
    """Which period."""

    at = InstantField(
        required=False,
        default=None,
        help_text="show the periods in which this instant lies; default: now",
    )


class BudgetSerializer(serializers.Serializer[Any]):
    """A budget and how it stands, net of tax.

    `committed` counts by delivery and is what a hard budget compares; `paid` counts by payment.
    """

    id = serializers.CharField(source="budget.id")
    project = serializers.CharField(
        source="budget.project", help_text="empty: the whole organization"
    )
    period = ChoiceField(source="budget.period", choices=BudgetPeriod.choices)
    mode = ChoiceField(source="budget.mode", choices=BudgetMode.choices)
    amount = MoneyField(source="budget.amount")
    thresholds = serializers.ListField(child=serializers.IntegerField(), source="budget.thresholds")
    period_starts_at = InstantField(source="period.starts_at")
    period_ends_at = InstantField(source="period.ends_at")
    committed = MoneySerializer(
        help_text="ordered for the hours in the period, less what was not delivered or given back"
    )
    paid = MoneySerializer(help_text="charged less refunded in the period, for whatever hours")
    left = MoneySerializer(help_text="amount less committed, never below nothing")


class BudgetsSerializer(serializers.Serializer[Any]):
    """All budgets of the organization; there are few, so there is one page of them."""

    data = BudgetSerializer(many=True)  # type: ignore[assignment] # shadows a name of the base class
    next_cursor = serializers.CharField(allow_null=True, help_text="always null")


class BudgetsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "PUT": Scope.BILLING_WRITE}
    queries: ClassVar = {"GET": BudgetsQuery}

    @operation(
        summary="The budgets, and how they stand",
        description="The answer's ETag is of what is set, not of how it stands: send it back as If-Match.",
        responses={200: BudgetsSerializer},
        query=BudgetsQuery,
        operation_id="get_budgets",
    )
    def get(self, request: Request) -> Response:
        return self._answer(at=self.query["at"] or self.now)

    @extend_schema(
        parameters=[
            OpenApiParameter(
                name="If-Match",
                type=OpenApiTypes.STR,
                location=OpenApiParameter.HEADER,
                description=_ETAG_HELP,
            )
        ]
    )
    @operation(
        summary="Replace the budgets",
        description="All or nothing. A budget of the same project and period stays itself. An amount below "
        "what is committed is taken: it refuses further orders and takes nothing away.",
        request=BudgetsWishSerializer,
        responses={200: BudgetsSerializer},
        refusals=("invalid_value", "budgets_changed"),
        operation_id="replace_budgets",
    )
    def put(self, request: Request) -> Response:
        rows = self.body(BudgetsWishSerializer)["budgets"]
        budgets.put(
            organization=self.organization,
            wishes=[_wish(row, index=index) for index, row in enumerate(rows)],
            only_if=_version_of(request.headers.get("If-Match")),
            at=self.now,
            actor=self.caller.actor,
        )
        return self._answer(at=self.now)

    def _answer(self, *, at: Any) -> Response:  # noqa: ANN401 - an instant out of the query
        rows = budgets.standings(organization=self.organization, at=at)
        tag = budgets.version(organization=self.organization)
        return Response(
            BudgetsSerializer({"data": rows, "next_cursor": None}).data,
            headers={"ETag": f'"{tag}"'},
        )


class FreezeWishSerializer(StrictSerializer):
    """What to stop, and why."""

    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    reason = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)


class FreezeSerializer(serializers.Serializer[ProjectFreeze]):
    """A project, or with an empty name all of them, that orders and extends nothing more."""

    id = serializers.CharField()
    project = serializers.CharField()
    reason = serializers.CharField()
    frozen_by = serializers.CharField()
    frozen_at = InstantField()


FreezePage = page_serializer(FreezeSerializer, name="FreezePage")


class FreezesView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}
    queries: ClassVar = {"GET": PageQuery}

    @operation(
        summary="What is frozen, newest first",
        responses={200: FreezePage},
        query=PageQuery,
        operation_id="list_project_freezes",
    )
    def get(self, request: Request) -> Response:
        known = ProjectFreeze.objects.filter(organization=self.organization)
        return Response(FreezePage(page_of(known, query=self.query)).data)

    @operation(
        summary="Stop new orders and extensions of a project",
        description="Without a project: of the whole organization. What is booked stays, and what runs runs "
        "on. A second time is answered with the first one.",
        request=FreezeWishSerializer,
        responses={201: FreezeSerializer},
        operation_id="freeze_project",
    )
    def post(self, request: Request) -> Response:
        made = budgets.freeze(
            organization=self.organization,
            at=self.now,
            actor=self.caller.actor,
            **self.body(FreezeWishSerializer),
        )
        return Response(FreezeSerializer(made).data, status=HTTPStatus.CREATED)


class FreezeView(ApiView):
    scopes: ClassVar = {"DELETE": Scope.BILLING_WRITE}

    @operation(
        summary="Let a project order again",
        responses={204: None},
        refusals=("not_found",),
        operation_id="unfreeze_project",
    )
    def delete(self, request: Request, freeze_id: str) -> Response:
        budgets.unfreeze(
            organization=self.organization,
            freeze_id=freeze_id,
            at=self.now,
            actor=self.caller.actor,
        )
        return Response(status=HTTPStatus.NO_CONTENT)


def _wish(row: dict[str, Any], *, index: int) -> BudgetWish:
    if row["amount"]["currency"] != settings.CURRENCY:
        raise InvalidValue(
            f"this market keeps its books in {settings.CURRENCY}",
            pointer=f"/budgets/{index}/amount/currency",
        )
    return BudgetWish(
        project=row["project"],
        period=BudgetPeriod(row["period"]),
        mode=BudgetMode(row["mode"]),
        amount_minor=row["amount"]["amount_minor"],
        thresholds=row["thresholds"],
    )


def _version_of(header: str | None) -> str | None:
    """Return the version that If-Match names; none where it is missing or takes any."""
    if header is None or header.strip() == "*":
        return None
    return header.strip().removeprefix("W/").strip('"')
