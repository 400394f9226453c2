"""How messages become bytes and bytes become messages: canonical JSON, and strict parsing with limits.

This file knows no message by its type: the annotations of a type say how it is parsed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import types
import typing
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
    return typing.cast("MessageT", _parse(message_type, value, pointer=""))


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


def _parse(expected: Any, value: Any, *, pointer: str, limit: int = LIST_LENGTH_MAX) -> Any:  # noqa: ANN401
    """Check `value` against the annotation `expected`; return it, built into dataclasses."""
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        arms = typing.get_args(expected)
        if value is None:
            if type(None) in arms:
                return None
            raise MalformedMessage(pointer=pointer, detail="must not be null")
        (arm,) = (a for a in arms if a is not type(None))
        return _parse(arm, value, pointer=pointer, limit=limit)
    if origin is list:
        if not isinstance(value, list):
            raise MalformedMessage(pointer=pointer, detail="must be a list")
        if len(value) > limit:
            raise MalformedMessage(
                pointer=pointer, detail=f"has {len(value)} items, at most {limit}"
            )
        (item,) = typing.get_args(expected)
        return [_parse(item, v, pointer=f"{pointer}/{i}") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict) or len(value) > LIST_LENGTH_MAX:
            raise MalformedMessage(pointer=pointer, detail="must be a small object")
        return {
            _parse(str, k, pointer=pointer): _parse(str, v, pointer=f"{pointer}/{k}")
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(expected):
        return _parse_dataclass(typing.cast("type", expected), value, pointer=pointer)
    if expected is dt.datetime:
        return _parse_instant(value, pointer=pointer)
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        try:
            return expected(value)
        except ValueError:
            allowed = ", ".join(expected)
            raise MalformedMessage(pointer=pointer, detail=f"must be one of {allowed}") from None
    if expected is bool:
        if not isinstance(value, bool):
            raise MalformedMessage(pointer=pointer, detail="must be true or false")
        return value
    if expected is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise MalformedMessage(pointer=pointer, detail="must be an integer")
        if not 0 <= value <= _INT64_MAX:
            raise MalformedMessage(pointer=pointer, detail="must be between 0 and 2^63 - 1")
        return value
    if expected is str:
        if not isinstance(value, str):
            raise MalformedMessage(pointer=pointer, detail="must be a string")
        long_text = pointer.rsplit("/", 2)[-2:-1] == ["ssh_public_keys"]
        length_max = 20_000 if long_text else TEXT_LENGTH_MAX
        if len(value) > length_max or "\x00" in value:
            raise MalformedMessage(
                pointer=pointer, detail=f"must have at most {length_max} characters"
            )
        return value
    raise AssertionError(f"no rule for {expected!r}")


def _parse_dataclass(expected: type, value: Any, *, pointer: str) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        raise MalformedMessage(pointer=pointer, detail="must be an object")
    hints = _hints(expected)
    for name in value:
        if name not in hints:
            raise MalformedMessage(pointer=f"{pointer}/{name}", detail="unknown field")
    fields: dict[str, Any] = {}
    for spec in dataclasses.fields(expected):
        if spec.name in value:
            limit = _LIST_LIMITS.get((expected.__name__, spec.name), LIST_LENGTH_MAX)
            fields[spec.name] = _parse(
                hints[spec.name], value[spec.name], pointer=f"{pointer}/{spec.name}", limit=limit
            )
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise MalformedMessage(pointer=f"{pointer}/{spec.name}", detail="is missing")
    return expected(**fields)


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(message_type: type) -> dict[str, Any]:
    if message_type not in _HINTS:
        _HINTS[message_type] = typing.get_type_hints(message_type)
    return _HINTS[message_type]


def _parse_instant(value: object, *, pointer: str) -> dt.datetime:
    if not isinstance(value, str) or not re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", value, flags=re.ASCII
    ):
        raise MalformedMessage(
            pointer=pointer, detail="must be an RFC 3339 instant in UTC, ending in Z"
        )
    try:
        return dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        raise MalformedMessage(pointer=pointer, detail="is no such instant") from None
