"""What could not be written, because the disk is full or fails: kept in memory until it can be.

Newer values replace older ones, so that only facts grow; they are bounded. At the bound neighbouring meters
are merged; should that not be enough, the oldest meters go, and how many is told to the owner. A receipt is
never given up: the bill rests on receipts, and meters refine it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents.node.spool.facts import Fact, FactKey, FactKind, LeaseKey, LeaseRecord, meter_fact
from agents.node.spool.merging import merge
from agents.protocol import REPORT_METERS_MAX, MeterReading, decode

# Twenty hours of eight leased GPUs by the minute, some 10 MiB; fifteen times as long when merged.
FACTS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The end of a fact's waiting: the market has stored it, or refuses it for good."""

    acknowledged_at: dt.datetime | None = None
    refused: str | None = None


@dataclass(slots=True, kw_only=True)
class Unwritten:
    """One transaction that is still to be made, however many calls it came from."""

    leases: dict[LeaseKey, LeaseRecord] = field(default_factory=dict)
    facts: dict[FactKey, Fact] = field(default_factory=dict)
    marks: dict[FactKey, Mark] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    given_up: int = 0

    def __bool__(self) -> bool:
        return bool(self.leases or self.facts or self.marks or self.values)

    def add(
        self,
        *,
        leases: Sequence[LeaseRecord] = (),
        facts: Sequence[Fact] = (),
        marks: Mapping[FactKey, Mark] | None = None,
        values: Mapping[str, str] | None = None,
    ) -> None:
        """Take in one more change; of two facts of one name the first one stays."""
        self.leases.update({record.key: record for record in leases})
        for fact in facts:
            self.facts.setdefault(fact.key, fact)
        self.marks.update(marks or {})
        self.values.update(values or {})

    def copied(self) -> Unwritten:
        """Return another one with the same content."""
        return Unwritten(
            leases=dict(self.leases),
            facts=dict(self.facts),
            marks=dict(self.marks),
            values=dict(self.values),
            given_up=self.given_up,
        )

    def shrink(self, *, facts_max: int = FACTS_MAX) -> int:
        """Keep the bound and return how many meters were given up for it.

        What the market has stored already goes first: it need not be written at all.
        """
        if len(self.facts) <= facts_max:
            return 0
        for key in [key for key in self.facts if key in self.marks]:
            del self.facts[key], self.marks[key]
        if len(self.facts) <= facts_max:
            return 0
        # What stands first may have been sent under its name already.
        for merged in merge(readings=self._meters()[REPORT_METERS_MAX:]):
            whole = meter_fact(merged.reading)
            self.facts[whole.key] = whole
            for part in merged.absorbed:
                del self.facts[meter_fact(part).key]
        excess = max(0, len(self.facts) - facts_max)
        given_up = [key for key in self.facts if key[0] is FactKind.METER][:excess]
        for key in given_up:
            del self.facts[key]
        self.given_up += len(given_up)
        return len(given_up)

    def _meters(self) -> list[MeterReading]:
        return [
            decode(MeterReading, fact.body.encode())
            for fact in self.facts.values()
            if fact.kind is FactKind.METER
        ]
