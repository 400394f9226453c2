"""Prices: the versions of every pool's table, how they come about, and what a window costs by them.

The formula of a small firm pool, by hand. Eight GPUs at a floor of 2.00, fee 15 %, four of them sold in one
hour a day ahead; the rule is the built-in one, and an hour has passed since the pool stood at its base:

    base     2.00 ÷ (1 − 0.15)                         = 2.352942   the smallest that leaves the owner 2.00
    idle     0.93 × 2.352942 = 2.188237, but no hour is under the base:   2.352942
    sold     2.188237 × (1 + 4 ÷ 8)                    = 3.282356   where the price is heading
    limit    2.352942 + 5 % of it                      = 2.470589   what an hour of the clock allows

Three GPUs for the idle hour before it and the sold hour:

    total    3 × (2.352942 + 2.470589) = 14.470593     → 14.47
    rate     (2.352942 + 2.470589) ÷ 2                 = 2.411766   base 2.352942 + scarcity 0.464708
                                                                    + smoothing −0.405884
    fee      15 % of 2.411766                          = 0.361765   the owner's part is 2.050001
    premium  reclaimable costs the floor, 2.352942, in both hours: certainty costs 0.058824

Several owners: the lowest floors are used first, and each lot of GPUs costs the larger of the table's rate
and its own floor with the fee on top. Eight GPUs at 2.00 and four at 3.00, two hours without a table:

    total    8 × 2 × 2.352942 + 4 × 2 × 3.529412       = 65.882368  → 65.88
    rate     65.882368 ÷ (12 × 2)                      = 2.745099

Rates round up to six places, amounts half to even, once. Larger pools with a forecast, and the reclaimable
tier: `scheduler.pricing.clearing` and `scheduler.pricing.reclaimable`. How versions are stored, and the
limits counted per hour of the clock: `refresh`. Whether a stored quote still comes out: `replay`.
"""

from scheduler.prices.tables import PricedWindow, PriceTable, tables
from scheduler.tariffs import as_rate

__all__ = ["PriceTable", "PricedWindow", "as_rate", "tables"]
