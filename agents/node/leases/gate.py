"""What stands around a lease: the checks before and after, the settings, and the evidence for receipts."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agents.node import checks, residue
from agents.node.checks import Finding
from agents.node.provision import Provisioner
from agents.node.reader import Reader, ReaderUnavailable
from agents.node.spool import LeaseKey, LeaseRecord
from agents.protocol import Grant, Health, HealthPolicy, ReceiptEvidence

# How long GPUs may take to become empty after their lease was stopped, and how often that is looked at.
EMPTY_SECONDS_MAX = 60.0
EMPTY_LOOK_SECONDS = 0.5
# How long GPUs may stay unreadable then: a reader that died comes back after a minute.
UNREADABLE_SECONDS_MAX = 180.0


class ReportUnfit(Protocol):
    """Takes the news that a GPU did not pass a check around a lease: it is quarantined from `at` on."""

    def __call__(self, *, gpu_uuid: str, reason: str, at: dt.datetime, lease: LeaseKey) -> None:
        """Quarantine the GPU."""
        ...


def _healthy(gpu_uuids: Sequence[str]) -> Mapping[str, tuple[Health, str]]:
    del gpu_uuids
    return {}


def _ignore(*, gpu_uuid: str, reason: str, at: dt.datetime, lease: LeaseKey) -> None:
    del gpu_uuid, reason, at, lease


@dataclass(slots=True, kw_only=True)
class Gate:
    """Looks at the GPUs of a lease. All but `residue_of` is for the loop's thread, which owns the reader.

    `health` gives the agent's verdict on GPUs, `report_unfit` takes those that did not pass.
    """

    reader: Reader
    provisioner: Provisioner
    boot_id: str
    boottime_seconds: Callable[[], float]
    directory: Path | None = None
    policy: Callable[[], HealthPolicy] = HealthPolicy
    health: Callable[[Sequence[str]], Mapping[str, tuple[Health, str]]] = _healthy
    report_unfit: ReportUnfit = _ignore

    def before(self, *, grant: Grant, at: dt.datetime) -> tuple[ReceiptEvidence, Sequence[Finding]]:
        """Look at GPUs that nobody has yet; return the evidence and every finding.

        :raises ReaderUnavailable: when they cannot be read now.
        """
        seen = checks.look(reader=self.reader, gpu_uuids=grant.gpu_uuids, at=at)
        findings = checks.preflight(
            seen=seen,
            gpu_uuids=grant.gpu_uuids,
            policy=self.policy(),
            health=self.health(grant.gpu_uuids),
            capabilities=self.provisioner.probe(),
            disk_free_bytes=self._disk_free_bytes(),
            simulated=self.reader.simulated,
        )
        return self._evidence(seen, findings), findings

    def stamped(self, *, evidence: ReceiptEvidence) -> ReceiptEvidence:
        """Return evidence as of now by the boot clock."""
        return replace(
            evidence, boot_id=self.boot_id, boottime_seconds=int(self.boottime_seconds())
        )

    def residue_of(self, *, grant: Grant) -> Finding:
        """Look for what a tenant left in memory; takes seconds, and is for a worker thread."""
        if self.reader.simulated:
            return Finding(name="residue", passed=None, detail="simulated memory holds nothing")
        return residue.check(gpu_uuids=grant.gpu_uuids)

    def left_on(self, *, grant: Grant, at: dt.datetime) -> str:
        """Return in words what still holds the GPUs, or nothing when they are empty.

        :raises ReaderUnavailable: when they cannot be read now.
        """
        if self.reader.simulated:
            return ""
        seen = checks.look(reader=self.reader, gpu_uuids=grant.gpu_uuids, at=at)
        return checks.left_on(seen=seen, gpu_uuids=grant.gpu_uuids, simulated=False)

    def restore(self, *, record: LeaseRecord) -> dict[str, str]:
        """Set what root may set as it was before the tenant came; return by UUID what could not be."""
        if record.evidence is None or not record.evidence.settings:
            return {}
        try:
            return self.reader.restore(settings=record.evidence.settings)
        except ReaderUnavailable as error:
            return dict.fromkeys(record.grant.gpu_uuids, f"the GPU cannot be read: {error}")

    def after(
        self, *, record: LeaseRecord, not_restored: Mapping[str, str], at: dt.datetime
    ) -> tuple[ReceiptEvidence, Sequence[Finding]]:
        """Look at GPUs that came back; what cannot be read is not clean."""
        grant = record.grant
        try:
            seen = checks.look(reader=self.reader, gpu_uuids=grant.gpu_uuids, at=at)
        except ReaderUnavailable as error:
            finding = Finding(
                name="present", passed=False, detail=f"the GPUs cannot be read: {error}",
                gpu_uuids=tuple(grant.gpu_uuids),
            )  # fmt: skip
            evidence = ReceiptEvidence(
                boot_id=self.boot_id, boottime_seconds=int(self.boottime_seconds())
            )
            return evidence, [finding]
        findings = checks.postflight(
            seen=seen,
            before=[] if record.evidence is None else record.evidence.counters,
            gpu_uuids=grant.gpu_uuids,
            policy=self.policy(),
            not_restored=not_restored,
            simulated=self.reader.simulated,
        )
        return self._evidence(seen, findings), findings

    def quarantine(
        self, *, findings: Sequence[Finding], record: LeaseRecord, at: dt.datetime
    ) -> None:
        """Take the GPUs that did not pass off the market."""
        for gpu_uuid, reason in checks.unfit(findings).items():
            self.report_unfit(gpu_uuid=gpu_uuid, reason=reason, at=at, lease=record.key)

    def _evidence(self, seen: checks.Look, findings: Sequence[Finding]) -> ReceiptEvidence:
        return ReceiptEvidence(
            boot_id=self.boot_id,
            boottime_seconds=int(self.boottime_seconds()),
            driver_version=seen.host.driver_version,
            counters=list(seen.counters.values()),
            settings=list(seen.settings.values()),
            checks=[finding.result for finding in findings],
        )

    def _disk_free_bytes(self) -> int | None:
        if self.directory is None or self.reader.simulated:
            return None
        try:
            return shutil.disk_usage(self.directory).free
        except OSError:
            return None  # the check says that it cannot be told
