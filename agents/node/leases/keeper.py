"""Bring every lease of a node one step on, and keep each step on the disk before the next."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from dataclasses import replace

from agents.node.jobs import Jobs
from agents.node.leasebook import LeaseBook
from agents.node.leases.dialogue import Dialogue
from agents.node.leases.gate import Gate
from agents.node.leases.giveback import GiveBack
from agents.node.leases.handover import Handover
from agents.node.leases.meters import LeaseMeters
from agents.node.leases.orphans import Orphans
from agents.node.leases.view import MachineView, is_over, whole_second
from agents.node.metering import WINDOW_SECONDS_MAX
from agents.node.provision import Presence, Provisioner, ProvisionFailed
from agents.node.spool import TERMINAL_STATES, LeaseRecord
from agents.protocol import Grant, LeaseState, LeaseStatus

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """All leases of one node."""

    def __init__(
        self,
        *,
        book: LeaseBook,
        provisioner: Provisioner,
        jobs: Jobs,
        gate: Gate,
    ) -> None:
        self.window_seconds = WINDOW_SECONDS_MAX
        self._book = book
        self._provisioner = provisioner
        self._meters = LeaseMeters()
        self._dialogue = Dialogue(book=book)
        self._orphans = Orphans(provisioner=provisioner, jobs=jobs)
        self._giveback = GiveBack(
            book=book, provisioner=provisioner, jobs=jobs, gate=gate, meters=self._meters
        )
        self._handover = Handover(
            book=book,
            provisioner=provisioner,
            jobs=jobs,
            gate=gate,
            meters=self._meters,
            giveback=self._giveback,
            orphans=self._orphans,
        )

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
        """Return the next instant after `at` at which something of a lease has to be done."""
        instants = self._handover.again_at() + self._giveback.again_at() + self._orphans.again_at()
        for record in self._book.records.values():
            if record.state in (LeaseState.PREPARING, LeaseState.ACTIVE):
                instants += [record.grant.not_before, record.grant.not_after]
        return min((instant for instant in instants if instant > at), default=None)

    def wants_sample(self, *, at: dt.datetime) -> bool:
        """Return whether `step` will hand over or take back, so that the counters should be fresh."""
        for record in self._book.records.values():
            if record.state is LeaseState.PREPARING and record.grant.not_before <= at:
                return True
            if record.state is LeaseState.ACTIVE and is_over(record=record, at=at):
                return True
        return False

    # --- after a start of the agent ------------------------------------------------------------------

    def adopt(self, *, at: dt.datetime, last_alive_at: dt.datetime | None, same_boot: bool) -> None:
        """Go on with the leases of the agent's last run.

        A lease that still runs is metered on; the time nobody watched counts as delivered, with unknown
        load. A lease that runs no more, or whose machine was restarted, ended for the tenant when the agent
        last saw it alive, and at `not_after` at the latest: the node attests no more than it knows. What
        runs here and is in no book, or is over, is ended.
        """
        self._list_orphans(at)
        for record in list(self._book.records.values()):
            if record.state is LeaseState.PREPARING and record.evidence is not None:
                presence = self._inspect(record)
                self._handover.resume(record=record, presence=presence, same_boot=same_boot)
        for record in self.running():
            attested = max(
                instant for instant in (record.metered_until, last_alive_at, record.handed_over_at)
                if instant is not None
            )  # fmt: skip
            presence = self._inspect(record)
            runs = presence is Presence.RUNNING and same_boot
            self._meters.open(record=record, samples=None, blind=True)
            if presence in (Presence.RUNNING, Presence.PREPARING) and (
                at < record.grant.not_after or runs
            ):
                logger.info("lease %s (epoch %d) goes on after a restart", *record.key)
                continue
            why = "it ended while the agent was not running"
            self._giveback.begin(record=record, at=min(attested, at), samples=None, why=why)

    def _inspect(self, record: LeaseRecord) -> Presence:
        try:
            return self._provisioner.inspect(grant=record.grant)
        except ProvisionFailed as error:
            logger.warning("lease %s (epoch %d) cannot be inspected: %s", *record.key, error)
            return Presence.PREPARING

    def _list_orphans(self, at: dt.datetime) -> None:
        try:
            listed = self._provisioner.list_leases()
        except ProvisionFailed as error:
            logger.warning("what runs here cannot be listed: %s", error)
            return
        for found in listed or ():
            record = self._book.records.get((found.lease_id, found.lease_epoch))
            if record is None or record.state in TERMINAL_STATES:
                self._orphans.add(found=found, at=at)

    # --- one step ---------------------------------------------------------------------------------

    def step(self, *, view: MachineView) -> set[str]:
        """Bring every lease one step on; return the GPUs that came back. Ends run before starts."""
        returned: set[str] = set()
        self._orphans.step(at=view.at)
        for record in sorted(
            self._book.records.values(), key=lambda r: r.state is LeaseState.PREPARING
        ):
            if record.state is LeaseState.STOPPING:
                self._giveback.go_on(record=record, view=view)
            elif record.state is LeaseState.ACTIVE and is_over(record=record, at=view.at):
                why = "" if view.at >= record.grant.not_after else "the market asked to stop"
                end = min(view.at, record.grant.not_after)
                self._giveback.begin(record=record, at=end, samples=view.samples, why=why)
                self._giveback.go_on(record=self._book.records[record.key], view=view)
            elif record.state is LeaseState.PREPARING:
                self._handover.go_on(record=record, view=view)
            after = self._book.records[record.key].state
            if after in TERMINAL_STATES and record.state is not after:
                returned.update(record.grant.gpu_uuids)
        return returned

    def meter(self, *, view: MachineView) -> None:
        """Account for the time until now on all running leases; full windows go to the spool."""
        for record in self.running():
            until = whole_second(at=min(view.at, record.grant.not_after))
            windows = self._meters.advance(
                record=record, until=until, samples=view.samples, window_max=self.window_seconds
            )
            if windows:
                metered = replace(record, metered_until=max(w.ends_at for w in windows))
                self._book.save(record=metered, windows=windows)
