"""Around a lease, through the whole agent: what is checked, restored, quarantined, and signed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from agents.node import residue
from agents.node.checks import Finding
from agents.node.provision import Found, ProvisionFailed
from agents.node.provision.simulated import SimulatedProvisioner
from agents.protocol import Grant, Health, LeaseState, Receipt, ReceiptKind
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import (
    MINUTE,
    assert_meters_fill_the_lease,
    by_kind,
    enrolled,
    grant,
    last_states,
)
from tests.agents.node.scripted import DEFAULT_LIMIT, ScriptedReader
from tests.fakes import nvml
from tests.fakes.market import FakeMarket


class Story:
    """A rig on scripted GPUs whose provisioner is the simulated one."""

    def __init__(self, rig: Rig, market: FakeMarket) -> None:
        self.rig = rig
        self.market = market
        self.reader = rig.reader = ScriptedReader()
        enrolled(rig)
        market.grants = [grant(market)]
        self.connect()

    def connect(self) -> None:
        """Let the reader see the tenancies of the agent that runs now."""
        spool, now = self.rig.spool, self.rig.clock.wall
        assert spool is not None
        # A new one for each look: the agent's own writes, this one only reads.
        self.reader.provisioner = lambda: SimulatedProvisioner(spool=spool, node_name="n1", now=now)

    def live(self, seconds: float) -> None:
        self.rig.live(seconds=seconds)

    def restart(self) -> None:
        self.rig.restart()
        self.connect()

    @property
    def state(self) -> tuple[LeaseState, str]:
        return last_states(self.market)["lease-1", 1]

    @property
    def healths(self) -> dict[str, Health]:
        """Return the last word on each GPU."""
        return {
            r.gpu_uuid: r.health for report in self.market.reports for r in report.readings
        }  # the later one of a GPU wins


@pytest.fixture(autouse=True)
def _no_libcuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        residue, "check", lambda **_: Finding(name="residue", passed=None, detail="no libcuda")
    )


@pytest.fixture
def story(rig: Rig, market: FakeMarket) -> Story:
    return Story(rig, market)


def results(receipt: Receipt) -> dict[str, bool | None]:
    assert receipt.evidence is not None
    return {check.name: check.passed for check in receipt.evidence.checks}


class TestHandover:
    def test_is_signed_with_what_was_seen(self, story: Story) -> None:
        story.live(300)
        receipts = by_kind(story.market)
        for receipt in receipts.values():
            assert receipt.evidence is not None
            assert receipt.evidence.boot_id == "boot-1"
            assert [c.gpu_uuid for c in receipt.evidence.counters] == receipt.gpu_uuids
            assert [s.gpu_uuid for s in receipt.evidence.settings] == receipt.gpu_uuids
            assert results(receipt)["processes"] is True
        given, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
        assert given.evidence is not None
        assert returned.evidence is not None
        assert given.evidence.boottime_seconds < returned.evidence.boottime_seconds
        assert results(given)["provisioner"] is None
        assert results(returned)["restored"] is True
        assert returned.clean
        assert_meters_fill_the_lease(story.market)

    def test_of_a_gpu_that_somebody_holds_fails_and_quarantines_it(self, story: Story) -> None:
        story.reader.hold(story.reader.second)
        story.live(120)
        state, detail = story.state
        assert state is LeaseState.FAILED
        assert detail.startswith(
            f"not handed over: processes: {story.reader.second}: held by python"
        )
        assert story.market.receipts == []
        assert story.healths == {
            story.reader.first: Health.HEALTHY,
            story.reader.second: Health.QUARANTINED,
        }

    def test_with_a_changed_power_limit_fails(self, story: Story) -> None:
        story.reader.of_settings = {"power_limit_milliwatts": 350_000}
        story.live(120)
        assert "power limit 350 W instead of 700 W" in story.state[1]

    def test_waits_while_the_driver_does_not_answer(self, story: Story) -> None:
        story.reader.is_hung = True
        story.live(60)
        assert story.state == (LeaseState.PREPARING, "waits until the GPUs can be read")
        story.reader.is_hung = False
        story.live(300)
        assert story.state == (LeaseState.ENDED, "")

    def test_on_memory_that_is_not_empty_fails(
        self, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dirty = Finding(
            name="residue", passed=False, detail="3 of 256", gpu_uuids=(story.reader.first,)
        )
        monkeypatch.setattr(residue, "check", lambda **_: dirty)
        story.live(120)
        assert story.state == (LeaseState.FAILED, "not handed over: residue: 3 of 256")
        assert story.healths[story.reader.first] is Health.QUARANTINED
        assert story.market.receipts == []


class TestReturn:
    def test_waits_until_the_driver_lets_go(self, story: Story) -> None:
        story.live(120)
        story.reader.hold(story.reader.first)
        story.live(120)  # half a minute past the end
        assert story.state[0] is LeaseState.STOPPING
        assert ReceiptKind.RETURN not in by_kind(story.market)
        story.reader.let_go(story.reader.first)
        story.live(10)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert returned.clean
        assert returned.at == story.market.grants[0].not_after
        assert_meters_fill_the_lease(story.market)

    def test_of_a_gpu_that_stays_held_is_not_clean_and_not_free(self, story: Story) -> None:
        story.live(120)
        story.reader.hold(story.reader.first)
        story.live(200)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert not returned.clean
        assert "held by python (4242)" in returned.detail
        assert returned.at == story.market.grants[0].not_after
        assert story.healths == {
            story.reader.first: Health.QUARANTINED,
            story.reader.second: Health.HEALTHY,
        }

    def test_restores_what_was_set_before_the_tenant_came(self, story: Story) -> None:
        story.live(120)
        story.reader.of_settings = {"power_limit_milliwatts": 300_000, "compute_mode": 3}
        story.live(200)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert returned.clean
        assert {s.gpu_uuid for s in story.reader.restored} == set(returned.gpu_uuids)
        assert {s.power_limit_milliwatts for s in story.reader.restored} == {DEFAULT_LIMIT}

    def test_restores_it_after_a_restart_too(self, story: Story) -> None:
        story.live(120)
        story.reader.of_settings = {"power_limit_milliwatts": 300_000}
        story.restart()
        story.live(200)
        assert {s.power_limit_milliwatts for s in story.reader.restored} == {DEFAULT_LIMIT}
        assert by_kind(story.market)[ReceiptKind.RETURN].clean

    def test_of_settings_that_cannot_be_restored_is_not_clean(self, story: Story) -> None:
        story.live(120)
        story.reader.not_restored = {story.reader.second: "power limit: error(4)"}
        story.live(200)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert not returned.clean
        assert returned.detail.endswith("power limit: error(4)")
        assert story.healths[story.reader.second] is Health.QUARANTINED

    @pytest.mark.parametrize(
        "found",
        [{"recovery_action": 1}, {"row_remap_failed": True}, {"ecc_uncorrected": 1}],
    )
    def test_of_a_gpu_that_broke_is_not_clean(self, story: Story, found: dict[str, object]) -> None:
        story.live(120)
        story.reader.of_counters = found
        story.live(200)
        assert not by_kind(story.market)[ReceiptKind.RETURN].clean

    def test_of_gpus_that_cannot_be_read_is_not_clean(self, story: Story) -> None:
        story.live(120)
        story.reader.is_hung = True
        story.live(300)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert not returned.clean
        assert "cannot be read" in returned.detail
        assert returned.at == story.market.grants[0].not_after

    def test_of_memory_that_is_not_empty_is_not_clean(
        self, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        story.live(120)
        dirty = Finding(
            name="residue", passed=False, detail="3 of 256", gpu_uuids=(story.reader.first,)
        )
        monkeypatch.setattr(residue, "check", lambda **_: dirty)
        story.live(200)
        returned = by_kind(story.market)[ReceiptKind.RETURN]
        assert (returned.clean, returned.detail) == (False, "not clean: residue: 3 of 256")

    def test_gives_a_gpu_that_is_not_clean_to_nobody_else(self, story: Story) -> None:
        second = replace(
            story.market.grants[0],
            lease_id="lease-2",
            not_before=story.market.grants[0].not_after + 2 * MINUTE,
            not_after=story.market.grants[0].not_after + 4 * MINUTE,
        )
        story.live(120)
        story.reader.hold(story.reader.first)
        story.live(120)
        story.market.grants.append(second)
        story.live(300)
        state, detail = last_states(story.market)["lease-2", 1]
        assert state is LeaseState.FAILED
        assert story.reader.first in detail


class TestRestart:
    def test_ends_what_runs_and_is_in_no_book(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended: list[str] = []
        monkeypatch.setattr(
            SimulatedProvisioner,
            "list_leases",
            lambda _: [Found(lease_id="lease-of-yesterday", lease_epoch=2, gpu_uuids=["GPU-x"])],
        )
        monkeypatch.setattr(
            SimulatedProvisioner, "destroy", lambda _, *, grant: ended.append(grant.lease_id)
        )
        enrolled(rig)
        assert ended == ["lease-of-yesterday"]

    def test_holds_gpus_until_what_was_left_on_them_is_gone(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        left = Found(lease_id="lease-0", lease_epoch=1, gpu_uuids=market.grants[0].gpu_uuids)
        monkeypatch.setattr(SimulatedProvisioner, "list_leases", lambda _: [left])
        stop: Callable[..., None] = SimulatedProvisioner.stop
        refusals = iter([True, True])

        def stop_later(self: SimulatedProvisioner, *, grant: Grant) -> None:
            if grant.lease_id == "lease-0" and next(refusals, False):
                raise ProvisionFailed("it does not go away")
            stop(self, grant=grant)

        monkeypatch.setattr(SimulatedProvisioner, "stop", stop_later)
        rig.clock.pass_time(25)
        rig.restart()
        rig.live(seconds=12)
        assert last_states(market)["lease-1", 1] == (
            LeaseState.PREPARING,
            "waits for another lease to give back its GPUs",
        )
        rig.live(seconds=30)
        assert by_kind(market)[ReceiptKind.HANDOVER].at > market.grants[0].not_before

    def test_goes_on_when_what_runs_cannot_be_listed(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> None:
            raise ProvisionFailed("the runtime does not answer")

        monkeypatch.setattr(SimulatedProvisioner, "list_leases", fail)
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=300)
        assert_meters_fill_the_lease(market)


class TestResidue:
    def test_cannot_be_told_without_libcuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(residue, "LIBRARY", "libabsent.so.1")
        assert residue.main() == residue.NO_LIBRARY


class TestResidueOnTheStandin:
    @pytest.fixture(autouse=True)
    def _real_check(self, monkeypatch: pytest.MonkeyPatch, _no_libcuda: None) -> None:
        monkeypatch.undo()

    def check(self, journal: nvml.Journal, **limits: float) -> Finding:
        uuids = [f"GPU-00000000-0000-4000-8000-{index:012d}" for index in range(2)]
        environment = {**os.environ, **journal.environment}
        return residue.check(gpu_uuids=uuids, environment=environment, **limits)

    @pytest.fixture
    def journal(self, tmp_path, standin_library) -> nvml.Journal:
        journal = nvml.Journal(path=tmp_path / "journal", library=standin_library)
        journal.write("gpus 2")
        return journal

    def test_passes_memory_that_is_empty(self, journal: nvml.Journal) -> None:
        assert self.check(journal) == Finding(name="residue", passed=True)

    def test_finds_what_a_tenant_left_and_clears_it(self, journal: nvml.Journal) -> None:
        journal.set(1, residue=1)
        found = self.check(journal)
        assert found.passed is False
        assert found.gpu_uuids == ("GPU-00000000-0000-4000-8000-000000000001",)
        assert "256 of 256 samples of free memory are not zero" in found.detail
        assert self.check(journal).passed is True

    def test_fails_where_a_call_fails(self, journal: nvml.Journal) -> None:
        journal.write("gpu 0 cuda_err cuCtxCreate_v2 999")
        found = self.check(journal)
        assert found.passed is False
        assert "cuCtxCreate_v2 failed with 999" in found.detail

    def test_that_hangs_is_ended_in_time(self, journal: nvml.Journal) -> None:
        journal.write("hang cuMemsetD8_v2 60000")
        found = self.check(journal, seconds_max=2.0)
        assert found.passed is False
        assert "the check took longer than 2 s" in found.detail
