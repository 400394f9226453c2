"""How messages become bytes and bytes become messages: canonical JSON, and strict parsing with limits.

This file knows no message by its type: the annotations of a type say how it is parsed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import re
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

PROTOCOL_VERSION = 2
# The market speaks both, so that a fleet can be renewed node by node.
PROTOCOL_VERSIONS = (1, PROTOCOL_VERSION)

GPUS_PER_NODE_MAX = 16  # HGX and NVL boards carry at most 16 GPUs under one operating system
MIG_DEVICES_PER_GPU_MAX = 7  # no GPU can be cut into more parts
RECEIPT_CHECKS_MAX = 64
REPORT_BODY_BYTES_MAX = 256 * 1024  # 200 meter readings and 16 GPUs take about 60 KiB
# One hour of minute readings of a three-GPU lease; more wait for the next report.
REPORT_METERS_MAX = 200
# A report may carry the samples of up to four missed ones.
REPORT_READINGS_MAX = GPUS_PER_NODE_MAX * 4
REPORT_RECEIPTS_MAX = 32
REPORT_LEASES_MAX = 64
# A GPU that fails may tell of it many times; what waits goes with the next report.
REPORT_EVENTS_MAX = 128
REPORT_WARNINGS_MAX = 16
TEXT_LENGTH_MAX = 500

_LIST_LIMITS = {
    ("Report", "inventory"): GPUS_PER_NODE_MAX,
    ("Report", "readings"): REPORT_READINGS_MAX,
    ("Report", "leases"): REPORT_LEASES_MAX,
    ("Report", "meters"): REPORT_METERS_MAX,
    ("Report", "receipts"): REPORT_RECEIPTS_MAX,
    ("Report", "counters"): GPUS_PER_NODE_MAX,
    ("Report", "events"): REPORT_EVENTS_MAX,
    ("Report", "warnings"): REPORT_WARNINGS_MAX,
    ("EnrolRequest", "gpus"): GPUS_PER_NODE_MAX,
    ("GpuIdentity", "mig_devices"): MIG_DEVICES_PER_GPU_MAX,
    ("ReceiptEvidence", "counters"): GPUS_PER_NODE_MAX,
    ("ReceiptEvidence", "settings"): GPUS_PER_NODE_MAX,
    ("ReceiptEvidence", "checks"): RECEIPT_CHECKS_MAX,
    ("Receipt", "gpu_uuids"): GPUS_PER_NODE_MAX,
    ("Receipt", "energy_millijoules"): GPUS_PER_NODE_MAX,
}
LIST_LENGTH_MAX = 256  # for every list without a limit of its own
_TEXT_LIMITS = {("Grant", "ssh_public_keys"): 20_000}
_INT64_MAX = 2**63 - 1

MessageT = TypeVar("MessageT")


class MalformedMessage(ValueError):
    """Say which part of a message does not fit its type: `pointer` is an RFC 6901 JSON pointer."""

    def __init__(self, *, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer or '/'}: {detail}")
        self.pointer = pointer
        self.detail = detail


def since(protocol: int) -> dict[str, int]:
    """Mark a field as younger than the first protocol; it must have a default."""
    return {"since": protocol}


def to_json(message: Any, *, protocol: int = PROTOCOL_VERSION) -> Any:  # noqa: ANN401 - JSON has no type
    """Turn a message, or a part of one, into plain JSON values; instants become RFC 3339 in UTC with `Z`.

    Fields that `protocol` does not have are left out: its readers refuse what they do not know.
    """
    if isinstance(message, StrEnum):
        return message.value
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        return {
            f.name: to_json(getattr(message, f.name), protocol=protocol)
            for f in dataclasses.fields(message)
            if f.metadata.get("since", 1) <= protocol
        }
    if isinstance(message, dt.datetime):
        return message.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(message, list):
        return [to_json(item, protocol=protocol) for item in message]
    if isinstance(message, dict):
        return {key: to_json(value, protocol=protocol) for key, value in message.items()}
    return message


def from_json(message_type: type[MessageT], value: object) -> MessageT:
    """Build a message from parsed JSON.

    :raises MalformedMessage: when a field is unknown, missing, of another type, or above its limit.
    """
    parser = _parser(message_type, limit=LIST_LENGTH_MAX, text_max=TEXT_LENGTH_MAX)
    return typing.cast("MessageT", parser(value))


def decode(message_type: type[MessageT], body: bytes) -> MessageT:
    """Build a message from the bytes of a request or an answer.

    :raises MalformedMessage: when the bytes are not JSON, or not such a message.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(pointer="", detail=f"not JSON: {error}") from None
    return from_json(message_type, value)


def encode(message: object, *, protocol: int = PROTOCOL_VERSION) -> bytes:
    """Return the bytes that go over the wire to a reader of `protocol`."""
    return canonical_json(to_json(message, protocol=protocol))


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


_Parser = Callable[[Any], Any]


def _at(place: str, error: MalformedMessage) -> MalformedMessage:
    """Return what was wrong inside of a part, seen from outside of it."""
    return MalformedMessage(pointer=f"/{place}{error.pointer}", detail=error.detail)


@functools.cache
def _parser_of(message_type: type) -> _Parser:
    """Return the parser of a message type: the annotations are read once, because a report has hundreds of
    values and comes 300 times a second.
    """
    hints = typing.get_type_hints(message_type)
    specs = dataclasses.fields(message_type)
    parsers = {
        spec.name: _parser(
            hints[spec.name],
            limit=_LIST_LIMITS.get((message_type.__name__, spec.name), LIST_LENGTH_MAX),
            text_max=_TEXT_LIMITS.get((message_type.__name__, spec.name), TEXT_LENGTH_MAX),
        )
        for spec in specs
    }
    needed = [
        spec.name
        for spec in specs
        if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
    ]

    def parse(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, dict):
            raise MalformedMessage(pointer="", detail="must be an object")
        fields = {}
        for name, part in value.items():
            parser = parsers.get(name)
            if parser is None:
                raise MalformedMessage(pointer=f"/{name}", detail="unknown field")
            try:
                fields[name] = parser(part)
            except MalformedMessage as error:
                raise _at(name, error) from None
        for name in needed:
            if name not in fields:
                raise MalformedMessage(pointer=f"/{name}", detail="is missing")
        return message_type(**fields)

    return parse


def _parser(expected: Any, *, limit: int, text_max: int) -> _Parser:  # noqa: ANN401
    """Return what checks a value against the annotation `expected` and builds it into dataclasses."""
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        (arm,) = (a for a in typing.get_args(expected) if a is not type(None))
        inner = _parser(arm, limit=limit, text_max=text_max)
        return lambda value: None if value is None else inner(value)
    if origin is list:
        (item,) = typing.get_args(expected)
        return _list_parser(_parser(item, limit=limit, text_max=text_max), limit=limit)
    if origin is dict:
        return _parse_texts
    if dataclasses.is_dataclass(expected):
        return _not_null(_parser_of(typing.cast("type", expected)))
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        return _not_null(_choice_parser(expected))
    if expected is str:
        return _not_null(_text_parser(text_max))
    simple: dict[Any, _Parser] = {
        dt.datetime: _parse_instant,
        bool: _parse_switch,
        int: _parse_number,
    }
    return _not_null(simple[expected])


def _not_null(inner: _Parser) -> _Parser:
    def parse(value: Any) -> Any:  # noqa: ANN401
        if value is None:
            raise MalformedMessage(pointer="", detail="must not be null")
        return inner(value)

    return parse


def _list_parser(item: _Parser, *, limit: int) -> _Parser:
    def parse(value: Any) -> list[Any]:  # noqa: ANN401
        if not isinstance(value, list):
            raise MalformedMessage(pointer="", detail="must be a list")
        if len(value) > limit:
            raise MalformedMessage(pointer="", detail=f"has {len(value)} items, at most {limit}")
        items = []
        for place, part in enumerate(value):
            try:
                items.append(item(part))
            except MalformedMessage as error:
                raise _at(str(place), error) from None
        return items

    return parse


def _choice_parser(choices: type[StrEnum]) -> _Parser:
    by_text = {choice.value: choice for choice in choices}

    def parse(value: Any) -> StrEnum:  # noqa: ANN401
        choice = by_text.get(value) if isinstance(value, str) else None
        if choice is None:
            allowed = ", ".join(choices)
            raise MalformedMessage(pointer="", detail=f"must be one of {allowed}")
        return choice

    return parse


def _text_parser(length_max: int) -> _Parser:
    def parse(value: Any) -> str:  # noqa: ANN401
        if not isinstance(value, str):
            raise MalformedMessage(pointer="", detail="must be a string")
        if len(value) > length_max or "\x00" in value:
            raise MalformedMessage(pointer="", detail=f"must have at most {length_max} characters")
        return value

    return parse


def _parse_texts(value: Any) -> dict[str, str]:  # noqa: ANN401
    if not isinstance(value, dict) or len(value) > LIST_LENGTH_MAX:
        raise MalformedMessage(pointer="", detail="must be a small object")
    text = _text_parser(TEXT_LENGTH_MAX)
    texts = {}
    for name, part in value.items():
        try:
            texts[text(name)] = text(part)
        except MalformedMessage as error:
            raise _at(name, error) from None
    return texts


def _parse_switch(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool):
        raise MalformedMessage(pointer="", detail="must be true or false")
    return value


def _parse_number(value: Any) -> int:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedMessage(pointer="", detail="must be an integer")
    if not 0 <= value <= _INT64_MAX:
        raise MalformedMessage(pointer="", detail="must be between 0 and 2^63 - 1")
    return value


_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", flags=re.ASCII)


def _parse_instant(value: Any) -> dt.datetime:  # noqa: ANN401
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise MalformedMessage(pointer="", detail="must be an RFC 3339 instant in UTC, ending in Z")
    try:
        return dt.datetime.fromisoformat(value)
    except ValueError:
        raise MalformedMessage(pointer="", detail="is no such instant") from None
