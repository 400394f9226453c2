"""The rules of prices: which one is in force."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings

from scheduler.prices.rule import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInForce:
    """A rule with its number, 0 for the built-in one. `base_rate` is the operator's, per GPU-hour."""

    number: int
    rule: Rule
    base_rate: Decimal | None = None


def in_force(*, gpu_model_id: str, at: dt.datetime) -> RuleInForce:
    """Return the rule by which a model is priced at an instant."""
    del gpu_model_id, at
    return RuleInForce(number=0, rule=Rule(fee_basis_points=settings.PLATFORM_FEE_BASIS_POINTS))
