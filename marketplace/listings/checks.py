"""What makes a wish make no sense, part by part, and how each part is refused."""

import datetime as dt
from decimal import Decimal

from django.conf import settings

from marketplace.catalog import get_gpu_model
from marketplace.core.errors import DomainError
from marketplace.core.limits import (
    GPUS_PER_REQUEST_MAX,
    HORIZON_DAYS,
    TURN_ROUND_SECONDS_MAX,
)
from marketplace.core.money import RATE_DECIMAL_PLACES, RATE_MAX
from marketplace.core.text import check_labels, check_name, check_text
from marketplace.core.windows import Window
from marketplace.listings.wish import ListingFields
from marketplace.states import ListingMode, Tier

# A weekday's office hours for the whole horizon; more belongs into several listings.
BLACKOUTS_MAX = 100
# Less is no time to save a day's work; a month is what the longest peers allow.
RECLAIM_NOTICE_MIN = dt.timedelta(hours=1)
RECLAIM_NOTICE_MAX = dt.timedelta(hours=720)
TURNAROUND_MAX = dt.timedelta(seconds=TURN_ROUND_SECONDS_MAX)
IDLE_FOR_MAX = dt.timedelta(days=7)
REGION_LENGTH_MAX = 60
FABRIC_LENGTH_MAX = 100
_HORIZON = dt.timedelta(days=HORIZON_DAYS)
_ZERO = dt.timedelta(0)


class ListingRefused(DomainError):
    """The wish makes no sense as it stands."""

    code = "listing_refused"
    title = "The listing was refused"


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


class TurnaroundRefused(ListingRefused):
    """The time between two tenants is longer than a day, or no whole seconds."""

    code = "listing_turnaround_invalid"


class BlackoutsRefused(ListingRefused):
    """There are too many blackouts."""

    code = "blackouts_invalid"


class ModeRefused(ListingRefused):
    """`when_idle` needs both of its durations; `always` knows neither."""

    code = "listing_mode_invalid"


def check(*, fields: ListingFields, at: dt.datetime) -> None:
    """Refuse a wish that makes no sense, part by part.

    :raises ListingRefused: when a part makes no sense, see the subclasses.
    :raises NoSuchModel: when the market does not know the GPU model.
    :raises InvalidValue: when a text or a label does not fit.
    """
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
    _check_turnaround(turnaround=fields.turnaround)
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
        and not RECLAIM_NOTICE_MIN <= fields.reclaim_notice <= RECLAIM_NOTICE_MAX
    ):
        raise ReclaimNoticeRefused(
            "a reclaimable lease needs a notice of 1 to 720 hours", pointer="/reclaim_notice"
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


def _check_turnaround(*, turnaround: dt.timedelta) -> None:
    if not _ZERO <= turnaround <= TURNAROUND_MAX or turnaround.microseconds:
        raise TurnaroundRefused(
            f"must be whole seconds, at most {TURNAROUND_MAX // dt.timedelta(hours=1)} hours",
            pointer="/turnaround",
        )


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
