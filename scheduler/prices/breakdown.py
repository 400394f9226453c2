"""How a price came about, in figures that add up and in words.

Three sums hold to the last digit, in rates per GPU-hour over the whole window, fee included:
`rate = base + scarcity + smoothing + floor uplift`, `firm = reclaimable + certainty premium`, and
`rate = owner's part + platform fee`.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from marketplace.core.money import (
    RATE_DECIMAL_PLACES,
    SECONDS_PER_HOUR,
    Money,
    format_rate,
    round_half_even,
)
from marketplace.core.windows import format_instant, to_instant
from marketplace.states import Tier
from scheduler.prices.packed import Counts, Micros
from scheduler.pricing import explain as hours_in_words
from scheduler.pricing.rule import BASIS_POINTS

_HALF = 1 << 20
NO_TABLE_YET = "the pool has no price table yet: it costs its owner's floor with the fee on top"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """Which table a price was read from; `id` is "" where the pool has none."""

    id: str
    number: int
    tier: Tier
    rule_version: int
    method: str
    method_version: int
    fee_basis_points: int
    base_micros: int
    made_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HourFacts:
    """What the table says of each part of a window that lies in one hour; seconds and micros."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    rates: Micros
    targets: Micros
    table_rates: Micros
    other_tier: Micros
    fitting_basis_points: Counts
    sold: Counts
    offered: Counts


def explain(
    *,
    table: TableFacts,
    hours: HourFacts,
    floor_rate: Decimal,
    gross_micros: int,
    mean_micros: int,
    gpus: int,
    total: Money,
) -> dict[str, object]:
    """Return the breakdown of a price; every rate in it is a decimal text of six places."""
    seconds = int(hours.lengths.sum())
    base = gross_micros if table.tier is Tier.RECLAIMABLE else table.base_micros
    targets = np.maximum(hours.targets, base) if not table.id else hours.targets
    table_rates = hours.table_rates if table.id else hours.rates
    smoothing = _mean(table_rates - targets, hours.lengths)
    uplift = _mean(hours.rates - table_rates, hours.lengths)
    fee = -(-mean_micros * table.fee_basis_points // BASIS_POINTS)
    other = _mean(hours.other_tier, hours.lengths) if table.id else mean_micros
    return {
        "method": table.method,
        "method_version": table.method_version,
        "price_table": table.id or None,
        "price_table_number": table.number,
        "price_table_made_at": format_instant(table.made_at) if table.made_at else None,
        "rule_version": table.rule_version,
        "floor_rate": format_rate(floor_rate),
        "fee_basis_points": table.fee_basis_points,
        "floor_with_fee_rate": _rate(gross_micros),
        "base_rate": _rate(base),
        "scarcity_rate": _rate(mean_micros - base - smoothing - uplift),
        "smoothing_rate": _rate(smoothing),
        "floor_uplift_rate": _rate(uplift),
        "certainty_premium_rate": _rate(
            mean_micros - other if table.tier is Tier.FIRM else other - mean_micros
        ),
        "other_tier_rate": _rate(other),
        "platform_fee_rate": _rate(fee),
        "owner_rate": _rate(mean_micros - fee),
        "multiplier": f"{multiple_of(mean_micros, base=max(base, gross_micros)):f}",
        "rate": _rate(mean_micros),
        "driving_hour": format_instant(to_instant(int(hours.starts[_driver(hours)]))),
        "reason": _words(table=table, hours=hours, gross_micros=gross_micros),
        "gpu_seconds": gpus * seconds,
        "total_minor": total.amount_minor,
        "currency": total.currency,
    }


def multiple_of(micros: int, *, base: int) -> Decimal:
    """Return a rate ÷ the base, to six places."""
    millionths = round_half_even(Fraction(micros * 10**RATE_DECIMAL_PLACES, base))
    return Decimal(millionths).scaleb(-RATE_DECIMAL_PLACES)


def _driver(hours: HourFacts) -> int:
    """Return which part of the window is the dearest; of equals, the one with most sold, then the first."""
    return int(np.lexsort((-np.arange(len(hours.rates)), hours.sold, hours.rates))[-1])


def _words(*, table: TableFacts, hours: HourFacts, gross_micros: int) -> str:
    if not table.id:
        return NO_TABLE_YET
    place = _driver(hours)
    rate, target = int(hours.rates[place]), int(hours.targets[place])
    words = hours_in_words.words(
        hour=int(hours.starts[place]) // SECONDS_PER_HOUR,
        facts=hours_in_words.HourFacts(
            rate_micros=rate,
            base_micros=table.base_micros,
            on_offer=int(hours.offered[place]),
            sold=int(hours.sold[place]),
            fitting_basis_points=int(hours.fitting_basis_points[place]),
        ),
    )
    if rate == gross_micros:
        return f"{words} It costs no less than the owner's floor with the fee on top."
    if target != rate:
        way = "up" if target > rate else "down"
        return f"{words} It is on its way {way} to {_rate(target)}, a limited step every hour."
    return words


def weighted_sum(micros: Micros, lengths: npt.NDArray[np.int64]) -> int:
    """Return the sum of rate × seconds, exactly: in two halves, since the whole may pass 63 bits."""
    high, low = np.divmod(micros, _HALF)
    return int(high @ lengths) * _HALF + int(low @ lengths)


def _mean(micros: Micros, lengths: npt.NDArray[np.int64]) -> int:
    """Return the mean over the window, rounded half to even."""
    return round_half_even(Fraction(weighted_sum(micros, lengths), int(lengths.sum())))


def _rate(micros: int) -> str:
    """Return a rate as it is published, with its sign where it is negative."""
    return format_rate(Decimal(micros).scaleb(-RATE_DECIMAL_PLACES))
