"""Lists in a body, and the query string of a list in an answer."""

from typing import Any

from rest_framework import serializers

from marketplace.api.fields.numbers import WholeNumberField
from marketplace.api.fields.strict import StrictSerializer
from marketplace.api.fields.text import TextField
from marketplace.core.limits import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX

CURSOR_LENGTH_MAX = 500


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
