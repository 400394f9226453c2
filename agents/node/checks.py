"""What is checked before a tenant gets GPUs and after it gave them back: pure functions of one look.

A check that does not pass names the GPUs it is about, so that they leave the market and nobody else does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from agents.node.provision import Capabilities
from agents.node.reader import LOST, GpuProcess, Reader, Sample
from agents.protocol import (
    TEXT_LENGTH_MAX,
    CheckResult,
    GpuCounters,
    GpuIdentity,
    GpuSettings,
    Health,
    HealthPolicy,
    HostFacts,
    Verdict,
)

MEMORY_LEFT_BYTES_MAX = 64 * 1024 * 1024  # idle cards show up to 32 MiB of the driver's own
DISK_FREE_BYTES_MIN = 10 * 1024**3  # a tenant's first packages; images are fetched before
COMPUTE_MODE_DEFAULT = 0  # NVML_COMPUTEMODE_DEFAULT: several processes may use the GPU
FABRIC_COMPLETED, FABRIC_SUCCESS = 3, 0  # NVML_GPU_FABRIC_STATE_COMPLETED, NVML_SUCCESS
PROCESSES_NAMED_MAX = 3  # of those that hold a GPU, in the words for the owner
# Services of the machine that hold a GPU and none of its work; the kernel cuts a name after 15 characters.
SERVICES = frozenset({"Xorg", "nvidia-persiste", "nv-hostengine"})
NAME_LENGTH_MAX = 15

Judgement = tuple[bool | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check. `gpu_uuids` are those that did not pass; none where it is the machine.

    `reasons` holds by UUID why, where the reasons differ.
    """

    name: str
    passed: bool | None
    detail: str = ""
    gpu_uuids: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> CheckResult:
        """Return it as a receipt carries it."""
        return CheckResult(name=self.name, passed=self.passed, detail=self.detail[:TEXT_LENGTH_MAX])


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that was read of some GPUs at one instant, by UUID."""

    at: dt.datetime
    host: HostFacts
    identities: Mapping[str, GpuIdentity] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    counters: Mapping[str, GpuCounters] = field(default_factory=dict)
    settings: Mapping[str, GpuSettings] = field(default_factory=dict)
    processes: Mapping[str, Sequence[GpuProcess]] = field(default_factory=dict)


def look(*, reader: Reader, gpu_uuids: Collection[str], at: dt.datetime) -> Look:
    """Read all that the checks are about.

    :raises ReaderUnavailable: when nothing can be read now.
    """
    return Look(
        at=at,
        host=reader.host(),
        identities={i.uuid: i for i in reader.identify()},
        samples={s.gpu_uuid: s for s in reader.read(at=at, gpu_uuids=gpu_uuids)},
        counters={c.gpu_uuid: c for c in reader.counters(gpu_uuids=gpu_uuids)},
        settings={s.gpu_uuid: s for s in reader.settings(gpu_uuids=gpu_uuids)},
        processes={
            uuid: [p for p in found if _short(p.name) not in SERVICES]
            for uuid, found in reader.processes(gpu_uuids=gpu_uuids).items()
        },
    )


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1][:NAME_LENGTH_MAX]


def preflight(
    *,
    seen: Look,
    gpu_uuids: Sequence[str],
    policy: HealthPolicy,
    health: Mapping[str, tuple[Health, str]],
    capabilities: Capabilities,
    disk_free_bytes: int | None,
    simulated: bool,
) -> list[Finding]:
    """Judge whether GPUs may be handed over. `health` is the agent's verdict on each, fatal Xids included.

    On a simulated machine the owner's scripted work makes room for the tenant, so it is no obstacle.
    """

    def standing(uuid: str) -> Judgement:
        state, reason = health.get(uuid, (Health.HEALTHY, ""))
        fit = state in (Health.HEALTHY, Health.SUSPECT)
        return fit, "" if fit else f"{state}: {reason}"

    findings = [
        _present(seen, gpu_uuids),
        _each("health", gpu_uuids, standing),
        *_unused(seen, gpu_uuids, simulated=simulated),
        *_sound(seen, gpu_uuids, policy),
        *_as_sold(seen, gpu_uuids),
        *_connected(seen, gpu_uuids, policy),
        _scrubbing(seen.host),
        _provisioner(capabilities, gpu_uuids),
        _disk(disk_free_bytes),
    ]
    return [finding for finding in findings if finding is not None]


def postflight(
    *,
    seen: Look,
    before: Sequence[GpuCounters],
    gpu_uuids: Sequence[str],
    policy: HealthPolicy,
    not_restored: Mapping[str, str],
    simulated: bool,
) -> list[Finding]:
    """Judge whether GPUs came back as they were handed over, `before` being their counters then."""
    earlier = {counters.gpu_uuid: counters for counters in before}

    def restored(uuid: str) -> Judgement:
        return uuid not in not_restored, not_restored.get(uuid, "")

    def no_new_errors(uuid: str) -> Judgement:
        then, now = earlier.get(uuid), seen.counters.get(uuid)
        if then is None or now is None or now.ecc_uncorrected is None:
            return None, "not counted"
        grown = now.ecc_uncorrected - (then.ecc_uncorrected or 0)
        fine = grown <= 0 or policy.ecc_uncorrected is not Verdict.QUARANTINE
        return fine, f"{grown} uncorrected memory errors during the lease" if grown > 0 else ""

    return [
        _present(seen, gpu_uuids),
        *_unused(seen, gpu_uuids, simulated=simulated),
        *_sound(seen, gpu_uuids, policy),
        _each("memory_errors", gpu_uuids, no_new_errors),
        _each("restored", gpu_uuids, restored),
        *_as_sold(seen, gpu_uuids),
    ]


def left_on(*, seen: Look, gpu_uuids: Sequence[str], simulated: bool) -> str:
    """Return in words what still holds GPUs after their lease, or nothing when they are empty."""
    found = [f for f in _unused(seen, gpu_uuids, simulated=simulated) if f.passed is False]
    return "; ".join(finding.detail for finding in found)


def failures(findings: Sequence[Finding]) -> str:
    """Return in one line what did not pass, or nothing when all is well."""
    words = (f"{f.name}: {f.detail}" if f.detail else f.name for f in findings if f.passed is False)
    return "; ".join(words)[:TEXT_LENGTH_MAX]


def unfit(findings: Sequence[Finding]) -> dict[str, str]:
    """Return by UUID why GPUs did not pass."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        for gpu_uuid in finding.gpu_uuids:
            words = finding.reasons.get(gpu_uuid, finding.detail)
            reasons.setdefault(gpu_uuid, []).append(f"{finding.name}: {words}")
    return {uuid: "; ".join(found)[:TEXT_LENGTH_MAX] for uuid, found in reasons.items()}


# --- the checks ---------------------------------------------------------------------------------------


def _each(name: str, gpu_uuids: Sequence[str], judge: Callable[[str], Judgement]) -> Finding:
    """Judge each GPU: one that fails fails the check, one that nobody can judge leaves it open."""
    judged = {uuid: judge(uuid) for uuid in gpu_uuids}
    bad = [uuid for uuid, (passed, _) in judged.items() if passed is False]
    open_ = [uuid for uuid, (passed, _) in judged.items() if passed is None]
    told = [f"{uuid}: {judged[uuid][1]}" for uuid in bad or open_ if judged[uuid][1]]
    passed = False if bad else None if open_ else True
    return Finding(
        name=name,
        passed=passed,
        detail="; ".join(told),
        gpu_uuids=tuple(bad),
        reasons={uuid: judged[uuid][1] for uuid in bad},
    )


def _present(seen: Look, gpu_uuids: Sequence[str]) -> Finding:
    def present(uuid: str) -> Judgement:
        sample = seen.samples.get(uuid)
        if uuid not in seen.identities or sample is None:
            return False, "not here"
        return (False, "lost") if LOST in sample.unread.values() else (True, "")

    return _each("present", gpu_uuids, present)


def _unused(seen: Look, gpu_uuids: Sequence[str], *, simulated: bool) -> list[Finding]:
    def no_process(uuid: str) -> Judgement:
        found = seen.processes.get(uuid)
        if simulated:
            return None, "scripted work makes room"
        if found is None:
            return None, "processes cannot be told"
        names = ", ".join(f"{p.name} ({p.pid})" for p in found[:PROCESSES_NAMED_MAX])
        return not found, f"held by {names}" if found else ""

    def empty(uuid: str) -> Judgement:
        sample = seen.samples.get(uuid)
        used = None if sample is None else sample.memory_used_bytes
        if simulated:
            return None, "scripted work makes room"
        if used is None:
            return None, "memory cannot be told"
        fine = used <= MEMORY_LEFT_BYTES_MAX
        return fine, "" if fine else f"{used // 1024**2} MiB in use"

    return [_each("processes", gpu_uuids, no_process), _each("memory", gpu_uuids, empty)]


def _sound(seen: Look, gpu_uuids: Sequence[str], policy: HealthPolicy) -> list[Finding]:
    def of(
        name: str, verdict: Verdict, value: Callable[[GpuCounters], bool | None], words: str
    ) -> Finding:
        def judge(uuid: str) -> Judgement:
            counters = seen.counters.get(uuid)
            bad = None if counters is None else value(counters)
            if bad is None:
                return None, ""
            return not bad or verdict is Verdict.IGNORE, words if bad else ""

        return _each(name, gpu_uuids, judge)

    def recovery(uuid: str) -> Judgement:
        counters = seen.counters.get(uuid)
        action = None if counters is None else counters.recovery_action
        if action is None:
            return None, ""
        verdict = policy.recovery_verdicts.get(str(action), Verdict.IGNORE.value)
        fine = verdict == Verdict.IGNORE.value
        return fine, "" if fine else f"the driver asks for recovery action {action}"

    return [
        _each("recovery_action", gpu_uuids, recovery),
        of("row_remap_pending", policy.row_remap_pending, lambda c: c.row_remap_pending,
           "a row waits for a reset to be replaced"),
        of("row_remap_failed", policy.row_remap_failed, lambda c: c.row_remap_failed,
           "a row could not be replaced"),
        of("ecc_mode", policy.ecc_mode_pending, _ecc_mode_changes, "ECC changes with the next reset"),
    ]  # fmt: skip


def _ecc_mode_changes(counters: GpuCounters) -> bool | None:
    if counters.ecc_enabled is None or counters.ecc_pending is None:
        return None
    return counters.ecc_enabled is not counters.ecc_pending


def _as_sold(seen: Look, gpu_uuids: Sequence[str]) -> list[Finding]:
    def of(name: str, judge: Callable[[GpuSettings], Judgement]) -> Finding:
        def judge_gpu(uuid: str) -> Judgement:
            settings = seen.settings.get(uuid)
            return (None, "") if settings is None else judge(settings)

        return _each(name, gpu_uuids, judge_gpu)

    def mig(s: GpuSettings) -> Judgement:
        if s.mig_enabled is None:
            return None, ""
        return not s.mig_enabled, "is cut by MIG, but sold whole" if s.mig_enabled else ""

    def power(s: GpuSettings) -> Judgement:
        limit, default = s.power_limit_milliwatts, s.power_limit_default_milliwatts
        if limit is None or default is None:
            return None, ""
        words = f"power limit {limit / 1000:g} W instead of {default / 1000:g} W"
        return limit == default, "" if limit == default else words

    def compute(s: GpuSettings) -> Judgement:
        if s.compute_mode is None:
            return None, ""
        fine = s.compute_mode == COMPUTE_MODE_DEFAULT
        return fine, "" if fine else f"compute mode {s.compute_mode} instead of the default"

    def persistence(s: GpuSettings) -> Judgement:
        # Handover is slow without it, not wrong.
        return (True, "") if s.persistence_enabled else (None, "persistence is off")

    return [
        of("mig_mode", mig),
        of("power_limit", power),
        of("compute_mode", compute),
        of("persistence", persistence),
    ]


def _connected(seen: Look, gpu_uuids: Sequence[str], policy: HealthPolicy) -> list[Finding]:
    def nvlink(uuid: str) -> Judgement:
        counters = seen.counters.get(uuid)
        if counters is None or counters.nvlinks_inactive is None:
            return None, ""
        down = counters.nvlinks_inactive if counters.nvlinks_active else 0
        return (
            not down or policy.nvlink_inactive is Verdict.IGNORE,
            f"{down} NVLinks are down" if down else "",
        )

    def fabric(uuid: str) -> Judgement:
        counters, identity = seen.counters.get(uuid), seen.identities.get(uuid)
        if counters is None or counters.fabric_state in (None, 0):
            expected = identity is not None and identity.fabric_clique is not None
            return (False, "left its fabric") if expected else (None, "")
        done = counters.fabric_state == FABRIC_COMPLETED and counters.fabric_status in (
            None,
            FABRIC_SUCCESS,
        )
        fine = done or policy.fabric_incomplete is Verdict.IGNORE
        return fine, "" if done else f"fabric state {counters.fabric_state}"

    def pcie(uuid: str) -> Judgement:
        counters = seen.counters.get(uuid)
        if counters is None or counters.pcie_width is None or counters.pcie_width_max is None:
            return None, ""
        full = counters.pcie_width >= counters.pcie_width_max
        fine = full or policy.pcie_width_reduced is Verdict.IGNORE
        return fine, "" if full else f"PCIe x{counters.pcie_width} of x{counters.pcie_width_max}"

    return [
        _each("nvlink", gpu_uuids, nvlink),
        _each("fabric", gpu_uuids, fabric),
        _each("pcie_width", gpu_uuids, pcie),
    ]


def _scrubbing(host: HostFacts) -> Finding:
    """Refuse a driver that was told not to clear memory that is freed (`RMDisableScrubOnFree`)."""
    off = host.scrubs_memory_on_free is False
    words = "the driver's scrubbing of freed memory is switched off" if off else ""
    return Finding(name="scrub_on_free", passed=host.scrubs_memory_on_free, detail=words)


def _provisioner(capabilities: Capabilities, gpu_uuids: Sequence[str]) -> Finding:
    name = "provisioner"
    if capabilities.problem:
        return Finding(name=name, passed=False, detail=capabilities.problem)
    if capabilities.devices is None:
        return Finding(name=name, passed=None, detail=f"{capabilities.kind} is not asked before")
    missing = [uuid for uuid in gpu_uuids if uuid not in capabilities.devices]
    words = f"no CDI device for {', '.join(missing)}" if missing else ""
    return Finding(name=name, passed=not missing, detail=words)


def _disk(free_bytes: int | None) -> Finding:
    if free_bytes is None:
        return Finding(name="disk", passed=None, detail="free space cannot be told")
    fine = free_bytes >= DISK_FREE_BYTES_MIN
    words = (
        "" if fine else f"{free_bytes // 1024**3} GiB free of {DISK_FREE_BYTES_MIN // 1024**3} GiB"
    )
    return Finding(name="disk", passed=fine, detail=words)
