"""Listings: the owner's standing wish. Every verb checks the whole wish; none touches what is sold."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import TypedDict

from django.conf import settings
from django.db import transaction

from marketplace import audit
from marketplace.catalog import get_gpu_model
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.core.limits import GPUS_PER_REQUEST_MAX, HORIZON_DAYS
from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX, format_rate
from marketplace.core.text import check_labels, check_name, check_text
from marketplace.core.windows import Window
from marketplace.models import Listing, ListingTransition, Organization
from marketplace.states import LISTING_ARROWS, ListingMode, ListingStatus, Tier

BLACKOUTS_MAX = (
    100  # a weekday's office hours for the whole horizon; more belongs into several listings
)
RECLAIM_NOTICE_MAX = dt.timedelta(days=7)  # a longer notice is a firm lease by another name
IDLE_FOR_MAX = dt.timedelta(days=7)
REGION_LENGTH_MAX = 60
FABRIC_LENGTH_MAX = 100
_HORIZON = dt.timedelta(days=HORIZON_DAYS)
_ZERO = dt.timedelta(0)


class ListingRefused(DomainError):
    """The wish makes no sense as it stands."""

    code = "listing_refused"
    title = "The listing was refused"


class NotAnOwner(ListingRefused):
    """Only an owner may list."""

    code = "not_an_owner"
    title = "The organization is not an owner"


class FloorRateRefused(ListingRefused):
    """The floor is not a positive decimal of at most six places within the bounds of a price."""

    code = "floor_rate_invalid"


class PeriodRefused(ListingRefused):
    """The period is upside down or over."""

    code = "listing_period_invalid"


class ReclaimNoticeRefused(ListingRefused):
    """The notice does not fit the tier."""

    code = "reclaim_notice_invalid"


class DurationsRefused(ListingRefused):
    """The shortest lease is longer than the longest, or one is out of bounds."""

    code = "listing_durations_invalid"


class GpusMinRefused(ListingRefused):
    """The smallest block is no number of GPUs."""

    code = "min_gpus_invalid"


class BlackoutsRefused(ListingRefused):
    """There are too many blackouts."""

    code = "blackouts_invalid"


class ModeRefused(ListingRefused):
    """`when_idle` needs both of its durations; `always` knows neither."""

    code = "listing_mode_invalid"


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
    blackouts: tuple[Window, ...]
    mode: ListingMode
    idle_for: dt.timedelta
    rolling: dt.timedelta


@transaction.atomic
def create(
    *, organization: Organization, fields: ListingFields, at: dt.datetime, actor: str
) -> Listing:
    """Write down a wish as a draft; nothing is on offer before it is published.

    :raises ListingRefused: when the wish makes no sense, see the subclasses.
    :raises NoSuchModel: when the market does not know the GPU model.
    :raises InvalidValue: when a text or a label does not fit.
    """
    if not organization.is_owner:
        raise NotAnOwner(f"{organization.id} does not sell")
    _check(fields=fields, at=at)
    listing = Listing.objects.create(
        organization=organization,
        currency=settings.CURRENCY,
        created_at=at,
        updated_at=at,
        **_columns(fields=fields),
    )
    ListingTransition.objects.create(
        listing=listing, to_status=ListingStatus.DRAFT, actor=actor, at=at
    )
    _record(
        listing=listing,
        action="listing.created",
        at=at,
        actor=actor,
        detail=_as_json(fields=fields),
    )
    return listing


@transaction.atomic
def update(*, listing: Listing, changes: ListingChanges, at: dt.datetime, actor: str) -> Listing:
    """Change parts of a wish. What is already sold under it keeps its price and its GPUs.

    :raises StateConflict: when the listing is retired.
    :raises ListingRefused: when the wish would make no sense, see the subclasses.
    :raises NoSuchModel: when the market does not know the GPU model.
    :raises InvalidValue: when a text or a label does not fit.
    """
    locked = Listing.objects.select_for_update().get(pk=listing.pk)
    if LISTING_ARROWS.is_final(ListingStatus(locked.status)):
        raise StateConflict(f"{locked.id} is {locked.status}")
    before = fields_of(listing=locked)
    after = dataclasses.replace(before, **changes)
    _check(fields=after, at=at)
    for column, value in _columns(fields=after).items():
        setattr(locked, column, value)
    locked.updated_at = at
    locked.save()
    old, new = _as_json(fields=before), _as_json(fields=after)
    changed = {name: {"from": old[name], "to": new[name]} for name in new if old[name] != new[name]}
    _record(listing=locked, action="listing.changed", at=at, actor=actor, detail=changed)
    return locked


def publish(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Put a draft or a paused listing on offer.

    :raises StateConflict: when it is published or retired, or another writer was faster.
    :raises PeriodRefused: when its period is over.
    """
    if listing.ends_at is not None and listing.ends_at <= at:
        raise PeriodRefused("the listing's period is over", pointer="/ends_at")
    return _move(listing=listing, to_status=ListingStatus.PUBLISHED, at=at, actor=actor)


def pause(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Take a published listing off offer for a while; what is sold stays sold.

    :raises StateConflict: when it is not published, or another writer was faster.
    """
    return _move(listing=listing, to_status=ListingStatus.PAUSED, at=at, actor=actor)


def retire(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Take a listing off offer for good; what is sold stays sold.

    :raises StateConflict: when it is retired already, or another writer was faster.
    """
    return _move(listing=listing, to_status=ListingStatus.RETIRED, at=at, actor=actor)


def get(*, organization: Organization, listing_id: str) -> Listing:
    """Return a listing of this owner.

    :raises NotFound: when there is none, or it is another owner's: the answers are the same.
    """
    listing = (
        Listing.objects.visible_to(organization)
        .select_related("gpu_model")
        .filter(id=listing_id)
        .first()
    )
    if listing is None:
        raise NotFound(f"there is no listing {listing_id}")
    return listing


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
        blackouts=blackouts_of(listing=listing),
        mode=ListingMode(listing.mode),
        idle_for=dt.timedelta(seconds=listing.idle_for_seconds),
        rolling=dt.timedelta(seconds=listing.rolling_seconds),
    )


@transaction.atomic
def _move(*, listing: Listing, to_status: ListingStatus, at: dt.datetime, actor: str) -> Listing:
    """Compare and set the status; the winner writes the transition and the trail."""
    from_status = ListingStatus(listing.status)
    if not LISTING_ARROWS.allows(from_status, to_status):
        raise StateConflict(f"{listing.id} is {from_status} and cannot become {to_status}")
    rows = Listing.objects.filter(pk=listing.pk, status=from_status)
    if not rows.update(status=to_status, updated_at=at):
        raise StateConflict(f"{listing.id} is no longer {from_status}")
    ListingTransition.objects.create(
        listing=listing, from_status=from_status, to_status=to_status, actor=actor, at=at
    )
    _record(
        listing=listing,
        action=f"listing.{to_status}",
        at=at,
        actor=actor,
        detail={"from": from_status},
    )
    listing.refresh_from_db()
    return listing


def _record(
    *, listing: Listing, action: str, at: dt.datetime, actor: str, detail: Mapping[str, object]
) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=listing.id,
        organization=listing.organization,
        detail=detail,
    )


def _check(*, fields: ListingFields, at: dt.datetime) -> None:
    """Refuse a wish that makes no sense, part by part."""
    check_name(fields.name, pointer="/name")
    check_text(fields.region, length_max=REGION_LENGTH_MAX, pointer="/selector/region")
    check_text(fields.fabric, length_max=FABRIC_LENGTH_MAX, pointer="/selector/fabric")
    check_labels(fields.labels, pointer="/selector/labels")
    get_gpu_model(gpu_model_id=fields.gpu_model, pointer="/selector/gpu_model")
    _check_floor_rate(floor_rate=fields.floor_rate)
    _check_period(fields=fields, at=at)
    _check_notice(fields=fields)
    _check_durations(fields=fields)
    if not 1 <= fields.gpus_min <= GPUS_PER_REQUEST_MAX:
        raise GpusMinRefused(f"must be from 1 to {GPUS_PER_REQUEST_MAX}", pointer="/min_gpus")
    _check_blackouts(blackouts=fields.blackouts)
    _check_mode(fields=fields)


def _check_floor_rate(*, floor_rate: Decimal) -> None:
    if not floor_rate.is_finite() or not 0 < floor_rate <= RATE_MAX:
        raise FloorRateRefused(
            f"must be above 0 and at most {RATE_MAX} per GPU-hour", pointer="/floor_rate"
        )
    exponent = floor_rate.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > RATE_DECIMAL_PLACES:
        raise FloorRateRefused(
            f"must have at most {RATE_DECIMAL_PLACES} decimal places", pointer="/floor_rate"
        )


def _check_period(*, fields: ListingFields, at: dt.datetime) -> None:
    if fields.ends_at is not None and fields.ends_at <= fields.starts_at:
        raise PeriodRefused("must be after starts_at", pointer="/ends_at")
    if fields.ends_at is not None and fields.ends_at <= at:
        raise PeriodRefused("has passed", pointer="/ends_at")


def _check_notice(*, fields: ListingFields) -> None:
    if fields.tier is Tier.FIRM and fields.reclaim_notice != _ZERO:
        raise ReclaimNoticeRefused(
            "a firm lease cannot be reclaimed, so it has no notice", pointer="/reclaim_notice"
        )
    if (
        fields.tier is Tier.RECLAIMABLE
        and not dt.timedelta(seconds=1) <= fields.reclaim_notice <= RECLAIM_NOTICE_MAX
    ):
        raise ReclaimNoticeRefused(
            "a reclaimable lease needs a notice of 1 s to 7 days", pointer="/reclaim_notice"
        )


def _check_durations(*, fields: ListingFields) -> None:
    if not _ZERO <= fields.duration_min <= _HORIZON:
        raise DurationsRefused(f"must be at most {HORIZON_DAYS} days", pointer="/min_duration")
    if fields.duration_max is None:
        return
    if not _ZERO < fields.duration_max <= _HORIZON:
        raise DurationsRefused(
            f"must be above zero and at most {HORIZON_DAYS} days", pointer="/max_duration"
        )
    if fields.duration_max < fields.duration_min:
        raise DurationsRefused("must not be shorter than min_duration", pointer="/max_duration")


def _check_blackouts(*, blackouts: tuple[Window, ...]) -> None:
    if len(blackouts) > BLACKOUTS_MAX:
        raise BlackoutsRefused(f"there may be at most {BLACKOUTS_MAX}", pointer="/blackouts")


def _check_mode(*, fields: ListingFields) -> None:
    if fields.mode is ListingMode.ALWAYS:
        if fields.idle_for != _ZERO or fields.rolling != _ZERO:
            raise ModeRefused("idle_for and rolling belong to the mode when_idle", pointer="/mode")
        return
    if not dt.timedelta(seconds=1) <= fields.idle_for <= IDLE_FOR_MAX:
        raise ModeRefused(
            "when_idle needs idle_for of 1 s to 7 days", pointer="/mode/when_idle/idle_for"
        )
    if not dt.timedelta(seconds=settings.GRID_SECONDS) <= fields.rolling <= _HORIZON:
        detail = f"when_idle needs rolling of one grid step to {HORIZON_DAYS} days"
        raise ModeRefused(detail, pointer="/mode/when_idle/rolling")


def _columns(*, fields: ListingFields) -> dict[str, object]:
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
        "blackouts": [
            [_instant(window.starts_at), _instant(window.ends_at)] for window in fields.blackouts
        ],
        "mode": fields.mode,
        "idle_for_seconds": _seconds(fields.idle_for),
        "rolling_seconds": _seconds(fields.rolling),
    }


def _as_json(*, fields: ListingFields) -> dict[str, object]:
    """Return the wish for the trail."""
    columns = _columns(fields=fields)
    return columns | {
        "starts_at": _instant(fields.starts_at),
        "ends_at": None if fields.ends_at is None else _instant(fields.ends_at),
        "floor_rate": format_rate(fields.floor_rate),
    }


def _seconds(duration: dt.timedelta) -> int:
    return duration // dt.timedelta(seconds=1)


def _instant(instant: dt.datetime) -> str:
    return instant.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
