"""The price rule: every parameter of the method, with its default and its bounds.

The defaults were measured by `manage.py backtest`; the figures stand in the package's README.
"""

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import ClassVar

from marketplace.core.errors import DomainError

BASIS_POINTS = 10_000
HOURS_PER_DAY = 24
HOURS_PER_WEEK = 168


class RuleInvalid(DomainError):
    """A parameter of a price rule lies outside the bounds in which the method's laws hold."""

    code = "price_rule_invalid"
    title = "The price rule is not valid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a price depends on besides the pool itself. Shares and multiples are exact decimals.

    :raises RuleInvalid: when a parameter lies outside its bounds.
    """

    # The platform's share of what the tenant pays.
    fee_basis_points: int = 1_500
    # No hour costs more than this multiple of the pool's base rate. 2 turns price into rationing.
    cap_multiple: Decimal = Decimal(4)
    # No reclaimable hour costs less than this share of the base rate, however little an owner asks.
    floor_share: Decimal = Decimal("0.25")
    # The most by which an hour's rate rises or falls from one clock hour to the next.
    up_per_hour: Decimal = Decimal("0.05")
    down_per_hour: Decimal = Decimal("0.01")
    # A firm hour this near never becomes cheaper: otherwise waiting would pay.
    no_fall_hours: int = 12
    # How many standard deviations of the remaining demand are reckoned with.
    caution: Decimal = Decimal("2.5")
    # Of the GPUs on offer so many are reckoned with: small windows leave holes that nothing fits.
    sellable_share: Decimal = Decimal("0.96")
    # The base rises by this share of itself as the hour sells out; 0 leaves that to the forecast.
    sold_slope: Decimal = Decimal(0)
    # What tenants are willing to pay: lognormal, its median as a multiple of the base rate. With a sigma of
    # 0.5 the base is then the rate at which an unlimited pool earns most.
    value_median: Decimal = Decimal("1.295")
    value_sigma: Decimal = Decimal("0.5")
    # The level of demand is relearnt on two time scales. The slow one holds at every lead time, the fast one
    # fades with the lead. A prior is a number of requests that count as having come as forecast.
    slow_hours: int = 48
    slow_prior: int = 40
    slow_level_min: Decimal = Decimal("0.3")
    slow_level_max: Decimal = Decimal(3)
    fast_hours: int = 24
    fast_prior: int = 60
    fast_level_min: Decimal = Decimal("0.5")
    fast_level_max: Decimal = Decimal(3)
    fade_hours: int = HOURS_PER_WEEK
    # Below so many GPUs, or so many requests in the last 28 days, nothing can be forecast.
    small_pool_gpus: int = 256
    requests_min: int = 200
    small_pool_share: Decimal = Decimal("0.93")
    # A reclaimable hour costs at most the firm rate less this discount; the discount grows up to the second
    # figure where a reclaim is certain and near, and is half grown `reclaim_near_hours` ahead.
    reclaimable_discount: Decimal = Decimal("0.4")
    reclaimable_discount_max: Decimal = Decimal("0.7")
    reclaim_near_hours: int = 24
    reclaimable_up_per_hour: Decimal = Decimal("0.25")
    reclaimable_down_per_hour: Decimal = Decimal("0.25")

    _BOUNDS: ClassVar[dict[str, tuple[Decimal | int, Decimal | int]]] = {
        "fee_basis_points": (0, 9_000),
        "cap_multiple": (1, 10),
        "floor_share": (0, 1),
        "up_per_hour": (Decimal("0.001"), 1),
        "down_per_hour": (Decimal("0.001"), Decimal("0.5")),
        "no_fall_hours": (0, HOURS_PER_WEEK),
        "caution": (0, 5),
        "sellable_share": (Decimal("0.5"), 1),
        "sold_slope": (0, 3),
        "value_median": (Decimal("0.5"), 5),
        "value_sigma": (Decimal("0.1"), 2),
        "slow_hours": (HOURS_PER_DAY, 4 * HOURS_PER_WEEK),
        "slow_prior": (1, 10_000),
        "slow_level_min": (Decimal("0.05"), 1),
        "slow_level_max": (1, 20),
        "fast_hours": (1, HOURS_PER_WEEK),
        "fast_prior": (1, 10_000),
        "fast_level_min": (Decimal("0.05"), 1),
        "fast_level_max": (1, 20),
        "fade_hours": (1, 4 * HOURS_PER_WEEK),
        "small_pool_gpus": (1, 100_000),
        "requests_min": (1, 100_000),
        "small_pool_share": (Decimal("0.1"), 1),
        "reclaimable_discount": (0, 1),
        "reclaimable_discount_max": (0, 1),
        "reclaim_near_hours": (1, HOURS_PER_WEEK),
        "reclaimable_up_per_hour": (Decimal("0.001"), 1),
        "reclaimable_down_per_hour": (Decimal("0.001"), Decimal("0.5")),
    }

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest, highest = self._BOUNDS[field.name]
            if not lowest <= value <= highest:
                raise RuleInvalid(
                    f"{field.name} is {value}; it must lie between {lowest} and {highest}",
                    pointer=f"/{field.name}",
                )
        if self.reclaimable_discount_max < self.reclaimable_discount:
            raise RuleInvalid(
                "reclaimable_discount_max must not be below reclaimable_discount",
                pointer="/reclaimable_discount_max",
            )
        if self.fast_hours > self.slow_hours:
            raise RuleInvalid("fast_hours must not exceed slow_hours", pointer="/fast_hours")
