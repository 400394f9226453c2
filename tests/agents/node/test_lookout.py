"""What a look asks of the reader, beyond what the plan says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import replace

from agents.node.lookout import Lookout
from agents.node.reader import Sample, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet

AT = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


class Reopened(SimulatedReader):
    """Simulated GPUs whose reader forgets, like a child that was started again, when a list was read."""

    def __init__(self) -> None:
        super().__init__(
            fleet=parse_fleet(text="h100x2:idle"),
            node_name="n",
            machine_id="m",
            tenancies=lambda _: [],
        )
        self.listed: dict[str, dt.datetime] = {}
        self.lists = 0
        self.lost: set[str] = set()

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        self.lists += bool(with_processes)
        self.listed.update(dict.fromkeys(with_processes, at))
        return [
            lost_sample(gpu_uuid=s.gpu_uuid, measured_at=at)
            if s.gpu_uuid in self.lost
            else replace(
                s,
                process_count=0 if s.gpu_uuid in self.listed else None,
                processes_at=self.listed.get(s.gpu_uuid),
            )
            for s in super().read(at=at, gpu_uuids=gpu_uuids)
        ]


def look(lookout: Lookout, now: float) -> list[Sample]:
    seen = lookout.look(at=AT + dt.timedelta(seconds=now), now=now, leased=(), interval_seconds=30)
    assert seen.samples is not None
    return seen.samples


def test_a_reader_that_was_reopened_is_asked_for_the_processes_in_the_same_look() -> None:
    reader = Reopened()
    lookout = Lookout(reader=reader)
    assert all(sample.process_count == 0 for sample in look(lookout, 0.0))
    reader.listed.clear()
    assert all(sample.process_count == 0 for sample in look(lookout, 15.0))
    before = reader.lists
    look(lookout, 30.0)
    assert reader.lists == before, "a list that is young enough is not read again"


def test_a_lost_gpu_is_not_asked_for_its_processes() -> None:
    reader = Reopened()
    lookout = Lookout(reader=reader)
    look(lookout, 0.0)
    before = reader.lists
    reader.lost = {identity.uuid for identity in lookout.identities}
    look(lookout, 15.0)
    assert reader.lists == before
