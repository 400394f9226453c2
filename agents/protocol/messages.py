"""The messages of both sides, and the parts that they are made of."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol.machine import (
    CheckResult,
    GpuCounters,
    GpuEvent,
    GpuIdentity,
    GpuSettings,
    Health,
    HostFacts,
)
from agents.protocol.parsing import PROTOCOL_VERSION, canonical_json, since, to_json
from agents.protocol.policy import NodePolicy

ENROL_PATH = "/agent/v1/enrol"
REPORT_PATH = "/agent/v1/reports"
ROTATE_KEY_PATH = "/agent/v1/keys"


class IdleState(StrEnum):
    """What the agent thinks of a GPU's work: `FREE` needs no process, no memory, no load for a while.

    `OFFERABLE` is a free, healthy GPU that the owner's own scheduler does not want either.
    """

    UNKNOWN = "unknown"
    BUSY = "busy"
    PARKED = "parked"
    FREE = "free"
    OFFERABLE = "offerable"


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
class Reading:
    """One sample of one GPU. A value that could not be read is `None`, and `unread` says why per field."""

    gpu_uuid: str
    measured_at: dt.datetime
    health: Health
    health_reason: str = ""
    idle_state: IdleState
    idle_since: dt.datetime | None = None
    idle_reason: str = field(default="", metadata=since(2))
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
    `attached_seconds` those in which a process held its memory; `None` when that could not be read.
    `ends_at - starts_at` is at most a few minutes.
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
    attached_seconds: int | None = field(default=None, metadata=since(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the tenant reaches its GPUs."""

    host: str
    port: int
    username: str
    host_key_fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptEvidence:
    """The state of the machine at a receipt: `boottime_seconds` is CLOCK_BOOTTIME, in whole seconds.

    `container_sha256` is the digest of how the tenant's container was started, where there is one.
    """

    boot_id: str
    boottime_seconds: int
    driver_version: str | None = None
    counters: list[GpuCounters] = field(default_factory=list)
    settings: list[GpuSettings] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    container_sha256: str | None = None


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
    evidence: ReceiptEvidence | None = field(default=None, metadata=since(2))

    def signed_bytes(self) -> bytes:
        """Return the canonical JSON of the receipt without its signature: the bytes that are signed."""
        return canonical_json({**self.document(), "signature": ""})

    def document(self) -> dict[str, object]:
        """Return the receipt as its node signed it: one without evidence is of the first protocol."""
        protocol = PROTOCOL_VERSION if self.evidence is not None else 1
        document: dict[str, object] = to_json(self, protocol=protocol)
        return document


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
class RotateKeyRequest:
    """A node's new key, signed by the old one as any request is. `public_key` is base64url, 32 bytes.

    `proof` (base64) is the signature of the other fields by the new key, so that nobody brings a key that
    is another's.
    """

    protocol: int
    node_id: str
    public_key: str
    proof: str = ""

    def proven_bytes(self) -> bytes:
        """Return the canonical JSON of the request without its proof: the bytes that the new key signs."""
        return canonical_json({**to_json(self), "proof": ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateKeyReply:
    """The market knows the node by its new key from `now` on."""

    node_id: str
    public_key: str
    now: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a node has to say. `inventory` is given at start, on change, daily and when it is asked for.

    `host` comes with the inventory. `counters` come about once a minute. `policy_version` is the owner's
    policy that the node follows. `warnings` are in words for the owner: what the node cannot do now.
    """

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
    host: HostFacts | None = field(default=None, metadata=since(2))
    counters: list[GpuCounters] = field(default_factory=list, metadata=since(2))
    events: list[GpuEvent] = field(default_factory=list, metadata=since(2))
    policy_version: int = field(default=0, metadata=since(2))
    warnings: list[str] = field(default_factory=list, metadata=since(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportReply:
    """The answer to a report that was taken: every meter, receipt and event in it is stored.

    `policy` is given when the node follows another version. Faults of GPUs from before `vouched_at` are
    forgotten: the owner answers for the machine. `rotate_key` asks for a new key.

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
    policy: NodePolicy | None = field(default=None, metadata=since(2))
    vouched_at: dt.datetime | None = field(default=None, metadata=since(2))
    rotate_key: bool = field(default=False, metadata=since(2))
