"""Another window for a reservation that has not started: a part of the old one, or a move.

Hours that are kept keep their price, hours that are added cost what they cost today. The tenant pays the
difference of the totals, or gets it back less the ladder's fee for the notice until the first start that it
bought. A part that is given up stays on the GPUs that it has; for a move they are chosen anew, at once or not
at all. While hours are kept, a lot's GPUs go only to owners whom its price pays; a window with no hour of the
old one is bought like any other, the cheapest floors first. On the last day a window does not move: it would
be a way to leave for nothing.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings
from django.db import transaction
from django.db.models import Max

from marketplace.core.errors import DomainError, InvalidValue, StateConflict
from marketplace.core.money import format_rate
from marketplace.core.windows import Window, format_instant, is_on_grid
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import (
    added_hours,
    availability,
    calendar,
    change_rules,
    changes,
    extension_holds,
    given_back,
    placement,
    quotas,
)
from scheduler.calendar import (
    BeyondHorizon,
    CapacityTaken,
    WindowInPast,
    WindowOffGrid,
    WindowUpsideDown,
)
from scheduler.given_back import GivenBack
from scheduler.lots import GpusAtFloor, Lots
from scheduler.models import Allocation, Change, ChangeQuote, ChangeRule, Reservation
from scheduler.offerings import Offer
from scheduler.placement import Ask, Demand
from scheduler.prices import PricedWindow
from scheduler.quotes import NotEnoughCapacity, PriceAboveMax, WindowTooShort
from scheduler.states import ChangeKind, ExtensionDropReason, ReservationStatus, Spread

KINDS = frozenset({ChangeKind.SHORTENING, ChangeKind.MOVE})


class MoveTooLate(DomainError):
    code = "move_too_late"
    title = "The window cannot be moved any more"


class _Undo(Exception):
    """The places were found, and are given back: only a quote was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWish:
    """The window that a tenant wants instead; `None` leaves that end. The rate is of what is added."""

    starts_at: dt.datetime | None = None
    ends_at: dt.datetime | None = None
    max_rate: Decimal | None = None


@transaction.atomic
def quote(
    *, organization: Organization, reservation_id: str, wish: WindowWish, at: dt.datetime
) -> ChangeQuote:
    """Lock the price of another window for `PRICE_LOCK_SECONDS`; the GPUs are not held meanwhile.

    :raises NotFound: when the tenant has no such reservation.
    :raises StateConflict: when it is not paid, has begun, or is over.
    :raises changes.PaymentHeld: while its price is only held.
    :raises InvalidValue: when nothing would change.
    :raises WindowOffGrid: when a new end is not on the grid; likewise `WindowUpsideDown`, `WindowInPast` and
        `BeyondHorizon`.
    :raises MoveTooLate: when its start is too near for anything but a shorter window.
    :raises WindowTooShort: when its owners sell no window as short as that.
    :raises NotEnoughCapacity: when there is no room in the new window.
    :raises PriceAboveMax: when what is added costs more than `max_rate`.
    :raises LimitExceeded: when the tenant's limits do not allow it, or it has too many quotes open.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    check_status(reservation, at=at)
    window = _window(reservation, wish=wish, at=at)
    terms = changes.terms_of(reservation=reservation, at=at)
    kind = _kind(reservation, window=window)
    lots = Lots.from_json(reservation.lots)
    kept = reservation.window.intersection(window)
    added: list[PricedWindow] = []
    if kind is ChangeKind.SHORTENING:
        _check_shortest(reservation, window=window)
    else:
        _check_notice(reservation, rule=terms.rule, notice_seconds=terms.notice_seconds)
        quotas.check(
            organization=organization,
            gpus=reservation.gpus,
            window=window,
            at=at,
            instead_of=reservation,
            is_final=False,
        )
        if kept is None:
            offer = _offer(reservation, window=window, at=at)
            lots, added = offer.lots, [offer.price]
        else:
            floors = _floors(reservation, lots=lots, window=window, at=at)
            added = [
                added_hours.price(reservation=reservation, window=part, floors=floors, at=at)
                for part in added_parts(reservation.window, window)
            ]
    _check_rate(added, max_rate=wish.max_rate)
    if kept is not None:
        lots = lots.clipped(window=kept).joined(*(priced.lots for priced in added))
    made = changes.new_quote(
        reservation=reservation,
        kind=kind,
        terms=terms,
        lots=lots,
        total_minor=lots.amount(window=window, currency=reservation.currency).amount_minor,
        lifetime_seconds=changes.PRICE_LOCK_SECONDS,
        at=at,
    )
    made.added_rate = added_hours.mean_rate(added) if added else None
    made.price_breakdown = [priced.breakdown for priced in added]
    made.save(force_insert=True)
    return made


@transaction.atomic
def rebook(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> Change:
    """Give a reservation the window of a quote: all its GPUs, or nothing happens.

    :raises NotFound: when the tenant has no such reservation, or that no such quote.
    :raises QuoteUsed: when the quote was used.
    :raises QuoteExpired: when its time is up.
    :raises StateConflict: when the reservation has begun, is over, or has changed since the quote.
    :raises LimitExceeded: when the tenant's limits do not allow it.
    :raises CapacityTaken: when there is no room in the new window any more.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    check_status(reservation, at=at)
    used = changes.use(reservation=reservation, quote_id=quote_id, kinds=KINDS, at=at)
    extension_holds.drop(
        reservation=reservation, reason=ExtensionDropReason.RESERVATION_CHANGED, at=at
    )
    window, old = used.window, reservation.window
    assert window is not None
    check_start(reservation, window=window, at=at)
    released = given_back.places(reservation=reservation, parts=added_parts(window, old))
    if used.kind == ChangeKind.SHORTENING:
        places = list(Allocation.objects.filter(reservation=reservation, live=True).order_by("pk"))
        calendar.change_period(allocations=places, window=window)
    else:
        quotas.check(
            organization=organization,
            gpus=reservation.gpus,
            window=window,
            at=at,
            instead_of=reservation,
        )
        place(reservation, lots=Lots.from_json(used.lots), window=window, at=at)
    return write(reservation, used=used, released=released, change_id="", at=at, actor=actor)


def write(
    reservation: Reservation,
    *,
    used: ChangeQuote,
    released: Sequence[GivenBack],
    change_id: str,
    at: dt.datetime,
    actor: str,
) -> Change:
    """Write down another window whose places are taken; `released` are those that are given back."""
    window, old = used.window, reservation.window
    assert window is not None
    change = changes.record(
        reservation=reservation,
        quote=used,
        window=window,
        money=change_rules.Difference(
            charge=used.charge_minor, refund=used.refund_minor, fee=used.fee_minor
        ),
        gpu_seconds_added=reservation.gpus * sum(part.seconds for part in added_parts(old, window)),
        gpu_seconds_released=reservation.gpus
        * sum(part.seconds for part in added_parts(window, old)),
        released=released,
        at=at,
        actor=actor,
        change_id=change_id,
    )
    changes.rewrite(
        reservation=reservation,
        lots=Lots.from_json(used.lots),
        total_minor=used.total_minor,
    )
    return change


def check_start(reservation: Reservation, *, window: Window, at: dt.datetime) -> None:
    """Refuse a window that begins at another instant, which has passed.

    :raises StateConflict: then.
    """
    if window.starts_at < at and window.starts_at != reservation.starts_at:
        raise StateConflict(f"the new window began at {format_instant(window.starts_at)}")


def place(reservation: Reservation, *, lots: Lots, window: Window, at: dt.datetime) -> None:
    """Give a reservation places in another window, each lot at listings that it pays.

    What it had is free for it, too.

    :raises CapacityTaken: when there is no such room.
    """
    calendar.free_reservation(reservation_id=reservation.pk)
    placement.assign(
        demand=demand_of(reservation, lots=lots, window=window),
        take=lambda places: calendar.take_for_reservation(
            places=places, window=window, reservation_id=reservation.pk, at=at
        ),
        at=at,
    )


def demand_of(reservation: Reservation, *, lots: Lots, window: Window) -> Demand:
    """Return what another window of a reservation asks for: each lot at listings that it pays."""
    return Demand(
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
        spread=Spread(reservation.spread),
        window=window,
        asks=tuple(
            Ask(
                lot=number,
                gpus=lot.gpus,
                floor_rate_max=lot.floor_rate,
                listing_ids=frozenset(lot.listing_ids),
            )
            for number, lot in enumerate(lots.lots)
        ),
    )


def _offer(reservation: Reservation, *, window: Window, at: dt.datetime) -> Offer:
    """Return what another window costs whoever asks for it, with what the reservation has being free.

    :raises NotEnoughCapacity: when there is no room in it.
    """
    try:
        with transaction.atomic():
            calendar.free_reservation(reservation_id=reservation.pk)
            offer, _ = availability.price_window(
                gpu_model=reservation.gpu_model_id,
                gpus=reservation.gpus,
                region=reservation.region,
                tier=Tier(reservation.tier),
                spread=Spread(reservation.spread),
                window=window,
                at=at,
            )
            raise _Undo
    except _Undo:
        if offer is None:
            raise _no_room(reservation) from None
        return offer


def _floors(
    reservation: Reservation, *, lots: Lots, window: Window, at: dt.datetime
) -> list[GpusAtFloor]:
    """Return per lot what the dearest owner asks today of those who would serve, found by placing it.

    :raises NotEnoughCapacity: when there is no room at owners whom the lots pay.
    """
    try:
        with transaction.atomic():
            place(reservation, lots=lots, window=window, at=at)
            places = Allocation.objects.filter(reservation=reservation, live=True)
            dearest = dict(
                places.order_by().values_list("lot").annotate(Max("listing__floor_rate"))
            )
            raise _Undo
    except CapacityTaken:
        raise _no_room(reservation) from None
    except _Undo:
        return [GpusAtFloor(dearest[number], lot.gpus) for number, lot in enumerate(lots.lots)]


def _no_room(reservation: Reservation) -> NotEnoughCapacity:
    return NotEnoughCapacity(
        f"{reservation.gpus} × {reservation.gpu_model_id} cannot be had for this window"
    )


def _kind(reservation: Reservation, *, window: Window) -> ChangeKind:
    return ChangeKind.SHORTENING if reservation.window.covers(window) else ChangeKind.MOVE


def added_parts(old: Window, new: Window) -> Iterator[Window]:
    """Yield the parts of a window that another one does not cover, in their order."""
    kept = old.intersection(new)
    if kept is None:
        yield new
        return
    if new.starts_at < kept.starts_at:
        yield Window(new.starts_at, kept.starts_at)
    if kept.ends_at < new.ends_at:
        yield Window(kept.ends_at, new.ends_at)


def _window(reservation: Reservation, *, wish: WindowWish, at: dt.datetime) -> Window:
    """Return the window that is wished for; an end that does not change is not looked at."""
    grid = settings.GRID_SECONDS
    starts_at = wish.starts_at or reservation.starts_at
    ends_at = wish.ends_at or reservation.ends_at
    if (starts_at, ends_at) == (reservation.starts_at, reservation.ends_at):
        raise InvalidValue("nothing would change: name another start or another end")
    for name, instant, before in (
        ("starts_at", starts_at, reservation.starts_at),
        ("ends_at", ends_at, reservation.ends_at),
    ):
        if instant != before and not is_on_grid(instant, grid_seconds=grid):
            raise WindowOffGrid(f"must be a multiple of {grid} s, UTC", pointer=f"/{name}")
    if starts_at >= ends_at:
        raise WindowUpsideDown("must be later than the start", pointer="/ends_at")
    if starts_at < at and starts_at != reservation.starts_at:
        raise WindowInPast(f"it is {format_instant(at)} already", pointer="/starts_at")
    horizon = calendar.horizon_at(at=at)
    if ends_at > horizon and ends_at > reservation.ends_at:
        raise BeyondHorizon(f"must end by {format_instant(horizon)}", pointer="/ends_at")
    return Window(starts_at, ends_at)


def check_status(reservation: Reservation, *, at: dt.datetime) -> None:
    """Refuse a reservation whose window does not change any more, or not yet.

    :raises StateConflict: when it has begun, or is over; see `changes.require_taken` and `require_paid`.
    """
    if reservation.status != ReservationStatus.SCHEDULED:
        raise StateConflict(
            f"{reservation.pk} is {reservation.status}: a window changes before it begins"
        )
    if reservation.starts_at <= at:
        raise StateConflict(f"{reservation.pk} began at {format_instant(reservation.starts_at)}")
    changes.require_taken(reservation)
    changes.require_paid(reservation)


def _check_notice(reservation: Reservation, *, rule: ChangeRule, notice_seconds: int) -> None:
    if notice_seconds < rule.move_closes_seconds:
        raise MoveTooLate(
            f"{reservation.pk} could be moved until {rule.move_closes_seconds} s before its first start"
        )


def _check_shortest(reservation: Reservation, *, window: Window) -> None:
    """Refuse a window that is shorter than the owners of the GPUs sell any."""
    places = Allocation.objects.filter(reservation=reservation, live=True)
    for place in places.select_related("listing"):
        if window.seconds < place.listing.duration_seconds_min:
            raise WindowTooShort(
                f"an owner of these GPUs sells no less than {place.listing.duration_seconds_min} s"
            )


def _check_rate(added: list[PricedWindow], *, max_rate: Decimal | None) -> None:
    if max_rate is None or not added:
        return
    rate = added_hours.mean_rate(added)
    if rate > max_rate:
        raise PriceAboveMax(
            f"the rate of what is added is {format_rate(rate)} per GPU-hour",
            pointer="/max_rate",
            extra={"rate": format_rate(rate)},
        )
