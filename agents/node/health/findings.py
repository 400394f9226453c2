"""What one look says of a GPU's health by itself, by the owner's policy: pure functions without memory.

A value that the product does not have, or that nobody asked for, says nothing. Most facts about fields and
thresholds come from nvml.h and public catalogues; `agents/README.md` names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agents.node.reader import LOST, NOT_SUPPORTED, Sample
from agents.protocol import Cause, GpuCounters, Health, HealthPolicy, Verdict, XidRule

# nvml.h: hardware slowdown, thermal slowdown by hardware, power brake. The power cap (0x4) is normal.
HARDWARE_SLOWDOWN_BITS = 0x8 | 0x40 | 0x80
FABRIC_COMPLETED = 3
RECOVERY_ACTIONS = {
    1: "a reset of the GPU",
    2: "a reboot of the machine",
    3: "a drain of its peers",
    4: "a drain and a reset",
    5: "a restart of the IMEX domain",
    6: "a reset of the bus",
    7: "a restart of the whole system",
}
XID_WORDS = {
    13: "an exception in a kernel",
    31: "an illegal access to memory",
    43: "a program that had to be stopped",
    45: "a program that was ended",
    46: "a GPU that stopped working",
    48: "an uncorrectable memory error",
    62: "an internal microcontroller halt",
    63: "a memory row to be remapped",
    64: "a memory row that could not be remapped",
    74: "an NVLink error",
    79: "the GPU fell off the bus",
    94: "a contained memory error",
    95: "an uncontained memory error",
    109: "a context switch that timed out",
    119: "the GPU's own processor does not answer",
    120: "an error of the GPU's own processor",
    154: "the driver asks for another recovery",
}
_HEALTH_OF = {Verdict.SUSPECT: Health.SUSPECT, Verdict.QUARANTINE: Health.QUARANTINED}
_COUNTS = (
    "ecc_uncorrected",
    "sram_ecc_uncorrected_aggregate",
    "dram_ecc_corrected_aggregate",
    "remapped_rows_uncorrected",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason of one look. `cause` is `None` where the Xids of the last minutes are to say whose it is."""

    name: str
    health: Health
    reason: str
    cause: Cause | None = Cause.HARDWARE


def rule_of(*, xid: int, policy: HealthPolicy) -> XidRule:
    """Return what the owner's policy makes of an Xid."""
    written = policy.xid_rules.get(str(xid))
    return policy.xid_rule_default if written is None else XidRule(written)


def xid_in_words(*, xid: int) -> str:
    """Return an Xid by its number and, for those that are seen most, what it means."""
    words = XID_WORDS.get(xid)
    return f"Xid {xid}: {words}" if words else f"Xid {xid}"


def is_lost(*, sample: Sample | None) -> bool:
    """Return whether the GPU does not answer any more, or is not even listed."""
    return sample is None or LOST in sample.unread.values()


def is_slowed(*, sample: Sample) -> bool | None:
    """Return whether the hardware slowed the GPU down; `None` where it does not say."""
    reasons = sample.clocks_event_reasons
    return None if reasons is None else bool(reasons & HARDWARE_SLOWDOWN_BITS)


def of_sample(*, sample: Sample, policy: HealthPolicy) -> Iterator[Finding]:
    """Yield what could not be read although the product has it."""
    failed = sorted(
        f"{name}: {why}" for name, why in sample.unread.items() if why not in (NOT_SUPPORTED, LOST)
    )
    if failed:
        yield from judged(
            policy.unread, "unread", "could not read " + ", ".join(failed), cause=Cause.UNKNOWN
        )


def of_counters(
    *,
    counters: GpuCounters,
    accepted: GpuCounters | None,
    utilization_percent: int | None,
    nvlinks_seen: int,
    fabric_was_complete: bool,
    policy: HealthPolicy,
) -> Iterator[Finding]:
    """Yield what counters speak against a GPU, the driver's own verdict first.

    `accepted` are the counts that its owner has vouched for: only what grew since then counts.
    """
    action = counters.recovery_action or 0
    verdict = policy.recovery_verdicts.get(str(action))
    if action and verdict is not None:
        wanted = RECOVERY_ACTIONS.get(action, f"recovery action {action}")
        yield from judged(
            Verdict(verdict), "recovery_action", f"the driver asks for {wanted}", cause=None
        )
    grown = {name: _grown(name, counters, accepted) for name in _COUNTS}
    if ecc := grown["ecc_uncorrected"]:
        yield from judged(
            policy.ecc_uncorrected, "ecc_uncorrected", f"{ecc} uncorrectable memory errors"
        )
    if sram := grown["sram_ecc_uncorrected_aggregate"]:
        reason = f"{sram} uncorrectable errors of the on-chip memory"
        yield from judged(policy.sram_uncorrected, "sram_uncorrected", reason)
    if (dram := grown["dram_ecc_corrected_aggregate"]) > policy.dram_corrected_max:
        yield from judged(policy.dram_corrected, "dram_corrected", f"{dram} corrected errors")
    if counters.row_remap_failed:
        reason = "a memory row could not be remapped"
        yield from judged(policy.row_remap_failed, "row_remap_failed", reason)
    if counters.row_remap_pending:
        reason = "a remapped memory row waits for a reset"
        yield from judged(policy.row_remap_pending, "row_remap_pending", reason)
    if (rows := grown["remapped_rows_uncorrected"]) > policy.remapped_rows_uncorrected_max:
        yield from judged(policy.remapped_rows, "remapped_rows", f"{rows} remapped memory rows")
    yield from _of_links(
        counters=counters,
        utilization_percent=utilization_percent,
        nvlinks_seen=nvlinks_seen,
        fabric_was_complete=fabric_was_complete,
        policy=policy,
    )
    enabled, pending = counters.ecc_enabled, counters.ecc_pending
    if enabled is not None and pending is not None and enabled is not pending:
        reason = f"ECC will be switched {'on' if pending else 'off'} by the next reset"
        yield from judged(policy.ecc_mode_pending, "ecc_mode_pending", reason)


def _of_links(
    *,
    counters: GpuCounters,
    utilization_percent: int | None,
    nvlinks_seen: int,
    fabric_was_complete: bool,
    policy: HealthPolicy,
) -> Iterator[Finding]:
    """Yield what is wrong with the ways to other GPUs and to the host.

    A card on which no NVLink was ever up has no bridge, and one whose fabric was never complete is in none.
    """
    active, inactive = counters.nvlinks_active, counters.nvlinks_inactive
    if active is not None and (active < nvlinks_seen or (active and inactive)):
        whole = max(nvlinks_seen, active + (inactive or 0))
        yield from judged(
            policy.nvlink_inactive, "nvlink_inactive", f"{active} of {whole} NVLinks are up"
        )
    state, status = counters.fabric_state, counters.fabric_status
    left = fabric_was_complete and state is not None and state != FABRIC_COMPLETED
    if left or (state == FABRIC_COMPLETED and status):
        yield from judged(
            policy.fabric_incomplete, "fabric_incomplete", "its NVLink fabric is not complete"
        )
    width, width_max = counters.pcie_width, counters.pcie_width_max
    loaded = (utilization_percent or 0) >= policy.pcie_load_percent_min
    if loaded and width is not None and width_max is not None and width < width_max:
        reason = f"PCIe runs on {width} of {width_max} lanes under load"
        yield from judged(policy.pcie_width_reduced, "pcie_width_reduced", reason)


def _grown(name: str, counters: GpuCounters, accepted: GpuCounters | None) -> int:
    """Return by how much a count is above what the owner vouched for; 0 where it is not known."""
    now: int | None = getattr(counters, name)
    before: int | None = None if accepted is None else getattr(accepted, name)
    return max(0, (now or 0) - (before or 0))


def judged(
    verdict: Verdict, name: str, reason: str, *, cause: Cause | None = Cause.HARDWARE
) -> list[Finding]:
    """Return the finding that a verdict makes of a reason: none where the owner ignores it."""
    if verdict is Verdict.IGNORE:
        return []
    return [Finding(name=name, health=_HEALTH_OF[verdict], reason=reason, cause=cause)]
