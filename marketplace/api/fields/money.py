"""Amounts, rates and how a price came about."""

import re
from decimal import Decimal
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.api.fields.strict import Strict
from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX, Money, format_rate

_RATE_FORM = re.compile(rf"\d{{1,6}}(\.\d{{1,{RATE_DECIMAL_PLACES}}})?", flags=re.ASCII)


@extend_schema_field(
    {"type": "string", "pattern": r"^\d{1,6}(\.\d{1,6})?$", "examples": ["2.437500"]}
)
class RateField(Strict, serializers.Field[Decimal, str, str, Any]):
    """A price per GPU-hour: a decimal string; a JSON number is refused."""

    default_error_messages = {
        "wrong_type": 'must be a decimal string such as "2.437500", not a number',
        "wrong_form": 'must be a decimal string with at most six places such as "2.437500"',
        "out_of_range": f"must be above 0 and at most {RATE_MAX}",
    }

    def to_internal_value(self, data: Any) -> Decimal:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, str):
            self.fail("wrong_type")
        if not _RATE_FORM.fullmatch(data):
            self.fail("wrong_form")
        rate = Decimal(data)
        if not 0 < rate <= RATE_MAX:
            self.fail("out_of_range")
        return rate

    def to_representation(self, value: Decimal) -> str:
        return format_rate(value)


class MoneySerializer(serializers.Serializer[Money]):
    """An amount in integer minor units of its currency."""

    amount_minor = serializers.IntegerField(help_text="minor units: cents for usd")
    currency = serializers.CharField(help_text="ISO 4217, lower case")


@extend_schema_field(MoneySerializer)
class MoneyField(serializers.Field[Money, Any, dict[str, object], Any]):
    """Money in an answer: of a `Money`, or of a row that keeps its minor units in the column `minor`."""

    def __init__(self, *, minor: str | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - the framework's options
        if minor is not None:
            kwargs["source"] = "*"
        super().__init__(read_only=True, **kwargs)
        self._minor = minor

    def to_representation(self, value: Any) -> dict[str, object]:  # noqa: ANN401 - Money or a row
        amount_minor = getattr(value, self._minor or "amount_minor")
        return {"amount_minor": amount_minor, "currency": value.currency}


@extend_schema_field(
    {
        "type": "object",
        "properties": {"method": {"type": "string"}, "method_version": {"type": "integer"}},
        "required": ["method", "method_version"],
        "additionalProperties": {"type": ["string", "integer", "null"]},
    }
)
class PriceBreakdownField(serializers.Field[dict[str, object], Any, dict[str, object], Any]):
    """The inputs and steps of a price; `method` and `method_version` name the formula they belong to."""

    def __init__(self) -> None:
        super().__init__(read_only=True)

    def to_representation(self, value: dict[str, object]) -> dict[str, object]:
        return value
