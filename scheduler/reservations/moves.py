"""The arrows that somebody takes on purpose, and how every arrow is taken.

Payment is known only as a word: whoever takes the money calls `confirm` or `fail_payment`.
"""

import datetime as dt

from django.db import transaction

from marketplace import events
from marketplace.core.errors import NotFound, StateConflict
from marketplace.core.windows import format_instant
from marketplace.states import EventKind
from scheduler import calendar, placement, quotes
from scheduler.models import Reservation, ReservationTransition
from scheduler.states import RESERVATION_ARROWS, ReservationReason, ReservationStatus


@transaction.atomic
def confirm(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take the arrow payment_pending → scheduled: it is paid.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it does not wait for a payment any more, or its time to pay is over.
    """
    reservation = find(reservation_id)
    confirm_in_hand(reservation=reservation, at=at, actor=actor)
    return reservation


def confirm_in_hand(
    *,
    reservation: Reservation,
    at: dt.datetime,
    actor: str,
    reason: ReservationReason = ReservationReason.PAID,
) -> None:
    """Do what `confirm` does with a reservation that was just read or made, without reading it again.

    :raises StateConflict: when it does not wait for a payment any more, or its time to pay is over.
    """
    waited = (ReservationStatus.PAYMENT_PENDING, ReservationStatus.EXPIRED)
    if reservation.payment_due_at <= at and reservation.status in waited:
        raise StateConflict(
            f"{reservation.pk} had to be paid by {format_instant(reservation.payment_due_at)}"
        )
    move(
        reservation,
        to=ReservationStatus.SCHEDULED,
        reason=reason,
        at=at,
        actor=actor,
    )


@transaction.atomic
def confirm_held(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take the arrow payment_pending → scheduled: the price is held, and is to be taken before the start.

    It does not begin before `take_held` has said that it was.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it does not wait for a payment any more, or its time to pay is over.
    """
    reservation = find(reservation_id)
    confirm_in_hand(
        reservation=reservation, at=at, actor=actor, reason=ReservationReason.PAYMENT_HELD
    )
    Reservation.objects.filter(pk=reservation.pk).update(is_payment_held=True)
    reservation.is_payment_held = True
    return reservation


@transaction.atomic
def take_held(*, reservation_id: str) -> None:
    """Note that the price that was held is taken: from now on the reservation is paid like any other.

    :raises StateConflict: when no price is held for it, or it is over.
    """
    taken = Reservation.objects.filter(
        pk=reservation_id, status=ReservationStatus.SCHEDULED, is_payment_held=True
    ).update(is_payment_held=False)
    if not taken:
        raise StateConflict(f"{reservation_id} waits for no price that is held")


@transaction.atomic
def confirm_late(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take an arrow to scheduled whenever the money came, at the locked price.

    A reservation that still has its GPUs keeps them. One that has expired gets others, or the same, if
    they can be had and its window has not begun.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it waits for no payment, or its window has begun without it.
    :raises CapacityTaken: when nobody has room for it any more.
    """
    reservation = find(reservation_id)
    if reservation.payment_due_at > at:
        return confirm(reservation_id=reservation_id, at=at, actor=actor)
    has_expired = reservation.status == ReservationStatus.EXPIRED
    if (reservation.starts_at if has_expired else reservation.ends_at) <= at:
        raise StateConflict(f"the window of {reservation_id} has begun or is over")
    move(
        reservation,
        to=ReservationStatus.SCHEDULED,
        reason=ReservationReason.PAID_LATE,
        at=at,
        actor=actor,
    )
    if has_expired:
        placement.assign(
            demand=quotes.demand_of(reservation.quote),
            take=lambda places: calendar.take_for_reservation(
                places=places, window=reservation.window, reservation_id=reservation.pk, at=at
            ),
            at=at,
        )
    return reservation


@transaction.atomic
def fail_payment(
    *,
    reservation_id: str,
    at: dt.datetime,
    actor: str,
    reason: ReservationReason = ReservationReason.PAYMENT_DECLINED,
) -> Reservation:
    """Take the arrow payment_pending or scheduled → payment_failed, and put the GPUs back on sale.

    A scheduled one was confirmed by money that was held and could not be taken in the end.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it does not wait for a payment any more.
    """
    reservation = find(reservation_id)
    move(
        reservation,
        to=ReservationStatus.PAYMENT_FAILED,
        reason=reason,
        at=at,
        actor=actor,
    )
    calendar.free_reservation(reservation_id=reservation.pk)
    return reservation


@transaction.atomic
def cancel(*, reservation: Reservation, at: dt.datetime, actor: str) -> None:
    """Take the arrow payment_pending or scheduled → cancelled, and put the GPUs back on sale.

    :raises StateConflict: when it has begun, or is over.
    """
    move(
        reservation,
        to=ReservationStatus.CANCELLED,
        reason=ReservationReason.TENANT_CANCELLED,
        at=at,
        actor=actor,
    )
    calendar.free_reservation(reservation_id=reservation.pk)


@transaction.atomic
def pay_up(*, reservation_id: str, at: dt.datetime) -> Reservation:
    """Note that the rest of a reservation's price is paid: now it may begin.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it is not scheduled any more, or nothing of it is unpaid.
    """
    reservation = find(reservation_id)
    paid = Reservation.objects.filter(
        pk=reservation.pk, status=ReservationStatus.SCHEDULED, unpaid_minor__gt=0
    ).update(unpaid_minor=0)
    if not paid:
        raise StateConflict(
            f"at {format_instant(at)} {reservation.pk} is {reservation.status}, "
            f"{reservation.unpaid_minor} of it unpaid"
        )
    reservation.unpaid_minor = 0
    return reservation


def find(reservation_id: str) -> Reservation:
    """Return a reservation, whoever's it is.

    :raises NotFound: when there is none of this id.
    """
    found = Reservation.objects.filter(pk=reservation_id).first()
    if found is None:
        raise NotFound(f"no reservation {reservation_id}")
    return found


def move(
    reservation: Reservation,
    *,
    to: ReservationStatus,
    reason: ReservationReason,
    at: dt.datetime,
    actor: str,
) -> None:
    """Take an arrow: compare and set; the winner writes the transition in the same transaction.

    :raises StateConflict: when the table has no such arrow, or somebody else moved it meanwhile.
    """
    came_from = ReservationStatus(reservation.status)
    won = RESERVATION_ARROWS.allows(came_from, to) and Reservation.objects.filter(
        pk=reservation.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{reservation.pk} is {came_from} or moved on; it cannot become {to}")
    reservation.status = to
    ReservationTransition.objects.create(
        reservation=reservation,
        from_status=came_from,
        to_status=to,
        reason=reason,
        actor=actor,
        at=at,
    )
    tell(reservation, reason=reason, at=at)


def tell(reservation: Reservation, *, reason: ReservationReason, at: dt.datetime) -> None:
    """Tell the tenant of a move: each status is reached once."""
    status = ReservationStatus(reservation.status)
    kind = {
        ReservationStatus.SCHEDULED: EventKind.RESERVATION_SCHEDULED,
        ReservationStatus.ACTIVE: EventKind.RESERVATION_STARTED,
    }.get(status, EventKind.RESERVATION_ENDED)
    events.record(
        organization=reservation.organization,
        kind=kind,
        object_id=reservation.pk,
        data={"status": status, "reason": reason},
        at=at,
        key=f"{reservation.pk}:{status}",
    )
