"""What an hour cost, as seen from each day before it."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal

from marketplace import catalog
from marketplace.core.errors import InvalidValue
from marketplace.core.limits import HORIZON_DAYS
from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import grid_floor, to_instant, to_seconds
from marketplace.states import Tier
from scheduler.calendar import WindowOffGrid
from scheduler.models import PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.prices.packed import unpack
from scheduler.tariffs import as_rate

DAYS_MAX = HORIZON_DAYS  # nothing is priced further ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the hour cost by the table in force at `seen_at`; `None` where the pool had none then."""

    seen_at: dt.datetime
    days_before: int
    rate: Decimal | None
    other_tier_rate: Decimal | None
    price_table: str | None


def of_hour(*, key: PoolKey, hour: dt.datetime, days: int, at: dt.datetime) -> list[Seen]:
    """Return the price of one hour at its begin, and at the same time of the days before it.

    Those are the last `days` that have come. Of an hour ahead, the last is what it costs at `at`. The
    earliest comes first. It is the table's rate: a listing whose floor is higher was dearer.

    :raises NoSuchModel: when the catalogue does not have the model.
    :raises WindowOffGrid: when the hour is not a whole one.
    :raises InvalidValue: when it is too far away, or there are too many days.
    """
    catalog.get_gpu_model(gpu_model_id=key.gpu_model_id, pointer="/gpu_model")
    if grid_floor(hour, grid_seconds=SECONDS_PER_HOUR) != hour:
        raise WindowOffGrid("must be a whole hour, UTC", pointer="/hour")
    if not 0 <= days <= DAYS_MAX:
        raise InvalidValue(f"must be from 0 to {DAYS_MAX}", pointer="/days")
    if hour > at + dt.timedelta(days=HORIZON_DAYS):
        raise InvalidValue(f"must be within {HORIZON_DAYS} days", pointer="/hour")
    day = dt.timedelta(days=1)
    to_come = max(0, -((at - hour) // day))
    past = range(to_come, to_come + days + 1)
    instants = {hour - n * day: n for n in past}
    if hour > at:
        instants |= {at: (hour - at) // day}
    rising = sorted(instants)
    return [
        _seen(version, hour=hour, seen_at=instant, days_before=instants[instant])
        for instant, version in zip(rising, _in_force(key, instants=rising), strict=True)
    ]


def pools() -> list[PoolKey]:
    """Return every pool that ever had a price, in the order of its name."""
    rows = PriceVersion.objects.filter(number=1).values_list("gpu_model_id", "region", "tier")
    return sorted(
        PoolKey(gpu_model_id=model, region=region, tier=Tier(tier)) for model, region, tier in rows
    )


def _in_force(key: PoolKey, *, instants: list[dt.datetime]) -> list[PriceVersion | None]:
    """Return the version in force at each of some instants; one query."""
    rows = PriceVersion.objects.raw(
        """
        SELECT asked.place, version.*
          FROM unnest(%(instants)s::timestamptz[]) WITH ORDINALITY AS asked (at, place)
         CROSS JOIN LATERAL (
               SELECT id, number, made_at, first_hour, hours, rates FROM scheduler_priceversion v
                WHERE v.gpu_model_id = %(model)s AND v.region = %(region)s AND v.tier = %(tier)s
                  AND v.made_at <= asked.at
                ORDER BY v.made_at DESC LIMIT 1) AS version
        """,
        {
            "instants": instants,
            "model": key.gpu_model_id,
            "region": key.region,
            "tier": key.tier.value,
        },
    )
    found: dict[int, PriceVersion] = {vars(row)["place"]: row for row in rows}
    return [found.get(place) for place in range(1, len(instants) + 1)]


def _seen(
    version: PriceVersion | None, *, hour: dt.datetime, seen_at: dt.datetime, days_before: int
) -> Seen:
    rate = other = None
    if version is not None:
        place = to_seconds(hour) // SECONDS_PER_HOUR - version.first_hour
        if 0 <= place < version.hours:
            rates = unpack(bytes(version.rates), hours=version.hours)
            rate, other = (as_rate(int(rates[row, place])) for row in (0, 2))
    return Seen(
        seen_at=seen_at,
        days_before=days_before,
        rate=rate,
        other_tier_rate=other,
        price_table=None if version is None else version.pk,
    )


def running_hour(*, at: dt.datetime) -> dt.datetime:
    """Return the begin of the hour that runs at an instant."""
    return to_instant(to_seconds(at) // SECONDS_PER_HOUR * SECONDS_PER_HOUR)
