"""Liveness: a report that says nothing new costs one read, and can be replayed without moving anything."""

import datetime as dt
import itertools
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from structlog.testing import capture_logs

from agents import beats, ingest, inventory, protocol
from agents.models import Gpu, Node, Reading
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db


@pytest.fixture
def _written_later(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep beats as a web process does; the test writes them itself."""
    settings.AGENT_BEATS_AT_ONCE = False
    book = beats.BeatBook()
    monkeypatch.setattr(book, "_start_writer", lambda: None)
    monkeypatch.setattr(beats, "book", book)


@pytest.fixture
def machine() -> Machine:
    """Return a machine that has told all about itself."""
    machine = make.make_machine()
    report = make.report(machine=machine, sequence=1, readings=readings_of(machine))
    ingest.accept(node=machine.node, report=report, at=NOW)
    machine.node.refresh_from_db()
    return machine


def readings_of(machine: Machine, *, at: dt.datetime = NOW, **changes: Any) -> list[Any]:
    return [
        make.reading(gpu_uuid=uuid, measured_at=at, idle_since=NOW - make.seconds(600), **changes)
        for uuid in machine.gpu_uuids
    ]


def beat(machine: Machine, *, sequence: int, at: dt.datetime, **parts: Any) -> Any:
    """Send a beat as it comes over the wire, from the signature on."""
    values = {"sequence": sequence, "readings": readings_of(machine, at=at), **parts}
    body = protocol.encode(make.report(machine=machine, **values))
    signed = make.sign(
        key=machine.key, key_id=machine.node_id, path=protocol.REPORT_PATH, body=body, at=at
    )
    standing = ingest.authenticate(signed=signed, at=at)
    report = protocol.decode(protocol.Report, body)
    return ingest.accept(node=standing.node, report=report, at=at, standing=standing)


def heard(machine: Machine) -> tuple[int, int, dt.datetime | None]:
    node = Node.objects.get(pk=machine.node_id)
    return node.last_epoch, node.last_sequence, node.last_report_at


@pytest.mark.usefixtures("_written_later")
class TestBeat:
    def test_costs_one_read_and_no_write(self, machine: Machine) -> None:
        at = NOW + make.seconds(15)
        make.make_grant(node=machine.node)
        with CaptureQueriesContext(connection) as queries:
            reply = beat(machine, sequence=2, at=at)
        assert reply.accepted
        assert len(reply.grants) == 1
        (query,) = queries.captured_queries
        assert query["sql"].lstrip().startswith("SELECT")

    def test_moves_the_node_with_the_next_write(self, machine: Machine) -> None:
        at = NOW + make.seconds(15)
        beat(machine, sequence=2, at=at)
        assert heard(machine) == (1, 1, NOW)
        assert beats.book.flush() == 1
        assert heard(machine) == (1, 2, at)
        assert beats.book.flush() == 0

    def test_is_no_report_with_anything_new(self, machine: Machine) -> None:
        at = NOW + make.seconds(15)
        grant = make.make_grant(node=machine.node)
        numbers = itertools.count(2)
        status = protocol.LeaseStatus(
            lease_id=grant.lease_id, lease_epoch=1, state=protocol.LeaseState.ACTIVE
        )
        for news in (
            {"boot_id": "boot-2"},
            {"agent_version": "9"},
            {"protocol": 1},
            {"warnings": ["no container runtime"]},
            {"policy_version": 7},
            {"reader_hung_since": NOW},
            {"host": protocol.HostFacts()},
            {"inventory": [make.identity(uuid=uuid) for uuid in machine.gpu_uuids]},
            {"meters": [make.meter(grant=grant)]},
            {"receipts": [make.receipt(grant=grant, key=machine.key)]},
            {"leases": [status]},
            {"readings": readings_of(machine, at=at, health=protocol.Health.SUSPECT)},
            {"readings": readings_of(machine, at=at, idle_state=protocol.IdleState.BUSY)},
            {"readings": [make.reading(gpu_uuid="GPU-of-nobody")]},
            {"counters": [protocol.GpuCounters(gpu_uuid=machine.gpu_uuids[0])]},
        ):
            sequence = next(numbers)
            report = make.report(machine=machine, sequence=sequence, **news)
            node = Node.objects.get(pk=machine.node_id)
            assert ingest.accept(node=node, report=report, at=at).accepted
            assert heard(machine) == (1, sequence, at), news
        assert beats.book.flush() == 0

    def test_that_is_replayed_moves_nothing(self, machine: Machine) -> None:
        first, second = NOW + make.seconds(15), NOW + make.seconds(30)
        beat(machine, sequence=2, at=first)
        beat(machine, sequence=3, at=second)
        beats.book.flush()
        node = Node.objects.values().get()
        with pytest.raises(ingest.ReportReplayed):
            beat(machine, sequence=2, at=NOW + make.seconds(100))
        old = beats.Beat(
            node_id=machine.node_id, enrolment=1, epoch=1, sequence=3, at=NOW + make.seconds(999)
        )
        assert beats.write(beats=[old]) == 0
        assert Node.objects.values().get() == node

    def test_that_is_replayed_before_it_is_written_revives_nobody_beyond_its_signature(
        self, machine: Machine
    ) -> None:
        at = NOW + make.seconds(15)
        body = protocol.encode(make.report(machine=machine, sequence=2))
        signed = make.sign(
            key=machine.key, key_id=machine.node_id, path=protocol.REPORT_PATH, body=body, at=at
        )
        limit = protocol.SIGNATURE_SKEW_SECONDS_MAX
        ingest.authenticate(signed=signed, at=at + make.seconds(limit))
        with pytest.raises(Exception, match="signed 121 s from"):
            ingest.authenticate(signed=signed, at=at + make.seconds(limit + 1))

    def test_never_moves_a_node_back(self, machine: Machine) -> None:
        later = NOW + make.seconds(60)
        beat(machine, sequence=5, at=NOW + make.seconds(15))
        Node.objects.update(last_epoch=2, last_sequence=0, last_report_at=later)
        beats.book.flush()
        assert heard(machine) == (2, 0, later)

    def test_keeps_the_later_instant_of_a_fact_that_overtook_it(self, machine: Machine) -> None:
        later = NOW + make.seconds(60)
        beat(machine, sequence=5, at=NOW + make.seconds(15))
        Node.objects.update(last_sequence=4, last_report_at=later)
        beats.book.flush()
        assert heard(machine) == (1, 5, later)

    def test_of_a_former_key_moves_nothing(self, machine: Machine) -> None:
        beat(machine, sequence=5, at=NOW + make.seconds(15))
        Node.objects.update(enrolments=2, last_epoch=0, last_sequence=0)
        beats.book.flush()
        assert heard(machine) == (0, 0, NOW)

    def test_of_a_revoked_node_moves_nothing(self, machine: Machine) -> None:
        beat(machine, sequence=5, at=NOW + make.seconds(15))
        inventory.revoke(node=machine.node, at=NOW, actor="owner")
        beats.book.flush()
        assert heard(machine) == (1, 1, NOW)

    def test_the_newest_of_a_node_is_written_whatever_the_order(self, machine: Machine) -> None:
        beat(machine, sequence=9, at=NOW + make.seconds(30))
        beat(machine, sequence=8, at=NOW + make.seconds(31))
        beats.book.flush()
        assert heard(machine) == (1, 9, NOW + make.seconds(30))

    def test_that_could_not_be_written_is_written_the_next_time(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(**_: object) -> int:
            raise OperationalError("the server closed the connection")

        at = NOW + make.seconds(15)
        beat(machine, sequence=2, at=at)
        with monkeypatch.context() as away:
            away.setattr(beats, "write", fail)
            away.setattr(beats, "close_old_connections", lambda: None)
            with capture_logs() as logs:
                beats.book._write_or_log()
        assert [entry["event"] for entry in logs] == ["beats_not_written"]
        assert beats.book.flush() == 1
        assert heard(machine) == (1, 2, at)

    def test_many_are_written_in_statements_of_bounded_size(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(beats, "FLUSH_NODES_MAX", 2)
        machines = [make.make_machine(gpus=1) for _ in range(5)]
        for machine in machines:
            one = beats.Beat(node_id=machine.node_id, enrolment=1, epoch=1, sequence=1, at=NOW)
            beats.book.note(beat=one)
        with CaptureQueriesContext(connection) as queries:
            assert beats.book.flush() == 5
        assert len(queries) == 3
        assert {heard(machine) for machine in machines} == {(1, 1, NOW)}

    def test_keeps_no_sample_until_one_is_due(self, machine: Machine) -> None:
        for number in range(1, 20):
            beat(machine, sequence=1 + number, at=NOW + make.seconds(15 * number))
        assert Reading.objects.count() == 2
        beat(machine, sequence=30, at=NOW + make.seconds(300))
        assert Reading.objects.count() == 4
        due = NOW + make.seconds(300)
        assert set(Gpu.objects.values_list("measured_at", flat=True)) == {due}
