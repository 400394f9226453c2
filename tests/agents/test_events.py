"""Events of GPUs: each stored once, and nothing believed that cannot be."""

import datetime as dt
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents import ingest, protocol
from agents.models import GpuEvent, Grant, MeterReading
from agents.protocol import Cause, Health
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db
_MOMENT = make.seconds(0.001)


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


@pytest.fixture
def grant(machine: Machine) -> Grant:
    return make.make_grant(node=machine.node, gpu_uuids=[machine.gpu_uuids[0]])


def accept(
    machine: Machine, *events: protocol.GpuEvent, at: dt.datetime = NOW, **parts: Any
) -> Any:
    machine.node.refresh_from_db()
    parts.setdefault("sequence", machine.node.last_sequence + 1)
    parts.setdefault("epoch", max(machine.node.last_epoch, 1))
    report = make.report(machine=machine, events=list(events), **parts)
    return ingest.accept(node=machine.node, report=report, at=at)


def refused(logs: list[Any]) -> dict[tuple[str, str], int]:
    return {(e["kind"], e["reason"]): e["count"] for e in logs if e["event"] == "part_refused"}


class TestTaking:
    def test_stores_what_the_node_said(self, machine: Machine, grant: Grant) -> None:
        uuid = machine.gpu_uuids[0]
        told = make.xid_event(
            gpu_uuid=uuid, cause=Cause.TENANT, lease_id=grant.lease_id, lease_epoch=1
        )
        accept(machine, told)
        row = GpuEvent.objects.get()
        assert (row.gpu.uuid, row.at, row.xid, row.pid) == (uuid, NOW, 31, 4242)
        assert (row.cause, row.lease_id, row.lease_epoch) == ("tenant", grant.lease_id, 1)
        assert (row.process_name, row.source, row.health) == ("python", "kernel_log", "")

    def test_stores_an_event_once_whatever_report_brings_it(self, machine: Machine) -> None:
        told = make.xid_event(gpu_uuid=machine.gpu_uuids[0])
        accept(machine, told, told)
        accept(machine, told, make.xid_event(gpu_uuid=machine.gpu_uuids[1]))
        assert GpuEvent.objects.count() == 2

    def test_counts_apart_from_meters(self, machine: Machine, grant: Grant) -> None:
        told = make.xid_event(gpu_uuid=machine.gpu_uuids[0], sequence=7)
        accept(machine, told, meters=[make.meter(grant=grant, sequence=7)])
        assert (GpuEvent.objects.count(), MeterReading.objects.count()) == (1, 1)

    def test_takes_a_new_enrolments_events_for_new_ones(self, machine: Machine) -> None:
        told = make.xid_event(gpu_uuid=machine.gpu_uuids[0])
        accept(machine, told)
        type(machine.node).objects.filter(pk=machine.node_id).update(enrolments=2)
        accept(machine, told)
        assert GpuEvent.objects.count() == 2


class TestDisbelief:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"gpu_uuid": "GPU-of-nobody"}, "gpu_not_of_node"),
            ({"simulated": False}, "simulated_differs"),
            ({"at": NOW + make.seconds(300) + _MOMENT}, "in_the_future"),
            ({"at": NOW - dt.timedelta(days=35) - _MOMENT}, "too_old"),
            ({"health": None}, "incomplete"),
            ({"kind": protocol.EventKind.XID}, "incomplete"),
            ({"kind": protocol.EventKind.XID, "xid": 0}, "no_such_xid"),
            ({"kind": protocol.EventKind.XID, "xid": 10_000}, "no_such_xid"),
            ({"lease_id": "lse_of_nobody", "lease_epoch": 1}, "no_grant"),
        ],
    )
    def test_leaves_out_what_cannot_be_and_takes_the_rest(
        self, machine: Machine, changes: dict[str, Any], reason: str
    ) -> None:
        uuid = machine.gpu_uuids[0]
        odd = make.event(**{"gpu_uuid": uuid, **changes})
        with capture_logs() as logs:
            reply = accept(machine, odd, make.xid_event(gpu_uuid=uuid))
        assert reply.accepted
        assert refused(logs) == {("event", reason): 1}
        assert [event.kind for event in GpuEvent.objects.all()] == ["xid"]

    def test_leaves_out_a_gpu_that_the_lease_does_not_have(
        self, machine: Machine, grant: Grant
    ) -> None:
        named = {"lease_id": grant.lease_id, "lease_epoch": 1}
        with capture_logs() as logs:
            accept(machine, make.event(gpu_uuid=machine.gpu_uuids[1], **named))
        assert refused(logs) == {("event", "gpu_not_granted"): 1}

    def test_leaves_out_a_lease_that_had_not_begun(self, machine: Machine, grant: Grant) -> None:
        named = {"lease_id": grant.lease_id, "lease_epoch": 1}
        early = grant.not_before - make.seconds(301)
        with capture_logs() as logs:
            accept(machine, make.event(gpu_uuid=machine.gpu_uuids[0], at=early, **named))
        assert refused(logs) == {("event", "before_grant"): 1}

    def test_does_not_believe_another_nodes_lease(self, machine: Machine) -> None:
        other = make.make_grant(node=make.make_machine().node)
        named = {"lease_id": other.lease_id, "lease_epoch": 1}
        with capture_logs() as logs:
            accept(machine, make.event(gpu_uuid=machine.gpu_uuids[0], **named))
        assert refused(logs) == {("event", "no_grant"): 1}

    def test_puts_nothing_down_to_a_tenant_where_there_was_none(self, machine: Machine) -> None:
        accept(machine, make.event(gpu_uuid=machine.gpu_uuids[0], cause=Cause.TENANT))
        assert GpuEvent.objects.get().cause == Cause.UNKNOWN

    def test_an_absurd_process_is_an_unknown_one(self, machine: Machine) -> None:
        odd = make.xid_event(gpu_uuid=machine.gpu_uuids[0], pid=2**60, process_name="x" * 400)
        accept(machine, odd)
        row = GpuEvent.objects.get()
        assert (row.pid, row.process_name) == (None, "x" * 100)

    def test_takes_a_health_event_of_every_outcome(self, machine: Machine) -> None:
        accept(machine, *(make.event(gpu_uuid=machine.gpu_uuids[0], health=h) for h in Health))
        assert GpuEvent.objects.count() == len(Health)
