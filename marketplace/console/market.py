"""The first page: what is on offer now, where, for how much, and how to buy it."""

import datetime as dt
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from marketplace.console import strip
from marketplace.console.simulated import simulated_parts
from marketplace.core.money import format_rate
from marketplace.core.windows import (
    Window,
    format_duration,
    format_instant,
    grid_ceiling,
    grid_floor,
)
from marketplace.models import GpuModel
from marketplace.states import Tier
from scheduler.availability import CurvePoint, ModelSummary, market_summary, price_curve

STEPS = 24  # a day of hours; in the demo, 24 minutes
OFFERS_MAX = 60  # each costs a reading of the calendar; a market with more needs search, not a page
FRESH_SECONDS = 5  # a page that many people reload reads the calendar once in this time
_CACHE_KEY = "console.market"
# Nothing but this answer's own style: no script, no image, no other host.
_CONTENT_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One line of the page: a model in a region and a tier, now and for the next steps."""

    gpu_model: GpuModel
    region: str
    tier: str
    gpus_listed: int
    gpus_free: int
    rate_now: str | None
    rate_from: str | None
    rate_to: str | None
    strip: strip.Strip


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Show the market."""
    at = timezone.now()
    shown = cache.get(_CACHE_KEY)
    if shown is None:
        shown = _read(at=at)
        cache.set(_CACHE_KEY, shown, FRESH_SECONDS)
    nonce = secrets.token_urlsafe(16)
    context = {
        **shown,
        "nonce": nonce,
        "at": at,
        "currency": settings.CURRENCY.upper(),
        "grid": _words(dt.timedelta(seconds=settings.GRID_SECONDS)),
        "span": _words(dt.timedelta(seconds=settings.GRID_SECONDS * STEPS)),
        "simulated": simulated_parts(),
        "base_url": settings.BASE_URL,
        "example": _example(offers=shown["offers"], at=at),
    }
    response = render(request, "console/market.html", context)
    response["Content-Security-Policy"] = _CONTENT_POLICY.format(nonce=nonce)
    response["Cache-Control"] = "no-store"
    return response


def _read(*, at: dt.datetime) -> dict[str, list[Offer] | list[GpuModel] | int | bool]:
    """Read what the page shows of the calendar."""
    summaries = market_summary(at=at)
    offers: list[Offer] = []
    complete = True
    for offer in _offers(summaries=summaries, at=at):
        if len(offers) == OFFERS_MAX:
            complete = False
            break
        offers.append(offer)
    return {
        "offers": offers,
        "complete": complete,
        "others": [summary.gpu_model for summary in summaries if not summary.gpus_listed],
        "gpus_listed": sum(summary.gpus_listed for summary in summaries),
        "gpus_free": sum(summary.gpus_free_now for summary in summaries),
        "models": sum(1 for summary in summaries if summary.gpus_listed),
        "regions": len({region for summary in summaries for region in summary.regions}),
    }


def _offers(*, summaries: list[ModelSummary], at: dt.datetime) -> Iterator[Offer]:
    starts_at = grid_floor(at, grid_seconds=settings.GRID_SECONDS)
    window = Window(starts_at, starts_at + STEPS * dt.timedelta(seconds=settings.GRID_SECONDS))
    for summary in summaries:
        for region in summary.regions:
            for tier in Tier:
                points = price_curve(
                    gpu_model=summary.gpu_model.pk, region=region, tier=tier, window=window, at=at
                )
                if any(point.gpus_listed for point in points):
                    yield _offer(summary.gpu_model, region=region, tier=tier, points=points)


def _offer(gpu_model: GpuModel, *, region: str, tier: Tier, points: list[CurvePoint]) -> Offer:
    rates = [point.rate for point in points if point.rate is not None]
    return Offer(
        gpu_model=gpu_model,
        region=region,
        tier=tier.label,
        gpus_listed=points[0].gpus_listed,
        gpus_free=points[0].gpus_free,
        rate_now=format_rate(points[0].rate) if points[0].rate else None,
        rate_from=format_rate(min(rates)) if rates else None,
        rate_to=format_rate(max(rates)) if rates else None,
        strip=strip.draw(points),
    )


def _words(duration: dt.timedelta) -> str:
    minutes = duration // dt.timedelta(minutes=1)
    if minutes % 60:
        return f"{minutes} minutes" if minutes > 1 else "minute"
    return f"{minutes // 60} hours" if minutes > 60 else "hour"


def _example(*, offers: list[Offer], at: dt.datetime) -> dict[str, str | int]:
    """Return the values of the three commands: something that can be had now, where there is such a thing."""
    offer = next((o for o in offers if o.gpus_free), None)
    step = dt.timedelta(seconds=settings.GRID_SECONDS)
    ends_at = grid_ceiling(at, grid_seconds=settings.GRID_SECONDS) + 6 * step
    return {
        "gpu_model": offer.gpu_model.pk if offer else "h100-sxm-80gb",
        "gpus": min(offer.gpus_free, 2) if offer else 2,
        "tier": offer.tier.lower() if offer else Tier.FIRM.value,
        "duration": format_duration(2 * step),
        "ends_at": format_instant(ends_at),
    }
