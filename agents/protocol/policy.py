"""An owner's rules as data: when a GPU counts as idle, and what makes it unfit for sale.

The market keeps them per owner and sends them to the owner's nodes when they change. The defaults here are
what a node follows until it has heard of others; their sources are named in `agents/README.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class XidRule(StrEnum):
    """What an Xid of a number means.

    `TENANT`: a program's error, put down to the lease; the same GPU under several leases makes it suspect.
    `WATCH`: written down. `SUSPECT`, `QUARANTINE`: the GPU becomes that, and the fault is the hardware's.
    """

    TENANT = "tenant"
    WATCH = "watch"
    SUSPECT = "suspect"
    QUARANTINE = "quarantine"


class Verdict(StrEnum):
    """What a counter that is out of bounds makes of a GPU."""

    IGNORE = "ignore"
    SUSPECT = "suspect"
    QUARANTINE = "quarantine"


# Application errors by NVIDIA's catalogue of Xids (RESTART_APP and IGNORE), as gpud lists it.
_TENANT_XIDS = (
    8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 44, 45, 68, 69, 80, 94,
    126, 127, 128, 129, 130, 131, 132, 133, 134, 135,
)  # fmt: skip
# The GPU needs a reset, or the node a reboot (RESET_GPU, fell off the bus, NVLink).
_QUARANTINE_XIDS = (
    46, 48, 54, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 142, 143,
    144, 145, 146, 147, 148, 149, 150, 151, 155, 156, 158,
)  # fmt: skip
_WATCH_XIDS = (63, 92, 121, 154, 160, 161)


def _default_xid_rules() -> dict[str, str]:
    rules = [(_TENANT_XIDS, XidRule.TENANT), (_QUARANTINE_XIDS, XidRule.QUARANTINE)]
    rules.append((_WATCH_XIDS, XidRule.WATCH))
    return {str(code): rule.value for codes, rule in rules for code in codes}


def _default_recovery_verdicts() -> dict[str, str]:
    # Field 230 of NVML: 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset, 5 IMEX, 6 bus reset,
    # 7 system reboot. 0 asks for nothing.
    return {str(action): Verdict.QUARANTINE.value for action in range(1, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePolicy:
    """When a GPU counts as idle. `power_floor_percent` is of what the card draws at rest."""

    free_after_seconds: int = 600
    parked_after_seconds: int = 3600
    memory_used_bytes_max: int = 64 * 1024 * 1024  # idle cards still show up to 32 MiB
    utilization_percent_max: int = 1
    power_floor_percent: int = 130
    missed_samples_max: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """What makes a GPU suspect or quarantined. Keys of the dicts are numbers as text."""

    xid_rules: dict[str, str] = field(default_factory=_default_xid_rules)
    xid_rule_default: XidRule = XidRule.WATCH
    # One GPU that shows application errors under so many different leases within so many days is itself
    # at fault: NVIDIA says so of repeats of Xid 31.
    tenant_xid_leases: int = 3
    tenant_xid_days: int = 30
    # A GPU that so many Xids quarantined within so many days needs a repair and not another reset: only
    # its owner's word brings it back.
    quarantine_repeats: int = 2
    quarantine_repeat_days: int = 7
    recovery_verdicts: dict[str, str] = field(default_factory=_default_recovery_verdicts)
    ecc_uncorrected: Verdict = Verdict.QUARANTINE
    sram_uncorrected: Verdict = Verdict.QUARANTINE
    dram_corrected_max: int = 20_000_000
    dram_corrected: Verdict = Verdict.SUSPECT
    row_remap_pending: Verdict = Verdict.SUSPECT
    row_remap_failed: Verdict = Verdict.QUARANTINE
    remapped_rows_uncorrected_max: int = 512
    remapped_rows: Verdict = Verdict.QUARANTINE
    nvlink_inactive: Verdict = Verdict.SUSPECT
    pcie_width_reduced: Verdict = Verdict.SUSPECT
    pcie_load_percent_min: int = 20  # a link may sleep while the GPU has less to do
    fabric_incomplete: Verdict = Verdict.SUSPECT
    ecc_mode_pending: Verdict = Verdict.SUSPECT
    hardware_slowdown: Verdict = Verdict.SUSPECT
    # Samples with a hardware slowdown, per hundred samples of the last ten minutes.
    hardware_slowdown_percent_max: int = 10
    # A value that the product has and that could not be read.
    unread: Verdict = Verdict.SUSPECT
    # A suspect GPU is healthy again after so long without a new reason.
    suspect_seconds: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePolicy:
    """An owner's rules. `version` grows with each change; 0 are the defaults."""

    version: int = 0
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)


DAY_SECONDS = 86_400
XID_MAX = 9_999  # the catalogue has about 170; its numbers have three digits
XID_RULES_MAX = 250
RECOVERY_ACTION_MAX = 63
# Smallest and largest figure of each field. An owner may be stricter or laxer than the defaults, and must
# not make a GPU count as idle between two samples, or a node remember without end.
IDLE_BOUNDS = {
    "free_after_seconds": (120, DAY_SECONDS),
    "parked_after_seconds": (120, 7 * DAY_SECONDS),
    "memory_used_bytes_max": (0, 2**34),  # 16 GiB: whatever holds more is not at rest
    "utilization_percent_max": (0, 50),
    "power_floor_percent": (100, 500),
    "missed_samples_max": (0, 100),
}
HEALTH_BOUNDS = {
    "tenant_xid_leases": (2, 50),  # one lease alone proves nothing about the GPU
    "tenant_xid_days": (1, 90),
    "quarantine_repeats": (2, 50),
    "quarantine_repeat_days": (1, 90),
    "dram_corrected_max": (0, 10**12),
    "remapped_rows_uncorrected_max": (0, 512),  # no GPU has more rows to spare
    "pcie_load_percent_min": (1, 100),
    "hardware_slowdown_percent_max": (0, 100),
    "suspect_seconds": (60, 30 * DAY_SECONDS),
}


def policy_problems(policy: NodePolicy) -> list[str]:
    """Say in words what of a policy makes no sense, each with the JSON pointer of its field."""
    parts = (("idle", policy.idle, IDLE_BOUNDS), ("health", policy.health, HEALTH_BOUNDS))
    problems = [
        f"/{part}/{name} must be between {least} and {most}, it is {getattr(rules, name)}"
        for part, rules, bounds in parts
        for name, (least, most) in bounds.items()
        if not least <= getattr(rules, name) <= most
    ]
    problems += _table_problems(
        "/health/xid_rules", policy.health.xid_rules, words=list(XidRule), number_max=XID_MAX
    )
    problems += _table_problems(
        "/health/recovery_verdicts",
        policy.health.recovery_verdicts,
        words=list(Verdict),
        number_max=RECOVERY_ACTION_MAX,
    )
    return problems


def _table_problems(
    pointer: str, table: dict[str, str], *, words: list[str], number_max: int
) -> Iterator[str]:
    if len(table) > XID_RULES_MAX:
        yield f"{pointer} has {len(table)} entries, at most {XID_RULES_MAX}"
    for key, word in table.items():
        is_number = key.isascii() and key.isdigit() and key == str(int(key))
        if not is_number or not 1 <= int(key) <= number_max:
            yield f"{pointer}/{key}: the key must be a number from 1 to {number_max}"
        if word not in words:
            yield f"{pointer}/{key} must be one of {', '.join(words)}, it is {word!r}"
