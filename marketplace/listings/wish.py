"""The wish itself: its parts, and how a row and the trail keep it."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import TypedDict

from marketplace.core.money import format_rate
from marketplace.core.windows import Window, format_instant
from marketplace.models import Listing
from marketplace.states import ListingMode, Tier

_ZERO = dt.timedelta(0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListingFields:
    """The whole wish. An empty `region`, `fabric` or `labels` matches every node of the owner.

    The period is half-open, `ends_at` None: until withdrawn. It and the blackouts need not lie on the
    market's grid: what is sold lies within the one and outside of the others. `floor_rate` is what the owner
    receives at least, per GPU-hour, in the market's currency, the platform's fee excluded.
    """

    name: str
    gpu_model: str
    starts_at: dt.datetime
    floor_rate: Decimal
    ends_at: dt.datetime | None = None
    region: str = ""
    fabric: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tier: Tier = Tier.FIRM
    reclaim_notice: dt.timedelta = _ZERO
    duration_min: dt.timedelta = _ZERO
    duration_max: dt.timedelta | None = None
    gpus_min: int = 1
    turnaround: dt.timedelta = _ZERO
    blackouts: tuple[Window, ...] = ()
    mode: ListingMode = ListingMode.ALWAYS
    idle_for: dt.timedelta = _ZERO
    rolling: dt.timedelta = _ZERO


class ListingChanges(TypedDict, total=False):
    """Any part of a wish; see `ListingFields`."""

    name: str
    gpu_model: str
    starts_at: dt.datetime
    floor_rate: Decimal
    ends_at: dt.datetime | None
    region: str
    fabric: str
    labels: Mapping[str, str]
    tier: Tier
    reclaim_notice: dt.timedelta
    duration_min: dt.timedelta
    duration_max: dt.timedelta | None
    gpus_min: int
    turnaround: dt.timedelta
    blackouts: tuple[Window, ...]
    mode: ListingMode
    idle_for: dt.timedelta
    rolling: dt.timedelta


def blackouts_of(*, listing: Listing) -> tuple[Window, ...]:
    """Return the windows in which a listing is never on offer."""
    return tuple(
        Window(dt.datetime.fromisoformat(starts_at), dt.datetime.fromisoformat(ends_at))
        for starts_at, ends_at in listing.blackouts
    )


def fields_of(*, listing: Listing) -> ListingFields:
    """Return the wish that a listing stores."""
    longest = listing.duration_seconds_max
    return ListingFields(
        name=listing.name,
        gpu_model=listing.gpu_model_id,
        starts_at=listing.starts_at,
        floor_rate=listing.floor_rate,
        ends_at=listing.ends_at,
        region=listing.region,
        fabric=listing.fabric,
        labels=listing.labels,
        tier=Tier(listing.tier),
        reclaim_notice=dt.timedelta(seconds=listing.reclaim_notice_seconds),
        duration_min=dt.timedelta(seconds=listing.duration_seconds_min),
        duration_max=None if longest is None else dt.timedelta(seconds=longest),
        gpus_min=listing.gpus_min,
        turnaround=dt.timedelta(seconds=listing.turnaround_seconds),
        blackouts=blackouts_of(listing=listing),
        mode=ListingMode(listing.mode),
        idle_for=dt.timedelta(seconds=listing.idle_for_seconds),
        rolling=dt.timedelta(seconds=listing.rolling_seconds),
    )


def columns(*, fields: ListingFields) -> dict[str, object]:
    """Return the wish as the columns of its row."""
    return {
        "name": fields.name,
        "gpu_model_id": fields.gpu_model,
        "region": fields.region,
        "fabric": fields.fabric,
        "labels": dict(fields.labels),
        "starts_at": fields.starts_at,
        "ends_at": fields.ends_at,
        "floor_rate": fields.floor_rate,
        "tier": fields.tier,
        "reclaim_notice_seconds": _seconds(fields.reclaim_notice),
        "duration_seconds_min": _seconds(fields.duration_min),
        "duration_seconds_max": None
        if fields.duration_max is None
        else _seconds(fields.duration_max),
        "gpus_min": fields.gpus_min,
        "turnaround_seconds": _seconds(fields.turnaround),
        "blackouts": [
            [format_instant(window.starts_at), format_instant(window.ends_at)]
            for window in fields.blackouts
        ],
        "mode": fields.mode,
        "idle_for_seconds": _seconds(fields.idle_for),
        "rolling_seconds": _seconds(fields.rolling),
    }


def as_json(*, fields: ListingFields) -> dict[str, object]:
    """Return the wish for the trail."""
    return columns(fields=fields) | {
        "starts_at": format_instant(fields.starts_at),
        "ends_at": None if fields.ends_at is None else format_instant(fields.ends_at),
        "floor_rate": format_rate(fields.floor_rate),
    }


def _seconds(duration: dt.timedelta) -> int:
    return duration // dt.timedelta(seconds=1)
