"""Prices, purely: no database, no clock; arrays in, exact micros per GPU-hour out.

`clearing.refresh` makes a firm pool's vector of hourly rates, `reclaimable.refresh` that of its reclaimable
tier; `forecast` learns the demand both look at, `small_pool` serves where there is nothing to learn from,
`explain` says in words what drove a price. `Rule` holds every parameter.

Hour 0 of every vector is the grid hour that is running; all rates are the tenant's, fee included, except
where a name says floor: that is what an owner receives.
"""

from scheduler.pricing.rule import Rule, RuleInvalid

__all__ = ["Rule", "RuleInvalid"]
