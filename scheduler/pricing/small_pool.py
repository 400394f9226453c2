"""Price a pool that is too small or too new for a forecast: by the share of each hour that is sold.

Like every firm price it is not below the base in the end: see `clearing.refresh`.
"""

import numpy as np

from scheduler.pricing.limits import PER_STEP, Counts, Micros
from scheduler.pricing.rule import Rule


def targets(*, base_micros: int, capacity: Counts, sold: Counts, rule: Rule) -> Micros:
    """Return `small_pool_share × base × (1 + sold ÷ capacity)` per hour; both products are rounded up.

    An hour in which nothing is offered counts as empty: there is no scarcity to price.
    """
    idle = -(-base_micros * int(rule.small_pool_share * PER_STEP) // PER_STEP)
    offered = np.maximum(capacity, 1)
    taken = np.where(capacity > 0, np.clip(sold, 0, offered), 0)
    rates: Micros = -(-idle * (offered + taken) // offered)
    return rates
