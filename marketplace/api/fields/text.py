"""Texts: free ones, one of a few, and small objects of text to text."""

import re
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.api.fields.strict import Strict
from marketplace.core.limits import NAME_LENGTH_MAX, TAG_VALUE_LENGTH_MAX

ID_FORM = re.compile(r"[a-z]{3}_[0-9a-z]{1,28}", flags=re.ASCII)
TAG_LENGTH_MAX = 200


def is_storable(text: str) -> bool:
    """Say whether PostgreSQL can hold a text: no NUL, and no half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class TextField(Strict, serializers.CharField):
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


class ChoiceField(Strict, serializers.ChoiceField):
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


@extend_schema_field(
    {"type": "object", "additionalProperties": {"type": "string"}, "examples": [{"team": "nlp"}]}
)
class TagsField(Strict, serializers.Field[dict[str, str], Any, dict[str, str], Any]):
    """A small object of text to text."""

    default_error_messages = {
        "wrong_type": "must be an object of strings",
        "too_many": "must have at most {tags_max} entries",
        "too_long": f"names must have at most {TAG_LENGTH_MAX} characters, values {TAG_VALUE_LENGTH_MAX}",
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
            if len(name) > TAG_LENGTH_MAX or len(value) > TAG_VALUE_LENGTH_MAX:
                self.fail("too_long")
            if not is_storable(name) or not is_storable(value):
                self.fail("unstorable")
        return data

    def to_representation(self, value: dict[str, str]) -> dict[str, str]:
        return value
