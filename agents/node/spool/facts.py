"""What the market must hear of exactly once: meters, receipts and events, in one shape."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol import (
    Access,
    GpuEvent,
    Grant,
    LeaseState,
    MeterReading,
    Receipt,
    ReceiptEvidence,
    encode,
)

TERMINAL_STATES = frozenset({LeaseState.ENDED, LeaseState.FAILED})

LeaseKey = tuple[str, int]
MeterKey = tuple[int, int]
ReceiptKey = tuple[str, int, str]
EventKey = tuple[int, int]


class FactKind(StrEnum):
    """The kinds of facts; each has names of its own."""

    METER = "meter"
    RECEIPT = "receipt"
    EVENT = "event"


FactKey = tuple[FactKind, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact. Its name is its identity for ever: the market stores a name once."""

    kind: FactKind
    name: str
    body: str

    @property
    def key(self) -> FactKey:
        """Return (kind, name)."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """How far the agent is with a grant. `metered_until` and `returned_at` are whole seconds.

    `is_clean` is false while something of a finished lease may be left on its GPUs. `evidence` is what was
    seen before the handover: the settings in it are those that the return restores.
    """

    grant: Grant
    state: LeaseState
    changed_at: dt.datetime
    detail: str = ""
    access: Access | None = None
    handed_over_at: dt.datetime | None = None
    metered_until: dt.datetime | None = None
    returned_at: dt.datetime | None = None
    return_energies: list[int | None] = field(default_factory=list)
    is_clean: bool = True
    evidence: ReceiptEvidence | None = None

    @property
    def key(self) -> LeaseKey:
        """Return (lease, epoch)."""
        return self.grant.lease_id, self.grant.lease_epoch


def meter_name(key: MeterKey) -> FactKey:
    """Return the name of the reading (epoch, sequence)."""
    return FactKind.METER, f"{key[0]}/{key[1]}"


def receipt_name(key: ReceiptKey) -> FactKey:
    """Return the name of the receipt (lease, epoch, kind)."""
    return FactKind.RECEIPT, f"{key[0]}/{key[1]}/{key[2]}"


def event_name(key: EventKey) -> FactKey:
    """Return the name of the event (epoch, sequence)."""
    return FactKind.EVENT, f"{key[0]}/{key[1]}"


def meter_fact(meter: MeterReading) -> Fact:
    """Return a meter reading as it is kept."""
    kind, name = meter_name((meter.epoch, meter.sequence))
    return Fact(kind=kind, name=name, body=encode(meter).decode())


def receipt_fact(receipt: Receipt) -> Fact:
    """Return a receipt as it is kept."""
    kind, name = receipt_name((receipt.lease_id, receipt.lease_epoch, receipt.kind.value))
    return Fact(kind=kind, name=name, body=encode(receipt).decode())


def event_fact(event: GpuEvent) -> Fact:
    """Return an event as it is kept."""
    kind, name = event_name((event.epoch, event.sequence))
    return Fact(kind=kind, name=name, body=encode(event).decode())
