"""How a bill names the invoices and credit notes that say what it adds up."""

from rest_framework import serializers

from billing.models import Invoice
from billing.states import InvoiceKind, InvoiceState
from marketplace.api.fields import ChoiceField, InstantField, MoneyField


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
