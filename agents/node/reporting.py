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
from agents.node.host import StateUnusable
from agents.node.keys import KeyRing
from agents.node.leasebook import LeaseBook
from agents.node.leases import LeaseKeeper
from agents.node.metering import SHORT_INTERVAL_SECONDS
from agents.node.sender import Refused, Replayed, Revoked, Sender, Taken, Unreachable
from agents.node.spool import Spool
from agents.node.watch import HealthWatch
from agents.protocol import (
    PROTOCOL_VERSION,
    REPORT_BODY_BYTES_MAX,
    REPORT_EVENTS_MAX,
    REPORT_METERS_MAX,
    REPORT_RECEIPTS_MAX,
    REPORT_WARNINGS_MAX,
    TEXT_LENGTH_MAX,
    GpuIdentity,
    HostFacts,
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
# After its start an enrolled node waits a part of this before it speaks, so that a site whose power returns
# does not speak with one voice; where reports come every few seconds, somebody watches and waits.
FIRST_REPORT_SECONDS_MAX = 30.0
REVOKED_RETRY_SECONDS = 300.0
# A report that meets only server errors may be their cause; a smaller one under a new pair may pass. Nothing
# is counted twice by that, because meters and receipts have names of their own.
SAME_REPORT_TRIES_MAX = 5
# A change of a lease is told at once, five times in a row and then every two seconds.
URGENT_BURST, URGENT_EVERY_SECONDS = 5.0, 2.0
TIDY_SECONDS = 60.0  # the spool's housekeeping; each piece of it is small
ROTATE_RETRY_SECONDS = 3600.0  # after a refusal, which another try at once would only repeat


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
        key: KeyRing,
        boot_id: str,
        simulated: bool,
        dice: random.Random,
    ) -> None:
        remembered = spool.value(name="report_interval_seconds")
        self.interval_seconds = int(remembered or INTERVAL_SECONDS_DEFAULT)
        self.revoked = False
        self.inventory: list[GpuIdentity] | None = None
        self.reader_hung_since: dt.datetime | None = None
        # What the owner should know beside what the spool says of itself; set by whoever finds it.
        self.warnings: list[str] = []
        self.host: HostFacts | None = None  # goes with the inventory
        self.due_at_boottime = clock.boottime_seconds() + first_report_seconds(
            interval_seconds=self.interval_seconds, dice=dice
        )
        self._spool = spool
        self._sender = sender
        self._keeper = keeper
        self._watch = watch
        self._clock = clock
        self._book = book
        self._key = key
        self._spoke = False
        self._tidy_at_boottime = clock.boottime_seconds()
        self._rotate_at_boottime = clock.boottime_seconds()
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

        While the market cannot be reached, its back-off stands: a change is no reason to knock harder. So
        does the wait before the first report, in which every lease is news.
        """
        now = self._clock.boottime_seconds()
        filled = (now - self._urgent_filled_at_boottime) / URGENT_EVERY_SECONDS
        self._urgent_tokens = min(URGENT_BURST, self._urgent_tokens + filled)
        self._urgent_filled_at_boottime = now
        waits = self._failures or self.revoked or not self._spoke
        if waits or self.due_at_boottime <= now or self._urgent_tokens < 1:
            return
        self._urgent_tokens -= 1
        self.due_at_boottime = now

    def send(self, *, node_id: str) -> None:
        """Send one report and set when the next one is due."""
        self._spoke = True
        if self._clock.boottime_seconds() >= self._tidy_at_boottime:
            self._tidy_at_boottime = self._clock.boottime_seconds() + TIDY_SECONDS
            self._spool.tidy(at=self._clock.now())
        if self._pending is None:
            self._pending = self._build(node_id)
        pending = self._pending
        outcome = self._sender.report(node_id=node_id, body=pending.body)
        match outcome:
            case Taken(reply=reply):
                if self._failures:
                    logger.info("the market can be reached again")
                self._settled(pending, reply, complete=reply.accepted)
                self._change_key(node_id=node_id, asked=reply.rotate_key)
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
        """Put together the next report, as much as its bytes may hold: the rest waits for the one after."""
        self._sequence += 1
        self._same_report_tries = 0
        batch = self._batch
        looks = list(self._readings)
        while True:
            report = self._report(node_id, batch=batch, looks=looks)
            body = encode(report)
            if len(body) <= REPORT_BODY_BYTES_MAX or (batch == 1 and not looks):
                return _Pending(report=report, body=body)
            if batch > 1:
                batch //= 2
            else:
                looks.pop(0)

    def _report(self, node_id: str, *, batch: int, looks: list[list[Reading]]) -> Report:
        warnings = [*self._spool.warnings(), *self.warnings]
        return Report(
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
            host=None if self._inventory_known else self.host,
            readings=[reading for look in looks for reading in look],
            leases=self._keeper.statuses(),
            meters=self._spool.meters(limit=min(batch, REPORT_METERS_MAX)),
            receipts=self._spool.receipts(limit=min(batch, REPORT_RECEIPTS_MAX)),
            events=self._spool.events(limit=min(batch, REPORT_EVENTS_MAX)),
            spool_depth=self._spool.depth(),
            counters=self._watch.counters_to_tell(),
            policy_version=self._watch.policy.version,
            warnings=[text[:TEXT_LENGTH_MAX] for text in warnings[:REPORT_WARNINGS_MAX]],
        )

    def _settled(self, pending: _Pending, reply: ReportReply, *, complete: bool) -> None:
        """Take the report for stored and follow the answer; only a whole answer lists all grants."""
        report = pending.report
        self._pending = None
        self._failures = 0
        self.revoked = False
        self._keep_key()
        self._spool.acknowledge(
            meters=[(m.epoch, m.sequence) for m in report.meters],
            receipts=[(r.lease_id, r.lease_epoch, r.kind.value) for r in report.receipts],
            events=[(e.epoch, e.sequence) for e in report.events],
            at=self._clock.now(),
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
        if outcome.status == 401 and outcome.code != "clock_skew" and self._key.was_refused():
            self._put_off()
            return
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

    def _change_key(self, *, node_id: str, asked: bool) -> None:
        """Have the market know this node by a new key, if the market or a person at the node asks for it."""
        now = self._clock.boottime_seconds()
        if not (asked or self._key.is_change_wished()) or now < self._rotate_at_boottime:
            return
        try:
            candidate = self._key.candidate()
        except StateUnusable as error:
            self._put_key_off(str(error))
            return
        outcome = self._sender.rotate(node_id=node_id, candidate=candidate)
        if isinstance(outcome, Unreachable):
            logger.warning("the new key may not have reached the market: %s", outcome.detail)
            return
        if isinstance(outcome, Refused) or outcome.public_key.rstrip("=") != candidate.public_key:
            self._put_key_off(f"the market does not take it: {outcome}")
            return
        try:
            self._key.promote()
        except StateUnusable as error:
            self._put_key_off(str(error))
            return
        logger.info("the market knows this node by its new key")

    def _put_key_off(self, why: str) -> None:
        logger.warning("the key of this node is not changed now: %s", why)
        self._rotate_at_boottime = self._clock.boottime_seconds() + ROTATE_RETRY_SECONDS

    def _keep_key(self) -> None:
        """Put the key in its place that a report was taken under; a disk that fails is tried again."""
        try:
            self._key.was_taken()
        except StateUnusable as error:
            logger.warning("the key that the market knows stays beside its place: %s", error)

    def _put_off(self, *, retry_after_seconds: float | None = None) -> None:
        delay = backoff_seconds(
            failures=self._failures, interval_seconds=self.interval_seconds, dice=self._dice
        )
        if retry_after_seconds is not None:
            # Spread over an interval, a fleet that was told the same comes back at its usual rate.
            spread = self._dice.uniform(0, self.interval_seconds)
            delay = max(delay, retry_after_seconds + spread)
        self._failures += 1
        self._due_in(delay)

    def _due_in(self, seconds: float) -> None:
        self.due_at_boottime = self._clock.boottime_seconds() + seconds


def first_report_seconds(*, interval_seconds: int, dice: random.Random) -> float:
    """Return how long an enrolled node waits after its start before its first report."""
    if interval_seconds <= SHORT_INTERVAL_SECONDS:
        return 0.0
    return dice.uniform(0, min(FIRST_REPORT_SECONDS_MAX, float(interval_seconds)))


def backoff_seconds(*, failures: int, interval_seconds: int, dice: random.Random) -> float:
    """Return how long to wait after one more failure: full jitter, so that a fleet returns spread out.

    The bound doubles from 3 s up to four granted intervals, between 5 s and 60 s.
    """
    cap = min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS_MAX_LEAST, 4.0 * interval_seconds))
    return dice.uniform(0, min(cap, BACKOFF_BASE_SECONDS * 2 ** min(failures, 10)))
