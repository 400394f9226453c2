"""Reports: each once, in order, whole or not at all, and nothing believed that cannot be."""

import dataclasses
import datetime as dt
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents import enrolment, envelope, ingest, inventory, protocol
from agents.models import Gpu, Grant, MeterReading, Node, Reading, Receipt
from marketplace.core import ids
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db
FIVE_MINUTES = make.seconds(300)
MOMENT = make.seconds(0.001)


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


@pytest.fixture
def grant(machine: Machine) -> Grant:
    return make.make_grant(node=machine.node)


def accept(machine: Machine, *, at: dt.datetime = NOW, **parts: Any) -> protocol.ReportReply:
    """Send a report with the next sequence unless another is given."""
    machine.node.refresh_from_db()
    parts.setdefault("sequence", machine.node.last_sequence + 1)
    return ingest.accept(node=machine.node, report=make.report(machine=machine, **parts), at=at)


def node_as_told() -> dict[str, Any]:
    """Return the row of the one node, without what the market itself counts."""
    row = Node.objects.values().get().items()
    return {name: value for name, value in row if not name.startswith("stale_")}


def refused(logs: list[Any]) -> dict[tuple[str, str], int]:
    """Return what the log says was left out, by kind and reason."""
    return {(e["kind"], e["reason"]): e["count"] for e in logs if e["event"] == "part_refused"}


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
                leases=[_status(grant, protocol.LeaseState.ACTIVE)],
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


class TestMeters:
    def test_stores_a_reading_once_whatever_report_brings_it(
        self, machine: Machine, grant: Grant
    ) -> None:
        first = make.meter(grant=grant)
        accept(machine, meters=[first, first])
        accept(machine, meters=[first, make.meter(grant=grant)])
        assert MeterReading.objects.count() == 2

    def test_the_first_reading_of_an_identity_stands(self, machine: Machine, grant: Grant) -> None:
        first = make.meter(grant=grant, busy_seconds=1)
        accept(machine, meters=[first])
        accept(machine, meters=[dataclasses.replace(first, busy_seconds=60)])
        assert MeterReading.objects.get().busy_seconds == 1

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"lease_id": "lse_of_nobody"}, "no_grant"),
            ({"lease_epoch": 2}, "no_grant"),
            ({"lease_epoch": 2**63 - 1}, "no_grant"),
            ({"lease_id": "x" * 500}, "no_grant"),
            ({"gpu_uuid": "GPU-of-nobody"}, "gpu_not_granted"),
            ({"simulated": False}, "simulated_differs"),
            ({"starts_at": NOW}, "window_upside_down"),
            ({"starts_at": NOW + make.seconds(1)}, "window_upside_down"),
            ({"starts_at": NOW - make.seconds(901)}, "window_too_long"),
            (
                {"starts_at": NOW + FIVE_MINUTES, "ends_at": NOW + FIVE_MINUTES + MOMENT},
                "in_the_future",
            ),
            (
                {
                    "starts_at": NOW - dt.timedelta(days=36),
                    "ends_at": NOW - dt.timedelta(days=36) + make.seconds(60),
                },
                "too_old",
            ),
            ({"up_seconds": 61}, "up_exceeds_window"),
            ({"up_seconds": 2**63 - 1}, "up_exceeds_window"),
            ({"up_seconds": 44}, "busy_exceeds_up"),
        ],
    )
    def test_leaves_out_what_cannot_be_and_takes_the_rest(
        self, machine: Machine, grant: Grant, changes: dict[str, Any], reason: str
    ) -> None:
        good = make.meter(grant=grant)
        with capture_logs() as logs:
            reply = accept(machine, meters=[make.meter(grant=grant, **changes), good])
        assert reply.accepted
        assert MeterReading.objects.get().sequence == good.sequence
        assert refused(logs) == {("meter", reason): 1}

    def test_leaves_out_a_lease_of_another_node(self, machine: Machine, grant: Grant) -> None:
        theirs = make.make_grant(node=make.make_machine().node)
        with capture_logs() as logs:
            accept(machine, meters=[make.meter(grant=theirs), make.meter(grant=theirs)])
        assert refused(logs) == {("meter", "no_grant"): 2}
        assert not MeterReading.objects.exists()

    def test_an_absurd_optional_value_is_unknown(self, machine: Machine, grant: Grant) -> None:
        accept(
            machine,
            meters=[
                make.meter(grant=grant, energy_millijoules=2**63 - 1, temperature_celsius_max=2**62)
            ],
        )
        stored = MeterReading.objects.get()
        assert (stored.energy_millijoules, stored.temperature_celsius_max) == (None, None)
        assert stored.up_seconds == 60

    def test_takes_late_readings_of_a_closed_grant(self, machine: Machine, grant: Grant) -> None:
        Grant.objects.update(closed_at=NOW)
        reply = accept(machine, meters=[make.meter(grant=grant)])
        assert MeterReading.objects.exists()
        assert reply.grants == []


class TestReceipts:
    def test_stores_what_was_signed(self, machine: Machine, grant: Grant) -> None:
        signed = make.receipt(grant=grant, key=machine.key)
        accept(machine, receipts=[signed])
        stored = Receipt.objects.get()
        assert protocol.from_json(protocol.Receipt, stored.document) == signed
        assert stored.access == {
            "host": "203.0.113.7",
            "port": 2222,
            "username": "tenant",
            "host_key_fingerprint": None,
        }
        assert (stored.kind, stored.at, stored.is_clean) == ("handover", NOW, True)

    def test_the_first_of_a_kind_stands(self, machine: Machine, grant: Grant) -> None:
        accept(machine, receipts=[make.receipt(grant=grant, key=machine.key)])
        later = make.receipt(grant=grant, key=machine.key, at=NOW + make.seconds(9))
        back = make.receipt(grant=grant, key=machine.key, kind=protocol.ReceiptKind.RETURN)
        accept(machine, receipts=[later, back])
        assert Receipt.objects.count() == 2
        assert Receipt.objects.get(kind="handover").at == NOW

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"lease_id": "lse_of_nobody"}, "no_grant"),
            ({"lease_epoch": 2}, "no_grant"),
            ({"node_id": "nde_of_nobody"}, "other_node"),
            ({"gpu_uuids": ["GPU-of-nobody"]}, "gpu_not_granted"),
            ({"gpu_uuids": []}, "gpu_not_granted"),
            ({"energy_millijoules": [1]}, "energy_per_gpu"),
            ({"simulated": False}, "simulated_differs"),
            (
                {"access": protocol.Access(host="h", port=65_536, username="u")},
                "no_such_port",
            ),
            ({"signature": ""}, "bad_signature"),
            ({"signature": "\u00e9"}, "bad_signature"),
            ({"signature": "AAAA"}, "bad_signature"),
            ({"signature": "A" * 86 + "=="}, "bad_signature"),
        ],
    )
    def test_leaves_out_what_cannot_be(
        self, machine: Machine, grant: Grant, changes: dict[str, Any], reason: str
    ) -> None:
        with capture_logs() as logs:
            reply = accept(
                machine, receipts=[make.receipt(grant=grant, key=machine.key, **changes)]
            )
        assert reply.accepted
        assert not Receipt.objects.exists()
        assert refused(logs) == {("receipt", reason): 1}

    @pytest.mark.parametrize("kind", list(protocol.ReceiptKind))
    def test_a_receipt_from_the_future_counts_when_it_came_and_keeps_what_was_signed(
        self, machine: Machine, grant: Grant, kind: protocol.ReceiptKind
    ) -> None:
        tomorrow = NOW + dt.timedelta(days=1)
        accept(
            machine,
            receipts=[make.receipt(grant=grant, key=machine.key, kind=kind, at=tomorrow)],
        )
        stored = Receipt.objects.get()
        assert stored.at == stored.received_at == NOW
        assert protocol.from_json(protocol.Receipt, stored.document).at == tomorrow

    def test_a_receipt_from_before_its_grant_counts_from_the_grant(
        self, machine: Machine, grant: Grant
    ) -> None:
        accept(
            machine,
            receipts=[make.receipt(grant=grant, key=machine.key, at=NOW - dt.timedelta(days=1))],
        )
        assert Receipt.objects.get().at == grant.created_at

    def test_a_handover_that_comes_after_a_later_report_counts_when_it_was(
        self, machine: Machine, grant: Grant
    ) -> None:
        an_hour_later = NOW + dt.timedelta(hours=1)
        accept(machine, at=an_hour_later)
        handed_over_at = NOW + make.seconds(1)
        accept(
            machine,
            at=an_hour_later + make.seconds(15),
            receipts=[make.receipt(grant=grant, key=machine.key, at=handed_over_at)],
        )
        assert Receipt.objects.get().at == handed_over_at

    def test_a_handover_that_waited_while_the_market_was_away_counts_when_it_was(
        self, machine: Machine, grant: Grant
    ) -> None:
        accept(machine)
        handed_over_at = NOW + make.seconds(60)
        accept(
            machine,
            at=NOW + dt.timedelta(hours=1),
            receipts=[make.receipt(grant=grant, key=machine.key, at=handed_over_at)],
        )
        assert Receipt.objects.get().at == handed_over_at

    def test_leaves_out_a_receipt_that_was_altered_after_it_was_signed(
        self, machine: Machine, grant: Grant
    ) -> None:
        signed = make.receipt(grant=grant, key=machine.key)
        with capture_logs() as logs:
            accept(machine, receipts=[dataclasses.replace(signed, clean=False)])
        assert refused(logs) == {("receipt", "bad_signature"): 1}
        assert not Receipt.objects.exists()

    def test_leaves_out_a_receipt_signed_by_another_key(
        self, machine: Machine, grant: Grant
    ) -> None:
        accept(machine, receipts=[make.receipt(grant=grant, key=make.new_key())])
        assert not Receipt.objects.exists()


def _status(grant: Grant, state: protocol.LeaseState, detail: str = "") -> protocol.LeaseStatus:
    return protocol.LeaseStatus(
        lease_id=grant.lease_id, lease_epoch=grant.lease_epoch, state=state, detail=detail
    )


class TestStates:
    def test_remembers_how_far_the_agent_has_come(self, machine: Machine, grant: Grant) -> None:
        accept(machine, leases=[_status(grant, protocol.LeaseState.PREPARING)])
        later = NOW + make.seconds(15)
        accept(machine, at=later, leases=[_status(grant, protocol.LeaseState.ACTIVE, "up")])
        accept(
            machine,
            at=later + make.seconds(15),
            leases=[_status(grant, protocol.LeaseState.ACTIVE, "up")],
        )
        grant.refresh_from_db()
        assert (grant.reported_state, grant.reported_detail) == ("active", "up")
        assert grant.reported_at == later

    @pytest.mark.parametrize("final", [protocol.LeaseState.ENDED, protocol.LeaseState.FAILED])
    def test_a_last_word_stands(
        self, machine: Machine, grant: Grant, final: protocol.LeaseState
    ) -> None:
        accept(machine, leases=[_status(grant, final)])
        with capture_logs() as logs:
            accept(machine, leases=[_status(grant, protocol.LeaseState.ACTIVE)])
        grant.refresh_from_db()
        assert grant.reported_state == final
        assert refused(logs) == {("lease", "already_final"): 1}

    def test_leaves_out_the_lease_of_another_node(self, machine: Machine) -> None:
        theirs = make.make_grant(node=make.make_machine().node)
        accept(machine, leases=[_status(theirs, protocol.LeaseState.FAILED)])
        theirs.refresh_from_db()
        assert theirs.reported_state == ""
