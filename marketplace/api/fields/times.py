"""Instants and durations."""

import datetime as dt
import re
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.api.fields.strict import Strict
from marketplace.core.windows import format_duration, format_instant, parse_duration

_INSTANT_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", flags=re.ASCII)
_INSTANT_FIRST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_INSTANT_LAST = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)  # leaves room for adding any duration


@extend_schema_field(
    {"type": "string", "format": "date-time", "examples": ["2026-11-23T19:00:00Z"]}
)
class InstantField(Strict, serializers.Field[dt.datetime, str, str, Any]):
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
class DurationField(Strict, serializers.Field[dt.timedelta, str, str, Any]):
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
