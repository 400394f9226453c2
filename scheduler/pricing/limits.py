"""What holds for every vector of rates: floors, cap, and the pace of change. Exact integers."""

from decimal import Decimal
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX
from scheduler.pricing.rule import BASIS_POINTS, Rule

Micros: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.int64]

UNKNOWN = 0  # the rate of an hour that no earlier vector reached
RATE_MICROS_MAX = int(RATE_MAX.scaleb(RATE_DECIMAL_PLACES))
PER_STEP = 10_000  # shares of a rate are used in steps of one basis point: int64 holds the products
MICROS_PER_UNIT: int = 10**RATE_DECIMAL_PLACES


def gross_floors(*, floor_micros: Micros, fee_basis_points: int) -> Micros:
    """Return the lowest tenant's rates that leave owners their floors after the fee, rounded up."""
    kept = BASIS_POINTS - fee_basis_points
    gross: Micros = -(-floor_micros * BASIS_POINTS // kept)
    return gross


def cap_micros(*, base_micros: int, rule: Rule) -> int:
    """Return the highest rate of a pool, rounded down."""
    return int(base_micros * rule.cap_multiple)


def lowest_micros(*, base_micros: int, rule: Rule) -> int:
    """Return the rate below which no hour of a pool is sold, whatever its owners ask, rounded up."""
    return max(1, -int(-base_micros * rule.floor_share // 1))


def paced(
    *,
    target: Micros,
    opening: Micros,
    latest: Micros,
    up_per_hour: Decimal,
    down_per_hour: Decimal,
    no_fall_hours: int,
) -> Micros:
    """Move from the rates in force when this clock hour opened towards a target, as far as one hour allows.

    All arrays are aligned and begin with the running hour; `UNKNOWN` stands where there was no rate, and
    such an hour starts at its target. `latest` is what is in force now: equal to `opening` on an hour's first
    refresh, and what later refreshes of the same hour must not undercut in the nearest `no_fall_hours`.
    """
    up, down = (int(share * PER_STEP) for share in (up_per_hour, down_per_hour))
    highest = opening + opening * up // PER_STEP
    lowest = opening - opening * down // PER_STEP
    moved: Micros = np.where(opening == UNKNOWN, target, np.clip(target, lowest, highest))
    near = slice(0, no_fall_hours)
    moved[near] = np.maximum(moved[near], latest[near])
    return moved


def aligned(*, micros: Micros, first_hour: int, to_first_hour: int, hours: int) -> Micros:
    """Shift a stored vector to another first hour and length; `UNKNOWN` stands where it does not reach."""
    found = np.full(hours, UNKNOWN, dtype=np.int64)
    skipped = to_first_hour - first_hour
    begin, end = max(0, skipped), min(len(micros), skipped + hours)
    if begin < end:
        found[begin - skipped : end - skipped] = micros[begin:end]
    return found
