"""The rule of prices: all that an operator may set. Shares and multiples are exact decimals."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The parameters of the method; the reasons of the values stand in scheduler/README.md."""

    fee_basis_points: int = 1_500
    cap_multiple: Decimal = Decimal(4)
    up_per_hour: Decimal = Decimal("0.05")
    down_per_hour: Decimal = Decimal("0.01")
    no_fall_hours: int = 12
    small_pool_share: Decimal = Decimal("0.93")
    reclaimable_discount: Decimal = Decimal("0.3")


def as_json(rule: Rule) -> dict[str, str]:
    """Return the parameters of a rule as decimal texts by name."""
    return {each.name: str(getattr(rule, each.name)) for each in fields(rule)}


def from_json(parameters: Mapping[str, str]) -> Rule:
    """Return what `as_json` wrote; a parameter that did not exist then has its default."""
    given: dict[str, Any] = {
        each.name: Decimal(text) if isinstance(each.default, Decimal) else int(text)
        for each in fields(Rule)
        if (text := parameters.get(each.name)) is not None
    }
    return Rule(**given)
