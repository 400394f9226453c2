"""What a report says of leases: meters, receipts and states, believed as far as they can be."""

import dataclasses
import datetime as dt
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents import protocol
from agents.models import Grant, MeterReading, Receipt
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine
from tests.agents.ingest.reports import FIVE_MINUTES, MOMENT, accept, refused, status

pytestmark = pytest.mark.django_db


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


class TestStates:
    def test_remembers_how_far_the_agent_has_come(self, machine: Machine, grant: Grant) -> None:
        accept(machine, leases=[status(grant, protocol.LeaseState.PREPARING)])
        later = NOW + make.seconds(15)
        accept(machine, at=later, leases=[status(grant, protocol.LeaseState.ACTIVE, "up")])
        accept(
            machine,
            at=later + make.seconds(15),
            leases=[status(grant, protocol.LeaseState.ACTIVE, "up")],
        )
        grant.refresh_from_db()
        assert (grant.reported_state, grant.reported_detail) == ("active", "up")
        assert grant.reported_at == later

    @pytest.mark.parametrize("final", [protocol.LeaseState.ENDED, protocol.LeaseState.FAILED])
    def test_a_last_word_stands(
        self, machine: Machine, grant: Grant, final: protocol.LeaseState
    ) -> None:
        accept(machine, leases=[status(grant, final)])
        with capture_logs() as logs:
            accept(machine, leases=[status(grant, protocol.LeaseState.ACTIVE)])
        grant.refresh_from_db()
        assert grant.reported_state == final
        assert refused(logs) == {("lease", "already_final"): 1}

    def test_leaves_out_the_lease_of_another_node(self, machine: Machine) -> None:
        theirs = make.make_grant(node=make.make_machine().node)
        accept(machine, leases=[status(theirs, protocol.LeaseState.FAILED)])
        theirs.refresh_from_db()
        assert theirs.reported_state == ""
