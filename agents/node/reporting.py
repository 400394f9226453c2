"""Build reports, send them, and draw the consequence of each answer.

A report whose fate is unknown is sent again byte for byte, under its own (epoch, sequence): if it had
arrived, the market answers with that very pair and nothing is counted twice. What waits in the spool comes
along in batches; a batch that the market refuses is halved until the one reading it cannot take is found.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import assert_never

from agents.node import AGENT_VERSION
from agents.node.clock import MarketClock
from agents.node.leasebook import LeaseBook
from agents.node.leases import LeaseKeeper
from agents.node.sender import Refused, Replayed, Revoked, Sender, Taken, Unreachable
from agents.node.spool import Spool
from agents.node.watch import HealthWatch
from agents.protocol import (
    PROTOCOL_VERSION,
    REPORT_EVENTS_MAX,
    REPORT_METERS_MAX,
    REPORT_RECEIPTS_MAX,
    GpuIdentity,
    Reading,
    Report,
    ReportReply,
    encode,
)

logger = logging.getLogger(__name__)

READINGS_KEPT = 4  # looks at all GPUs that a report may carry after missed ones
INTERVAL_SECONDS_DEFAULT = 15
INTERVAL_SECONDS_RANGE = (1, 3600)  # an answer outside of this is a mistake of the market
BACKOFF_BASE_SECONDS = 3.0
BACKOFF_SECONDS_MAX = 60.0
BACKOFF_SECONDS_MAX_LEAST = 5.0
RETRY_AFTER_JITTER_SECONDS = 5.0
REVOKED_RETRY_SECONDS = 300.0
# A report that meets only server errors may be their cause; a smaller one under a new pair may pass. Nothing
# is counted twice by that, because meters and receipts have names of their own.
SAME_REPORT_TRIES_MAX = 5
# A change of a lease is told at once, five times in a row and then every two seconds.
URGENT_BURST, URGENT_EVERY_SECONDS = 5.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    report: Report
    body: bytes


class Reporter:
    """What one run of the agent tells the market, and when."""

    def __init__(
        self,
        *,
        spool: Spool,
        sender: Sender,
        keeper: LeaseKeeper,
        watch: HealthWatch,
        clock: MarketClock,
        book: LeaseBook,
        boot_id: str,
        simulated: bool,
        dice: random.Random,
    ) -> None:
        remembered = spool.value(name="report_interval_seconds")
        self.interval_seconds = int(remembered or INTERVAL_SECONDS_DEFAULT)
        self.revoked = False
        self.inventory: list[GpuIdentity] | None = None
        self.reader_hung_since: dt.datetime | None = None
        self.due_at_boottime = clock.boottime_seconds()
        self._spool = spool
        self._sender = sender
        self._keeper = keeper
        self._watch = watch
        self._clock = clock
        self._book = book
        self._sequence = 0
        self._boot_id = boot_id
        self._simulated = simulated
        self._dice = dice
        self._inventory_known = False
        self._readings: deque[list[Reading]] = deque(maxlen=READINGS_KEPT)
        self._pending: _Pending | None = None
        self._failures = 0
        self._same_report_tries = 0
        self._batch = REPORT_METERS_MAX
        self._urgent_tokens = URGENT_BURST
        self._urgent_filled_at_boottime = clock.boottime_seconds()

    def note(self, *, readings: list[Reading]) -> None:
        """Keep the latest look at all GPUs for the next report; the oldest one makes room."""
        self._readings.append(readings)

    def renew_inventory(self, *, inventory: list[GpuIdentity]) -> None:
        """Tell the GPUs of this machine with the next report, if they are others than before."""
        if inventory != self.inventory:
            self.inventory = inventory
            self._inventory_known = False

    def grant_interval(self, *, seconds: int) -> None:
        """Report every so many seconds from now on, also after the next start of the agent."""
        least, most = INTERVAL_SECONDS_RANGE
        granted = min(max(seconds, least), most)
        if granted != self.interval_seconds:
            self._spool.commit(values={"report_interval_seconds": str(granted)})
        self.interval_seconds = granted

    def hurry(self) -> None:
        """Bring the next report forward because a lease or a GPU changed, as far as the token bucket allows.

        While the market cannot be reached, its back-off stands: a change is no reason to knock harder.
        """
        now = self._clock.boottime_seconds()
        filled = (now - self._urgent_filled_at_boottime) / URGENT_EVERY_SECONDS
        self._urgent_tokens = min(URGENT_BURST, self._urgent_tokens + filled)
        self._urgent_filled_at_boottime = now
        if self._failures or self.revoked or self.due_at_boottime <= now or self._urgent_tokens < 1:
            return
        self._urgent_tokens -= 1
        self.due_at_boottime = now

    def send(self, *, node_id: str) -> None:
        """Send one report and set when the next one is due."""
        if self._pending is None:
            self._pending = self._build(node_id)
        pending = self._pending
        outcome = self._sender.report(node_id=node_id, body=pending.body)
        match outcome:
            case Taken(reply=reply):
                if self._failures:
                    logger.info("the market can be reached again")
                self._settled(pending, reply, complete=reply.accepted)
            case Replayed(reply=reply):
                self._replayed(pending, reply)
            case Revoked(detail=detail):
                if not self.revoked:
                    logger.warning("the market revoked this node: %s", detail)
                self.revoked = True
                self._pending = None
                self._due_in(REVOKED_RETRY_SECONDS)
            case Refused():
                self._refused(pending, outcome)
            case Unreachable():
                self._unreachable(outcome)
            case _:
                assert_never(outcome)

    def _build(self, node_id: str) -> _Pending:
        self._sequence += 1
        self._same_report_tries = 0
        report = Report(
            protocol=PROTOCOL_VERSION,
            node_id=node_id,
            epoch=self._book.epoch,
            sequence=self._sequence,
            boot_id=self._boot_id,
            sent_at=self._clock.now(),
            agent_version=AGENT_VERSION,
            simulated=self._simulated,
            reader_hung_since=self.reader_hung_since,
            inventory=None if self._inventory_known else self.inventory,
            readings=[reading for look in self._readings for reading in look],
            leases=self._keeper.statuses(),
            meters=self._spool.meters(limit=min(self._batch, REPORT_METERS_MAX)),
            receipts=self._spool.receipts(limit=min(self._batch, REPORT_RECEIPTS_MAX)),
            spool_depth=self._spool.depth(),
            counters=self._watch.counters_to_tell(),
            events=self._spool.events(limit=min(self._batch, REPORT_EVENTS_MAX)),
            policy_version=self._watch.policy.version,
        )
        return _Pending(report=report, body=encode(report))

    def _settled(self, pending: _Pending, reply: ReportReply, *, complete: bool) -> None:
        """Take the report for stored and follow the answer; only a whole answer lists all grants."""
        report = pending.report
        self._pending = None
        self._failures = 0
        self.revoked = False
        self._spool.acknowledge(
            meters=[(m.epoch, m.sequence) for m in report.meters],
            receipts=[(r.lease_id, r.lease_epoch, r.kind.value) for r in report.receipts],
            events=[(e.epoch, e.sequence) for e in report.events],
        )
        self._watch.told(counters=report.counters)
        self._watch.follow(policy=reply.policy, vouched_at=reply.vouched_at)
        self._batch = min(self._batch * 2, REPORT_METERS_MAX)
        self._keeper.told(statuses=report.leases)
        self._forget_readings(report)
        if report.inventory is not None and report.inventory == self.inventory:
            self._inventory_known = True
        if reply.want_inventory:
            self._inventory_known = False
        moved = self._clock.learn(market_now=reply.now)
        if moved is not None:
            logger.warning(
                "the clock of this machine is %.0f s off the market's", moved.total_seconds()
            )
        self.grant_interval(seconds=reply.report_interval_seconds)
        self._keeper.apply(grants=reply.grants, complete=complete, at=self._clock.now())
        more = self._spool.depth() > 0 or reply.want_inventory
        self._due_in(min(1.0, self.interval_seconds) if more else self.interval_seconds)

    def _forget_readings(self, report: Report) -> None:
        told = {(r.gpu_uuid, r.measured_at) for r in report.readings}
        while self._readings and all(
            (r.gpu_uuid, r.measured_at) in told for r in self._readings[0]
        ):
            self._readings.popleft()

    def _replayed(self, pending: _Pending, reply: ReportReply) -> None:
        own = (pending.report.epoch, pending.report.sequence)
        last = (reply.last_epoch, reply.last_sequence)
        if last == own:
            logger.info("report %d.%d had arrived, its answer was lost", *own)
            self._settled(pending, reply, complete=False)
            self._due_in(min(1.0, self.interval_seconds))  # a whole answer is still to be fetched
            return
        self._pending = None
        if last > own:
            logger.warning("the market has seen report %d.%d, beyond our %d.%d", *last, *own)
            self._book.epoch = self._spool.raise_epoch(above=reply.last_epoch)
            self._sequence = 0
        self._put_off()

    def _refused(self, pending: _Pending, outcome: Refused) -> None:
        report = pending.report
        logger.warning(
            "the market refused report %d.%d: %d %s %s", report.epoch, report.sequence,
            outcome.status, outcome.code, outcome.detail,
        )  # fmt: skip
        self._pending = None
        about_content = outcome.status in (400, 413, 422)
        if about_content and (report.meters or report.receipts or report.events):
            if self._batch > 1:
                self._batch //= 2
            else:
                self._spool.set_aside(
                    meters=[(m.epoch, m.sequence) for m in report.meters],
                    receipts=[(r.lease_id, r.lease_epoch, r.kind.value) for r in report.receipts],
                    events=[(e.epoch, e.sequence) for e in report.events],
                    reason=f"{outcome.status} {outcome.code} {outcome.detail}",
                )
        self._put_off()

    def _unreachable(self, outcome: Unreachable) -> None:
        if not self._failures:
            logger.warning("the market cannot be reached: %s", outcome.detail)
        self._same_report_tries += 1
        if not outcome.arrived_perhaps:
            self._pending = None
        elif self._same_report_tries >= SAME_REPORT_TRIES_MAX:
            self._pending = None
            self._batch = max(1, self._batch // 2)
        self._put_off(retry_after_seconds=outcome.retry_after_seconds)

    def _put_off(self, *, retry_after_seconds: float | None = None) -> None:
        delay = backoff_seconds(
            failures=self._failures, interval_seconds=self.interval_seconds, dice=self._dice
        )
        if retry_after_seconds is not None:
            spread = min(RETRY_AFTER_JITTER_SECONDS, self.interval_seconds)
            delay = max(delay, retry_after_seconds + self._dice.uniform(0, spread))
        self._failures += 1
        self._due_in(delay)

    def _due_in(self, seconds: float) -> None:
        self.due_at_boottime = self._clock.boottime_seconds() + seconds


def backoff_seconds(*, failures: int, interval_seconds: int, dice: random.Random) -> float:
    """Return how long to wait after one more failure: full jitter, so that a fleet returns spread out.

    The bound doubles from 3 s up to four granted intervals, between 5 s and 60 s.
    """
    cap = min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS_MAX_LEAST, 4.0 * interval_seconds))
    return dice.uniform(0, min(cap, BACKOFF_BASE_SECONDS * 2 ** min(failures, 10)))
