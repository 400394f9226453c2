"""An owner's rules as data: when a GPU counts as idle, and what makes it unfit for sale.

The market keeps them per owner and sends them to the owner's nodes when they change. The defaults here are
what a node follows until it has heard of others; their sources are named in `agents/README.md`.
"""

from __future__ import annotations

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
    # One GPU that shows application errors under so many different leases is itself at fault.
    tenant_xid_leases_max: int = 3
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
    fabric_incomplete: Verdict = Verdict.SUSPECT
    ecc_mode_pending: Verdict = Verdict.SUSPECT
    hardware_slowdown: Verdict = Verdict.SUSPECT
    # Samples with a hardware slowdown, per hundred samples of the last ten minutes.
    hardware_slowdown_percent_max: int = 10
    # A suspect GPU is healthy again after so long without a new reason.
    suspect_seconds: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePolicy:
    """An owner's rules. `version` grows with each change; 0 are the defaults."""

    version: int = 0
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)
