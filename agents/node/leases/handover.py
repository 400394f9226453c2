"""From a grant to a tenant with GPUs: clean up, check, prepare, start, and give the receipt."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from agents.node import checks
from agents.node.checks import Finding
from agents.node.jobs import Jobs
from agents.node.leasebook import LeaseBook
from agents.node.leases.gate import Gate
from agents.node.leases.giveback import GiveBack
from agents.node.leases.meters import LeaseMeters
from agents.node.leases.orphans import Orphans
from agents.node.leases.view import MachineView, energies, is_over, whole_second, words
from agents.node.provision import Presence, ProvisionAgain, Provisioner
from agents.node.reader import LOST, ReaderUnavailable
from agents.node.spool import TERMINAL_STATES, LeaseKey, LeaseRecord
from agents.protocol import TEXT_LENGTH_MAX, Access, LeaseState, ReceiptEvidence, ReceiptKind

logger = logging.getLogger(__name__)


class ResidueFound(Exception):
    """Memory that nobody holds is not empty."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(checks.failures([finding]))
        self.finding = finding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """What came of a start."""

    access: Access
    config_sha256: str | None


@dataclass(slots=True, kw_only=True)
class _Start:
    """A start on its way: the earlier tenants' remains first, then the start itself."""

    cleaning: Future[None] | None = None
    starting: Future[_Started] | None = None
    again_at: dt.datetime | None = None
    is_cleaned: bool = False
    residue: Finding | None = None


class Handover:
    """Brings leases from preparing to active, or to failed."""

    def __init__(
        self,
        *,
        book: LeaseBook,
        provisioner: Provisioner,
        jobs: Jobs,
        gate: Gate,
        meters: LeaseMeters,
        giveback: GiveBack,
        orphans: Orphans,
    ) -> None:
        self._book = book
        self._provisioner = provisioner
        self._jobs = jobs
        self._gate = gate
        self._meters = meters
        self._giveback = giveback
        self._orphans = orphans
        self._starts: dict[LeaseKey, _Start] = {}
        self._undoing: dict[LeaseKey, Future[None]] = {}

    def again_at(self) -> list[dt.datetime]:
        """Return when starts are to be tried again."""
        return [start.again_at for start in self._starts.values() if start.again_at is not None]

    def resume(self, *, record: LeaseRecord, presence: Presence, same_boot: bool) -> None:
        """Take up a start that the agent's last run left; what does not run is checked anew."""
        if record.evidence is not None and not (presence is Presence.RUNNING and same_boot):
            self._book.save(record=replace(record, evidence=None))

    def go_on(self, *, record: LeaseRecord, view: MachineView) -> None:
        """Bring one lease as far as it can come now."""
        start = self._starts.get(record.key)
        if start is not None and (start.cleaning or start.starting):
            self._look_at(record, start, view)
            return
        if is_over(record=record, at=view.at):
            self._starts.pop(record.key, None)
            self._change(record, LeaseState.STOPPING, view.at, detail="it was never handed over")
            self._giveback.go_on(record=self._book.records[record.key], view=view)
            return
        if view.at < record.grant.not_before:
            return
        if start is not None and start.again_at is not None and view.at < start.again_at:
            return
        obstacle = self._obstacle(record, view)
        if obstacle:
            self._change(record, LeaseState.FAILED, view.at, detail=obstacle)
        elif not view.may_start or view.samples is None:
            self._note(record, "waits until the GPUs can be read")
        elif self._taken(record):
            self._note(record, "waits for another lease to give back its GPUs")
        else:
            self._begin(record, start or _Start(), view)

    @staticmethod
    def _obstacle(record: LeaseRecord, view: MachineView) -> str:
        wanted = record.grant.gpu_uuids
        missing = [u for u in wanted if u not in view.gpu_uuids]
        lost = [
            u for u in wanted
            if view.samples and u in view.samples and LOST in view.samples[u].unread.values()
        ]  # fmt: skip
        if not view.gpu_uuids or not (missing or lost or not wanted):
            return ""
        names = ", ".join(missing or lost)
        return f"no such GPU here: {names}" if missing or not wanted else f"lost: {names}"

    def _begin(self, record: LeaseRecord, start: _Start, view: MachineView) -> None:
        self._starts[record.key] = start
        leftovers = self._leftovers(record)
        if leftovers and not start.is_cleaned:
            provisioner = self._provisioner

            def clean() -> None:
                for left in leftovers:  # nobody gets GPUs on which another tenant may still be
                    provisioner.stop(grant=left.grant)
                    provisioner.destroy(grant=left.grant)

            start.cleaning = self._jobs.submit(work=clean)
            self._look_at(record, start, view)
            return
        if record.evidence is None:
            try:
                evidence, findings = self._gate.before(grant=record.grant, at=view.at)
            except ReaderUnavailable:
                del self._starts[record.key]
                self._note(record, "waits until the GPUs can be read")
                return
            if failed := checks.failures(findings):
                del self._starts[record.key]
                detail = f"not handed over: {failed}"[:TEXT_LENGTH_MAX]
                self._gate.quarantine(findings=findings, record=record, at=view.at)
                self._change(record, LeaseState.FAILED, view.at, detail=detail)
                return
            record = replace(record, evidence=evidence)
            self._book.save(record=record)
        start.starting = self._jobs.submit(work=self._work(record, start))
        self._look_at(record, start, view)

    def _work(self, record: LeaseRecord, start: _Start) -> Callable[[], _Started]:
        provisioner, gate, grant = self._provisioner, self._gate, record.grant

        def work() -> _Started:
            provisioner.prepare(grant=grant)
            # Once, and never beside a container that an earlier call has started.
            if start.residue is None and provisioner.inspect(grant=grant) is not Presence.RUNNING:
                start.residue = gate.residue_of(grant=grant)
                if start.residue.passed is False:
                    raise ResidueFound(start.residue)
            access = provisioner.start(grant=grant)
            return _Started(access=access, config_sha256=provisioner.config_sha256(grant=grant))

        return work

    def _look_at(self, record: LeaseRecord, start: _Start, view: MachineView) -> None:
        """Take the result of what runs, once it is there."""
        if start.cleaning is not None:
            if not start.cleaning.done():
                return
            error, start.cleaning = start.cleaning.exception(), None
            if error is None:
                start.is_cleaned = True
                self.go_on(record=record, view=view)
                return
            self._failed(record, error, view)
            return
        if start.starting is None or not start.starting.done():
            return
        future, start.starting = start.starting, None
        error = future.exception()
        if error is not None:
            self._failed(record, error, view)
        elif is_over(record=record, at=view.at):
            self.go_on(record=record, view=view)
        else:
            self._hand_over(record, start, future.result(), view)

    def _failed(self, record: LeaseRecord, error: BaseException, view: MachineView) -> None:
        if isinstance(error, ProvisionAgain):
            self._starts[record.key].again_at = view.at + dt.timedelta(seconds=error.after_seconds)
            self._note(record, str(error))
            return
        del self._starts[record.key]
        failed = replace(record, is_clean=False)
        if isinstance(error, ResidueFound):
            self._gate.quarantine(findings=[error.finding], record=record, at=view.at)
            detail = f"not handed over: {error}"[:TEXT_LENGTH_MAX]
        else:
            detail = words(error=error)
        self._undo(failed)
        self._change(failed, LeaseState.FAILED, view.at, detail=detail)

    def _hand_over(
        self, record: LeaseRecord, start: _Start, started: _Started, view: MachineView
    ) -> None:
        del self._starts[record.key]
        for left in self._leftovers(record):
            self._book.save(record=replace(left, is_clean=True))
        at = max(whole_second(at=view.at), record.grant.not_before)
        evidence = record.evidence or ReceiptEvidence(boot_id="", boottime_seconds=0)
        found = [] if start.residue is None else [start.residue.result]
        evidence = replace(
            self._gate.stamped(evidence=evidence),
            checks=[*evidence.checks, *found],
            container_sha256=started.config_sha256,
        )
        active = replace(
            record,
            state=LeaseState.ACTIVE,
            changed_at=view.at,
            detail="",
            access=started.access,
            handed_over_at=at,
            metered_until=at,
            evidence=evidence,
        )
        receipt = self._book.receipt(
            record=active,
            kind=ReceiptKind.HANDOVER,
            at=at,
            energies=energies(grant=record.grant, samples=view.samples),
            evidence=evidence,
        )
        self._book.save(record=active, receipt=receipt)
        self._meters.open(record=active, samples=view.samples, blind=False)
        logger.info("lease %s (epoch %d) was handed over", *record.key)

    def _undo(self, record: LeaseRecord) -> None:
        """Clean up after a failed start, once: the next lease on these GPUs does it again."""
        provisioner, grant = self._provisioner, record.grant

        def undo() -> None:
            provisioner.stop(grant=grant)
            provisioner.destroy(grant=grant)

        self._undoing[record.key] = self._jobs.submit(work=undo)

    def _leftovers(self, record: LeaseRecord) -> list[LeaseRecord]:
        """Return the finished leases of which something may be left on this one's GPUs."""
        wanted = set(record.grant.gpu_uuids)
        return [
            other
            for other in self._book.records.values()
            if other.key != record.key
            and other.state in TERMINAL_STATES
            and not other.is_clean
            and wanted & set(other.grant.gpu_uuids)
        ]

    def _taken(self, record: LeaseRecord) -> bool:
        wanted = set(record.grant.gpu_uuids)
        if self._orphans.holds(gpu_uuids=wanted):
            return True
        for other in self._book.records.values():
            holds = other.state in (LeaseState.ACTIVE, LeaseState.STOPPING) or (
                other.state is LeaseState.PREPARING and other.key in self._starts
            )
            if (undo := self._undoing.get(other.key)) is not None:
                holds = holds or not undo.done()
            if other.key != record.key and holds and wanted & set(other.grant.gpu_uuids):
                return True
        return False

    def _change(
        self, record: LeaseRecord, state: LeaseState, at: dt.datetime, *, detail: str
    ) -> None:
        self._book.save(record=replace(record, state=state, changed_at=at, detail=detail))
        logger.info("lease %s (epoch %d) is %s: %s", *record.key, state, detail)

    def _note(self, record: LeaseRecord, detail: str) -> None:
        if record.detail != detail:
            self._book.save(record=replace(record, detail=detail))
            logger.info("lease %s (epoch %d) %s", *record.key, detail)
