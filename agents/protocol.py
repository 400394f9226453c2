"""The wire between a node agent and the market: message types, canonical JSON and request signatures.

Both sides import this module and nothing else of each other, and the agent runs without Django, so it
uses the standard library alone. Every message is parsed strictly: an unknown field, a wrong type, a
non-finite number or a list above its limit raises `MalformedMessage` and nothing of it is used.

Requests are signed as a subset of HTTP Message Signatures (RFC 9421) with Ed25519 over the method, the
authority, the path and the content digest (RFC 9530). Replays are stopped by the pair (epoch, sequence),
which the server requires to grow strictly: `epoch` grows at each start of the agent, `sequence` at each
report.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

PROTOCOL_VERSION = 1

GPUS_PER_NODE_MAX = 16  # HGX and NVL boards carry at most 16 GPUs under one operating system
REPORT_BODY_BYTES_MAX = 256 * 1024  # 200 meter readings and 16 GPUs take about 60 KiB
REPORT_METERS_MAX = (
    200  # one hour of minute readings of a three-GPU lease; more wait for the next report
)
REPORT_READINGS_MAX = (
    GPUS_PER_NODE_MAX * 4
)  # a report may carry the samples of up to four missed ones
REPORT_RECEIPTS_MAX = 32
REPORT_LEASES_MAX = 64
TEXT_LENGTH_MAX = 500
SIGNATURE_SKEW_SECONDS_MAX = 120

ENROL_PATH = "/agent/v1/enrol"
REPORT_PATH = "/agent/v1/reports"
ENROL_KEY_ID = "enrolment"  # key id of the first request: the node has no id yet

SIGNED_COMPONENTS = ("@method", "@authority", "@path", "content-digest")


class MalformedMessage(ValueError):
    """Say which part of a message does not fit its type: `pointer` is an RFC 6901 JSON pointer."""

    def __init__(self, *, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer or '/'}: {detail}")
        self.pointer = pointer
        self.detail = detail


class IdleState(StrEnum):
    """What the agent thinks of a GPU's work: `FREE` needs no process, no memory, no load for a while."""

    UNKNOWN = "unknown"
    BUSY = "busy"
    PARKED = "parked"
    FREE = "free"


class Health(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    LOST = "lost"


class DesiredState(StrEnum):
    """What the market wants of a grant: a grant that is no longer wanted running is `STOP`."""

    RUN = "run"
    STOP = "stop"


class LeaseState(StrEnum):
    """How far the agent has come with a grant."""

    PREPARING = "preparing"
    ACTIVE = "active"
    STOPPING = "stopping"
    ENDED = "ended"
    FAILED = "failed"


class ReceiptKind(StrEnum):
    HANDOVER = "handover"
    RETURN = "return"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """One device as NVML names it. `index` is its place in PCI order and may change; `uuid` does not."""

    uuid: str
    index: int
    product_name: str
    memory_total_bytes: int
    serial: str | None = None
    pci_bus_id: str | None = None
    mig_enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One sample of one GPU. A value that could not be read is `None`, and `unread` says why per field."""

    gpu_uuid: str
    measured_at: dt.datetime
    health: Health
    health_reason: str = ""
    idle_state: IdleState
    idle_since: dt.datetime | None = None
    utilization_percent: int | None = None
    memory_used_bytes: int | None = None
    power_draw_milliwatts: int | None = None
    energy_millijoules: int | None = None
    temperature_celsius: int | None = None
    process_count: int | None = None
    unread: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """What one leased GPU did in `[starts_at, ends_at)`; identified by (node, epoch, sequence) for ever.

    `up_seconds` counts the seconds the tenant had the GPU, `busy_seconds` those with a kernel running, or
    `None` when utilisation could not be read. `ends_at - starts_at` is at most a few minutes.
    """

    epoch: int
    sequence: int
    lease_id: str
    lease_epoch: int
    gpu_uuid: str
    starts_at: dt.datetime
    ends_at: dt.datetime
    up_seconds: int
    busy_seconds: int | None
    energy_millijoules: int | None = None
    memory_used_bytes_max: int | None = None
    temperature_celsius_max: int | None = None
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the tenant reaches its GPUs."""

    host: str
    port: int
    username: str
    host_key_fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The node's word that GPUs were handed over or came back; `signature` covers all other fields.

    Settlement rests on receipts; meter readings refine them. `energy_millijoules` holds one counter per
    GPU in the order of `gpu_uuids`, `None` where the counter could not be read.
    """

    kind: ReceiptKind
    lease_id: str
    lease_epoch: int
    node_id: str
    gpu_uuids: list[str]
    at: dt.datetime
    energy_millijoules: list[int | None]
    access: Access | None = None
    clean: bool = True
    detail: str = ""
    simulated: bool = False
    signature: str = ""

    def signed_bytes(self) -> bytes:
        """Return the canonical JSON of the receipt without its signature: the bytes that are signed."""
        return canonical_json({**to_json(self), "signature": ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """How far the agent has come with the grant (lease, epoch)."""

    lease_id: str
    lease_epoch: int
    state: LeaseState
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The market's wish that these GPUs serve a lease; every reply lists all grants of the node that live.

    The agent makes the machine match the list: it starts a `RUN` grant once `not_before` has come, and
    ends it at `not_after` from its own clock or when it turns to `STOP`, whichever is first. `lease_epoch`
    fences: of two grants of one lease only the higher one counts.
    """

    lease_id: str
    lease_epoch: int
    gpu_uuids: list[str]
    not_before: dt.datetime
    not_after: dt.datetime
    desired_state: DesiredState
    ssh_public_keys: list[str] = field(default_factory=list)
    image: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """A machine's first message, signed by the key that it brings. `public_key` is base64url, 32 bytes."""

    protocol: int
    token: str
    public_key: str
    hostname: str
    machine_id: str
    agent_version: str
    simulated: bool
    gpus: list[GpuIdentity]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolReply:
    node_id: str
    report_interval_seconds: int
    now: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a node has to say. `inventory` is given at start, on change and when it is asked for."""

    protocol: int
    node_id: str
    epoch: int
    sequence: int
    boot_id: str
    sent_at: dt.datetime
    agent_version: str
    simulated: bool
    reader_hung_since: dt.datetime | None = None
    inventory: list[GpuIdentity] | None = None
    readings: list[Reading] = field(default_factory=list)
    leases: list[LeaseStatus] = field(default_factory=list)
    meters: list[MeterReading] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    spool_depth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportReply:
    """The answer to a report that was taken: every meter and receipt in it is stored and may be dropped.

    Also the body of the 409 `report_replayed`, with `accepted` false and the last accepted pair: an agent
    that reads its own pair there knows that its report had arrived and only the answer was lost.
    """

    accepted: bool
    last_epoch: int
    last_sequence: int
    now: dt.datetime
    report_interval_seconds: int
    want_inventory: bool = False
    grants: list[Grant] = field(default_factory=list)


_LIST_LIMITS = {
    ("Report", "inventory"): GPUS_PER_NODE_MAX,
    ("Report", "readings"): REPORT_READINGS_MAX,
    ("Report", "leases"): REPORT_LEASES_MAX,
    ("Report", "meters"): REPORT_METERS_MAX,
    ("Report", "receipts"): REPORT_RECEIPTS_MAX,
    ("EnrolRequest", "gpus"): GPUS_PER_NODE_MAX,
    ("Receipt", "gpu_uuids"): GPUS_PER_NODE_MAX,
    ("Receipt", "energy_millijoules"): GPUS_PER_NODE_MAX,
}
LIST_LENGTH_MAX = 256  # for every list without a limit of its own
_INT64_MAX = 2**63 - 1

MessageT = TypeVar("MessageT")


def to_json(message: Any) -> Any:  # noqa: ANN401 - a JSON value has no narrower type
    """Turn a message, or a part of one, into plain JSON values; instants become RFC 3339 in UTC with `Z`."""
    if isinstance(message, StrEnum):
        return message.value
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        return {f.name: to_json(getattr(message, f.name)) for f in dataclasses.fields(message)}
    if isinstance(message, dt.datetime):
        return message.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(message, list):
        return [to_json(item) for item in message]
    if isinstance(message, dict):
        return {key: to_json(value) for key, value in message.items()}
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


def encode(message: object) -> bytes:
    """Return the bytes that go over the wire."""
    return canonical_json(to_json(message))


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


# --- signatures -------------------------------------------------------------------------------------


class BadSignature(ValueError):
    """Say why the signature headers of a request cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureInput:
    """The parsed `Signature-Input` of a request."""

    key_id: str
    created_at: dt.datetime
    signature: bytes
    parameters: str


def content_digest(body: bytes) -> str:
    """Return the `Content-Digest` header of a body (RFC 9530, sha-256)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_parameters(*, key_id: str, created_at: dt.datetime) -> str:
    """Return the value of `Signature-Input` after `sig1=`."""
    components = " ".join(f'"{name}"' for name in SIGNED_COMPONENTS)
    return f'({components});created={math.floor(created_at.timestamp())};keyid="{key_id}";alg="ed25519"'


def signature_base(
    *, method: str, authority: str, path: str, digest: str, parameters: str
) -> bytes:
    """Return the bytes that are signed (RFC 9421 section 2.5)."""
    values = (method.upper(), authority.lower(), path, digest)
    lines = [f'"{name}": {value}' for name, value in zip(SIGNED_COMPONENTS, values, strict=True)]
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode()


_SIGNATURE_INPUT = re.compile(
    r'sig1=(\("@method" "@authority" "@path" "content-digest"\)'
    r';created=(\d{1,12});keyid="([A-Za-z0-9_-]{1,64})";alg="ed25519")',
    flags=re.ASCII,
)
_SIGNATURE = re.compile(r"sig1=:([A-Za-z0-9+/]{86}==):", flags=re.ASCII)


def parse_signature(*, signature_input: str, signature: str) -> SignatureInput:
    """Read the two signature headers of a request.

    :raises BadSignature: when they are missing or not of the one form that agents send.
    """
    parameters = _SIGNATURE_INPUT.fullmatch(signature_input)
    value = _SIGNATURE.fullmatch(signature)
    if parameters is None or value is None:
        raise BadSignature(
            "Signature-Input and Signature must name sig1 with the four covered components"
        )
    return SignatureInput(
        key_id=parameters[3],
        created_at=dt.datetime.fromtimestamp(int(parameters[2]), tz=dt.UTC),
        signature=base64.b64decode(value[1]),
        parameters=parameters[1],
    )
