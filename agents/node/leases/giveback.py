"""From a tenant with GPUs to GPUs that may be sold again: stop, wait, restore, check, give the receipt."""

from __future__ import annotations

import datetime as dt
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from agents.node import checks
from agents.node.checks import Finding
from agents.node.jobs import Jobs
from agents.node.leasebook import LeaseBook
from agents.node.leases.gate import (
    EMPTY_LOOK_SECONDS,
    EMPTY_SECONDS_MAX,
    UNREADABLE_SECONDS_MAX,
    Gate,
)
from agents.node.leases.meters import SAMPLE_DISTANCE, LeaseMeters
from agents.node.leases.view import (
    STOP_ATTEMPTS_MAX,
    STOP_RETRY_SECONDS,
    MachineView,
    energies,
    whole_second,
    words,
)
from agents.node.provision import ProvisionAgain, Provisioner
from agents.node.reader import ReaderUnavailable, Sample
from agents.node.spool import LeaseKey, LeaseRecord
from agents.protocol import TEXT_LENGTH_MAX, LeaseState, ReceiptKind

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Return:
    """A return on its way: the order to stop, then empty GPUs, then the look at their memory."""

    stopping: Future[None] | None = None
    attempts: int = 0
    again_at: dt.datetime | None = None
    is_stopped: bool = False
    stop_error: str = ""
    stopped_at: dt.datetime | None = None
    residue: Future[Finding] | None = None
    not_restored: dict[str, str] = field(default_factory=dict)


class GiveBack:
    """Brings leases from active to ended."""

    def __init__(
        self,
        *,
        book: LeaseBook,
        provisioner: Provisioner,
        jobs: Jobs,
        gate: Gate,
        meters: LeaseMeters,
    ) -> None:
        self._book = book
        self._provisioner = provisioner
        self._jobs = jobs
        self._gate = gate
        self._meters = meters
        self._returns: dict[LeaseKey, _Return] = {}

    def again_at(self) -> list[dt.datetime]:
        """Return when returns are to be looked at again."""
        return [r.again_at for r in self._returns.values() if r.again_at is not None]

    def begin(
        self,
        *,
        record: LeaseRecord,
        at: dt.datetime,
        samples: dict[str, Sample] | None,
        why: str,
    ) -> None:
        """Fix the end of the tenant's time and write its last windows; the order to stop comes next."""
        started = record.metered_until or record.handed_over_at or at
        end = max(whole_second(at=min(at, record.grant.not_after)), started)
        near = {
            u: s for u, s in (samples or {}).items() if abs(s.measured_at - end) <= SAMPLE_DISTANCE
        }
        windows = self._meters.finish(record=record, end=end, samples=near)
        stopping = replace(
            record,
            state=LeaseState.STOPPING,
            changed_at=at,
            detail=why,
            returned_at=end,
            metered_until=end,
            return_energies=energies(grant=record.grant, samples=near),
        )
        self._book.save(record=stopping, windows=windows)
        logger.info("lease %s (epoch %d) ends%s", *record.key, f": {why}" if why else "")

    def go_on(self, *, record: LeaseRecord, view: MachineView) -> None:
        """Bring one return as far as it can come now."""
        step = self._returns.setdefault(record.key, _Return())
        if step.again_at is not None and view.at < step.again_at:
            return
        step.again_at = None
        if not step.is_stopped and not self._stopped(record, step, view):
            return
        if record.handed_over_at is None and record.evidence is None:
            self._end(record, step, [], view)  # nothing was ever started
        elif step.residue is not None:
            if step.residue.done():
                self._end(record, step, [_result(record, step.residue)], view)
        elif self._empty(record, step, view):
            gate, grant = self._gate, record.grant
            step.residue = self._jobs.submit(work=lambda: gate.residue_of(grant=grant))
            self.go_on(record=record, view=view)

    def _stopped(self, record: LeaseRecord, step: _Return, view: MachineView) -> bool:
        """Order the end of what runs, again where it fails; return whether that is over."""
        if step.stopping is None:
            provisioner, grant = self._provisioner, record.grant

            def stop() -> None:
                provisioner.stop(grant=grant)
                provisioner.destroy(grant=grant)

            step.stopping = self._jobs.submit(work=stop)
        if not step.stopping.done():
            return False
        error, step.stopping = step.stopping.exception(), None
        if isinstance(error, ProvisionAgain):
            step.again_at = view.at + dt.timedelta(seconds=error.after_seconds)
            return False
        step.attempts += 1
        if error is not None and step.attempts < STOP_ATTEMPTS_MAX:
            logger.warning("lease %s (epoch %d) does not stop: %s", *record.key, error)
            step.again_at = view.at + dt.timedelta(seconds=STOP_RETRY_SECONDS)
            return False
        step.is_stopped = True
        step.stop_error = "" if error is None else words(error=error)
        step.stopped_at = view.at
        return True

    def _empty(self, record: LeaseRecord, step: _Return, view: MachineView) -> bool:
        """Wait until nothing holds the GPUs, restore them, and return whether their memory can be looked at.

        What does not become empty in time, or was not stopped, ends here: it is not clean.
        """
        assert step.stopped_at is not None, "the wait begins with the stop"
        left, patience = "", EMPTY_SECONDS_MAX
        if not step.stop_error:
            try:
                left = self._gate.left_on(grant=record.grant, at=view.at)
            except ReaderUnavailable as error:
                left, patience = f"the GPUs cannot be read: {error}", UNREADABLE_SECONDS_MAX
        if left and (view.at - step.stopped_at).total_seconds() < patience:
            step.again_at = view.at + dt.timedelta(seconds=EMPTY_LOOK_SECONDS)
            return False
        step.not_restored = self._gate.restore(record=record)
        if left or step.stop_error:
            self._end(record, step, [], view)
            return False
        return True

    def _end(
        self, record: LeaseRecord, step: _Return, found: list[Finding], view: MachineView
    ) -> None:
        """Judge what came back and give the receipt: GPUs that are not clean are not free."""
        del self._returns[record.key]
        detail, evidence = record.detail, None
        findings = list(found)
        if record.handed_over_at is not None or record.evidence is not None:
            evidence, looked = self._gate.after(
                record=record, not_restored=step.not_restored, at=view.at
            )
            findings += looked
            evidence = replace(evidence, checks=[f.result for f in findings])
        if step.stop_error:
            findings.append(_not_stopped(record, step.stop_error))
        failed = checks.failures(findings)
        if step.stop_error or failed:
            detail = step.stop_error or f"not clean: {failed}"[:TEXT_LENGTH_MAX]
        ended = replace(
            record,
            state=LeaseState.ENDED,
            changed_at=view.at,
            detail=detail,
            is_clean=not failed,
        )
        receipt = None
        if record.returned_at is not None:
            receipt = self._book.receipt(
                record=ended,
                kind=ReceiptKind.RETURN,
                at=record.returned_at,
                energies=record.return_energies,
                clean=ended.is_clean,
                evidence=evidence,
            )
        self._book.save(record=ended, receipt=receipt)
        if failed:
            self._gate.quarantine(findings=findings, record=ended, at=view.at)
        logger.info("lease %s (epoch %d) is over%s", *record.key, failed and f": {failed}")


def _not_stopped(record: LeaseRecord, why: str) -> Finding:
    return Finding(
        name="stopped", passed=False, detail=why, gpu_uuids=tuple(record.grant.gpu_uuids)
    )


def _result(record: LeaseRecord, future: Future[Finding]) -> Finding:
    error = future.exception()
    if error is None:
        return future.result()
    gpu_uuids = tuple(record.grant.gpu_uuids)
    return Finding(name="residue", passed=False, detail=words(error=error), gpu_uuids=gpu_uuids)
