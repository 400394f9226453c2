"""A lease on real silicon and on the stand-in: receipts carry counters, memory is looked through."""

from __future__ import annotations

import sys
import time

import pytest

from agents.node import residue
from agents.protocol import ReceiptKind
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import by_kind, enrolled, grant
from tests.agents.node.silicon import Machine


class TestResidue:
    def test_finds_nothing_on_a_gpu_at_rest(self, machine: Machine) -> None:
        (uuid, *_) = machine.need_rest()
        started = time.monotonic()
        finding = residue.check(gpu_uuids=[uuid])
        sys.stdout.write(f"{machine.source}: memory looked through in {_since(started)} s\n")
        if finding.passed is None:
            pytest.skip(finding.detail)
        assert finding.passed, finding.detail

    def test_leaves_nothing_to_be_found(self, machine: Machine) -> None:
        (uuid, *_) = machine.need_rest()
        if machine.journal is not None:
            machine.journal.set("*", residue=1)
            assert residue.check(gpu_uuids=[uuid]).passed is False
        elif residue.check(gpu_uuids=[uuid]).passed is None:
            pytest.skip("no libcuda here")
        assert residue.check(gpu_uuids=[uuid]).passed is True


class TestReceipts:
    def test_carry_counters_and_settings_of_each_gpu(self, machine: Machine, rig: Rig) -> None:
        resting = machine.need_rest()
        rig.reader = machine.reader()
        enrolled(rig)
        given = grant(rig.market, count=0)
        given.gpu_uuids.append(resting[0])
        rig.market.grants = [given]
        rig.live(seconds=260)
        receipts = by_kind(rig.market)
        assert set(receipts) == {ReceiptKind.HANDOVER, ReceiptKind.RETURN}, _statuses(rig)
        handover, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
        for receipt in (handover, returned):
            evidence = receipt.evidence
            assert evidence is not None
            assert evidence.driver_version
            assert [counters.gpu_uuid for counters in evidence.counters] == resting[:1]
            assert evidence.counters[0].pcie_width is not None
            assert [settings.gpu_uuid for settings in evidence.settings] == resting[:1]
            assert evidence.checks
        (before,), (after,) = handover.energy_millijoules, returned.energy_millijoules
        assert before is None or after is None or after >= before, "the counter only grows"
        assert handover.signature != returned.signature


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.2f}"


def _statuses(rig: Rig) -> str:
    return "; ".join(
        f"{status.state}: {status.detail}"
        for report in rig.market.reports
        for status in report.leases
    )
