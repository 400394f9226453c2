"""Learn a pool's demand from what tenants asked for, and say how much of it is still to come.

Two things are learnt apart. The *shape*: in which hours windows start, how long, how large and how far ahead
they are asked for; fitted on four weeks of requests. The *level*: how many come, relearnt at every refresh on
two time scales, because level shifts dominate seasonality. Requests come de-duplicated: one per tenant,
window and hour, and capped per tenant, so that nobody talks a price up alone.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scheduler.pricing.rule import HOURS_PER_WEEK, Rule

Floats: TypeAlias = npt.NDArray[np.float64]
Hours: TypeAlias = npt.NDArray[np.int64]

FIT_HOURS = 4 * HOURS_PER_WEEK  # long enough for four of each weekday, short enough to forget
PROFILE_PRIOR_REQUESTS = (
    8.0  # an hour of the week counts this many requests of the mean before its own
)
DURATION_HOURS_MAX = (
    24 * HOURS_PER_WEEK
)  # longer windows count as this long; it bounds the convolution
LEAD_HOURS_MAX = 180 * 24  # nothing is sold further ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """De-duplicated requests, one per row: when asked, for which start, for how long, for how many GPUs.

    Hours are whole hours since the Unix epoch, or of any clock that has the same one for all of them.
    """

    asked_hours: Hours
    start_hours: Hours
    duration_hours: Hours
    gpus: Hours

    def __len__(self) -> int:
        return len(self.asked_hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a pool's demand is distributed, its level apart.

    `starts_by_hour_of_week`: windows asked for per hour, by start hour modulo 168. `survival[i]`: share of
    the demanded GPUs whose windows are longer than `i` hours. `lead_share[i]`: share of requests asked less
    than `i` hours ahead of the hour they start in; the last value holds beyond. `size_ratio`: E[n²] ÷ E[n].
    """

    starts_by_hour_of_week: Floats
    mean_gpus: float
    size_ratio: float
    survival: Floats
    lead_share: Floats

    def scaled(self, factor: float) -> "Shape":
        """Return the same shape at another level."""
        return replace(self, starts_by_hour_of_week=self.starts_by_hour_of_week * factor)

    def flat(self) -> "Shape":
        """Return the same demand without a weekly profile."""
        mean = np.full(HOURS_PER_WEEK, self.starts_by_hour_of_week.mean())
        return replace(self, starts_by_hour_of_week=mean)

    def starts(self, *, first_hour: int, hours: int) -> Floats:
        """Return how many windows start in each of some hours."""
        which = np.arange(first_hour, first_hour + hours) % HOURS_PER_WEEK
        starts: Floats = self.starts_by_hour_of_week[which]
        return starts

    def leads(self, hours: int) -> Floats:
        """Return per hour from the running one the share of its requests that are still to come.

        Those of the running hour are: what starts `i` hours ahead is still asked for with up to `i` hours'
        notice.
        """
        shares = self.lead_share[1:]
        known = min(hours, len(shares))
        return np.concatenate([shares[:known], np.full(hours - known, shares[-1])])

    def asked(self, *, first_hour: int, hours: int) -> float:
        """Return how many requests are asked in some hours, whatever they ask for."""
        leads = np.diff(self.lead_share, prepend=0.0)[1:]
        starts = self.starts(first_hour=first_hour, hours=hours + len(leads))
        reach = np.concatenate([[0.0], np.cumsum(starts)])
        by_lead = reach[hours : hours + len(leads)] - reach[: len(leads)]
        return float(leads @ by_lead)


@dataclass(frozen=True, slots=True)
class Levels:
    """By how much demand exceeds its shape: at every lead, and on top of it near the present."""

    slow: float = 1.0
    fast: float = 1.0


def fit(*, requests: Requests, now_hour: int, rule: Rule) -> Shape | None:
    """Fit the shape on the requests asked in the four weeks before `now_hour`, or `None` on too few.

    Younger than four weeks: on the time since the first request.
    """
    asked = requests.asked_hours
    recent = (asked >= now_hour - FIT_HOURS) & (asked < now_hour)
    count = int(recent.sum())
    if count < rule.requests_min:
        return None
    gpus = requests.gpus[recent].astype(np.float64)
    span = max(HOURS_PER_WEEK, min(FIT_HOURS, now_hour - int(asked.min())))
    durations = np.clip(requests.duration_hours[recent], 1, DURATION_HOURS_MAX)
    ending = np.bincount(durations, weights=gpus)
    leads = np.clip(requests.start_hours[recent] - asked[recent], 0, LEAD_HOURS_MAX - 1)
    return Shape(
        starts_by_hour_of_week=_profile(requests.start_hours[recent], span=span),
        mean_gpus=float(gpus.mean()),
        size_ratio=float((gpus**2).sum() / gpus.sum()),
        survival=1 - np.cumsum(ending)[:-1] / gpus.sum(),
        lead_share=np.concatenate([[0.0], np.cumsum(np.bincount(leads))]) / count,
    )


def learn(*, shape: Shape, requests: Requests, now_hour: int, rule: Rule) -> Levels:
    """Relearn the level from the requests asked in the last hours before `now_hour`, on two time scales."""
    asked = requests.asked_hours

    def seen_and_expected(hours: int) -> tuple[int, float]:
        seen = int(((asked >= now_hour - hours) & (asked < now_hour)).sum())
        return seen, shape.asked(first_hour=now_hour - hours, hours=hours)

    seen_slow, expected_slow = seen_and_expected(rule.slow_hours)
    seen_fast, expected_fast = seen_and_expected(rule.fast_hours)
    return levels(
        seen_slow=seen_slow,
        expected_slow=expected_slow,
        seen_fast=seen_fast,
        expected_fast=expected_fast,
        rule=rule,
    )


def levels(
    *, seen_slow: int, expected_slow: float, seen_fast: int, expected_fast: float, rule: Rule
) -> Levels:
    """Return the two levels from counts of requests seen and expected within the two spans.

    Each is `(seen + prior) ÷ (expected + prior)`, bounded; the fast one is measured against the slow one.
    """
    slow = _bounded(
        (seen_slow + rule.slow_prior) / (expected_slow + rule.slow_prior),
        float(rule.slow_level_min),
        float(rule.slow_level_max),
    )
    fast = _bounded(
        (seen_fast + rule.fast_prior) / (slow * expected_fast + rule.fast_prior),
        float(rule.fast_level_min),
        float(rule.fast_level_max),
    )
    return Levels(slow=slow, fast=fast)


def remaining(*, shape: Shape, learnt: Levels, first_hour: int, hours: int, rule: Rule) -> Floats:
    """Return per hour how many GPUs of demand are still to be asked for, if they were free of charge.

    `first_hour` is the running hour. With `s` in hours from now, by one convolution:
    `D_h = Σ_{s ≤ h} r_s E[n] G(s) slow (1 + (fast − 1) e^(−s ÷ fade)) S(h − s)`.
    """
    lead = np.arange(hours, dtype=np.float64)
    level = learnt.slow * (1 + (learnt.fast - 1) * np.exp(-lead / rule.fade_hours))
    starting = (
        shape.starts(first_hour=first_hour, hours=hours)
        * shape.mean_gpus
        * shape.leads(hours)
        * level
    )
    size = 1 << int(hours + len(shape.survival) - 1).bit_length()
    product = np.fft.rfft(starting, size) * np.fft.rfft(shape.survival, size)
    demand: Floats = np.maximum(np.fft.irfft(product, size)[:hours], 0.0)
    return demand


def _profile(start_hours: Hours, *, span: int) -> Floats:
    """Return requests per hour by hour of the week, drawn towards their mean where there are few."""
    counts = np.bincount(start_hours % HOURS_PER_WEEK, minlength=HOURS_PER_WEEK).astype(np.float64)
    mean = counts.mean()
    weight = counts.sum() / HOURS_PER_WEEK / PROFILE_PRIOR_REQUESTS
    profile: Floats = (weight * counts + mean) / (weight + 1)
    return profile * HOURS_PER_WEEK / span


def _bounded(value: float, lowest: float, highest: float) -> float:
    return max(lowest, min(highest, value))
