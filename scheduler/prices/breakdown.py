"""How a price came about, in figures that add up and in words.

Three sums hold to the last digit, in rates per GPU-hour over the whole window, fee included:
`rate = base + scarcity + smoothing + floor uplift`, `firm = reclaimable + certainty premium`, and
`rate = owner's part + platform fee`. Of several lots they are means over all GPUs, and each has its line.
"""

import datetime as dt
from collections.abc import Callable, Sequence
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
    targets: Micros
    table_rates: Micros
    other_tier: Micros
    fitting_basis_points: Counts
    sold: Counts
    offered: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LotFacts:
    """How many GPUs have which floor, and the smallest rate that leaves it to their owners."""

    gpus: int
    floor_rate: Decimal
    gross_micros: int


def explain(
    *,
    table: TableFacts,
    hours: HourFacts,
    lots: Sequence[LotFacts],
    mean_micros: int,
    total: Money,
) -> dict[str, object]:
    """Return the breakdown of a price; every rate in it is a decimal text of six places.

    `lots` are those of the price, in the order of their floors.
    """
    seconds, gpus = int(hours.lengths.sum()), sum(lot.gpus for lot in lots)
    dearest = lots[-1]
    gross = _over_lots(lots, lambda lot: Fraction(lot.gross_micros))
    is_at_floors = not table.id or table.tier is Tier.RECLAIMABLE
    base = gross if is_at_floors else table.base_micros
    uplift = _over_lots(lots, lambda lot: _uplift(lot, hours=hours)) if table.id else 0
    smoothing = _mean(hours.table_rates - hours.targets, hours.lengths) if table.id else 0
    fee = -(-mean_micros * table.fee_basis_points // BASIS_POINTS)
    other = mean_micros
    if table.id:
        other = _over_lots(lots, lambda lot: _paid(hours.other_tier, lot=lot, hours=hours))
    told: dict[str, object] = {
        "method": table.method,
        "method_version": table.method_version,
        "price_table": table.id or None,
        "price_table_number": table.number,
        "price_table_made_at": format_instant(table.made_at) if table.made_at else None,
        "rule_version": table.rule_version,
        "floor_rate": format_rate(dearest.floor_rate),
        "fee_basis_points": table.fee_basis_points,
        "floor_with_fee_rate": _rate(dearest.gross_micros),
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
        "multiplier": f"{multiple_of(mean_micros, base=max(base, gross)):f}",
        "rate": _rate(mean_micros),
        "driving_hour": format_instant(to_instant(int(hours.starts[_driver(hours, lot=dearest)]))),
        "reason": _words(table=table, hours=hours, lot=dearest),
        "gpu_seconds": gpus * seconds,
        "total_minor": total.amount_minor,
        "currency": total.currency,
    }
    if len(lots) > 1:
        told["lots"] = [_line(lot, table=table, hours=hours) for lot in lots]
    return told


def _line(lot: LotFacts, *, table: TableFacts, hours: HourFacts) -> dict[str, object]:
    """Return what one lot of several costs."""
    paid = _paid(hours.table_rates, lot=lot, hours=hours)
    micros = -(-paid.numerator // paid.denominator)
    fee = -(-micros * table.fee_basis_points // BASIS_POINTS)
    return {
        "gpus": lot.gpus,
        "floor_rate": format_rate(lot.floor_rate),
        "floor_with_fee_rate": _rate(lot.gross_micros),
        "rate": _rate(micros),
        "platform_fee_rate": _rate(fee),
        "owner_rate": _rate(micros - fee),
    }


def _paid(micros: Micros, *, lot: LotFacts, hours: HourFacts) -> Fraction:
    """Return the mean of hourly rates where no hour costs less than a lot's floor with the fee on top."""
    rates = np.maximum(micros, lot.gross_micros)
    return Fraction(weighted_sum(rates, hours.lengths), int(hours.lengths.sum()))


def _uplift(lot: LotFacts, *, hours: HourFacts) -> Fraction:
    """Return by how much a lot's floor lifts the mean of the table's rates."""
    missing = np.maximum(lot.gross_micros - hours.table_rates, 0)
    return Fraction(weighted_sum(missing, hours.lengths), int(hours.lengths.sum()))


def _over_lots(lots: Sequence[LotFacts], micros: Callable[[LotFacts], Fraction]) -> int:
    """Return the mean over all GPUs, rounded half to even."""
    whole = sum((micros(lot) * lot.gpus for lot in lots), start=Fraction(0))
    return round_half_even(whole / sum(lot.gpus for lot in lots))


def multiple_of(micros: int, *, base: int) -> Decimal:
    """Return a rate ÷ the base, to six places."""
    millionths = round_half_even(Fraction(micros * 10**RATE_DECIMAL_PLACES, base))
    return Decimal(millionths).scaleb(-RATE_DECIMAL_PLACES)


def _driver(hours: HourFacts, *, lot: LotFacts) -> int:
    """Return which part of the window is the dearest; of equals, the one with most sold, then the first."""
    rates = np.maximum(hours.table_rates, lot.gross_micros)
    return int(np.lexsort((-np.arange(len(rates)), hours.sold, rates))[-1])


def _words(*, table: TableFacts, hours: HourFacts, lot: LotFacts) -> str:
    if not table.id:
        return NO_TABLE_YET
    place = _driver(hours, lot=lot)
    rate = max(int(hours.table_rates[place]), lot.gross_micros)
    target = int(hours.targets[place])
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
    if rate == lot.gross_micros:
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
