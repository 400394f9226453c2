"""`GET /v1/exports/focus`: a month as FinOps tools read it, as rows of CSV."""

import datetime as dt
from typing import ClassVar

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.request import Request

from billing import focus, month_movements
from billing.focus import Dataset, Version
from marketplace.api.fields import ChoiceField, StrictSerializer, TextField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.states import Scope

_MONTH_LENGTH = 7  # YYYY-MM


class FocusQuery(StrictSerializer):
    """Which file of which month."""

    month = TextField(max_length=_MONTH_LENGTH, help_text="of UTC, as YYYY-MM; it has begun")
    version = ChoiceField(choices=Version.choices, required=False, default=Version.V1_4.value)
    dataset = ChoiceField(
        choices=Dataset.choices,
        required=False,
        default=Dataset.COST_AND_USAGE.value,
        help_text="of 1.2 there is `cost_and_usage` alone",
    )


class FocusExportView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": FocusQuery}

    @operation(
        summary="The rows of a month in the FOCUS columns, as CSV",
        description="The charges of a month of UTC in the columns of the FinOps Open Cost and Usage "
        "Specification, streamed as CSV, as they stand now. `cost_and_usage` has what was charged and what "
        "of it was used up, `contract_commitment` the reservations, `invoice_detail` the lines of invoices "
        "and credit notes, `billing_period` whether the month is closed. Columns of this market begin with "
        "`x_`; an empty cell is what is not known. Sums of BilledCost and EffectiveCost are the ledger's. "
        "While a month is open, a later file replaces an earlier one; once it is closed, it stays.",
        responses={},
        files={(200, "text/csv"): OpenApiTypes.STR},
        query=FocusQuery,
        refusals=("invalid_value",),
        operation_id="export_focus",
    )
    def get(self, request: Request) -> HttpResponseBase:
        month, version = self.query["month"], Version(self.query["version"])
        dataset = Dataset(self.query["dataset"])
        _require_begun(month, at=self.now)
        if (version, dataset) not in focus.COLUMNS:
            raise InvalidValue(
                f"FOCUS {version.value} has no {dataset.value}: ask for version 1.4",
                pointer="/dataset",
            )
        name = focus.file_name(version=version, dataset=dataset, month=month)
        return StreamingHttpResponse(
            focus.lines(
                organization=self.organization,
                month=month,
                version=version,
                dataset=dataset,
                at=self.now,
            ),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def _require_begun(month: str, *, at: dt.datetime) -> None:
    """Refuse what is no month, or one of which nothing can have happened.

    :raises InvalidValue: then.
    """
    try:
        window = month_movements.month_window(month=month)
    except ValueError:
        raise InvalidValue(
            "a month is written as YYYY-MM, such as 2026-11", pointer="/month"
        ) from None
    if window.starts_at > at:
        raise InvalidValue(f"{month} has not begun", pointer="/month")
