"""Whole numbers and switches, as JSON has them."""

import re
from typing import Any

from rest_framework import serializers

from marketplace.api.fields.strict import Strict

_WHOLE_FORM = re.compile(r"-?\d{1,18}", flags=re.ASCII)


class WholeNumberField(Strict, serializers.IntegerField):
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


class SwitchField(Strict, serializers.BooleanField):
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
