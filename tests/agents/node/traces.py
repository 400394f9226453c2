"""Eight workloads as scripts at a resolution of one second, looked at as a reader does, and rules to judge.

A trace is a run of spans in which nothing changes. A look every 15 s sees what NVML would tell: the load of
that second, mean and highest load since the look before, the energy counter, memory, and the processes of
the last list. `rate` plays a trace against a rule and says how often the rule was wrong.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from agents.node import idle
from agents.node.reader import Sample
from agents.protocol import IdlePolicy, IdleState

START = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)  # a Monday
DAY, HOUR, MINUTE = 86_400, 3600, 60
LOOK_SECONDS = 15
PRODUCT = "NVIDIA A100-SXM4-80GB"
REST_MILLIWATTS = 57_000
CONTEXT_MILLIWATTS = 66_000  # a context keeps the clocks up a little
PEAK_MILLIWATTS = 400_000
AFTER_CURE_MILLIWATTS = 100_000  # a cured card takes half an hour to cool its clocks down
AFTER_CURE_SECONDS = 30 * MINUTE
DRIVER_BYTES = 4 << 20
GIB = 1 << 30
SHORT_OFFER_SECONDS = 10 * MINUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """So many seconds in which a GPU does the same. `cured` replaces it once somebody has cured the GPU."""

    seconds: int
    load: int = 0
    memory_bytes: int = DRIVER_BYTES
    processes: int = 0
    milliwatts: int = REST_MILLIWATTS
    latched: bool = False

    @property
    def held(self) -> bool:
        return self.processes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look: the sample, the load of that very second, and what is true."""

    sample: Sample
    point_load: int
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a rule did on a trace; shares are of looks."""

    looks: int
    held_looks: int
    offered_held_looks: int
    offered_idle_looks: int
    offers: int
    short_offers: int
    days: float

    @property
    def offered_while_held_percent(self) -> float:
        """Of all looks: the GPU is offered while somebody holds it."""
        return 100 * self.offered_held_looks / self.looks

    @property
    def truly_idle_percent(self) -> float:
        return 100 * (self.looks - self.held_looks) / self.looks

    @property
    def found_percent(self) -> float | None:
        """Of the truly idle looks: the GPU is offered. `None` when there are none."""
        idle_looks = self.looks - self.held_looks
        return 100 * self.offered_idle_looks / idle_looks if idle_looks else None

    @property
    def short_offers_per_day(self) -> float:
        """Offers that were taken back within ten minutes."""
        return self.short_offers / self.days


# --- the workloads ---------------------------------------------------------------------------------------


def training(*, dice: random.Random) -> Iterator[Span]:
    """Steps of some seconds with pauses for data, a checkpoint every half hour, a new run now and then."""
    while True:
        for _ in range(dice.randint(80, 120)):
            yield _work(seconds=dice.randint(12, 25), load=dice.randint(85, 100), gib=70)
            yield _held(seconds=dice.randint(1, 2), gib=70)
        yield _held(seconds=dice.randint(30, 100), gib=70)


def inference_with_short_gaps(*, dice: random.Random) -> Iterator[Span]:
    """A server that answers for three seconds about every five minutes."""
    while True:
        yield _held(seconds=max(20, round(dice.expovariate(1 / (5 * MINUTE)))), gib=40)
        yield _work(seconds=dice.randint(2, 4), load=dice.randint(30, 80), gib=40)


def inference_hourly(*, dice: random.Random) -> Iterator[Span]:
    """A server that is asked once an hour."""
    while True:
        yield _held(seconds=HOUR - dice.randint(5, 20), gib=40)
        yield _work(seconds=dice.randint(5, 20), load=dice.randint(30, 80), gib=40)


def notebook(*, dice: random.Random) -> Iterator[Span]:
    """A person from nine to six: cells that run, long thoughts; two evenings of five it is left open."""
    for day in range(10_000):
        if day % 7 >= 5:
            yield Span(seconds=DAY)
            continue
        yield Span(seconds=9 * HOUR)
        left = 9 * HOUR
        while left > 0:
            seconds = min(left, dice.randint(5, 90))
            yield _work(seconds=seconds, load=dice.randint(20, 95), gib=10)
            left -= seconds
            seconds = min(left, round(dice.expovariate(1 / (6 * MINUTE))))
            if seconds > 0:
                yield _held(seconds=seconds, gib=10)
            left -= seconds
        rest = 6 * HOUR
        yield _held(seconds=rest, gib=10) if day % 5 in (1, 3) else Span(seconds=rest)


def batch_queue(*, dice: random.Random) -> Iterator[Span]:
    """About four times a day a queue of six jobs with minutes between them, then nothing for hours."""
    while True:
        for number in range(6):
            if number:
                yield Span(seconds=dice.randint(60, 320))
            yield _held(seconds=dice.randint(10, 40), gib=50)  # the program loads
            yield _work(
                seconds=dice.randint(18 * MINUTE, 55 * MINUTE), load=dice.randint(60, 99), gib=50
            )
        yield Span(seconds=round(dice.triangular(8 * MINUTE, 5 * HOUR, 2 * HOUR)))


def pipeline_rank(*, dice: random.Random) -> Iterator[Span]:
    """A stage that works one second in five, and never in the one in which somebody looks."""
    while True:
        yield _held(seconds=2, gib=60)
        yield _work(seconds=1, load=dice.randint(80, 100), gib=60)
        yield _held(seconds=2, gib=60)


def parked_memory(*, dice: random.Random) -> Iterator[Span]:
    """A model that was loaded and forgotten."""
    del dice
    yield _held(seconds=10_000 * DAY, gib=60)


def ghost_latch(*, dice: random.Random) -> Iterator[Span]:
    """Nobody is there, but every four days the driver latches at full load until somebody cures it."""
    while True:
        yield Span(seconds=6 * HOUR + dice.randint(0, HOUR))
        yield Span(seconds=4 * DAY, load=100, milliwatts=AFTER_CURE_MILLIWATTS, latched=True)


def really_idle(*, dice: random.Random) -> Iterator[Span]:
    """Nobody is there."""
    while True:
        yield Span(seconds=MINUTE, milliwatts=REST_MILLIWATTS + dice.randint(-2000, 2000))


def _held(*, seconds: int, gib: int) -> Span:
    return Span(seconds=seconds, memory_bytes=gib * GIB, processes=1, milliwatts=CONTEXT_MILLIWATTS)


def _work(*, seconds: int, load: int, gib: int) -> Span:
    milliwatts = CONTEXT_MILLIWATTS + (PEAK_MILLIWATTS - CONTEXT_MILLIWATTS) * load // 100
    return Span(
        seconds=seconds, load=load, memory_bytes=gib * GIB, processes=1, milliwatts=milliwatts
    )


Workload = Callable[..., Iterator[Span]]
WORKLOADS: dict[str, Workload] = {
    "training with gaps": training,
    "inference, 5-minute gaps": inference_with_short_gaps,
    "inference, hourly": inference_hourly,
    "notebook": notebook,
    "batch queue": batch_queue,
    "pipeline rank": pipeline_rank,
    "parked memory": parked_memory,
    "ghost latch": ghost_latch,
}
IDLE_WORKLOAD: dict[str, Workload] = {"really idle": really_idle}


# --- looking ---------------------------------------------------------------------------------------------


class Player:
    """A GPU that follows a script second by second; `cure` ends a latch."""

    def __init__(self, *, workload: Workload, seed: int) -> None:
        self._spans = workload(dice=random.Random(seed))
        self._span = next(self._spans)
        self._left = self._span.seconds
        self._second = 0
        self._energy_millijoules = 0
        self._list: tuple[int, dt.datetime] | None = None

    def look(self, *, with_processes: bool) -> Look:
        """Return what a look sees at this second, after the 15 s before it."""
        highest, total = 0, 0
        for _ in range(LOOK_SECONDS):
            highest = max(highest, self._span.load)
            total += self._span.load
            self._energy_millijoules += self._span.milliwatts
            self._second += 1
            self._left -= 1
            if self._left == 0:
                self._span = next(self._spans)
                self._left = self._span.seconds
        at = START + dt.timedelta(seconds=self._second)
        if with_processes:
            self._list = (self._span.processes, at)
        count, listed_at = self._list or (None, None)
        sample = Sample(
            gpu_uuid="GPU-0",
            measured_at=at,
            utilization_percent=round(total / LOOK_SECONDS),
            utilization_max_percent=highest,
            memory_used_bytes=self._span.memory_bytes,
            power_draw_milliwatts=self._span.milliwatts,
            energy_millijoules=self._energy_millijoules,
            process_count=count,
            processes_at=listed_at,
        )
        return Look(sample=sample, point_load=self._span.load, held=self._span.held)

    def list_processes(self, *, look: Look) -> Look:
        """Return the same look with a list of processes, as a second read gives it."""
        self._list = (self._span.processes, look.sample.measured_at)
        sample = replace(
            look.sample,
            process_count=self._span.processes,
            processes_at=look.sample.measured_at,
        )
        return replace(look, sample=sample)

    def cure(self) -> None:
        """Open and close a context: a latch ends, the power takes a while."""
        if self._span.latched:
            rest = self._left - AFTER_CURE_SECONDS
            script = self._spans
            after = Span(seconds=AFTER_CURE_SECONDS, milliwatts=AFTER_CURE_MILLIWATTS)

            def healed() -> Iterator[Span]:
                yield Span(seconds=max(1, rest))
                yield from script

            self._span, self._left, self._spans = after, AFTER_CURE_SECONDS, healed()


# --- rules -----------------------------------------------------------------------------------------------


class Rule:
    """Says after each look whether the GPU is offered."""

    def offered(self, *, look: Look, player: Player) -> bool:
        raise NotImplementedError

    def wants_processes(self, *, at: dt.datetime) -> bool:
        """Say whether the next look needs a list of processes."""
        del at
        return True


class OurRule(Rule):
    """The agent's own: `idle.step`, lists as seldom as it asks for them, cures where it wants them."""

    def __init__(self, *, policy: IdlePolicy | None = None) -> None:
        self._policy = policy or IdlePolicy()
        self.track = idle.begin(product_name=PRODUCT)
        self.lists = 0
        self.parked = False

    def wants_processes(self, *, at: dt.datetime) -> bool:
        wanted = self.track.wants_processes(at=at)
        self.lists += wanted
        return wanted

    def offered(self, *, look: Look, player: Player) -> bool:
        if self.track.wants_processes_with(sample=look.sample):
            self.lists += 1
            look = player.list_processes(look=look)
        self.track = idle.step(track=self.track, sample=look.sample, policy=self._policy)
        if self.track.wants_cure(at=look.sample.measured_at):
            player.cure()
            self.track = idle.cured(track=self.track, at=look.sample.measured_at, succeeded=True)
        self.parked = self.parked or self.track.state is IdleState.PARKED
        return self.track.state is IdleState.FREE


class LastLooks(Rule):
    """A rule of thumb: so many looks in a row in which a figure is small."""

    def __init__(self, *, figure: Callable[[Look], int], most: int, looks: int) -> None:
        self._figure = figure
        self._most = most
        self._looks = looks
        self._small = 0

    def offered(self, *, look: Look, player: Player) -> bool:
        del player
        self._small = self._small + 1 if self._figure(look) <= self._most else 0
        return self._small >= self._looks


def _point(look: Look) -> int:
    return look.point_load


def _highest(look: Look) -> int:
    return look.sample.utilization_max_percent or 0


def _processes(look: Look) -> int:
    return look.sample.process_count or 0


HALF_HOUR_LOOKS = 30 * MINUTE // LOOK_SECONDS
RULES_OF_THUMB: dict[str, Callable[[], Rule]] = {
    "load == 0 now": lambda: LastLooks(figure=_point, most=0, looks=1),
    "load < 5 % in 5 looks": lambda: LastLooks(figure=_point, most=4, looks=5),
    "load <= 1 % for 30 min": lambda: LastLooks(figure=_point, most=1, looks=HALF_HOUR_LOOKS),
    "highest load <= 1 % for 30 min": lambda: LastLooks(
        figure=_highest, most=1, looks=HALF_HOUR_LOOKS
    ),
    "no process now": lambda: LastLooks(figure=_processes, most=0, looks=1),
}


def rate(*, workload: Workload, rule: Rule, days: float, seed: int = 1) -> Score:
    """Play so many days of a workload against a rule."""
    player = Player(workload=workload, seed=seed)
    looks = round(days * DAY) // LOOK_SECONDS
    held_looks = offered_held = offered_idle = offers = short_offers = run = 0
    for number in range(looks):
        at = START + dt.timedelta(seconds=(number + 1) * LOOK_SECONDS)
        look = player.look(with_processes=rule.wants_processes(at=at))
        offered = rule.offered(look=look, player=player)
        held_looks += look.held
        offered_held += offered and look.held
        offered_idle += offered and not look.held
        if offered:
            offers += run == 0
            run += 1
        else:
            short_offers += 0 < run * LOOK_SECONDS < SHORT_OFFER_SECONDS
            run = 0
    return Score(
        looks=looks,
        held_looks=held_looks,
        offered_held_looks=offered_held,
        offered_idle_looks=offered_idle,
        offers=offers,
        short_offers=short_offers,
        days=days,
    )


# --- what a rule must reach ------------------------------------------------------------------------------

BATCH_FOUND_PERCENT_MIN = 80.0
IDLE_FOUND_PERCENT_MIN = 99.0
# An offer that is taken back within minutes is a tenant's lease that the owner must break.
SHORT_OFFERS_PER_DAY_MAX = 3.0


def broken_bars(*, rule: Callable[[], Rule], days: float) -> list[str]:
    """Return what a rule does not reach, each in words; a good rule breaks nothing."""
    broken = []
    scores = {
        name: rate(workload=workload, rule=rule(), days=days)
        for name, workload in {**WORKLOADS, **IDLE_WORKLOAD}.items()
    }
    for name, score in scores.items():
        if score.offered_held_looks:
            share = score.offered_while_held_percent
            broken.append(f"{name}: offered while held {share:.2f} % of the time")
        if score.short_offers_per_day > SHORT_OFFERS_PER_DAY_MAX:
            broken.append(f"{name}: {score.short_offers_per_day:.1f} short offers a day")
    for name, least in _found_bars():
        found = scores[name].found_percent
        if found is None or found < least:
            broken.append(f"{name}: only {found or 0:.1f} % of its idle time is found")
    return broken


def _found_bars() -> Sequence[tuple[str, float]]:
    return (
        ("batch queue", BATCH_FOUND_PERCENT_MIN),
        ("really idle", IDLE_FOUND_PERCENT_MIN),
        ("ghost latch", IDLE_FOUND_PERCENT_MIN),
    )
