"""The page of prices: a pool's curve ahead, and what one hour cost as seen from each day before it."""

import datetime as dt
import secrets

import numpy as np
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from marketplace.console.simulated import simulated_parts
from marketplace.core.money import RATE_DECIMAL_PLACES, SECONDS_PER_HOUR
from marketplace.core.windows import to_seconds
from scheduler.pool_keys import PoolKey
from scheduler.prices import history, tables
from scheduler.prices.chart import Mark, Series, draw

AHEAD_HOURS = 14 * 24  # what most windows lie in
BACK_DAYS = 30
# Nothing but this answer's own style: no script, no image, no other host.
_CONTENT_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Show the prices of one pool, by default the first there is.

    :raises Http404: when the address names a pool that never had a price, or no hour.
    """
    at = timezone.now()
    pools = history.pools()
    chosen = _chosen(request, pools=pools)
    hour = _hour(request, at=at)
    nonce = secrets.token_urlsafe(16)
    context = {
        "nonce": nonce,
        "at": at,
        "currency": settings.CURRENCY.upper(),
        "simulated": simulated_parts(),
        "pools": pools,
        "chosen": chosen,
        "hour": hour,
        "ahead": _ahead(chosen, at=at) if chosen else None,
        "seen": _seen(chosen, hour=hour, at=at) if chosen else None,
    }
    response = render(request, "console/prices.html", context)
    response["Content-Security-Policy"] = _CONTENT_POLICY.format(nonce=nonce)
    response["Cache-Control"] = "no-store"
    return response


def _chosen(request: HttpRequest, *, pools: list[PoolKey]) -> PoolKey | None:
    asked = {name: request.GET.get(name) for name in ("gpu_model", "region", "tier")}
    if not any(asked.values()):
        return pools[0] if pools else None
    for pool in pools:
        named = (pool.gpu_model_id, pool.region, pool.tier.value)
        if named == (asked["gpu_model"], asked["region"], asked["tier"]):
            return pool
    raise Http404


def _hour(request: HttpRequest, *, at: dt.datetime) -> dt.datetime:
    """Return the hour that is asked for, as the form sends it, or the running one."""
    running = history.running_hour(at=at)
    text = request.GET.get("hour")
    if not text:
        return running
    try:
        hour = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
    except ValueError:
        raise Http404 from None
    farthest = dt.timedelta(days=history.DAYS_MAX)
    if not running - farthest <= hour <= running + farthest:
        raise Http404
    return history.running_hour(at=hour)


def _ahead(pool: PoolKey, *, at: dt.datetime) -> SafeString:
    """Draw the pool's rates from the running hour on, beside those of the other tier."""
    table = tables(keys=[pool], at=at)[pool]
    first = to_seconds(at) // SECONDS_PER_HOUR - table.first_hour_seconds // SECONDS_PER_HOUR
    index = np.clip(np.arange(first, first + AHEAD_HOURS), 0, len(table.rate_micros) - 1)
    return draw(
        title=f"{pool.gpu_model_id}, {pool.region}, {pool.tier}: the next two weeks",
        series=[
            Series(name="rate", micros=table.rate_micros[index].tolist()),
            Series(name="other tier", micros=table.other_tier_micros[index].tolist()),
        ],
        marks=[
            Mark(place=hour, text=f"{at + dt.timedelta(hours=hour):%d %b}")
            for hour in range(0, AHEAD_HOURS, 48)
        ],
    )


def _seen(pool: PoolKey, *, hour: dt.datetime, at: dt.datetime) -> SafeString:
    """Draw what the hour cost as seen from each day before it."""
    seen = history.of_hour(key=pool, hour=hour, days=BACK_DAYS, at=at)
    micros = [
        None if each.rate is None else int(each.rate.scaleb(RATE_DECIMAL_PLACES)) for each in seen
    ]
    return draw(
        title=f"What the hour from {hour:%a %d %b %H:%M} UTC cost, by the day it was looked at",
        series=[Series(name="rate", micros=micros)],
        marks=[
            Mark(place=place, text=f"{each.days_before} d before" if each.days_before else "then")
            for place, each in enumerate(seen)
            if each.days_before % 5 == 0
        ],
    )
