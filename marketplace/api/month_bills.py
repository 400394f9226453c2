"""`GET /v1/bills/{YYYY-MM}`: a month as the people who pay for it read it, as JSON or as rows of CSV."""

import datetime as dt
from collections.abc import Iterator
from typing import Any, ClassVar

from django.conf import settings
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.request import Request
from rest_framework.response import Response

from billing import allocation, month_bills, month_movements, pdf
from billing.allocation import Group
from billing.invoices import reading
from billing.month_bills import Month, MonthBill
from billing.month_figures import Figures, Row, ratios, total_of
from marketplace.api import bill_rows, month_page
from marketplace.api.bill_documents import BILL_FORMS, by_reason, page_response
from marketplace.api.fields import ChoiceField, StrictSerializer, TextField
from marketplace.api.invoices import pdf_response
from marketplace.api.month_shapes import MonthBillSerializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.states import Scope
from scheduler.details import TAG_LENGTH_MAX


class MonthBillQuery(StrictSerializer):
    """The form of the answer, and how it is divided."""

    vars()["format"] = ChoiceField(
        choices=[(form, form) for form in BILL_FORMS],
        required=False,
        default="json",
    )
    group_by = TextField(
        max_length=len(allocation.TAG_PREFIX) + TAG_LENGTH_MAX,
        required=False,
        default="",
        allow_blank=True,
        help_text="`project`, `buyer`, or `tag:` and the key of a tag, such as `tag:team`",
    )


class MonthBillView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": MonthBillQuery}

    @operation(
        summary="The bill of a month, as it stands now",
        description="The bill of a month of UTC, as it stands now: `YYYY-MM`. With `format=csv` the rows of "
        "the reservations as CSV, money in minor units; with `format=html` a page to print, with "
        "`format=pdf` the same as a file. `group_by` divides the month: the answer has `allocation`, the CSV "
        "a row per group, and page and file that division in the place of their own.",
        responses={200: MonthBillSerializer},
        files={
            **{(200, form): OpenApiTypes.STR for form in ("text/csv", "text/html")},
            (200, "application/pdf"): OpenApiTypes.BINARY,
        },
        query=MonthBillQuery,
        refusals=("invalid_value",),
        operation_id="get_month_bill",
    )
    def get(self, request: Request, month: str) -> HttpResponseBase:
        window = _month(month, at=self.now)
        dimension = _dimension(self.query["group_by"])
        if self.query["format"] == "csv":
            rows = month_bills.rows_of(organization=self.organization, window=window)
            return StreamingHttpResponse(
                _csv_of_groups(rows, dimension=dimension) if dimension else _csv(rows),
                content_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": f'attachment; filename="bill-{month}.csv"'},
            )
        bill = month_bills.month_bill(organization=self.organization, month=month, at=self.now)
        groups = (
            allocation.by(bill.rows, dimension=dimension, whole=bill.total) if dimension else None
        )
        if self.query["format"] == "html":
            text = month_page.page(
                bill=bill,
                organization=self.organization,
                documents=list(reading.for_month(organization=self.organization, month=month)),
                groups=groups,
                at=self.now,
            )
            return page_response(text)
        if self.query["format"] == "pdf":
            content = pdf.month_bill(
                bill=bill, organization=self.organization, groups=groups, at=self.now
            )
            return pdf_response(content, name=f"bill-{month}")
        documents = reading.for_month(organization=self.organization, month=month)
        answer = {**_bill(bill), "documents": documents, "allocation": None}
        if groups is not None:
            shown = [_shared(each) | {"value": _value(each), "name": each.label} for each in groups]
            answer["allocation"] = {"group_by": dimension, "groups": shown}
        return Response(MonthBillSerializer(answer).data)


def _month(month: str, *, at: dt.datetime) -> Window:
    """Return the month of the address.

    :raises InvalidValue: when it is no month, or has not begun.
    """
    try:
        window = month_movements.month_window(month=month)
    except ValueError:
        raise InvalidValue("a month is written as YYYY-MM, such as 2026-11") from None
    if window.starts_at > at:
        raise InvalidValue(f"{month} has not begun: what is promised in it is ahead of this month")
    return window


def _dimension(text: str) -> str | None:
    """Return how the month is to be divided; None where nothing was said.

    :raises InvalidValue: when it is no dimension.
    """
    is_tag = text.startswith(allocation.TAG_PREFIX) and text != allocation.TAG_PREFIX
    if text and not is_tag and text not in {allocation.PROJECT, allocation.BUYER}:
        raise InvalidValue(
            "must be project, buyer, or tag: and the key of a tag", pointer="/group_by"
        )
    return text or None


def _csv(rows: list[Row]) -> Iterator[str]:
    """Yield a line per reservation."""
    names = bill_rows.cells(Row(reservation=None, figures=Figures()))
    return bill_rows.lines((bill_rows.cells(row) for row in rows), names=names)


def _csv_of_groups(rows: list[Row], *, dimension: str) -> Iterator[str]:
    """Yield a line per group; what carries none of what was asked for has an empty value."""
    whole = total_of(row.figures for row in rows)
    cells = (
        {
            "group_by": bill_rows.as_text(dimension),
            "value": bill_rows.as_text(each.value),
            "name": bill_rows.as_text(each.label),
            "share": each.share,
            **bill_rows.cells_of_figures(each.figures),
        }
        for each in allocation.by(rows, dimension=dimension, whole=whole)
    )
    names = ("group_by", "value", "name", "share", *bill_rows.cells_of_figures(Figures()))
    return bill_rows.lines(cells, names=names)


def _bill(bill: MonthBill) -> dict[str, Any]:
    return {
        "month": bill.month,
        "starts_at": bill.window.starts_at,
        "ends_at": bill.window.ends_at,
        "final": bill.final,
        "total": _figures(bill.total),
        "reservations": [_row(row) for row in bill.rows],
        "by_project": [
            {"project": each.value, **_shared(each)}
            for each in sorted(bill.by_project, key=lambda group: group.value)
        ],
        "by_tag": [
            {"tag": each.name, "value": each.value, **_shared(each)} for each in bill.by_tag
        ],
        "by_buyer": [
            {
                "bought_by": _value(each),
                "bought_by_name": None if each.is_rest else each.label,
                **_shared(each),
            }
            for each in bill.by_buyer
        ],
        "untagged": _shared(bill.untagged),
        "trend": [_trend(each) for each in bill.trend],
        "commitments_ahead": {
            "since": bill.ahead.since,
            "reservations": bill.ahead.reservations,
            "gpu_seconds": bill.ahead.gpu_seconds,
            "contracted": bill.ahead.contracted,
            "by_month": [
                {
                    "month": month,
                    "reservations": ahead.reservations,
                    "gpu_seconds": ahead.gpu_seconds,
                    "contracted": ahead.contracted,
                }
                for month, ahead in bill.ahead_by_month
            ],
        },
        "budgets": bill.budgets,
        "annex": {
            "focus": month_bills.focus_paths(month=bill.month),
            "utilization": month_bills.MINUTES_PATH,
        },
    }


def _shared(group: Group) -> dict[str, Any]:
    return {**_figures(group.figures), "share": group.share}


def _value(group: Group) -> str | None:
    return None if group.is_rest else group.value


def _trend(month: Month) -> dict[str, Any]:
    return {
        "month": month.month,
        "effective": Money(month.figures.effective, settings.CURRENCY),
        **ratios(month.figures),
    }


def _row(row: Row) -> dict[str, Any]:
    return {**bill_rows.identity(row), **_figures(row.figures)}


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "gpu_seconds": {
            **bill_rows.seconds(figures),
            "undelivered_by_reason": by_reason(figures.undelivered_by_reason),
        },
        **{
            name: Money(amount, settings.CURRENCY)
            for name, amount in bill_rows.amounts(figures).items()
        },
        **ratios(figures),
    }
