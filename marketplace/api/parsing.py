"""Reading bodies: JSON as RFC 8259 has it, of a bounded size, and nothing else."""

import json
from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from agents.envelope import BodyTooLarge
from marketplace.api.errors import MalformedJson
from marketplace.core.limits import REQUEST_BODY_BYTES_MAX


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - a JSON value has no narrower type
    """Return the value of a JSON text.

    :raises MalformedJson: when it is not UTF-8 or not JSON, names a member twice or with half a surrogate
        pair, holds NaN or an infinity, or nests too deep.
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repetition,
        )
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"the body is not JSON: {_plain(error)}") from None


def _plain(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it nests too deep"
    return str(error)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    # A refusal names the member that it is about, and no answer in UTF-8 can carry half a character.
    if any("\ud800" <= character <= "\udfff" for name in members for character in name):
        raise ValueError("a member's name holds half a surrogate pair")
    return members


class StrictJsonParser(BaseParser):
    """Parse a body of at most `REQUEST_BODY_BYTES_MAX` bytes."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - a JSON value has no narrower type
        """Read one byte more than is allowed, so that a body without an honest length is caught as well.

        :raises BodyTooLarge: when there is more.
        :raises MalformedJson: see `parse_json`.
        """
        body = stream.read(REQUEST_BODY_BYTES_MAX + 1)
        if len(body) > REQUEST_BODY_BYTES_MAX:
            raise BodyTooLarge(f"a body may have at most {REQUEST_BODY_BYTES_MAX} bytes")
        return parse_json(body)
