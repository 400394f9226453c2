"""`GET /v1/exports/focus`: a month as FinOps tools read it, as rows of CSV, and what each file is."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import focus, month_movements
from billing.focus import Dataset, Version, manifests
from marketplace.api.fields import ChoiceField, InstantField, StrictSerializer, TextField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
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
        "While a month is open, a later file replaces an earlier one; once it is closed, it stays. A file "
        "has all rows of its month, however many: read it as it comes, and check it against its manifest. "
        "Projects and tags are those that held when a row was charged.",
        responses={},
        files={(200, "text/csv"): OpenApiTypes.STR},
        query=FocusQuery,
        refusals=("invalid_value", "too_many_exports"),
        operation_id="export_focus",
    )
    def get(self, request: Request) -> HttpResponseBase:
        month, version, dataset = _file_of(self.query, at=self.now)
        name = focus.file_name(version=version, dataset=dataset, month=month)
        return StreamingHttpResponse(
            _lines(self.organization, month, version, dataset, at=self.now),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


class ColumnSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    data_type = serializers.CharField(
        help_text="`string`, `decimal`, `integer`, `datetime` or `json`"
    )


class ManifestSerializer(serializers.Serializer[Any]):
    """One file without its rows: fetch the export of the same month, version and dataset to get them."""

    month = serializers.CharField()
    version = serializers.CharField()
    dataset = serializers.CharField()
    file_name = serializers.CharField()
    rows = serializers.IntegerField(help_text="without the header")
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField(help_text="of the bytes of the file, in lower-case hexadecimal")
    delivery = serializers.CharField(
        help_text="`overwrite`: a later file takes this one's place. `append`: this one stays, and what is "
        "found later is in the files of later months"
    )
    closed_at = InstantField(
        allow_null=True, help_text="when the month was closed; null while it is open"
    )
    is_final = serializers.BooleanField(help_text="neither the rows nor the digest change any more")
    columns = ColumnSerializer(many=True)


class FocusManifestView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": FocusQuery}

    @operation(
        summary="What a FOCUS file of a month is: rows, digest, columns",
        description="Says of a file of `GET /v1/exports/focus` how many rows it has, its SHA-256 and size, "
        "the type of each column, and how to take it in. The file of an open month is read to its end for "
        "it, and that counts as an export; a final one is counted once, and answered at once from then on. "
        "Contract commitments are told as they stand, and always overwritten.",
        responses={200: ManifestSerializer},
        query=FocusQuery,
        refusals=("invalid_value", "too_many_exports"),
        operation_id="get_focus_manifest",
    )
    def get(self, request: Request) -> Response:
        month, version, dataset = _file_of(self.query, at=self.now)
        found = manifests.of(
            organization=self.organization,
            month=month,
            version=version,
            dataset=dataset,
            read=lambda: _lines(self.organization, month, version, dataset, at=self.now),
            at=self.now,
        )
        return Response(ManifestSerializer(found).data)


def _lines(
    organization: Organization, month: str, version: Version, dataset: Dataset, *, at: dt.datetime
) -> focus.InSlot:
    """Return the lines of a file, which hold one of the organization's slots.

    :raises TooManyExports: where no slot is free.
    """
    return focus.InSlot(
        focus.lines(
            organization=organization, month=month, version=version, dataset=dataset, at=at
        ),
        organization=organization,
    )


def _file_of(query: Mapping[str, Any], *, at: dt.datetime) -> tuple[str, Version, Dataset]:
    """Return which file of which month is asked for.

    :raises InvalidValue: when there is no such file.
    """
    month, version, dataset = query["month"], Version(query["version"]), Dataset(query["dataset"])
    _require_begun(month, at=at)
    if (version, dataset) not in focus.COLUMNS:
        raise InvalidValue(
            f"FOCUS {version.value} has no {dataset.value}: ask for version 1.4",
            pointer="/dataset",
        )
    return month, version, dataset


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
