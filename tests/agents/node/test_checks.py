"""The checks around a lease as pure functions, and their words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from agents.node import checks
from agents.node.checks import Look
from agents.node.provision import Capabilities
from agents.node.reader import GpuProcess, Sample, lost_sample
from agents.protocol import (
    GpuCounters,
    GpuIdentity,
    GpuSettings,
    Health,
    HealthPolicy,
    HostFacts,
    Verdict,
)
from tests.agents.node.scripted import ScriptedReader

AT = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
A, B = "GPU-a", "GPU-b"
GIB = 1024**3
SOUND = Look(
    at=AT,
    host=HostFacts(scrubs_memory_on_free=True),
    identities={
        uuid: GpuIdentity(
            uuid=uuid, index=index, product_name="NVIDIA H100", memory_total_bytes=80 * GIB
        )
        for index, uuid in enumerate((A, B))
    },
    samples={
        uuid: Sample(gpu_uuid=uuid, measured_at=AT, memory_used_bytes=4 << 20) for uuid in (A, B)
    },
    counters={
        uuid: GpuCounters(
            gpu_uuid=uuid, ecc_enabled=True, ecc_pending=True, ecc_uncorrected=0,
            row_remap_pending=False, row_remap_failed=False, nvlinks_active=18, nvlinks_inactive=0,
            pcie_width=16, pcie_width_max=16, recovery_action=0, fabric_state=3, fabric_status=0,
        )
        for uuid in (A, B)
    },
    settings={
        uuid: GpuSettings(
            gpu_uuid=uuid, power_limit_milliwatts=700_000, power_limit_default_milliwatts=700_000,
            compute_mode=0, persistence_enabled=True, mig_enabled=False,
        )
        for uuid in (A, B)
    },
    processes={A: [], B: []},
)  # fmt: skip


def with_b(seen: Look, part: str, **changes: Any) -> Look:
    """Change one thing of the second GPU."""
    known: Mapping[str, Any] = getattr(seen, part)
    parts: dict[str, Any] = {part: {**known, B: replace(known[B], **changes)}}
    return replace(seen, **parts)


def before(seen: Look, **given: Any) -> list[checks.Finding]:
    values: dict[str, Any] = {
        "gpu_uuids": [A, B],
        "policy": HealthPolicy(),
        "health": {},
        "capabilities": Capabilities(kind="container", devices=frozenset({A, B})),
        "disk_free_bytes": 100 * GIB,
        "simulated": False,
        **given,
    }
    return checks.preflight(seen=seen, **values)


def after(seen: Look, **given: Any) -> list[checks.Finding]:
    values: dict[str, Any] = {
        "before": list(SOUND.counters.values()),
        "gpu_uuids": [A, B],
        "policy": HealthPolicy(),
        "not_restored": {},
        "simulated": False,
        **given,
    }
    return checks.postflight(seen=seen, **values)


def process(name: str = "python") -> GpuProcess:
    return GpuProcess(pid=42, name=name, kind="compute", used_memory_bytes=None)


class TestPreflight:
    def test_passes_a_sound_machine(self) -> None:
        findings = before(SOUND)
        assert checks.failures(findings) == ""
        assert checks.unfit(findings) == {}
        assert {f.passed for f in findings} == {True}

    @pytest.mark.parametrize(
        ("seen", "words"),
        [
            (replace(SOUND, identities={A: SOUND.identities[A]}), "present: GPU-b: not here"),
            (
                replace(
                    SOUND, samples={**SOUND.samples, B: lost_sample(gpu_uuid=B, measured_at=AT)}
                ),
                "present: GPU-b: lost",
            ),
            (
                replace(SOUND, processes={A: [], B: [process()]}),
                "processes: GPU-b: held by python (42)",
            ),
            (
                with_b(SOUND, "samples", memory_used_bytes=65 << 20),
                "memory: GPU-b: 65 MiB in use",
            ),
            (
                with_b(SOUND, "counters", recovery_action=2),
                "recovery_action: GPU-b: the driver asks for recovery action 2",
            ),
            (
                with_b(SOUND, "counters", row_remap_pending=True),
                "row_remap_pending: GPU-b: a row waits",
            ),
            (
                with_b(SOUND, "counters", row_remap_failed=True),
                "row_remap_failed: GPU-b: a row could not be replaced",
            ),
            (with_b(SOUND, "counters", ecc_pending=False), "ecc_mode: GPU-b: ECC changes"),
            (with_b(SOUND, "counters", nvlinks_inactive=2), "nvlink: GPU-b: 2 NVLinks are down"),
            (with_b(SOUND, "counters", fabric_state=2), "fabric: GPU-b: fabric state 2"),
            (with_b(SOUND, "counters", fabric_status=1), "fabric: GPU-b: fabric state 3"),
            (with_b(SOUND, "counters", pcie_width=8), "pcie_width: GPU-b: PCIe x8 of x16"),
            (with_b(SOUND, "settings", mig_enabled=True), "mig_mode: GPU-b: is cut by MIG"),
            (
                with_b(SOUND, "settings", power_limit_milliwatts=350_000),
                "power_limit: GPU-b: power limit 350 W instead of 700 W",
            ),
            (
                with_b(SOUND, "settings", compute_mode=3),
                "compute_mode: GPU-b: compute mode 3 instead of the default",
            ),
        ],
    )
    def test_names_the_gpu_and_the_reason(self, seen: Look, words: str) -> None:
        findings = before(seen)
        assert checks.failures(findings).startswith(words)
        assert set(checks.unfit(findings)) == {B}

    def test_refuses_a_gpu_that_left_its_fabric(self) -> None:
        member = with_b(SOUND, "identities", fabric_clique="c.1")
        assert checks.failures(before(member)) == ""
        left = with_b(member, "counters", fabric_state=0)
        assert checks.failures(before(left)) == "fabric: GPU-b: left its fabric"

    @pytest.mark.parametrize("state", [Health.QUARANTINED, Health.LOST])
    def test_refuses_what_the_agent_holds_for_unfit(self, state: Health) -> None:
        findings = before(SOUND, health={B: (state, "Xid 79")})
        assert checks.failures(findings) == f"health: GPU-b: {state}: Xid 79"

    def test_puts_nothing_of_the_machine_down_to_a_gpu(self) -> None:
        no_scrub = replace(SOUND, host=HostFacts(scrubs_memory_on_free=False))
        for findings, words in (
            (before(no_scrub), "scrub_on_free: the driver's scrubbing"),
            (before(SOUND, disk_free_bytes=GIB), "disk: 1 GiB free of 10 GiB"),
            (
                before(SOUND, capabilities=Capabilities(kind="container", problem="no podman")),
                "provisioner: no podman",
            ),
            (
                before(SOUND, capabilities=Capabilities(kind="container", devices=frozenset({A}))),
                "provisioner: no CDI device for GPU-b",
            ),
        ):
            assert checks.failures(findings).startswith(words)
            assert checks.unfit(findings) == {}

    def test_leaves_open_what_a_machine_cannot_tell(self) -> None:
        blank = Look(
            at=AT,
            host=HostFacts(),
            identities=SOUND.identities,
            samples={u: Sample(gpu_uuid=u, measured_at=AT) for u in (A, B)},
            counters={u: GpuCounters(gpu_uuid=u) for u in (A, B)},
            settings={u: GpuSettings(gpu_uuid=u) for u in (A, B)},
        )
        findings = before(blank, disk_free_bytes=None, capabilities=Capabilities(kind="hook"))
        assert checks.failures(findings) == ""
        assert {f.name for f in findings if f.passed} == {"present", "health"}

    def test_does_not_refuse_a_machine_without_persistence(self) -> None:
        findings = before(with_b(SOUND, "settings", persistence_enabled=False))
        (found,) = [f for f in findings if f.name == "persistence"]
        assert (found.passed, found.detail) == (None, "GPU-b: persistence is off")

    def test_follows_the_owners_policy(self) -> None:
        policy = replace(HealthPolicy(), pcie_width_reduced=Verdict.IGNORE)
        seen = with_b(SOUND, "counters", pcie_width=8)
        assert checks.failures(before(seen, policy=policy)) == ""

    def test_lets_scripted_work_make_room(self) -> None:
        seen = replace(SOUND, processes={A: [process()], B: []})
        assert checks.failures(before(seen, simulated=True)) == ""


class TestPostflight:
    def test_passes_what_came_back_as_it_was(self) -> None:
        assert {f.passed for f in after(SOUND)} == {True}

    def test_counts_memory_errors_of_the_lease_alone(self) -> None:
        old = [replace(c, ecc_uncorrected=3) for c in SOUND.counters.values()]
        same = replace(SOUND, counters={c.gpu_uuid: c for c in old})
        assert checks.failures(after(same, before=old)) == ""
        worse = with_b(same, "counters", ecc_uncorrected=5)
        assert checks.failures(after(worse, before=old)) == (
            "memory_errors: GPU-b: 2 uncorrected memory errors during the lease"
        )

    def test_names_what_could_not_be_restored(self) -> None:
        findings = after(SOUND, not_restored={B: "power limit: no permission"})
        assert checks.unfit(findings) == {B: "restored: power limit: no permission"}

    def test_says_in_a_receipt_no_more_than_it_carries(self) -> None:
        findings = after(SOUND, not_restored={B: "x" * 2000})
        assert all(len(finding.result.detail) <= 500 for finding in findings)
        assert len(checks.failures(findings)) <= 500


class TestLook:
    def test_does_not_count_services_of_the_machine(self) -> None:
        reader = ScriptedReader()
        names = ("/usr/lib/xorg/Xorg", "nvidia-persistenced", "python")
        reader.held[reader.first] = [process(name) for name in names]
        seen = checks.look(reader=reader, gpu_uuids=[reader.first], at=AT)
        assert [p.name for p in seen.processes[reader.first]] == ["python"]
