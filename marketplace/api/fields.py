"""Strict fields: nothing is guessed, nothing is converted that the contract does not name.

Django REST framework's own fields take `"8"` for 8, `1` for true and 8 for `"8"`; these refuse. Errors
carry stable codes: `unknown_field`, `repeated_parameter`, `required`, `null`, `wrong_type`, `wrong_form`,
`out_of_range`, `too_long`, `too_many`, `invalid_choice`, `blank`.
"""

import datetime as dt
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from django.http import QueryDict
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.core.limits import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX, NAME_LENGTH_MAX
from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX, Money, format_rate
from marketplace.core.windows import format_duration, parse_duration

ID_FORM = re.compile(r"[a-z]{3}_[0-9a-z]{1,28}", flags=re.ASCII)
_INSTANT_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", flags=re.ASCII)
_WHOLE_FORM = re.compile(r"-?\d{1,18}", flags=re.ASCII)
_RATE_FORM = re.compile(rf"\d{{1,6}}(\.\d{{1,{RATE_DECIMAL_PLACES}}})?", flags=re.ASCII)
_INSTANT_FIRST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_INSTANT_LAST = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)  # leaves room for adding any duration
CURSOR_LENGTH_MAX = 500
TAG_LENGTH_MAX = 200


def format_instant(instant: dt.datetime) -> str:
    """Return an instant as RFC 3339 in UTC with `Z`, with microseconds only where there are some."""
    return instant.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def is_storable(text: str) -> bool:
    """Say whether PostgreSQL can hold a text: no NUL, and no half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


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


class _Strict:
    """Shared words of refusal."""

    default_error_messages: ClassVar[dict[str, Any]] = {
        "null": "must not be null",
        "required": "is missing",
        "wrong_type": "is of the wrong type",
        "wrong_form": "does not have the right form",
        "out_of_range": "is out of range",
        "too_long": "is too long",
    }


class TextField(_Strict, serializers.CharField):
    """A string. Numbers are not turned into one; spaces at the ends are kept."""

    default_error_messages = {
        "wrong_type": "must be a string",
        "too_long": "must have at most {max_length} characters",
        "unstorable": "must not hold NUL or half a surrogate pair",
        "blank": "must not be empty",
        "wrong_form": "does not have the right form",
    }

    def __init__(
        self,
        *,
        max_length: int = NAME_LENGTH_MAX,
        form: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - the framework's options
    ) -> None:
        kwargs.setdefault("trim_whitespace", False)
        super().__init__(max_length=max_length, **kwargs)
        self._form = re.compile(form, flags=re.ASCII) if form else None

    def run_validation(self, data: Any = serializers.empty) -> Any:  # noqa: ANN401 - parsed JSON
        if data == "" and isinstance(data, str) and not self.allow_blank:
            self.fail("blank")
        return serializers.Field.run_validation(self, data)

    def to_internal_value(self, data: Any) -> str:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, str):
            self.fail("wrong_type")
        if self.max_length is not None and len(data) > self.max_length:
            self.fail("too_long", max_length=self.max_length)
        if not is_storable(data):
            self.fail("unstorable")
        if self._form is not None and not self._form.fullmatch(data):
            self.fail("wrong_form")
        return data


class ChoiceField(_Strict, serializers.ChoiceField):
    """One of a few strings."""

    default_error_messages = {
        "invalid_choice": "must be one of {allowed}",
    }

    def to_internal_value(self, data: Any) -> Any:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, str) or data not in self.choices:
            self.fail("invalid_choice", allowed=", ".join(map(str, self.choices)))
        return data

    def to_representation(self, value: Any) -> str:  # noqa: ANN401 - an enum member or its value
        return str(getattr(value, "value", value))


class WholeNumberField(_Strict, serializers.IntegerField):
    """An integer as JSON has it: not `"8"`, not 8.0, not true. `from_text` reads a query string's."""

    default_error_messages = {
        "wrong_type": "must be a whole number",
        "out_of_range": "must be from {min_value} to {max_value}",
    }

    def __init__(
        self,
        *,
        min_value: int,
        max_value: int,
        from_text: bool = False,
        **kwargs: Any,  # noqa: ANN401 - the framework's options
    ) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)
        self.from_text = from_text

    def to_internal_value(self, data: Any) -> int:  # noqa: ANN401 - parsed JSON
        if self.from_text and isinstance(data, str) and _WHOLE_FORM.fullmatch(data):
            data = int(data)
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("wrong_type")
        assert self.min_value is not None
        assert self.max_value is not None
        if not self.min_value <= data <= self.max_value:
            self.fail("out_of_range", min_value=self.min_value, max_value=self.max_value)
        return data


class SwitchField(_Strict, serializers.BooleanField):
    """True or false as JSON has them; `from_text` reads `true` and `false` of a query string."""

    default_error_messages = {"wrong_type": "must be true or false"}

    def __init__(self, *, from_text: bool = False, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.from_text = from_text

    def to_internal_value(self, data: Any) -> bool:  # noqa: ANN401 - parsed JSON
        if self.from_text and data in ("true", "false"):
            return bool(data == "true")
        if not isinstance(data, bool):
            self.fail("wrong_type")
        return data


@extend_schema_field(
    {"type": "string", "format": "date-time", "examples": ["2026-11-23T19:00:00Z"]}
)
class InstantField(_Strict, serializers.Field[dt.datetime, str, str, Any]):
    """An instant: RFC 3339 in UTC, with `Z`; other offsets are refused, so that nobody guesses."""

    default_error_messages = {
        "wrong_form": "must be an RFC 3339 instant in UTC such as 2026-11-23T19:00:00Z",
        "out_of_range": "must lie between 1970 and 2999",
    }

    def to_internal_value(self, data: Any) -> dt.datetime:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, str) or not _INSTANT_FORM.fullmatch(data):
            self.fail("wrong_form")
        try:
            instant = dt.datetime.fromisoformat(data)
        except ValueError:
            self.fail("wrong_form")
        if not _INSTANT_FIRST <= instant < _INSTANT_LAST:
            self.fail("out_of_range")
        return instant

    def to_representation(self, value: dt.datetime) -> str:
        return format_instant(value)


@extend_schema_field(
    {
        "oneOf": [{"type": "string", "format": "date-time"}, {"type": "string", "const": "now"}],
        "examples": ["2026-11-23T19:00:00Z", "now"],
    }
)
class StartField(InstantField):
    """An instant, or `now`, which becomes None: the verb knows where the running grid step begins."""

    default_error_messages = {
        "wrong_form": 'must be "now" or an RFC 3339 instant in UTC such as 2026-11-23T19:00:00Z',
    }

    def to_internal_value(self, data: Any) -> Any:  # noqa: ANN401 - None stands for now
        return None if data == "now" else super().to_internal_value(data)


@extend_schema_field({"type": "string", "examples": ["PT48H", "48h", "90m", "2d"]})
class DurationField(_Strict, serializers.Field[dt.timedelta, str, str, Any]):
    """A duration: ISO 8601 or short on the way in, ISO 8601 on the way out."""

    default_error_messages = {
        "wrong_form": "must be a duration such as PT48H, 48h, 90m or 2d",
    }

    def to_internal_value(self, data: Any) -> dt.timedelta:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, str):
            self.fail("wrong_form")
        try:
            return parse_duration(data)
        except ValueError:
            self.fail("wrong_form")

    def to_representation(self, value: dt.timedelta) -> str:
        return format_duration(value)


@extend_schema_field({"type": "string", "examples": ["PT1H"]})
class SecondsAsDurationField(DurationField):
    """A duration that the database keeps in whole seconds."""

    def to_internal_value(self, data: Any) -> Any:  # noqa: ANN401 - an int where the parent has a timedelta
        return super().to_internal_value(data) // dt.timedelta(seconds=1)

    def to_representation(self, value: Any) -> str:  # noqa: ANN401 - an int where the parent has a timedelta
        return format_duration(dt.timedelta(seconds=value))


@extend_schema_field(
    {"type": "string", "pattern": r"^\d{1,6}(\.\d{1,6})?$", "examples": ["2.437500"]}
)
class RateField(_Strict, serializers.Field[Decimal, str, str, Any]):
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


@extend_schema_field(
    {"type": "object", "additionalProperties": {"type": "string"}, "examples": [{"team": "nlp"}]}
)
class TagsField(_Strict, serializers.Field[dict[str, str], Any, dict[str, str], Any]):
    """A small object of text to text."""

    default_error_messages = {
        "wrong_type": "must be an object of strings",
        "too_many": "must have at most {tags_max} entries",
        "too_long": f"names and values must have at most {TAG_LENGTH_MAX} characters",
        "blank": "names must not be empty",
        "unstorable": "must not hold NUL or half a surrogate pair",
    }

    def __init__(self, *, tags_max: int, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.tags_max = tags_max

    def to_internal_value(self, data: Any) -> dict[str, str]:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, dict):
            self.fail("wrong_type")
        if len(data) > self.tags_max:
            self.fail("too_many", tags_max=self.tags_max)
        for name, value in data.items():
            if not isinstance(value, str):
                self.fail("wrong_type")
            if not name:
                self.fail("blank")
            if len(name) > TAG_LENGTH_MAX or len(value) > TAG_LENGTH_MAX:
                self.fail("too_long")
            if not is_storable(name) or not is_storable(value):
                self.fail("unstorable")
        return data

    def to_representation(self, value: dict[str, str]) -> dict[str, str]:
        return value


class StrictListField(serializers.ListField):
    """A list with a limit; a string is not a list of characters."""

    default_error_messages = {
        "wrong_type": "must be a list",
        "too_many": "must have at most {max_length} items",
        "null": "must not be null",
        "required": "is missing",
    }

    def __init__(self, *, max_length: int, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(max_length=max_length, **kwargs)

    def to_internal_value(self, data: Any) -> list[Any]:  # noqa: ANN401 - parsed JSON
        if not isinstance(data, list):
            self.fail("wrong_type")
        assert self.max_length is not None
        if len(data) > self.max_length:
            self.fail("too_many", max_length=self.max_length)
        return super().to_internal_value(data)


class PageQuery(StrictSerializer):
    """The query string of a list."""

    limit = WholeNumberField(
        from_text=True,
        required=False,
        default=LIST_LIMIT_DEFAULT,
        min_value=1,
        max_value=LIST_LIMIT_MAX,
        help_text="how many objects to return at most",
    )
    cursor = TextField(
        required=False,
        default=None,
        max_length=CURSOR_LENGTH_MAX,
        help_text="`next_cursor` of the page before",
    )
