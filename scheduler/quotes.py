"""Quotes: a price promise with an expiry, and with `hold` a capacity promise too."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from django.db import connection, transaction

from marketplace import catalog
from marketplace.core.errors import DomainError, NotFound
from marketplace.core.money import SECONDS_PER_HOUR, format_rate
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import availability, calendar, demand, holds, placement, quotas, repacking
from scheduler.models import Quote
from scheduler.placement import Ask, Demand
from scheduler.quotas import LimitExceeded
from scheduler.states import QUOTE_ARROWS, DemandKind, QuoteStatus, Spread

# Long enough to decide, short enough that the price still means something.
QUOTE_LIFETIME_SECONDS = 600
# A quote ends when its window begins, so that nobody buys time that has passed; but one for a window that
# begins at once must leave time to answer. What passes until the handover is not charged in any case.
QUOTE_LIFETIME_SECONDS_MIN = 120
OPEN_QUOTES_MAX = 1_000  # per tenant; a quote without hold costs others nothing but rows
OPEN_HOLDS_MAX = 50  # per tenant; a hold keeps GPUs from others without paying
HELD_GPU_HOURS_MAX = 20_000  # per tenant: 64 GPUs for 13 days
EXPIRY_BATCH = 200  # quotes per transaction of the sweep: some 50 ms of locks
EXPIRY_BATCHES_MAX = 50  # per tick; the next tick goes on
_HOLD_LOCK_SPACE = 0x486F6C64  # namespace of the advisory locks that count a tenant's holds


class NotEnoughCapacity(DomainError):
    code = "not_enough_capacity"
    title = "There is not enough capacity for this window"


class WindowTooShort(DomainError):
    code = "window_too_short"
    title = "Every listing asks for a longer window"


class WindowTooLong(DomainError):
    code = "window_too_long"
    title = "Every listing asks for a shorter window"


class TooFewGpus(DomainError):
    code = "too_few_gpus"
    title = "Every listing asks for more GPUs"


class PriceAboveMax(DomainError):
    code = "price_above_max"
    title = "The price is above the maximum rate"


_REFUSALS: dict[str, type[DomainError]] = {
    refusal.code: refusal
    for refusal in (NotEnoughCapacity, WindowTooShort, WindowTooLong, TooFewGpus)
}


# A wish that could be met if there were more, or at another price.
DEMAND_REFUSALS = (NotEnoughCapacity.code, PriceAboveMax.code, calendar.CapacityTaken.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteRequest:
    """What a tenant wants a promise for. `starts_at` `None` is now; rates are per GPU-hour, fee included."""

    gpu_model: str
    gpus: int
    starts_at: dt.datetime | None
    ends_at: dt.datetime
    region: str | None = None
    tier: str = Tier.FIRM
    spread: str | None = None
    max_rate: Decimal | None = None
    hold: bool = False


@transaction.atomic
def create(*, organization: Organization, request: QuoteRequest, at: dt.datetime) -> Quote:
    """Lock a price, and with `hold` the GPUs, for `QUOTE_LIFETIME_SECONDS`; the nodes are not promised.

    Where nothing fits, promises that have not started make room if they can.

    :raises NoSuchModel: when the catalogue does not have the model.
    :raises InvalidValue: when the number of GPUs, the tier or the spread makes no sense.
    :raises WindowOffGrid: when an end is not on the grid.
    :raises WindowUpsideDown: when the window does not end after it starts.
    :raises WindowInPast: when it has begun.
    :raises BeyondHorizon: when it ends too far ahead.
    :raises NotEnoughCapacity: when not enough is listed, healthy and free.
    :raises WindowTooShort: when all listings ask for a longer window; likewise `WindowTooLong`.
    :raises TooFewGpus: when all listings ask for more GPUs.
    :raises PriceAboveMax: when the rate is above `max_rate`.
    :raises LimitExceeded: when the tenant has too many open quotes, or holds too much.
    :raises CapacityTaken: when a rival took the GPUs that were to be held.
    """
    gpu_model = catalog.get_gpu_model(gpu_model_id=request.gpu_model, pointer="/gpu_model")
    availability.check_gpus(request.gpus)
    availability.check_region(request.region)
    tier, spread = (
        availability.parse_tier(request.tier),
        availability.parse_spread(request.spread),
    )
    window = calendar.check_window(starts_at=request.starts_at, ends_at=request.ends_at, at=at)
    _check_limits(organization=organization, request=request, window=window)
    quotas.check(organization=organization, gpus=request.gpus, window=window, at=at, is_final=False)
    price = partial(
        availability.price_window,
        gpu_model=gpu_model.pk,
        gpus=request.gpus,
        region=request.region,
        tier=tier,
        spread=spread,
        window=window,
        at=at,
    )
    offer, reason = price()
    if reason == NotEnoughCapacity.code:
        wish = Demand(
            gpu_model_id=gpu_model.pk,
            region=request.region or "",
            tier=tier,
            spread=spread,
            window=window,
            asks=(Ask(gpus=request.gpus, floor_rate_max=Decimal("Infinity")),),
        )
        if repacking.open_room(wish=wish, region=request.region, at=at):
            offer, reason = price()
    if offer is None:
        raise _REFUSALS[reason or NotEnoughCapacity.code](
            f"{request.gpus} × {gpu_model.pk} cannot be had for this window"
        )
    if request.max_rate is not None and offer.rate > request.max_rate:
        raise PriceAboveMax(
            f"the rate is {format_rate(offer.rate)} per GPU-hour",
            pointer="/max_rate",
            extra={"rate": format_rate(offer.rate)},
        )
    quote = Quote(
        organization=organization,
        status=QUOTE_ARROWS.initial[0],
        gpu_model=gpu_model,
        gpus=request.gpus,
        region=offer.region,
        tier=tier,
        spread=spread,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        rate=offer.rate,
        total_minor=offer.total.amount_minor,
        lots=offer.lots.as_json(),
        currency=offer.total.currency,
        fee_basis_points=offer.price.fee_basis_points,
        price_breakdown=offer.price_breakdown,
        price_version_id=offer.price.price_table_id,
        hold=request.hold,
        simulated=offer.simulated,
        created_at=at,
        expires_at=expiry_of(window=window, at=at),
    )
    quote.save(force_insert=True)
    demand.record(
        organization=organization,
        kind=DemandKind.QUOTE,
        gpu_model_id=gpu_model.pk,
        region=quote.region,
        tier=tier,
        window=window,
        gpus=quote.gpus,
        at=at,
    )
    if request.hold:
        placement.assign(
            demand=demand_of(quote),
            take=lambda places: calendar.take_for_quote(
                places=places, window=window, quote_id=quote.pk, at=at
            ),
            at=at,
        )
    return quote


def note_refusal(
    *, organization: Organization, request: QuoteRequest, refusal: DomainError, at: dt.datetime
) -> None:
    """Sample a wish that found no room, or that was too dear: it is demand as a quote is.

    What makes no sense was no wish. To be called when the transaction of the refusal is over.
    """
    if refusal.code not in DEMAND_REFUSALS:
        return
    demand.record(
        organization=organization,
        kind=DemandKind.REFUSAL,
        gpu_model_id=request.gpu_model,
        region=request.region or "",
        tier=Tier(request.tier),
        window=calendar.check_window(starts_at=request.starts_at, ends_at=request.ends_at, at=at),
        gpus=request.gpus,
        at=at,
    )


def get(*, organization: Organization, quote_id: str) -> Quote:
    """Return a tenant's quote.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = Quote.objects.visible_to(organization)
    quote = known.filter(pk=quote_id).first() if "\x00" not in quote_id else None
    if quote is None:
        raise NotFound(f"no quote {quote_id}")
    return quote


def get_for_use(*, organization: Organization, quote_id: str) -> Quote:
    """Return a tenant's quote and keep it: nobody else uses it, or ends it, before the transaction is over.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    # As text: every purchase asks this, and Django takes longer to write it than PostgreSQL to answer.
    found = Quote.objects.raw(
        "SELECT * FROM scheduler_quote AS quote WHERE id = %s AND organization_id = %s AND NOT EXISTS"
        " (SELECT FROM scheduler_extensionhold WHERE kept_id = quote.id) FOR NO KEY UPDATE",
        [quote_id, organization.pk],
    )
    quote = next(iter(found), None) if "\x00" not in quote_id else None
    if quote is None:
        raise NotFound(f"no quote {quote_id}")
    quote.organization = organization
    return quote


def expire_due(*, at: dt.datetime) -> int:
    """End the quotes whose time is up and free what they hold; return how many.

    Batches are claimed with SKIP LOCKED, each in its own transaction: safe twice, late and side by side.
    """
    expired = 0
    for _ in range(EXPIRY_BATCHES_MAX):
        due = list(
            Quote.objects.filter(status=QuoteStatus.OPEN, expires_at__lte=at)
            .order_by("expires_at")
            .values_list("pk", flat=True)[:EXPIRY_BATCH]
        )
        count = holds.expire(quote_ids=due, at=at) if due else 0
        expired += count
        if count < EXPIRY_BATCH:
            break
    return expired


def expiry_of(*, window: Window, at: dt.datetime) -> dt.datetime:
    """Return until when a quote made at `at` can be used: never beyond its window."""
    lifetime = dt.timedelta(seconds=QUOTE_LIFETIME_SECONDS)
    soonest = at + dt.timedelta(seconds=QUOTE_LIFETIME_SECONDS_MIN)
    return min(at + lifetime, max(window.starts_at, soonest), window.ends_at)


def demand_of(quote: Quote) -> Demand:
    """Return what a quote promises, as it is to be placed."""
    return Demand(
        gpu_model_id=quote.gpu_model_id,
        region=quote.region,
        tier=Tier(quote.tier),
        spread=Spread(quote.spread),
        window=quote.window,
        asks=placement.asks_of(quote.lots),
    )


def _check_limits(*, organization: Organization, request: QuoteRequest, window: Window) -> None:
    """Refuse a tenant that has enough open already.

    Holds of one tenant are counted one after the other, under an advisory lock; plain quotes are not
    worth a lock, and racing ones may exceed their limit by a few.
    """
    open_quotes = Quote.objects.visible_to(organization).filter(status=QuoteStatus.OPEN)
    if not request.hold:
        if open_quotes.count() >= OPEN_QUOTES_MAX:
            raise LimitExceeded(f"at most {OPEN_QUOTES_MAX} open quotes")
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_HOLD_LOCK_SPACE, organization.pk]
        )
    held = open_quotes.filter(hold=True)
    if held.count() >= OPEN_HOLDS_MAX:
        raise LimitExceeded(f"at most {OPEN_HOLDS_MAX} quotes with a hold", pointer="/hold")
    gpu_seconds = sum(
        gpus * (ends_at - starts_at) // dt.timedelta(seconds=1)
        for gpus, starts_at, ends_at in held.values_list("gpus", "starts_at", "ends_at")
    )
    gpu_seconds += request.gpus * window.seconds
    if gpu_seconds > HELD_GPU_HOURS_MAX * SECONDS_PER_HOUR:
        raise LimitExceeded(f"at most {HELD_GPU_HOURS_MAX} GPU-hours on hold", pointer="/hold")
