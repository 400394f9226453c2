"""The reclaimable tier on what firm tenants leave: who would use it is assumed, not measured.

Half of the flexible tenants whom the firm price turned away would pay 60 % of their value for GPUs that can
be taken back; besides there is a stream of short jobs. Sessions begin at once or never, keep their rate, and
the one that started last is reclaimed first.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.backtest.demand import Demand, Floats, Ints
from scheduler.backtest.policies import base_micros, floor_micros
from scheduler.pricing import Rule, reclaimable
from scheduler.pricing.limits import MICROS_PER_UNIT, aligned

TURNED_AWAY_SHARE, TURNED_AWAY_VALUE = 0.5, 0.6
STREAM_SHARE = 0.3  # of the pool's GPU-hours
STREAM_SIZES = (1, 2, 4, 8)
STREAM_HOURS_MAX = 12
STREAM_VALUE_MEDIAN, STREAM_VALUE_SIGMA = 1.2, 0.5
RECLAIM_MEMORY_HOURS = (
    168  # of sessions that ended so long ago the likelihood of a reclaim is learnt
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotOutcome:
    revenue: float
    use: float
    price_mean: float | None
    sessions: int
    reclaimed_share: float
    rates: Floats


@dataclass(slots=True)
class _Session:
    gpus: int
    ends: int
    rate: float


class Spot:
    """Sessions of one replay; the same seed gives the same sessions."""

    def __init__(self, *, seed: int, rule: Rule, has_stream: bool = True) -> None:
        self._rule = rule
        self._seed = seed
        self._has_stream = has_stream

    def open(self, demand: Demand) -> None:
        """Begin a replay."""
        self._demand = demand
        self._rng = np.random.default_rng([self._seed, 46])
        mean_hours = (1 + STREAM_HOURS_MAX) / 2
        gpu_hours = self._has_stream * STREAM_SHARE * demand.capacity * demand.horizon_hours
        count = round(gpu_hours / (float(np.mean(STREAM_SIZES)) * mean_hours))
        self._stream_hour = np.sort(self._rng.integers(0, demand.horizon_hours, count))
        self._stream_gpus = self._rng.choice(np.array(STREAM_SIZES), count)
        self._stream_hours = self._rng.integers(1, STREAM_HOURS_MAX + 1, count)
        self._stream_value = STREAM_VALUE_MEDIAN * np.exp(
            self._rng.normal(0, STREAM_VALUE_SIGMA, count)
        )
        flexible = np.diff(demand.first, append=len(demand.starts)) > 1
        self._would_come = flexible & (self._rng.random(len(demand)) < TURNED_AWAY_SHARE)
        self._waiting: dict[int, list[int]] = {}
        self._running: list[_Session] = []
        self._micros = np.zeros(demand.horizon_hours, dtype=np.int64)
        self._ended: list[tuple[int, bool]] = []
        self._rates = np.zeros(demand.horizon_hours)
        self._revenue = self._used = 0.0
        self._sessions = self._reclaimed = 0

    def advance(
        self, *, hour: int, firm_rates: Floats, firm_sold: Ints, rejected: np.ndarray, begin: int
    ) -> None:
        """Play one hour after its firm sales: reclaim, let sessions begin, and charge those that run."""
        demand = self._demand
        for number in begin + np.flatnonzero(
            rejected & self._would_come[begin : begin + len(rejected)]
        ):
            start = max(hour, int(demand.starts[demand.first[number]]))
            self._waiting.setdefault(start, []).append(int(number))
        self._running = [session for session in self._running if self._goes_on(session, hour=hour)]
        room = demand.capacity - int(firm_sold[hour]) - sum(s.gpus for s in self._running)
        while room < 0:
            latest = self._running.pop()
            room += latest.gpus
            self._reclaimed += 1
            self._ended.append((hour, True))
        rate = self._rate(hour=hour, firm_rates=firm_rates, firm_sold=firm_sold)
        self._rates[hour] = rate
        for gpus, length, value in self._coming(hour):
            if value >= rate and gpus <= room:
                self._running.append(_Session(gpus, hour + length, rate))
                self._sessions += 1
                room -= gpus
        self._revenue += sum(session.gpus * session.rate for session in self._running)
        self._used += sum(session.gpus for session in self._running)

    def outcome(self) -> SpotOutcome:
        """Return what the tier brought."""
        demand = self._demand
        return SpotOutcome(
            revenue=self._revenue,
            use=self._used / (demand.capacity * demand.horizon_hours),
            price_mean=self._revenue / self._used if self._used else None,
            sessions=self._sessions,
            reclaimed_share=self._reclaimed / self._sessions if self._sessions else 0.0,
            rates=self._rates.copy(),
        )

    def _goes_on(self, session: _Session, *, hour: int) -> bool:
        if session.ends > hour:
            return True
        self._ended.append((hour, False))
        return False

    def _coming(self, hour: int) -> list[tuple[int, int, float]]:
        demand = self._demand
        lower, upper = np.searchsorted(self._stream_hour, [hour, hour + 1])
        coming = [
            (int(demand.gpus[n]), int(demand.hours[n]), TURNED_AWAY_VALUE * float(demand.value[n]))
            for n in self._waiting.pop(hour, [])
        ]
        coming += [
            (int(self._stream_gpus[n]), int(self._stream_hours[n]), float(self._stream_value[n]))
            for n in range(int(lower), int(upper))
        ]
        return [coming[n] for n in self._rng.permutation(len(coming))]

    def _rate(self, *, hour: int, firm_rates: Floats, firm_sold: Ints) -> float:
        """Return the tier's rate of the running hour, through the market's own code."""
        hours = min(RECLAIM_MEMORY_HOURS, self._demand.horizon_hours - hour)
        span = slice(hour, hour + hours)
        used = firm_sold[span].copy()
        for session in self._running:
            used[: session.ends - hour] += session.gpus
        self._ended = [each for each in self._ended if each[0] > hour - RECLAIM_MEMORY_HOURS]
        reclaimed = sum(was_reclaimed for _, was_reclaimed in self._ended)
        likelihood = 10_000 * reclaimed // max(1, len(self._ended))
        vector = reclaimable.refresh(
            firm_micros=np.round(firm_rates[span] * MICROS_PER_UNIT).astype(np.int64),
            base_micros=base_micros(self._demand),
            floor_micros=np.full(hours, floor_micros(self._demand), dtype=np.int64),
            capacity=np.full(hours, self._demand.capacity, dtype=np.int64),
            used=used,
            likelihood=np.full(hours, likelihood, dtype=np.int64),
            rule=self._rule,
            opening=aligned(micros=self._micros, first_hour=0, to_first_hour=hour, hours=hours),
        )
        self._micros[span] = vector.rate_micros
        return float(vector.rate_micros[0]) / MICROS_PER_UNIT
