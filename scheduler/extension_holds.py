"""What is kept for a reservation until it is paid for: hours behind it, or another window beside it.

Of hours behind it the allocations reach to the new end meanwhile; another window has places of its own, held
as a quote holds them. The reservation has neither: its window, its price and its leases are those of before
until the money is there. A hold whose time is up is dropped; money that comes after that takes the hours
again, if nobody else has them.
"""

import datetime as dt

from django.db.models import Exists, OuterRef

from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.states import EventKind
from scheduler import calendar, holds, ticks
from scheduler.models import Allocation, ExtensionHold, Reservation
from scheduler.states import ExtensionDropReason

# A person with a card needs minutes, as for a purchase.
HELD_SECONDS = 15 * 60
# Closer to the end the GPUs are asked back, or prepared for who comes next: AWS stops here as well.
CLOSES_BEFORE_END_SECONDS = 35 * 60


def held_until(*, reservation: Reservation, at: dt.datetime) -> dt.datetime:
    """Return until when hours behind a reservation can be kept for a payment that is asked for at `at`."""
    return min(
        at + dt.timedelta(seconds=HELD_SECONDS),
        reservation.ends_at - dt.timedelta(seconds=CLOSES_BEFORE_END_SECONDS),
    )


def require_none(*, reservation: Reservation) -> None:
    """Refuse to keep more for a reservation that waits for a payment already.

    :raises StateConflict: then.
    """
    if (kept := open_of(reservation=reservation)) is not None:
        raise StateConflict(
            f"{kept.pk} waits for its payment until {format_instant(kept.held_until)}"
        )


def open_of(*, reservation: Reservation) -> ExtensionHold | None:
    """Return what is kept for a reservation now, None where nothing is."""
    waiting = ExtensionHold.objects.open().select_related("quote")
    return waiting.filter(reservation=reservation).first()


def drop_due(*, at: dt.datetime) -> int:
    """Give back what is kept and was not paid for in time; return how many holds that were."""
    lapsed = ExtensionHold.objects.open().filter(reservation=OuterRef("pk"), held_until__lte=at)
    return ticks.drain(
        due=Reservation.objects.filter(Exists(lapsed)).order_by("pk"),
        advance=lambda row: _drop_lapsed(row, at=at),
        name="drop_extension_hold",
    )


def drop(*, reservation: Reservation, reason: ExtensionDropReason, at: dt.datetime) -> bool:
    """Give back what is kept for a reservation that the caller has locked; say whether there was any.

    The old window stands, and the tenant is told why.
    """
    hold = open_of(reservation=reservation)
    if hold is None:
        return False
    if hold.kept_id is not None:
        holds.release(quote_id=hold.kept_id)
    else:
        _shorten(reservation)
    # The reservation's lock keeps rivals out; the condition is what a reader of this line can rely on.
    assert (
        ExtensionHold.objects.open().filter(pk=hold.pk).update(dropped_at=at, drop_reason=reason)
    ), hold.pk
    events.record(
        organization=reservation.organization,
        kind=EventKind.RESERVATION_EXTENSION_DROPPED,
        object_id=reservation.pk,
        data={
            "extension_id": hold.pk,
            "kind": hold.quote.kind,
            "reason": reason.value,
            "starts_at": format_instant(reservation.starts_at),
            "ends_at": format_instant(reservation.ends_at),
            "asked_starts_at": format_instant(hold.window.starts_at),
            "asked_ends_at": format_instant(hold.ends_at),
        },
        at=at,
        key=f"{hold.pk}:dropped",
    )
    return True


def _shorten(reservation: Reservation) -> None:
    """Let the allocations of a reservation end with it again."""
    end = reservation.ends_at
    longer = [
        place
        for place in Allocation.objects.filter(reservation=reservation, live=True).order_by("pk")
        if place.period.upper > end
    ]
    # A lease that was replaced began later than the window.
    for starts_at in {place.period.lower for place in longer}:
        calendar.change_period(
            allocations=[place for place in longer if place.period.lower == starts_at],
            window=Window(starts_at, end),
        )


def _drop_lapsed(reservation: Reservation, *, at: dt.datetime) -> None:
    drop(reservation=reservation, reason=ExtensionDropReason.PAYMENT_WINDOW_CLOSED, at=at)
