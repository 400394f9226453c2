"""Reports: each once, in order, whole or not at all, and nothing believed that cannot be."""

import datetime as dt
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents import enrolment, envelope, ingest, inventory, protocol
from agents.models import Gpu, Grant, MeterReading, Node, Reading, Receipt
from marketplace.core import ids
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine
from tests.agents.ingest.reports import FIVE_MINUTES, MOMENT, accept, node_as_told, refused, status

pytestmark = pytest.mark.django_db


class TestOrder:
    def test_remembers_the_last_pair_and_the_server_s_clock(self, machine: Machine) -> None:
        accept(machine, epoch=3, sequence=7, boot_id="b", agent_version="0.2.0")
        machine.node.refresh_from_db()
        node = machine.node
        assert (node.last_epoch, node.last_sequence, node.last_report_at) == (3, 7, NOW)
        assert (node.boot_id, node.agent_version) == ("b", "0.2.0")

    @pytest.mark.parametrize("pair", [(3, 7), (3, 6), (2, 99), (0, 0)])
    def test_refuses_a_report_that_is_not_newer_and_stores_nothing_of_it(
        self, machine: Machine, grant: Grant, pair: tuple[int, int]
    ) -> None:
        accept(machine, epoch=3, sequence=7)
        epoch, sequence = pair
        before = node_as_told()
        with pytest.raises(ingest.ReportReplayed) as refusal:
            accept(
                machine,
                at=NOW + make.seconds(9),
                epoch=epoch,
                sequence=sequence,
                inventory=[],
                readings=[make.reading(gpu_uuid=machine.gpu_uuids[0])],
                meters=[make.meter(grant=grant)],
                receipts=[make.receipt(grant=grant, key=machine.key)],
                leases=[status(grant, protocol.LeaseState.ACTIVE)],
            )
        reply = protocol.from_json(protocol.ReportReply, refusal.value.extra["reply"])
        assert (reply.accepted, reply.last_epoch, reply.last_sequence) == (False, 3, 7)
        assert [g.lease_id for g in reply.grants] == [grant.lease_id]
        assert node_as_told() == before
        assert not MeterReading.objects.exists()
        assert not Receipt.objects.exists()
        assert not Reading.objects.exists()
        assert not Gpu.objects.filter(present=False).exists()
        grant.refresh_from_db()
        assert grant.reported_state == ""

    @pytest.mark.parametrize("pair", [(3, 8), (3, 900), (4, 0)])
    def test_takes_a_newer_report_even_after_a_gap(
        self, machine: Machine, pair: tuple[int, int]
    ) -> None:
        accept(machine, epoch=3, sequence=7)
        assert accept(machine, epoch=pair[0], sequence=pair[1]).accepted

    def test_takes_the_largest_pair_that_can_be_written(self, machine: Machine) -> None:
        assert accept(machine, epoch=2**63 - 1, sequence=2**63 - 1).accepted

    def test_stores_all_or_nothing(
        self, machine: Machine, grant: Grant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(**_: object) -> None:
            raise RuntimeError("the database went away")

        monkeypatch.setattr("agents.ingest.readings.store", fail)
        with pytest.raises(RuntimeError):
            accept(
                machine,
                meters=[make.meter(grant=grant)],
                readings=[make.reading(gpu_uuid=machine.gpu_uuids[0])],
            )
        machine.node.refresh_from_db()
        assert (machine.node.last_sequence, MeterReading.objects.count()) == (0, 0)


class TestWhoMayReport:
    def authenticate(self, machine: Machine, **changes: Any) -> Node:
        values: dict[str, Any] = {
            "key": machine.key,
            "key_id": machine.node_id,
            "path": protocol.REPORT_PATH,
            "body": b"{}",
            **changes,
        }
        return ingest.authenticate(signed=make.sign(**values), at=NOW).node

    def test_knows_a_node_by_its_key(self, machine: Machine) -> None:
        assert self.authenticate(machine) == machine.node

    def test_refuses_another_key(self, machine: Machine) -> None:
        with pytest.raises(envelope.BadSignature):
            self.authenticate(machine, key=make.new_key())

    def test_refuses_an_unknown_node(self, machine: Machine) -> None:
        with pytest.raises(envelope.BadSignature):
            self.authenticate(machine, key_id=ids.new_node_id())

    def test_does_not_tell_a_stranger_that_a_node_was_revoked(self, machine: Machine) -> None:
        inventory.revoke(node=machine.node, at=NOW, actor="owner")
        with pytest.raises(envelope.BadSignature):
            self.authenticate(machine, key=make.new_key())
        with pytest.raises(inventory.NodeRevoked):
            self.authenticate(machine)

    def test_refuses_a_node_that_was_revoked_after_it_was_authenticated(
        self, machine: Machine
    ) -> None:
        stale = Node.objects.get()
        inventory.revoke(node=machine.node, at=NOW, actor="owner")
        with pytest.raises(inventory.NodeRevoked):
            ingest.accept(node=stale, report=make.report(machine=machine), at=NOW)

    def test_refuses_a_node_that_got_another_key_meanwhile(self, machine: Machine) -> None:
        stale = Node.objects.get()
        Node.objects.update(public_key=make.public_key_of(make.new_key()))
        with pytest.raises(envelope.BadSignature):
            ingest.accept(node=stale, report=make.report(machine=machine), at=NOW)

    def test_refuses_a_report_in_the_name_of_another_node(self, machine: Machine) -> None:
        with pytest.raises(envelope.MalformedReport):
            accept(machine, node_id=make.make_machine().node_id)

    def test_refuses_a_node_that_flips_its_simulated_flag(self, machine: Machine) -> None:
        with pytest.raises(enrolment.SimulatedHardwareRefused):
            accept(machine, simulated=False)

    def test_refuses_simulated_nodes_where_they_are_not_sold(
        self, machine: Machine, settings: Any
    ) -> None:
        settings.ALLOW_SIMULATED_HARDWARE = False
        with pytest.raises(enrolment.SimulatedHardwareRefused):
            accept(machine)
        machine.node.refresh_from_db()
        assert machine.node.last_report_at is None


class TestReadings:
    def test_the_newest_reading_says_how_a_gpu_is(self, machine: Machine) -> None:
        uuid = machine.gpu_uuids[0]
        newer = make.reading(
            gpu_uuid=uuid, health=protocol.Health.QUARANTINED, health_reason="Xid 79"
        )
        older = make.reading(gpu_uuid=uuid, measured_at=NOW - make.seconds(15))
        accept(machine, readings=[newer, older])
        gpu = Gpu.objects.get(uuid=uuid)
        assert (gpu.health, gpu.health_reason, gpu.measured_at) == ("quarantined", "Xid 79", NOW)
        assert (gpu.idle_state, gpu.idle_since) == ("offerable", NOW - make.seconds(600))
        assert Reading.objects.get().measured_at == NOW

    def test_an_older_reading_changes_nothing_that_a_newer_one_said(self, machine: Machine) -> None:
        uuid = machine.gpu_uuids[0]
        accept(machine, readings=[make.reading(gpu_uuid=uuid)])
        late = make.reading(
            gpu_uuid=uuid, measured_at=NOW - make.seconds(60), health=protocol.Health.LOST
        )
        accept(machine, readings=[late])
        assert Gpu.objects.get(uuid=uuid).health == "healthy"

    def test_a_repeated_reading_is_stored_once(self, machine: Machine) -> None:
        sample = make.reading(gpu_uuid=machine.gpu_uuids[0])
        accept(machine, readings=[sample])
        accept(machine, readings=[sample])
        assert Reading.objects.count() == 1

    def test_writes_an_unchanged_gpu_only_now_and_then(self, machine: Machine) -> None:
        uuid = machine.gpu_uuids[0]
        idle_since = NOW - make.seconds(600)
        for number, expected in ((0, 0), (15, 0), (299, 0), (300, 300)):
            at = NOW + make.seconds(number)
            sample = make.reading(gpu_uuid=uuid, measured_at=at, idle_since=idle_since)
            accept(machine, at=at, readings=[sample])
            assert Gpu.objects.get(uuid=uuid).measured_at == NOW + make.seconds(expected)
        assert Reading.objects.count() == 2

    def test_takes_a_clock_up_to_five_minutes_ahead(self, machine: Machine) -> None:
        first, second = machine.gpu_uuids
        just = make.reading(gpu_uuid=first, measured_at=NOW + FIVE_MINUTES)
        over = make.reading(gpu_uuid=second, measured_at=NOW + FIVE_MINUTES + MOMENT)
        with capture_logs() as logs:
            accept(machine, readings=[just, over])
        assert Reading.objects.get().gpu.uuid == first
        assert refused(logs) == {("reading", "in_the_future"): 1}

    def test_leaves_out_a_reading_that_would_be_pruned_at_once(self, machine: Machine) -> None:
        old = make.reading(
            gpu_uuid=machine.gpu_uuids[0], measured_at=NOW - dt.timedelta(days=1) - MOMENT
        )
        with capture_logs() as logs:
            accept(machine, readings=[old])
        assert refused(logs) == {("reading", "too_old"): 1}
        assert not Reading.objects.exists()

    def test_leaves_out_a_gpu_of_another_node(self, machine: Machine) -> None:
        other = make.make_machine()
        lost = make.reading(gpu_uuid=other.gpu_uuids[0], health=protocol.Health.LOST)
        accept(machine)
        with capture_logs() as logs:
            reply = accept(machine, readings=[lost])
        assert refused(logs) == {("reading", "gpu_not_of_node"): 1}
        assert reply.accepted
        assert reply.want_inventory
        assert not Gpu.objects.exclude(health="healthy").exists()
        assert not Reading.objects.exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("utilization_percent", 101),
            ("utilization_percent", 2**63 - 1),
            ("memory_used_bytes", 2**63 - 1),
            ("power_draw_milliwatts", 2**62),
            ("temperature_celsius", 40_000),
            ("process_count", 2**40),
        ],
    )
    def test_an_absurd_value_is_unknown(self, machine: Machine, name: str, value: int) -> None:
        changes: dict[str, Any] = {name: value}
        accept(machine, readings=[make.reading(gpu_uuid=machine.gpu_uuids[0], **changes)])
        assert getattr(Reading.objects.get(), name) is None

    def test_an_unread_value_stays_unknown(self, machine: Machine) -> None:
        sample = make.reading(
            gpu_uuid=machine.gpu_uuids[0],
            utilization_percent=None,
            idle_since=None,
            unread={"utilization_percent": "not supported"},
        )
        accept(machine, readings=[sample])
        assert Reading.objects.get().utilization_percent is None

    def test_a_gpu_is_never_idle_since_the_future(self, machine: Machine) -> None:
        uuid = machine.gpu_uuids[0]
        accept(machine, readings=[make.reading(gpu_uuid=uuid, idle_since=NOW + FIVE_MINUTES)])
        assert Gpu.objects.get(uuid=uuid).idle_since == NOW

    def test_keeps_since_when_the_reader_hangs(self, machine: Machine) -> None:
        accept(machine, reader_hung_since=NOW + make.seconds(60))
        machine.node.refresh_from_db()
        assert machine.node.reader_hung_since == NOW
        accept(machine)
        machine.node.refresh_from_db()
        assert machine.node.reader_hung_since is None


class TestWantInventory:
    def test_asks_for_it_after_a_boot_that_brought_none(self, machine: Machine) -> None:
        assert accept(machine).want_inventory
        assert not accept(machine).want_inventory
        assert accept(machine, boot_id="boot-2").want_inventory

    def test_does_not_ask_when_it_was_given(self, machine: Machine) -> None:
        identities = [make.identity(uuid=uuid, index=i) for i, uuid in enumerate(machine.gpu_uuids)]
        assert not accept(machine, boot_id="boot-2", inventory=identities).want_inventory
