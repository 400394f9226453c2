"""The rules of prices: which one is in force, and how one is kept."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from django.conf import settings

from scheduler.pricing import Rule


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


def as_json(rule: Rule) -> dict[str, str]:
    """Return the parameters of a rule as decimal texts by name."""
    return {each.name: str(getattr(rule, each.name)) for each in fields(rule)}


def from_json(parameters: Mapping[str, str]) -> Rule:
    """Return what `as_json` wrote; a parameter that did not exist then has its default.

    :raises RuleInvalid: when a parameter lies outside its bounds.
    """
    given: dict[str, Any] = {
        each.name: Decimal(text) if isinstance(each.default, Decimal) else int(text)
        for each in fields(Rule)
        if (text := parameters.get(each.name)) is not None
    }
    return Rule(**given)
