"""The published formulas of the small pool, the limits and the reclaimable tier: whole numbers, exact.

Pure: no database, no clock. All rates are micros per GPU-hour, all vectors run over the hours of a table.
`scheduler/README.md` works them out by hand, and a test follows it.
"""

import numpy as np

from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX
from scheduler.prices.packed import Counts, Micros
from scheduler.prices.rule import BASIS_POINTS, Rule

RATE_MICROS_MAX = int(RATE_MAX.scaleb(RATE_DECIMAL_PLACES))


def with_fee(floor_micros: int, *, fee_basis_points: int) -> int:
    """Return the smallest rate that leaves an owner the floor after the fee."""
    return -(-floor_micros * BASIS_POINTS // (BASIS_POINTS - fee_basis_points))


def small_pool(*, base_micros: int, offered: Counts, sold: Counts, rule: Rule) -> Micros:
    """Return `share × base × (1 + sold ÷ offered)` per hour, rounded up, from base to cap.

    More sold never makes an hour cheaper, more on offer never dearer. An hour with nothing on offer is at
    the base, or sold out where something is sold in it.
    """
    share = int(rule.small_pool_share * BASIS_POINTS)
    # Python's integers: the product of a rate, a share and a count of GPUs may pass 63 bits.
    whole = np.maximum(np.maximum(offered, sold), 1).astype(object)
    exact = -(-base_micros * share * (whole + sold) // (BASIS_POINTS * whole))
    cap = cap_micros(base_micros, rule)
    targets: Micros = np.minimum(np.maximum(exact, base_micros), cap).astype(np.int64)
    return targets


def cap_micros(base_micros: int, rule: Rule) -> int:
    """Return the highest rate of a pool."""
    return min(RATE_MICROS_MAX, int(base_micros * rule.cap_multiple))


def limited(*, targets: Micros, reference: Micros, latest: Micros, cap: int, rule: Rule) -> Micros:
    """Return the targets within what an hour of the clock allows.

    `reference` is what was in force when the clock hour began, so that many refreshes within it allow no
    more than one. In the first `no_fall_hours` nothing falls below `latest`, the version in force: waiting
    must not pay. The cap is above all of it.
    """
    up, down = (int(share * BASIS_POINTS) for share in (rule.up_per_hour, rule.down_per_hour))
    upper = reference + reference * up // BASIS_POINTS
    lower = reference - reference * down // BASIS_POINTS
    near = slice(0, rule.no_fall_hours)
    lower[near] = np.maximum(reference[near], latest[near])
    rates: Micros = np.minimum(np.clip(targets, lower, np.maximum(lower, upper)), cap)
    return rates


def reclaimable(
    *, firm: Micros, floor_micros: int, offered: Counts, sold: Counts, rule: Rule
) -> Micros:
    """Return `floor + ((1 − discount) × firm − floor) × (sold ÷ offered)²` per hour, rounded up.

    `floor_micros` has the fee on top, and nothing is cheaper. An idle hour costs the floor, and a sold out
    one the firm rate less the discount.
    """
    kept = BASIS_POINTS - int(rule.reclaimable_discount * BASIS_POINTS)
    whole = np.maximum(np.maximum(offered, sold), 1).astype(object)
    above = np.maximum(firm * kept - floor_micros * BASIS_POINTS, 0).astype(object)
    extra = -(-above * sold * sold // (BASIS_POINTS * whole * whole))
    rates: Micros = (floor_micros + extra).astype(np.int64)
    return rates
