"""Price the reclaimable tier: off the firm curve, the cheaper the likelier and the nearer a reclaim is.

    rate = floor + max(0, firm × (1 − discount) − floor) × u²
    discount = d + (d_max − d) × likelihood × near ÷ (near + hours until)

`u` is the share of the hour's GPUs in use, firm or reclaimable. An idle hour thus costs the floor, and a
full one almost what a firm one costs less the discount.
"""

import numpy as np

from scheduler.pricing.clearing import Vector
from scheduler.pricing.limits import (
    PER_STEP,
    Counts,
    Micros,
    cap_micros,
    gross_floors,
    lowest_micros,
    paced,
)
from scheduler.pricing.rule import Rule


def discounts(*, likelihood: Counts, rule: Rule) -> Counts:
    """Return per hour, from the running one, the discount on the firm rate, in basis points.

    `likelihood` is the share of reclaimable GPUs of that hour which are expected to be reclaimed, in basis
    points.
    """
    least = int(rule.reclaimable_discount * PER_STEP)
    most = int(rule.reclaimable_discount_max * PER_STEP)
    ahead = np.arange(len(likelihood), dtype=np.int64) + rule.reclaim_near_hours
    grown: Counts = (most - least) * likelihood * rule.reclaim_near_hours // (PER_STEP * ahead)
    return least + grown


def refresh(
    *,
    firm_micros: Micros,
    base_micros: int,
    floor_micros: Micros,
    capacity: Counts,
    used: Counts,
    likelihood: Counts,
    rule: Rule,
    opening: Micros,
    latest: Micros | None = None,
    base_holds_at_once: bool = False,
) -> Vector:
    """Return the next vector of a reclaimable pool; all arrays but one begin with the running hour.

    `firm_micros` is the firm vector of the same model and region, `base_micros` their base rate.
    `floor_micros` is per hour the floor of the cheapest owner with a GPU left, `capacity` and `used` the GPUs
    of the hour that firm and reclaimable windows share. For `opening` and `latest` see `clearing.refresh`.
    An hour that is near may fall here: idle hours are what this tier is for.
    """
    asked = gross_floors(floor_micros=floor_micros, fee_basis_points=rule.fee_basis_points)
    floors = np.maximum(asked, lowest_micros(base_micros=base_micros, rule=rule))
    kept = PER_STEP - discounts(likelihood=likelihood, rule=rule)
    offered = np.maximum(capacity, 1)
    in_use = np.where(capacity > 0, np.clip(used, 0, offered), 0) * PER_STEP // offered
    above = np.maximum(firm_micros * kept // PER_STEP - floors, 0)
    target = floors + above * in_use // PER_STEP * in_use // PER_STEP
    cap = cap_micros(base_micros=base_micros, rule=rule)
    rates = paced(
        target=np.minimum(target, cap),
        opening=opening,
        latest=opening if latest is None else latest,
        up_per_hour=rule.reclaimable_up_per_hour,
        down_per_hour=rule.reclaimable_down_per_hour,
        no_fall_hours=0,
    )
    # What owners ask holds at once; what the pool asks beyond that is approached by steps.
    lowest = floors if base_holds_at_once else asked
    rates = np.clip(rates, np.minimum(lowest, cap), cap)
    return Vector(
        rate_micros=rates,
        target_micros=target,
        fitting_basis_points=np.full(len(rates), -1, dtype=np.int64),
    )
