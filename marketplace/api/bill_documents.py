"""What the bills of a reservation and of a month say in the same words."""

from collections.abc import Mapping
from typing import Any

from django.http import HttpResponse
from rest_framework import serializers

from billing.models import Invoice
from billing.states import InvoiceKind, InvoiceState, UndeliveredReason
from marketplace.api.fields import ChoiceField, InstantField, MoneyField

BILL_FORMS = ("json", "csv", "html", "pdf")
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class BillDocumentSerializer(serializers.Serializer[Invoice]):
    """An invoice or a credit note, by its id and its number."""

    id = serializers.CharField()
    number = serializers.CharField()
    kind = ChoiceField(choices=InvoiceKind.choices)
    state = ChoiceField(
        choices=InvoiceState.choices, allow_null=True, help_text="null for a credit note"
    )
    total = MoneyField(minor="total_minor")
    issued_at = InstantField()


class UndeliveredSerializer(serializers.Serializer[Any]):
    """GPU-seconds that were bought and not delivered, and why; negative where a later month takes back."""

    reason = ChoiceField(choices=UndeliveredReason.choices)
    gpu_seconds = serializers.IntegerField()


def by_reason(reasons: Mapping[UndeliveredReason, int]) -> list[dict[str, object]]:
    """Return reasons as the bills list them, the most first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": reason.value, "gpu_seconds": seconds} for reason, seconds in ordered]


def page_response(text: str) -> HttpResponse:
    """Return a page to print: it has its style in it, and loads no more."""
    return HttpResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})
