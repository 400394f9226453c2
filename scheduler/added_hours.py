"""What hours cost that are added to a reservation: today's price of their pool, as anybody would pay it."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from marketplace.core.windows import Window
from marketplace.states import Tier
from scheduler import prices
from scheduler.lots import GpusAtFloor
from scheduler.lots import mean_rate as mean_rate_of
from scheduler.models import Reservation
from scheduler.pool_keys import PoolKey
from scheduler.prices import PricedWindow


def price(
    *, reservation: Reservation, window: Window, floors: Sequence[GpusAtFloor], at: dt.datetime
) -> PricedWindow:
    """Price hours for the GPUs of a reservation, each of its lots at a floor of its own."""
    key = PoolKey(
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
    )
    return prices.tables(keys=[key], at=at)[key].price(
        window=window,
        floors=floors,
        currency=reservation.currency,
    )


def mean_rate(added: Sequence[PricedWindow]) -> Decimal:
    """Return the mean rate per GPU-hour of some parts, rounded up to six places."""
    parts = [priced.lots for priced in added]
    return mean_rate_of(
        sum((lots.value(window=lots.window) for lots in parts), start=Fraction(0)),
        gpu_seconds=sum(lots.gpus * lots.window.seconds for lots in parts),
    )
