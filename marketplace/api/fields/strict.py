"""What every strict body, query string and field has in common."""

from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import QueryDict
from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """A body or a query string of which every field is known.

    Built from a `QueryDict` it also refuses a parameter that is given twice, unless it is a list.
    """

    default_error_messages = {"invalid": "must be an object"}

    def to_internal_value(self, data: Any) -> Any:  # noqa: ANN401 - parsed JSON
        if isinstance(data, QueryDict):
            data = self._from_query(data)
        if not isinstance(data, Mapping):
            raise serializers.ValidationError(
                {
                    "non_field_errors": [
                        serializers.ErrorDetail("must be an object", code="wrong_type")
                    ]
                }
            )
        writable = {name for name, field in self.fields.items() if not field.read_only}
        unknown = [str(name) for name in data if name not in writable]
        errors: dict[str, Any] = {
            name: [serializers.ErrorDetail("is not a field of this request", code="unknown_field")]
            for name in unknown
        }
        try:
            value = super().to_internal_value({k: v for k, v in data.items() if k in writable})
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**errors, **_as_dict(error.detail)}) from None
        if errors:
            raise serializers.ValidationError(errors)
        return value

    def _from_query(self, query: QueryDict) -> dict[str, Any]:
        repeated = {}
        values: dict[str, Any] = {}
        for name, given in query.lists():
            if isinstance(self.fields.get(name), serializers.ListField):
                values[name] = given
            elif len(given) > 1:
                repeated[name] = [
                    serializers.ErrorDetail("may be given once", code="repeated_parameter")
                ]
            else:
                values[name] = given[0]
        if repeated:
            raise serializers.ValidationError(repeated)
        return values


def _as_dict(detail: Any) -> dict[str, Any]:  # noqa: ANN401 - nested lists and dicts
    return detail if isinstance(detail, dict) else {"non_field_errors": detail}


class NoParameters(StrictSerializer):
    """A query string that must be empty."""


class Strict:
    """Shared words of refusal."""

    default_error_messages: ClassVar[dict[str, Any]] = {
        "null": "must not be null",
        "required": "is missing",
        "wrong_type": "is of the wrong type",
        "wrong_form": "does not have the right form",
        "out_of_range": "is out of range",
        "too_long": "is too long",
    }
