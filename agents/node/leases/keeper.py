"""Bring every lease of a node one step on, and keep each step on the disk before the next."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from agents.node.jobs import Jobs
from agents.node.leasebook import LeaseBook
from agents.node.leases.dialogue import Dialogue
from agents.node.leases.meters import SAMPLE_DISTANCE, LeaseMeters
from agents.node.metering import WINDOW_SECONDS_MAX
from agents.node.provision import Presence, ProvisionAgain, Provisioner, ProvisionFailed
from agents.node.reader import LOST, Sample
from agents.node.spool import TERMINAL_STATES, LeaseKey, LeaseRecord
from agents.protocol import (
    TEXT_LENGTH_MAX,
    Access,
    DesiredState,
    Grant,
    LeaseState,
    LeaseStatus,
    ReceiptKind,
)

logger = logging.getLogger(__name__)

# A tenant's workload that survives three orders to end is the owner's to look at.
STOP_ATTEMPTS_MAX = 3
STOP_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """What the loop knows of the machine at one instant; `samples` is `None` when nothing can be read."""

    at: dt.datetime
    gpu_uuids: frozenset[str]
    samples: dict[str, Sample] | None
    may_start: bool


@dataclass(slots=True, kw_only=True)
class _Job:
    """A verb that runs, or waits for its next try."""

    future: Future[Access | None] | None = None
    again_at: dt.datetime | None = None
    attempts: int = 0


class LeaseKeeper:
    """All leases of one node."""

    def __init__(
        self,
        *,
        book: LeaseBook,
        provisioner: Provisioner,
        jobs: Jobs,
    ) -> None:
        self.window_seconds = WINDOW_SECONDS_MAX
        self._book = book
        self._provisioner = provisioner
        self._jobs = jobs
        self._pending: dict[LeaseKey, _Job] = {}
        self._undoing: dict[LeaseKey, Future[Access | None]] = {}
        self._meters = LeaseMeters()
        self._dialogue = Dialogue(book=book)

    # --- what the market wants ---------------------------------------------------------------------

    def apply(self, *, grants: Iterable[Grant], complete: bool, at: dt.datetime) -> None:
        """Take in the grants of an answer; `complete` says that a grant that is not listed is not wanted."""
        self._dialogue.apply(grants=grants, complete=complete, at=at)

    def statuses(self) -> list[LeaseStatus]:
        """Return how far each lease is that runs, is listed by the market or has news, newest first."""
        return self._dialogue.statuses()

    def told(self, *, statuses: Iterable[LeaseStatus]) -> None:
        """Remember that the market knows these."""
        self._dialogue.told(statuses=statuses)

    def has_news(self) -> bool:
        """Return whether a lease changed its state since the market was told."""
        return self._dialogue.has_news()

    def running(self) -> list[LeaseRecord]:
        """Return the leases whose tenants have their GPUs."""
        return [r for r in self._book.records.values() if r.state is LeaseState.ACTIVE]

    def next_change_at(self, *, at: dt.datetime) -> dt.datetime | None:
        """Return the next instant after `at` at which a lease has to be started or ended."""
        instants = [job.again_at for job in self._pending.values() if job.again_at is not None]
        for record in self._book.records.values():
            if record.state in (LeaseState.PREPARING, LeaseState.ACTIVE):
                instants += [record.grant.not_before, record.grant.not_after]
        return min((instant for instant in instants if instant > at), default=None)

    def wants_sample(self, *, at: dt.datetime) -> bool:
        """Return whether `step` will hand over or take back, so that the counters should be fresh."""
        for record in self._book.records.values():
            if record.state is LeaseState.PREPARING and record.grant.not_before <= at:
                return True
            if record.state is LeaseState.ACTIVE and self._over(record, at):
                return True
        return False

    # --- after a start of the agent ------------------------------------------------------------------

    def adopt(self, *, at: dt.datetime, last_alive_at: dt.datetime | None, same_boot: bool) -> None:
        """Go on with the leases of the agent's last run.

        A lease that still runs is metered on; the time nobody watched counts as delivered, with unknown
        load. A lease that runs no more, or whose machine was restarted, ended for the tenant when the agent
        last saw it alive, and at `not_after` at the latest: the node attests no more than it knows.
        """
        for record in self.running():
            attested = max(
                instant for instant in (record.metered_until, last_alive_at, record.handed_over_at)
                if instant is not None
            )  # fmt: skip
            try:
                presence = self._provisioner.inspect(grant=record.grant)
            except ProvisionFailed as error:
                logger.warning("lease %s (epoch %d) cannot be inspected: %s", *record.key, error)
                presence = Presence.PREPARING
            runs = presence is Presence.RUNNING and same_boot
            self._meters.open(record=record, samples=None, blind=True)
            if presence in (Presence.RUNNING, Presence.PREPARING) and (
                at < record.grant.not_after or runs
            ):
                logger.info("lease %s (epoch %d) goes on after a restart", *record.key)
                continue
            why = "it ended while the agent was not running"
            self._begin_return(record, at=min(attested, at), samples=None, why=why)

    # --- one step ---------------------------------------------------------------------------------

    def step(self, *, view: MachineView) -> set[str]:
        """Bring every lease one step on; return the GPUs that came back. Ends run before starts."""
        returned: set[str] = set()
        for record in sorted(
            self._book.records.values(), key=lambda r: r.state is LeaseState.PREPARING
        ):
            if record.state is LeaseState.STOPPING:
                self._go_on_stopping(record, view)
            elif record.state is LeaseState.ACTIVE and self._over(record, view.at):
                why = "" if view.at >= record.grant.not_after else "the market asked to stop"
                end = min(view.at, record.grant.not_after)
                self._begin_return(record, at=end, samples=view.samples, why=why)
                self._go_on_stopping(self._book.records[record.key], view)
            elif record.state is LeaseState.PREPARING:
                self._go_on_preparing(record, view)
            after = self._book.records[record.key].state
            if after in TERMINAL_STATES and record.state is not after:
                returned.update(record.grant.gpu_uuids)
        return returned

    def meter(self, *, view: MachineView) -> None:
        """Account for the time until now on all running leases; full windows go to the spool."""
        for record in self.running():
            until = _whole_second(min(view.at, record.grant.not_after))
            windows = self._meters.advance(
                record=record, until=until, samples=view.samples, window_max=self.window_seconds
            )
            if windows:
                metered = replace(record, metered_until=max(w.ends_at for w in windows))
                self._book.save(record=metered, windows=windows)

    @staticmethod
    def _over(record: LeaseRecord, at: dt.datetime) -> bool:
        return at >= record.grant.not_after or record.grant.desired_state is DesiredState.STOP

    def _go_on_preparing(self, record: LeaseRecord, view: MachineView) -> None:
        job = self._pending.get(record.key)
        if job is not None and job.future is not None:
            if job.future.done():
                self._started(record, job.future, view)
            return
        if self._over(record, view.at):
            self._change(record, LeaseState.STOPPING, view.at, detail="it was never handed over")
            self._pending.pop(record.key, None)
            self._go_on_stopping(self._book.records[record.key], view)
            return
        if view.at < record.grant.not_before or (job and job.again_at and view.at < job.again_at):
            return
        grant = record.grant
        missing = [u for u in grant.gpu_uuids if u not in view.gpu_uuids]
        lost = [
            u for u in grant.gpu_uuids
            if view.samples and u in view.samples and LOST in view.samples[u].unread.values()
        ]  # fmt: skip
        if view.gpu_uuids and (missing or lost or not grant.gpu_uuids):
            names = ", ".join(missing or lost)
            what = f"no such GPU here: {names}" if missing else f"lost: {names}"
            self._change(record, LeaseState.FAILED, view.at, detail=what)
        elif not view.may_start or view.samples is None:
            self._note(record, "waits until the GPUs can be read")
        elif self._taken(record):
            self._note(record, "waits for another lease to give back its GPUs")
        else:
            provisioner, leftovers = self._provisioner, self._leftovers(record)

            def start() -> Access:
                for left in leftovers:  # nobody gets GPUs on which another tenant may still be
                    provisioner.stop(grant=left.grant)
                    provisioner.destroy(grant=left.grant)
                provisioner.prepare(grant=grant)
                return provisioner.start(grant=grant)

            self._pending[record.key] = _Job(future=self._jobs.submit(work=start))
            self._go_on_preparing(self._book.records[record.key], view)

    def _started(
        self, record: LeaseRecord, future: Future[Access | None], view: MachineView
    ) -> None:
        del self._pending[record.key]
        error = future.exception()
        if isinstance(error, ProvisionAgain):
            again_at = view.at + dt.timedelta(seconds=error.after_seconds)
            self._pending[record.key] = _Job(again_at=again_at)
            self._note(record, str(error))
        elif error is not None:
            failed = replace(record, is_clean=False)
            self._undo(failed)
            self._change(failed, LeaseState.FAILED, view.at, detail=_words(error))
        elif self._over(record, view.at):
            self._go_on_preparing(record, view)
        else:
            self._hand_over(record, future.result(), view)

    def _hand_over(self, record: LeaseRecord, access: Access | None, view: MachineView) -> None:
        for left in self._leftovers(record):
            self._book.save(record=replace(left, is_clean=True))
        at = max(_whole_second(view.at), record.grant.not_before)
        active = replace(
            record,
            state=LeaseState.ACTIVE,
            changed_at=view.at,
            detail="",
            access=access,
            handed_over_at=at,
            metered_until=at,
        )
        energies = _energies(record.grant, view.samples)
        receipt = self._book.receipt(
            record=active, kind=ReceiptKind.HANDOVER, at=at, energies=energies
        )
        self._book.save(record=active, receipt=receipt)
        self._meters.open(record=active, samples=view.samples, blind=False)
        logger.info("lease %s (epoch %d) was handed over", *record.key)

    def _begin_return(
        self,
        record: LeaseRecord,
        *,
        at: dt.datetime,
        samples: dict[str, Sample] | None,
        why: str,
    ) -> None:
        """Fix the end of the tenant's time and write its last windows; the order to stop comes next."""
        started = record.metered_until or record.handed_over_at or at
        end = max(_whole_second(min(at, record.grant.not_after)), started)
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
            return_energies=_energies(record.grant, near),
        )
        self._book.save(record=stopping, windows=windows)
        logger.info("lease %s (epoch %d) ends%s", *record.key, f": {why}" if why else "")

    def _go_on_stopping(self, record: LeaseRecord, view: MachineView) -> None:
        job = self._pending.setdefault(record.key, _Job())
        if job.future is None:
            if job.again_at is not None and view.at < job.again_at:
                return
            provisioner, grant = self._provisioner, record.grant

            def stop() -> None:
                provisioner.stop(grant=grant)
                provisioner.destroy(grant=grant)

            job.future = self._jobs.submit(work=stop)
        if not job.future.done():
            return
        error = job.future.exception()
        job.future = None
        if isinstance(error, ProvisionAgain):
            job.again_at = view.at + dt.timedelta(seconds=error.after_seconds)
            return
        job.attempts += 1
        if error is not None and job.attempts < STOP_ATTEMPTS_MAX:
            logger.warning("lease %s (epoch %d) does not stop: %s", *record.key, error)
            job.again_at = view.at + dt.timedelta(seconds=STOP_RETRY_SECONDS)
            return
        del self._pending[record.key]
        detail = record.detail if error is None else _words(error)
        ended = replace(
            record,
            state=LeaseState.ENDED,
            changed_at=view.at,
            detail=detail,
            is_clean=error is None,
        )
        receipt = None
        if record.returned_at is not None:
            receipt = self._book.receipt(
                record=ended,
                kind=ReceiptKind.RETURN,
                at=record.returned_at,
                energies=record.return_energies,
                clean=ended.is_clean,
            )
        self._book.save(record=ended, receipt=receipt)
        logger.info("lease %s (epoch %d) is over", *record.key)

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
        for other in self._book.records.values():
            holds = other.state in (LeaseState.ACTIVE, LeaseState.STOPPING) or (
                other.state is LeaseState.PREPARING and other.key in self._pending
            )
            if (undo := self._undoing.get(other.key)) is not None:
                holds = holds or not undo.done()
            if other.key != record.key and holds and wanted & set(other.grant.gpu_uuids):
                return True
        return False

    # --- writing --------------------------------------------------------------------------------------

    def _change(
        self, record: LeaseRecord, state: LeaseState, at: dt.datetime, *, detail: str
    ) -> None:
        self._book.save(record=replace(record, state=state, changed_at=at, detail=detail))
        logger.info("lease %s (epoch %d) is %s: %s", *record.key, state, detail)

    def _note(self, record: LeaseRecord, detail: str) -> None:
        if record.detail != detail:
            self._book.save(record=replace(record, detail=detail))
            logger.info("lease %s (epoch %d) %s", *record.key, detail)


def _whole_second(at: dt.datetime) -> dt.datetime:
    return at.replace(microsecond=0)


def _energies(grant: Grant, samples: dict[str, Sample] | None) -> list[int | None]:
    found = [(samples or {}).get(gpu_uuid) for gpu_uuid in grant.gpu_uuids]
    return [None if sample is None else sample.energy_millijoules for sample in found]


def _words(error: BaseException) -> str:
    known = isinstance(error, ProvisionFailed)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text[:TEXT_LENGTH_MAX]
