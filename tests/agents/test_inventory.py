"""Which GPUs there are, in which slots, and which may be sold."""

import datetime as dt
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from structlog.testing import capture_logs

from agents import health, ingest, inventory, protocol
from agents.models import SLOTS_PER_NODE, Gpu, Node, NodeTransition
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db
STALE_SECONDS = 3 * 17 + 10  # three reports at the slowest pace of a small fleet, and their way


def events(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs]


class TestApply:
    def test_knows_the_model_by_the_name_that_nvml_gives(self) -> None:
        node = make.make_node(gpus=1)
        other = make.identity(index=1, product_name="NVIDIA GeForce GT 710")
        inventory.apply(node=node, gpus=[other], at=NOW)
        models = dict(Gpu.objects.values_list("uuid", "gpu_model_id"))
        assert models.pop(other.uuid) is None
        assert set(models.values()) == {"h100-sxm-80gb"}

    def test_keeps_the_slot_of_a_gpu_that_went_and_came_back(self) -> None:
        machine = make.make_machine(gpus=2)
        first, second = (Gpu.objects.get(uuid=uuid) for uuid in machine.gpu_uuids)
        inventory.apply(node=machine.node, gpus=[make.identity(uuid=second.uuid)], at=NOW)
        first.refresh_from_db()
        assert not first.present
        back = [make.identity(uuid=second.uuid), make.identity(uuid=first.uuid, index=1)]
        inventory.apply(node=machine.node, gpus=back, at=NOW)
        slots = dict(Gpu.objects.values_list("uuid", "slot"))
        assert slots == {first.uuid: first.slot, second.uuid: second.slot}
        assert not Gpu.objects.filter(present=False).exists()

    def test_never_gives_a_slot_twice(self) -> None:
        node = make.make_node(gpus=0)
        for _ in range(SLOTS_PER_NODE):
            inventory.apply(node=node, gpus=[make.identity()], at=NOW)
        slots = sorted(Gpu.objects.values_list("slot", flat=True))
        assert slots == list(range(node.slot_base, node.slot_base + SLOTS_PER_NODE))

    def test_refuses_a_seventeenth_gpu_with_a_clear_line_and_keeps_the_rest(self) -> None:
        node = make.make_node(gpus=16)
        kept = make.identity(uuid=Gpu.objects.first().uuid)  # type: ignore[union-attr] # it has sixteen
        extra = make.identity(index=1)
        with capture_logs() as logs:
            assert inventory.apply(node=node, gpus=[kept, extra], at=NOW) == []
        assert "gpu_has_no_slot" in events(logs)
        assert Gpu.objects.count() == SLOTS_PER_NODE
        assert Gpu.objects.get(present=True).uuid == kept.uuid

    def test_notes_what_changed_about_a_gpu(self) -> None:
        machine = make.make_machine(gpus=1)
        changed = make.identity(uuid=machine.gpu_uuids[0], mig_enabled=True, serial="9", index=5)
        inventory.apply(node=machine.node, gpus=[changed], at=NOW)
        gpu = Gpu.objects.get()
        assert (gpu.mig_enabled, gpu.serial, gpu.slot) == (True, "9", machine.node.slot_base)

    def test_does_not_take_over_the_gpu_of_another_node(self) -> None:
        theirs, mine = make.make_machine(gpus=1), make.make_machine(gpus=1)
        report = make.report(
            machine=mine,
            inventory=[
                make.identity(uuid=mine.gpu_uuids[0]),
                make.identity(uuid=theirs.gpu_uuids[0], index=1),
            ],
        )
        assert ingest.accept(node=mine.node, report=report, at=NOW).accepted
        assert Gpu.objects.get(uuid=theirs.gpu_uuids[0]).node_id == theirs.node_id
        assert Gpu.objects.get(node=mine.node).present


class TestSlotsInTheDatabase:
    def test_a_slot_base_that_is_no_block_is_refused(self) -> None:
        node = make.make_node()
        with pytest.raises(DatabaseError, match="node_slot_base_is_a_block"), transaction.atomic():
            Node.objects.filter(pk=node.pk).update(slot_base=17)

    def test_a_slot_is_given_to_one_gpu(self) -> None:
        first, second = Gpu.objects.filter(node=make.make_node(gpus=2))
        with pytest.raises(DatabaseError, match="slot"), transaction.atomic():
            Gpu.objects.filter(pk=second.pk).update(slot=first.slot)


class TestAppendOnly:
    @pytest.mark.parametrize(
        "table", ["agents_nodetransition", "agents_receipt", "agents_meterreading"]
    )
    def test_evidence_cannot_be_changed_or_deleted(self, table: str) -> None:
        machine = make.make_machine()
        grant = make.make_grant(node=machine.node)
        report = make.report(
            machine=machine,
            meters=[make.meter(grant=grant)],
            receipts=[make.receipt(grant=grant, key=machine.key)],
        )
        ingest.accept(node=machine.node, report=report, at=NOW)
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET node_id = node_id"):
            with (
                pytest.raises(DatabaseError, match="append-only"),
                transaction.atomic(),
                connection.cursor() as cursor,
            ):
                cursor.execute(statement)


class TestMoves:
    def test_write_one_transition_each(self) -> None:
        node = make.make_node()
        inventory.drain(node=node, at=NOW, actor="key_1")
        inventory.resume(node=node, at=NOW, actor="key_1")
        inventory.revoke(node=node, at=NOW, actor="admin")
        moves = NodeTransition.objects.order_by("id").values_list("from_status", "to_status")
        assert list(moves) == [
            ("", "active"),
            ("active", "draining"),
            ("draining", "active"),
            ("active", "revoked"),
        ]

    @pytest.mark.parametrize("verb", [inventory.resume, inventory.revoke, inventory.drain])
    def test_are_refused_where_no_arrow_leads(self, verb: Any) -> None:
        node = make.make_node()
        if verb is inventory.drain:
            inventory.drain(node=node, at=NOW, actor="a")
        if verb is inventory.revoke:
            inventory.revoke(node=node, at=NOW, actor="a")
        count = NodeTransition.objects.count()
        with pytest.raises(inventory.NodeStateConflict):
            verb(node=node, at=NOW, actor="b")
        assert NodeTransition.objects.count() == count

    def test_of_two_movers_one_wins(self) -> None:
        node = make.make_node()
        same = Node.objects.get(pk=node.pk)
        inventory.drain(node=node, at=NOW, actor="a")
        with pytest.raises(inventory.NodeStateConflict):
            inventory.drain(node=same, at=NOW, actor="b")


class TestQuarantine:
    def test_ends_when_the_owner_resumes_the_node(self) -> None:
        node = make.make_node(gpus=2)
        uuids = list(Gpu.objects.values_list("uuid", flat=True))
        assert inventory.quarantine(gpu_uuids=uuids[:1], reason="not clean", at=NOW) == 1
        assert inventory.quarantine(gpu_uuids=uuids[:1], reason="later", at=NOW) == 0
        assert Gpu.objects.get(uuid=uuids[0]).quarantined_by_market == "not clean"
        assert inventory.sellable_gpus(at=NOW).count() == 1
        inventory.drain(node=node, at=NOW, actor="owner")
        inventory.resume(node=node, at=NOW, actor="owner")
        assert inventory.sellable_gpus(at=NOW).count() == 2

    def test_is_not_ended_by_a_report_that_all_is_well(self) -> None:
        machine = make.make_machine(gpus=1)
        inventory.quarantine(gpu_uuids=machine.gpu_uuids, reason="return_unconfirmed", at=NOW)
        well = make.reading(gpu_uuid=machine.gpu_uuids[0])
        ingest.accept(
            node=machine.node, report=make.report(machine=machine, readings=[well]), at=NOW
        )
        assert not inventory.sellable_gpus(at=NOW).exists()


class TestSellableGpus:
    def test_are_whole_healthy_known_and_heard_of(self) -> None:
        make.make_node(gpus=2)
        assert inventory.sellable_gpus(at=NOW).count() == 2

    @pytest.mark.parametrize(
        "changes",
        [
            {"present": False},
            {"health": protocol.Health.SUSPECT},
            {"health": protocol.Health.LOST},
            {"quarantined_by_market": "residue"},
            {"gpu_model": None},
            {"mig_enabled": True},
        ],
    )
    def test_are_not_those_with_a_fault(self, changes: dict[str, Any]) -> None:
        make.make_node(gpus=1)
        Gpu.objects.update(**changes)
        assert not inventory.sellable_gpus(at=NOW).exists()

    def test_are_those_of_a_card_that_knows_no_mig(self) -> None:
        make.make_node(gpus=1)
        Gpu.objects.update(mig_enabled=None)
        assert inventory.sellable_gpus(at=NOW).count() == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"status": "draining"},
            {"status": "revoked"},
            {"reader_hung_since": NOW},
            {"last_report_at": None},
        ],
    )
    def test_are_not_those_of_a_node_that_cannot_serve(self, changes: dict[str, Any]) -> None:
        make.make_node(gpus=1, **changes)
        assert not inventory.sellable_gpus(at=NOW).exists()

    def test_are_not_those_of_a_silent_node(self) -> None:
        make.make_node(gpus=1)
        last = NOW + make.seconds(STALE_SECONDS)
        assert inventory.sellable_gpus(at=last).exists()
        assert not inventory.sellable_gpus(at=last + make.seconds(0.001)).exists()

    def test_are_real_where_only_real_ones_are_sold(self, settings: Any) -> None:
        make.make_node(gpus=1)
        make.make_node(gpus=1, simulated=False)
        settings.ALLOW_SIMULATED_HARDWARE = False
        assert inventory.sellable_gpus(at=NOW).get().node.simulated is False


class TestLiveness:
    @pytest.mark.parametrize(
        ("silent_seconds", "expected"),
        [
            (None, health.Liveness.NEVER_REPORTED),
            (0, health.Liveness.FRESH),
            (STALE_SECONDS, health.Liveness.FRESH),
            (STALE_SECONDS + 1, health.Liveness.STALE),
            (600, health.Liveness.STALE),
            (601, health.Liveness.LOST),
        ],
    )
    def test_is_judged_by_the_last_report(
        self, silent_seconds: int | None, expected: health.Liveness
    ) -> None:
        last = None if silent_seconds is None else NOW - dt.timedelta(seconds=silent_seconds)
        assert health.liveness(node=Node(last_report_at=last), at=NOW) is expected
