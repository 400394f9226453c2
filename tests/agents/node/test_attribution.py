"""Who caused an Xid: the table of `agents.node.attribution`, row by row."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from agents.node import attribution
from agents.node.attribution import ProcessOwner
from agents.node.reader import Xid
from agents.node.spool import LeaseRecord
from agents.protocol import Cause, DesiredState, EventSource, Grant, HealthPolicy, LeaseState

START = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
LEASE = ("lease-1", 1)
OWN, OTHER, MACHINES, GONE = 100, 200, 300, 400
OWNERS = {
    OWN: ProcessOwner(lease_id="lease-1"),
    OTHER: ProcessOwner(lease_id="lease-2"),
    MACHINES: ProcessOwner(lease_id=None),
}
MINUTE = dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("code", "let", "pid", "cause"),
    [
        (79, True, OWN, Cause.HARDWARE),
        (79, False, None, Cause.HARDWARE),
        (119, True, MACHINES, Cause.HARDWARE),
        (31, True, OWN, Cause.TENANT),
        (31, True, None, Cause.TENANT),
        (31, True, GONE, Cause.TENANT),
        (31, True, OTHER, Cause.UNKNOWN),
        (31, True, MACHINES, Cause.UNKNOWN),
        (31, False, OWN, Cause.UNKNOWN),
        (31, False, None, Cause.UNKNOWN),
        (63, True, OWN, Cause.UNKNOWN),
        (9_999, True, OWN, Cause.UNKNOWN),
    ],
)
def test_an_xid_is_put_down_by_class_time_and_process(
    *, code: int, let: bool, pid: int | None, cause: Cause
) -> None:
    told = Xid(gpu_uuid="GPU-1", xid=code, at=START, source=EventSource.KERNEL_LOG, pid=pid)
    blamed = attribution.attribute(
        xid=told, lease=LEASE if let else None, owner_of=OWNERS.get, policy=HealthPolicy()
    )
    assert blamed.cause is cause
    assert blamed.lease_id == ("lease-1" if let else None)


def record(state: LeaseState, *, changed_at: dt.datetime) -> LeaseRecord:
    grant = Grant(
        lease_id="lease-1",
        lease_epoch=1,
        gpu_uuids=["GPU-1"],
        not_before=START,
        not_after=START + 60 * MINUTE,
        desired_state=DesiredState.RUN,
    )
    return LeaseRecord(grant=grant, state=state, changed_at=changed_at, handed_over_at=START)


@pytest.mark.parametrize(
    ("state", "minutes", "had_it"),
    [
        (LeaseState.ACTIVE, -1, False),
        (LeaseState.ACTIVE, 0, True),
        (LeaseState.STOPPING, 40, True),  # its processes still run
        (LeaseState.ENDED, 29, True),
        (LeaseState.ENDED, 30, False),
    ],
)
def test_a_lease_has_its_gpu_from_the_handover_until_nothing_of_it_is_left(
    *, state: LeaseState, minutes: int, had_it: bool
) -> None:
    records = [record(state, changed_at=START + 30 * MINUTE)]
    at = START + minutes * MINUTE
    assert (attribution.lease_at(records=records, gpu_uuid="GPU-1", at=at) == LEASE) is had_it
    assert attribution.lease_at(records=records, gpu_uuid="GPU-2", at=at) is None


class TestOwnerByCgroup:
    @pytest.fixture
    def proc(self, tmp_path: Path) -> Path:
        groups = {
            OWN: "0::/machine.slice/libpod-c0ffee11.scope/container\n",
            OTHER: "12:devices:/lease-2\n0::/lease-2\n",
            MACHINES: "0::/system.slice/slurmd.service\n",
        }
        for pid, text in groups.items():
            (tmp_path / str(pid)).mkdir()
            (tmp_path / str(pid) / "cgroup").write_text(text)
        return tmp_path

    @pytest.mark.parametrize("pid", [OWN, OTHER, MACHINES, GONE])
    def test_tells_a_tenants_process_from_the_machines_and_from_one_that_is_gone(
        self, proc: Path, pid: int
    ) -> None:
        marks = {"c0ffee11": "lease-1", "lease-2": "lease-2"}
        owner_of = attribution.owner_by_cgroup(lease_ids_by_mark=marks, proc=proc)
        assert owner_of(pid) == OWNERS.get(pid)
