"""What hours cost that are added to a reservation: today's price of their pool, as anybody would pay it."""

import datetime as dt
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import Window
from marketplace.states import Tier
from scheduler import prices
from scheduler.models import Reservation
from scheduler.prices import PoolKey, PricedWindow
from scheduler.tariffs import MICROS, Segment, Tariff


def price(
    *, reservation: Reservation, window: Window, floor_rate: Decimal, at: dt.datetime
) -> PricedWindow:
    """Price hours for the GPUs of a reservation, at listings with at most this floor."""
    key = PoolKey(
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
    )
    return prices.tables(keys=[key], at=at)[key].price(
        window=window,
        floor_rate=floor_rate,
        gpus=reservation.gpus,
        currency=reservation.currency,
    )


def joined(*, kept: Tariff | None, added: Iterable[PricedWindow]) -> Tariff:
    """Return the tariff of what is kept and what is added, which together have no gap."""
    parts: list[Segment] = list(kept.segments) if kept else []
    for priced in added:
        parts += priced.tariff.segments
    return Tariff.of(sorted(parts, key=lambda segment: segment.starts))


def mean_rate(added: Sequence[PricedWindow]) -> Decimal:
    """Return the mean rate per GPU-hour of some parts, rounded up to six places."""
    seconds = sum(priced.tariff.window.seconds for priced in added)
    value = sum((priced.tariff.value(window=priced.tariff.window) for priced in added), Fraction(0))
    micros = value * SECONDS_PER_HOUR * MICROS / seconds
    return prices.as_rate(-(-micros.numerator // micros.denominator))
