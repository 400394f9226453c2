"""What comes back when the market was away: the peak of the reports, and whether each counts once.

    python -m tests.bench.bench_return [--nodes 10000] [--outage 300] [--sample 200]

The rates are computed in virtual time, with the agent's own `backoff_seconds` and the intervals that the
market grants. Whether anything is lost or counted twice is asked of the market itself: a sample of the nodes
reports through its real ingest to a database, with requests that never arrive and answers that get lost.
"""

import argparse
import collections
import datetime as dt
import heapq
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agents import protocol
from agents.node.reporting import backoff_seconds
from marketplace.management.postgres import ThrowAwayPostgres
from tests.bench.bench_ingest import ENVIRONMENT
from tests.bench.fleet import SimulatedNode, make_fleet

AUTHORITY = "127.0.0.1:8000"
STEADY_SECONDS = 300  # of reports before the outage, from which the steady rate is taken
RETURN_SECONDS = 600  # in which the fleet has come to rest again
PEAK_RATIO_MAX = 2.0
NEVER_ARRIVES, ANSWER_IS_LOST = 0.3, 0.3  # of the requests during the outage
METER_MINUTES = 5  # each GPU has measured that many minutes meanwhile
SEED = 20261125


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Requests a second: before, at most after the return, and at most while the market was away."""

    steady: float
    peak: int
    knocking: int
    heard_after_seconds: float

    @property
    def ratio(self) -> float:
        return self.peak / self.steady


def rates_of_return(
    *, intervals: Sequence[int], outage_seconds: float, dice: random.Random
) -> Rates:
    """Let a fleet report, lose the market for a while, and find it again, all in virtual time."""
    gone_at, back_at = STEADY_SECONDS, STEADY_SECONDS + outage_seconds
    events = [(dice.uniform(0, interval), number) for number, interval in enumerate(intervals)]
    heapq.heapify(events)
    failures = [0] * len(intervals)
    per_second: collections.Counter[int] = collections.Counter()
    first_heard_at: dict[int, float] = {}
    while events:
        at, number = heapq.heappop(events)
        if at >= back_at + RETURN_SECONDS:
            continue
        per_second[int(at)] += 1
        if gone_at <= at < back_at:
            delay = backoff_seconds(
                failures=failures[number], interval_seconds=intervals[number], dice=dice
            )
            failures[number] += 1
        else:
            failures[number] = 0
            delay = intervals[number]
            if at >= back_at:
                first_heard_at.setdefault(number, at - back_at)
        heapq.heappush(events, (at + delay, number))
    assert len(first_heard_at) == len(intervals), "a node did not come back"
    window = range(max(intervals), gone_at)
    return Rates(
        steady=sum(per_second[second] for second in window) / len(window),
        peak=max(per_second[s] for s in range(int(back_at), int(back_at) + RETURN_SECONDS)),
        knocking=max(per_second[second] for second in range(gone_at, int(back_at))),
        heard_after_seconds=max(first_heard_at.values()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--outage", type=float, default=300, help="in seconds")
    parser.add_argument("--sample", type=int, default=200, help="nodes that report in earnest")
    options = parser.parse_args()
    database = ThrowAwayPostgres()
    os.environ.update(ENVIRONMENT, DATABASE_URL=database.url)
    try:
        _bench(options)
    finally:
        database.stop()


def _bench(options: argparse.Namespace) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    from agents import pacing

    call_command("migrate", verbosity=0)
    dice = random.Random(SEED)
    now = dt.datetime.now(tz=dt.UTC)
    pacing.remember_count(nodes=options.nodes)
    intervals = [
        pacing.granted_interval_seconds(node_id=f"nde_{number:026d}", at=now)
        for number in range(options.nodes)
    ]
    rates = rates_of_return(intervals=intervals, outage_seconds=options.outage, dice=dice)
    sys.stdout.write(
        f"{options.nodes} nodes, granted {min(intervals)} to {max(intervals)} s; away for"
        f" {options.outage:.0f} s\n"
        f"steady    {rates.steady:.0f} reports a second\n"
        f"knocking  {rates.knocking} a second at most while the market is away\n"
        f"return    {rates.peak} a second at most, {rates.ratio:.2f} of the steady rate;"
        f" all heard after {rates.heard_after_seconds:.0f} s\n"
    )
    lost, twice, stored = _exactly_once(count=options.sample, at=now, dice=dice)
    sys.stdout.write(
        f"{options.sample} nodes in earnest: {stored} meter rows stored, {lost} lost, {twice} twice\n"
    )
    if rates.ratio > PEAK_RATIO_MAX or lost or twice:
        raise SystemExit("the return is too steep, or something was lost or counted twice")


def _exactly_once(*, count: int, at: dt.datetime, dice: random.Random) -> tuple[int, int, int]:
    """Send the reports of some nodes through an outage; return rows lost, rows doubled, rows stored."""
    from django.db.models import Count

    from agents.models import MeterReading

    fleet = make_fleet(count=count, authority=AUTHORITY, at=at)
    for node in fleet:
        _report_until_answered(node=node, at=at, dice=dice)
    rows = MeterReading.objects.values("node_id", "epoch", "sequence").annotate(times=Count("pk"))
    times = {(row["node_id"], row["sequence"]): row["times"] for row in rows}
    made = [
        (node.node_id, number) for node in fleet for number in range(1, node.meter_sequence + 1)
    ]
    lost = sum(key not in times for key in made)
    twice = sum(number > 1 for number in times.values()) + len(times.keys() - set(made))
    return lost, twice, sum(times.values())


def _report_until_answered(*, node: SimulatedNode, at: dt.datetime, dice: random.Random) -> None:
    """Send one report with what waited, the same bytes again until an answer comes, as an agent does."""
    from agents import ingest

    meters = METER_MINUTES * len(node.gpu_uuids)
    body = node.body(at=at, meters=meters)
    while True:
        fate = dice.random()
        if fate < NEVER_ARRIVES:
            continue
        try:
            _take(node=node, body=body, at=at)
        except ingest.ReportReplayed as refusal:
            reply = protocol.from_json(protocol.ReportReply, refusal.extra["reply"])
            assert (reply.last_epoch, reply.last_sequence) == (1, node.sequence)
        if fate >= NEVER_ARRIVES + ANSWER_IS_LOST:
            return


def _take(*, node: SimulatedNode, body: bytes, at: dt.datetime) -> None:
    """Take one signed request as the web server does."""
    from agents import envelope, ingest

    digest, parameters, signature = node.signature(body=body, at=at)
    signed = envelope.SignedRequest(
        method="POST",
        authority=AUTHORITY,
        path=protocol.REPORT_PATH,
        body=body,
        content_encoding="",
        content_digest=digest,
        signature_input=f"sig1={parameters}",
        signature=f"sig1=:{signature}:",
    )
    standing = ingest.authenticate(signed=signed, at=at)
    report = envelope.decode(message_type=protocol.Report, signed=signed)
    ingest.accept(node=standing.node, report=report, at=at, standing=standing)


if __name__ == "__main__":
    main()
