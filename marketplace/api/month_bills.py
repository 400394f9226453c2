"""`GET /v1/bills/{YYYY-MM}`: a month as the people who pay for it read it, as JSON or as rows of CSV."""

import csv
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import month_bills, month_movements, pdf
from billing.invoices import reading
from billing.month_bills import Figures, MonthBill, Row
from marketplace.api import month_page
from marketplace.api.bill_documents import BillDocumentSerializer
from marketplace.api.budgets import BudgetSerializer
from marketplace.api.fields import ChoiceField, InstantField, MoneySerializer, StrictSerializer
from marketplace.api.invoices import pdf_response
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.states import Scope
from scheduler.states import ReservationStatus

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'"  # it has its style in it, and no more
)


class MonthBillQuery(StrictSerializer):
    """The form of the answer."""

    vars()["format"] = ChoiceField(
        choices=[(form, form) for form in ("json", "csv", "html", "pdf")],
        required=False,
        default="json",
    )


class MonthGpuSecondsSerializer(serializers.Serializer[Any]):
    """`opening + bought = delivered + undelivered + released + closing`, `delivered = busy + idle`."""

    promised = serializers.IntegerField(help_text="of the windows, the part within the month")
    opening = serializers.IntegerField(help_text="bought before and then still open")
    bought = serializers.IntegerField(help_text="in the month, for whenever")
    delivered = serializers.IntegerField()
    attached = serializers.IntegerField(
        allow_null=True, help_text="a process held memory; null where nothing measured it"
    )
    busy = serializers.IntegerField(
        allow_null=True, help_text="a kernel ran; null where nothing measured it"
    )
    undelivered = serializers.IntegerField(help_text="refunded")
    released = serializers.IntegerField(help_text="given back by the tenant")
    closing = serializers.IntegerField(help_text="open at the end of the month")


class MonthFiguresSerializer(serializers.Serializer[Any]):
    """`opening + charged = earned + refunded + fees + closing`; credits are beyond the price.

    `billed = charged - refunded` and `effective = earned + fees`. All are without tax but `tax` itself and
    `billed_with_tax`.
    """

    gpu_seconds = MonthGpuSecondsSerializer()
    contracted = MoneySerializer(help_text="the locked price of what is promised in the month")
    opening = MoneySerializer(help_text="paid before and not yet used")
    charged = MoneySerializer()
    earned = MoneySerializer(help_text="for what was delivered")
    refunded = MoneySerializer()
    fees = MoneySerializer(help_text="kept of what was given back")
    closing = MoneySerializer(help_text="paid and not used by the end of the month")
    credits = MoneySerializer(help_text="to the wallet, beyond refunds")
    billed = MoneySerializer()
    effective = MoneySerializer()
    tax = MoneySerializer(help_text="charged in the month less what went back")
    billed_with_tax = MoneySerializer()
    cost_per_delivered_gpu_hour = serializers.CharField(
        allow_null=True, help_text="effective, by what was delivered"
    )
    cost_per_busy_gpu_hour = serializers.CharField(allow_null=True)
    meter_coverage = serializers.CharField(
        allow_null=True, help_text="share of delivered GPU-seconds with readings"
    )
    energy_kwh = serializers.CharField(allow_null=True, help_text="null where nothing was measured")


class MonthRowSerializer(MonthFiguresSerializer):
    """One reservation in the month; without an id: what belongs to none, such as goodwill."""

    reservation_id = serializers.CharField(allow_null=True)
    name = serializers.CharField(allow_blank=True)
    project = serializers.CharField(allow_blank=True)
    tags = serializers.DictField(child=serializers.CharField())
    status = ChoiceField(choices=ReservationStatus.choices, allow_null=True)
    gpu_model = serializers.CharField(allow_null=True)
    region = serializers.CharField(allow_null=True)
    gpus = serializers.IntegerField(allow_null=True)
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    simulated = serializers.BooleanField(help_text="for GPUs that do not exist")


class ProjectFiguresSerializer(MonthFiguresSerializer):
    """The reservations of one project; the empty name is of those without one."""

    project = serializers.CharField(allow_blank=True)


class TagFiguresSerializer(MonthFiguresSerializer):
    """The reservations that carry one value of a tag: one with two tags counts under both."""

    tag = serializers.CharField()
    value = serializers.CharField(allow_blank=True)


class AheadSerializer(serializers.Serializer[Any]):
    """What is promised after the month, or from now on where that is later."""

    since = InstantField()
    reservations = serializers.IntegerField()
    gpu_seconds = serializers.IntegerField()
    contracted = MoneySerializer()


class MonthBillSerializer(serializers.Serializer[Any]):
    """A month of UTC: an hour is in the month in which it begins, a correction where it was made."""

    month = serializers.CharField()
    starts_at = InstantField()
    ends_at = InstantField()
    final = serializers.BooleanField(help_text="later evidence is in a later month")
    total = MonthFiguresSerializer()
    reservations = MonthRowSerializer(many=True)
    by_project = ProjectFiguresSerializer(many=True)
    by_tag = TagFiguresSerializer(many=True)
    commitments_ahead = AheadSerializer()
    documents = BillDocumentSerializer(
        many=True, help_text="invoices and credit notes that the month issued, oldest first"
    )
    budgets = BudgetSerializer(
        many=True, help_text="as they are set now, in the periods in which the month begins"
    )


class MonthBillView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": MonthBillQuery}

    @operation(
        summary="The bill of a month, as it stands now",
        description="The bill of a month of UTC, as it stands now: `YYYY-MM`. With `format=csv` the rows of "
        "the reservations as CSV, money in minor units; with `format=html` a page to print, with "
        "`format=pdf` the same as a file.",
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
        if self.query["format"] == "csv":
            rows = month_bills.rows_of(organization=self.organization, window=window)
            return StreamingHttpResponse(
                _csv(rows),
                content_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": f'attachment; filename="bill-{month}.csv"'},
            )
        bill = month_bills.month_bill(organization=self.organization, month=month, at=self.now)
        if self.query["format"] == "html":
            text = month_page.page(bill=bill, organization=self.organization, at=self.now)
            return HttpResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})
        if self.query["format"] == "pdf":
            content = pdf.month_bill(bill=bill, organization=self.organization, at=self.now)
            return pdf_response(content, name=f"bill-{month}")
        documents = reading.for_month(organization=self.organization, month=month)
        return Response(MonthBillSerializer({**_bill(bill), "documents": documents}).data)


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


def _bill(bill: MonthBill) -> dict[str, Any]:
    return {
        "month": bill.month,
        "starts_at": bill.window.starts_at,
        "ends_at": bill.window.ends_at,
        "final": bill.final,
        "total": _figures(bill.total),
        "reservations": [_row(row) for row in bill.rows],
        "by_project": [
            {"project": each.value, **_figures(each.figures)} for each in bill.by_project
        ],
        "by_tag": [
            {"tag": each.name, "value": each.value, **_figures(each.figures)}
            for each in bill.by_tag
        ],
        "commitments_ahead": bill.ahead,
        "budgets": bill.budgets,
    }


def _row(row: Row) -> dict[str, Any]:
    return {**_identity(row), **_figures(row.figures)}


def _identity(row: Row) -> dict[str, Any]:
    reservation = row.reservation
    return {
        "reservation_id": reservation and reservation.pk,
        "name": reservation.name if reservation else "",
        "project": reservation.project if reservation else "",
        "tags": reservation.tags if reservation else {},
        "status": reservation and reservation.status,
        "gpu_model": reservation and reservation.gpu_model_id,
        "region": reservation and reservation.region,
        "gpus": reservation and reservation.gpus,
        "starts_at": reservation and reservation.starts_at,
        "ends_at": reservation and reservation.ends_at,
        "simulated": bool(reservation and reservation.simulated),
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "gpu_seconds": _seconds(figures),
        **{name: Money(amount, settings.CURRENCY) for name, amount in _amounts(figures).items()},
        **month_bills.ratios(figures),
    }


def _seconds(figures: Figures) -> dict[str, int | None]:
    books = figures.books
    return {
        "promised": figures.promised_seconds,
        "opening": books.opening_seconds,
        "bought": books.bought,
        "delivered": figures.delivered_seconds,
        "attached": figures.attached_seconds,
        "busy": figures.busy_seconds,
        "undelivered": books.undelivered,
        "released": books.released,
        "closing": books.closing_seconds,
    }


def _amounts(figures: Figures) -> dict[str, int]:
    books = figures.books
    return {
        "contracted": figures.contracted,
        "opening": books.opening,
        "charged": books.charged,
        "earned": books.earned,
        "refunded": books.refunded,
        "fees": books.fees,
        "closing": books.closing,
        "credits": books.credits,
        "billed": figures.billed,
        "effective": figures.effective,
        "tax": figures.tax,
        "billed_with_tax": figures.billed_with_tax,
    }


class _Line:
    """A file that hands each line on instead of keeping it."""

    def write(self, text: str) -> str:
        return text


def _csv(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the CSV: what is not known is an empty cell."""
    writer = csv.writer(_Line(), lineterminator="\r\n")
    yield writer.writerow(_cells(Row(reservation=None, figures=Figures())))
    for row in rows:
        yield writer.writerow(_cells(row).values())


def _cells(row: Row) -> dict[str, object]:
    """Return the columns of a row; a formula that a tenant wrote into a name stays text in a spreadsheet."""
    identity = _identity(row)
    times = {
        name: InstantField().to_representation(identity[name]) if identity[name] else None
        for name in ("starts_at", "ends_at")
    }
    words = {name: _as_text(identity[name]) for name in ("name", "project")}
    tags = json.dumps(identity["tags"], sort_keys=True, ensure_ascii=False)
    return {
        **identity,
        **times,
        **words,
        "tags": tags,
        "currency": settings.CURRENCY,
        **{f"{name}_minor": amount for name, amount in _amounts(row.figures).items()},
        **{f"gpu_seconds_{name}": seconds for name, seconds in _seconds(row.figures).items()},
        **month_bills.ratios(row.figures),
    }


def _as_text(text: str) -> str:
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
