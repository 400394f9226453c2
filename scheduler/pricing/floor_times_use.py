"""The first price: an owner's floor, the fee on top, times a bounded multiplier of forward use.

Pure arithmetic: no database, no clock. What goes in is published in `price_breakdown`, so that anyone can
recompute a locked rate. The worked example stands in README.md, and a test repeats it.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from marketplace.core.money import (
    RATE_DECIMAL_PLACES,
    Money,
    amount_for,
    format_rate,
    round_half_even,
)

METHOD = "floor_times_forward_use"
METHOD_VERSION = 1  # grows with every change of the formula; old quotes keep theirs
SURGE_SLOPE = 2  # an all but sold out pool costs 1 + SURGE_SLOPE times the base
MULTIPLIER_CAP = Decimal(3)  # no tenant ever pays more than three times what the owner asks
BASIS_POINTS = 10_000
SHARE_DECIMAL_PLACES = 6  # the share is used as it is published


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceInputs:
    """What a price follows from.

    `booked_gpu_seconds` of the pool's `listed_gpu_seconds` in the window are sold or held, the request
    itself not counted: a price does not depend on how much of it one buys. `floor_rate` is the owner's,
    per GPU-hour, fee excluded.
    """

    floor_rate: Decimal
    fee_basis_points: int
    booked_gpu_seconds: int
    listed_gpu_seconds: int
    gpus: int
    window_seconds: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedWindow:
    """A rate per GPU-hour as the tenant sees it, fee included, and the total for the window."""

    rate: Decimal
    multiplier: Decimal
    total: Money
    breakdown: dict[str, object]


def quote_rate(inputs: PriceInputs) -> PricedWindow:
    """Price a window.

    The rate is rounded up to six places, so that the owner's part after the fee is never below the floor.
    """
    assert inputs.floor_rate > 0, inputs
    assert 0 <= inputs.fee_basis_points < BASIS_POINTS, inputs
    assert inputs.gpus > 0, inputs
    assert inputs.window_seconds > 0, inputs
    share = booked_share(booked=inputs.booked_gpu_seconds, listed=inputs.listed_gpu_seconds)
    multiplier = multiplier_for(share)
    base = Fraction(inputs.floor_rate) * BASIS_POINTS / (BASIS_POINTS - inputs.fee_basis_points)
    rate = _round_up(base * Fraction(multiplier))
    gpu_seconds = inputs.gpus * inputs.window_seconds
    total = amount_for(rate=rate, gpu_seconds=gpu_seconds, currency=inputs.currency)
    return PricedWindow(
        rate=rate,
        multiplier=multiplier,
        total=total,
        breakdown={
            "method": METHOD,
            "method_version": METHOD_VERSION,
            "floor_rate": format_rate(inputs.floor_rate),
            "fee_basis_points": inputs.fee_basis_points,
            "base_rate": format_rate(_round_up(base)),
            "booked_share": f"{share:.{SHARE_DECIMAL_PLACES}f}",
            "multiplier": format(multiplier, "f"),
            "multiplier_cap": format(MULTIPLIER_CAP, "f"),
            "rate": format_rate(rate),
            "gpu_seconds": gpu_seconds,
            "total_minor": total.amount_minor,
            "currency": inputs.currency,
        },
    )


def booked_share(*, booked: int, listed: int) -> Decimal:
    """Return booked ÷ listed in [0, 1], rounded half to even at six places; 0 where nothing is listed."""
    assert booked >= 0, booked
    if listed <= 0:
        return Decimal(0)
    scale = 10**SHARE_DECIMAL_PLACES
    millionths = round_half_even(Fraction(min(booked, listed) * scale, listed))
    return Decimal(millionths).scaleb(-SHARE_DECIMAL_PLACES)


def multiplier_for(share: Decimal) -> Decimal:
    """Return `1 + SURGE_SLOPE × share²`, at most `MULTIPLIER_CAP`: exact, never falling."""
    assert 0 <= share <= 1, share
    with localcontext() as context:
        context.prec = 40
        return min(MULTIPLIER_CAP, 1 + SURGE_SLOPE * share * share)


def _round_up(value: Fraction) -> Decimal:
    """Return the smallest rate of six places that is not below an exact one."""
    scaled = value * 10**RATE_DECIMAL_PLACES
    return Decimal(-(-scaled.numerator // scaled.denominator)).scaleb(-RATE_DECIMAL_PLACES)
