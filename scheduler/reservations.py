"""Reservations: the promise, from the accepted quote to the end of its window.

Every arrow is one function here. Payment is known only as a word: whoever takes the money calls
`confirm` or `fail_payment`.
"""

import datetime as dt
from collections.abc import Sequence

import structlog
from django.db import DatabaseError, transaction
from django.db.models import Exists, Min, OuterRef, Q

from marketplace import events
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from marketplace.states import EventKind, Tier
from scheduler import (
    calendar,
    demand,
    holds,
    leases,
    openings,
    placement,
    quotas,
    quotes,
    ticks,
)
from scheduler.details import DetailChanges, ReservationDetails, check_details
from scheduler.models import (
    Allocation,
    Lease,
    Quote,
    Reclaim,
    Replacement,
    Reservation,
    ReservationTransition,
)
from scheduler.states import (
    LEASE_ARROWS,
    RESERVATION_ARROWS,
    DemandKind,
    LeaseStatus,
    PaymentMethod,
    ReservationReason,
    ReservationStatus,
)

log = structlog.get_logger(__name__)

# How long capacity is kept for a payment: a wallet answers at once, a person with a card needs minutes, a
# bank transfer half a day.
PAYMENT_WINDOW_SECONDS = {
    PaymentMethod.WALLET: 15 * 60,
    PaymentMethod.CARD: 15 * 60,
    PaymentMethod.BANK_TRANSFER: 12 * 3600,
    PaymentMethod.INVOICE: 12 * 3600,
}
SYSTEM = "scheduler"  # actor of what happens because its time has come
_FINAL_LEASES = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]


@transaction.atomic(savepoint=False)
def reserve(
    *,
    organization: Organization,
    quote_id: str,
    payment_method: str,
    details: ReservationDetails,
    at: dt.datetime,
    actor: str,
) -> Reservation:
    """Make a reservation of a quote, all or nothing; it waits for its payment until `payment_due_at`.

    The placement is chosen now, unless the quote holds one. A refusal ends the caller's transaction, if
    there is one: it can only be rolled back.

    :raises NotFound: when the tenant has no such quote.
    :raises DomainError: whatever refuses it; see `accept`.
    """
    return accept(
        quote=quotes.get_for_use(organization=organization, quote_id=quote_id),
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
    )


@transaction.atomic(savepoint=False)
def accept(
    *,
    quote: Quote,
    payment_method: str,
    details: ReservationDetails,
    at: dt.datetime,
    actor: str,
) -> Reservation:
    """Do what `reserve` does with a quote that `quotes.get_for_use` returned in this transaction.

    :raises InvalidValue: when the payment method or a detail makes no sense.
    :raises QuoteUsed: when a reservation was made of it already.
    :raises QuoteExpired: when its time is up.
    :raises LimitExceeded: when the tenant's limits do not allow it; the quote stays.
    :raises CapacityTaken: when a rival took the GPUs, and no others serve at this price; the quote stays.
    """
    if payment_method not in PaymentMethod.values:
        raise InvalidValue(
            f"must be one of {', '.join(PaymentMethod.values)}", pointer="/payment_method"
        )
    check_details(details)
    organization = quote.organization
    holds.require_usable(quote=quote, at=at)
    quotas.check(organization=organization, gpus=quote.gpus, window=quote.window, at=at)
    patience = dt.timedelta(seconds=PAYMENT_WINDOW_SECONDS[PaymentMethod(payment_method)])
    reservation = Reservation(
        organization=organization,
        quote=quote,
        status=RESERVATION_ARROWS.initial[0],
        gpu_model_id=quote.gpu_model_id,
        gpus=quote.gpus,
        region=quote.region,
        tier=quote.tier,
        spread=quote.spread,
        starts_at=quote.starts_at,
        ends_at=quote.ends_at,
        rate=quote.rate,
        total_minor=quote.total_minor,
        lots=quote.lots,
        currency=quote.currency,
        fee_basis_points=quote.fee_basis_points,
        payment_method=payment_method,
        simulated=quote.simulated,
        name=details.name,
        project=details.project,
        tags=details.tags,
        ssh_public_keys=details.ssh_public_keys,
        image=details.image,
        warn_before_seconds=sorted(details.warn_before_seconds),
        created_at=at,
        payment_due_at=min(at + patience, quote.ends_at),
    )
    # The place comes first: a loser of a race must not have written anything in vain. The foreign key of
    # the allocations is checked at commit. The quote is ours already: its row is locked.
    if quote.hold:
        slots = calendar.hand_hold_over(quote_id=quote.pk, reservation_id=reservation.pk)
        assert slots == quote.gpus, (slots, quote.pk)
    else:
        placement.assign(
            demand=quotes.demand_of(quote),
            take=lambda places: calendar.take_for_reservation(
                places=places, window=quote.window, reservation_id=reservation.pk, at=at
            ),
            at=at,
        )
    if reservation.tier == Tier.RECLAIMABLE:
        reservation.reclaim_notice_seconds = _shortest_notice(reservation_id=reservation.pk)
    holds.use(quote=quote, at=at)
    reservation.save(force_insert=True)
    demand.record(
        organization=organization,
        kind=DemandKind.RESERVATION,
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
        window=reservation.window,
        gpus=reservation.gpus,
        at=at,
        occasion=reservation.pk,
    )
    ReservationTransition.objects.create(
        reservation=reservation,
        from_status="",
        to_status=reservation.status,
        reason=ReservationReason.QUOTE_ACCEPTED,
        actor=actor,
        at=at,
    )
    return reservation


@transaction.atomic
def confirm(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take the arrow payment_pending → scheduled: it is paid.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it does not wait for a payment any more, or its time to pay is over.
    """
    reservation = _find(reservation_id)
    confirm_in_hand(reservation=reservation, at=at, actor=actor)
    return reservation


def confirm_in_hand(*, reservation: Reservation, at: dt.datetime, actor: str) -> None:
    """Do what `confirm` does with a reservation that was just read or made, without reading it again.

    :raises StateConflict: when it does not wait for a payment any more, or its time to pay is over.
    """
    waited = (ReservationStatus.PAYMENT_PENDING, ReservationStatus.EXPIRED)
    if reservation.payment_due_at <= at and reservation.status in waited:
        raise StateConflict(
            f"{reservation.pk} had to be paid by {format_instant(reservation.payment_due_at)}"
        )
    _move(
        reservation,
        to=ReservationStatus.SCHEDULED,
        reason=ReservationReason.PAID,
        at=at,
        actor=actor,
    )


@transaction.atomic
def confirm_late(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take an arrow to scheduled whenever the money came, at the locked price.

    A reservation that still has its GPUs keeps them. One that has expired gets others, or the same, if
    they can be had and its window has not begun.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it waits for no payment, or its window has begun without it.
    :raises CapacityTaken: when nobody has room for it any more.
    """
    reservation = _find(reservation_id)
    if reservation.payment_due_at > at:
        return confirm(reservation_id=reservation_id, at=at, actor=actor)
    has_expired = reservation.status == ReservationStatus.EXPIRED
    if (reservation.starts_at if has_expired else reservation.ends_at) <= at:
        raise StateConflict(f"the window of {reservation_id} has begun or is over")
    _move(
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
def fail_payment(*, reservation_id: str, at: dt.datetime, actor: str) -> Reservation:
    """Take the arrow payment_pending or scheduled → payment_failed, and put the GPUs back on sale.

    A scheduled one was confirmed by money that was held and could not be taken in the end.

    :raises NotFound: when there is no such reservation.
    :raises StateConflict: when it does not wait for a payment any more.
    """
    reservation = _find(reservation_id)
    _move(
        reservation,
        to=ReservationStatus.PAYMENT_FAILED,
        reason=ReservationReason.PAYMENT_DECLINED,
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
    _move(
        reservation,
        to=ReservationStatus.CANCELLED,
        reason=ReservationReason.TENANT_CANCELLED,
        at=at,
        actor=actor,
    )
    calendar.free_reservation(reservation_id=reservation.pk)


def expire_unpaid(*, at: dt.datetime) -> int:
    """Take the arrow payment_pending → expired for all whose time to pay is over; return how many."""
    due = Reservation.objects.filter(
        status=ReservationStatus.PAYMENT_PENDING, payment_due_at__lte=at
    ).order_by("payment_due_at", "pk")
    return ticks.drain(due=due, advance=lambda row: _expire(row, at=at), name="expire_unpaid")


def start_due(*, at: dt.datetime) -> int:
    """Start the reservations whose window has begun: one lease and one grant per node; return how many.

    Ends run before starts, so that freed GPUs serve the next lease. One that nobody started before its
    window was over has failed, and so has one that cannot be started for as long as a handover may take.
    """
    leases.end_due(at=at)
    scheduled = Reservation.objects.filter(status=ReservationStatus.SCHEDULED)
    missed = ticks.drain(
        due=scheduled.filter(ends_at__lte=at).order_by("starts_at", "pk"),
        advance=lambda row: _fail(row, reason=ReservationReason.NOTHING_DELIVERED, at=at),
        name="miss",
    )
    return missed + ticks.drain(
        due=scheduled.filter(starts_at__lte=at, ends_at__gt=at)
        .select_related("organization")
        .order_by("starts_at", "pk"),
        advance=lambda row: _start_or_fail(row, at=at),
        name="start_due",
        together=lambda rows: _start_all(rows, at=at),
    )


def finish_due(*, at: dt.datetime) -> int:
    """Finish the active reservations whose leases are all over and not replaced; return how many.

    Completed when the window is over and at least one lease was handed over.
    Reclaimed, at once, when what was left of it went back to its owner. Failed, at once, when nothing was
    handed over, or when nothing came in the place of what failed.
    """
    open_leases = Lease.objects.filter(reservation=OuterRef("pk")).exclude(status__in=_FINAL_LEASES)
    sought = Replacement.objects.filter(lease__reservation=OuterRef("pk"), closed_at__isnull=True)
    delivered = Lease.objects.filter(reservation=OuterRef("pk"), handed_over_at__isnull=False)
    broken = Lease.objects.filter(
        reservation=OuterRef("pk"), status__in=[LeaseStatus.INTERRUPTED, LeaseStatus.FAILED]
    )
    closed = Reservation.objects.filter(
        ~Exists(open_leases), ~Exists(sought), status=ReservationStatus.ACTIVE
    ).order_by("ends_at", "pk")
    reclaimed = Reclaim.objects.filter(lease__reservation=OuterRef("pk"))
    kept = delivered.filter(reclaim__isnull=True)
    count = ticks.drain(
        due=closed.filter(Exists(reclaimed), Q(ends_at__gt=at) | ~Exists(kept)),
        advance=lambda row: _reclaim(row, at=at),
        name="reclaim",
    )
    count += ticks.drain(
        due=closed.filter(Exists(delivered), ends_at__lte=at),
        advance=lambda row: _complete(row, at=at),
        name="complete",
    )
    count += ticks.drain(
        due=closed.filter(~Exists(delivered)),
        advance=lambda row: _fail(row, reason=ReservationReason.NOTHING_DELIVERED, at=at),
        name="fail",
    )
    return count + ticks.drain(
        due=closed.filter(Exists(delivered), Exists(broken), ends_at__gt=at),
        advance=lambda row: _fail(row, reason=ReservationReason.NOT_REPLACED, at=at),
        name="fail_unreplaced",
    )


@transaction.atomic
def change_details(
    *, reservation: Reservation, changes: DetailChanges, at: dt.datetime
) -> Reservation:
    """Change what the tenant says of its reservation, nothing else.

    :raises InvalidValue: when a detail makes no sense.
    :raises StateConflict: when the reservation is over.
    """
    names = ("name", "project", "tags", "ssh_public_keys", "warn_before_seconds")
    given = {n: getattr(changes, n) for n in names if getattr(changes, n) is not None}
    current = _find(reservation.pk)
    is_over = RESERVATION_ARROWS.is_final(ReservationStatus(current.status))
    # A late payment may bring an expired one back, but nobody prepares for that.
    if is_over or current.status == ReservationStatus.EXPIRED:
        raise StateConflict(f"{current.pk} is {current.status} since before {format_instant(at)}")
    check_details(ReservationDetails(**{n: getattr(current, n) for n in names} | given))
    if given:
        Reservation.objects.filter(pk=current.pk).update(**given)
    return _find(reservation.pk)


def get(*, organization: Organization, reservation_id: str) -> Reservation:
    """Return a tenant's reservation.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = Reservation.objects.visible_to(organization)
    found = known.filter(pk=reservation_id).first() if "\x00" not in reservation_id else None
    if found is None:
        raise NotFound(f"no reservation {reservation_id}")
    return found


def _shortest_notice(*, reservation_id: str) -> int:
    """Return the shortest notice in seconds of the listings that serve a reservation now."""
    places = Allocation.objects.filter(reservation_id=reservation_id, live=True)
    shortest = places.aggregate(seconds=Min("listing__reclaim_notice_seconds"))["seconds"]
    assert shortest is not None, reservation_id
    return int(shortest)


def _find(reservation_id: str) -> Reservation:
    found = Reservation.objects.filter(pk=reservation_id).first()
    if found is None:
        raise NotFound(f"no reservation {reservation_id}")
    return found


def _expire(reservation: Reservation, *, at: dt.datetime) -> None:
    _move(
        reservation,
        to=ReservationStatus.EXPIRED,
        reason=ReservationReason.PAYMENT_WINDOW_CLOSED,
        at=at,
        actor=SYSTEM,
    )
    calendar.free_reservation(reservation_id=reservation.pk)


def _start_or_fail(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow scheduled → active; where that is impossible for long, scheduled → failed.

    An error of the database is nobody's fault and is tried again until the window is over.
    """
    try:
        with transaction.atomic():
            _start_all([reservation], at=at)
    except DatabaseError:
        raise
    except Exception:
        patience = dt.timedelta(seconds=leases.HANDOVER_DEADLINE_SECONDS)
        if at < reservation.starts_at + patience:
            raise
        log.exception("reservation_cannot_start", reservation_id=reservation.pk)
        reservation.refresh_from_db(fields=["status"])
        _fail(reservation, reason=ReservationReason.NOT_STARTED, at=at)


def _start_all(rows: Sequence[Reservation], *, at: dt.datetime) -> None:
    """Take the arrow scheduled → active for rows that the caller has locked, with few statements."""
    assert RESERVATION_ARROWS.allows(ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE)
    won = Reservation.objects.filter(
        pk__in=[row.pk for row in rows], status=ReservationStatus.SCHEDULED
    ).update(status=ReservationStatus.ACTIVE)
    if won != len(rows):
        raise StateConflict(f"{len(rows) - won} of {len(rows)} reservations moved on")
    for row in rows:
        row.status = ReservationStatus.ACTIVE
    ReservationTransition.objects.bulk_create(
        ReservationTransition(
            reservation=row,
            from_status=ReservationStatus.SCHEDULED,
            to_status=ReservationStatus.ACTIVE,
            reason=ReservationReason.WINDOW_STARTED,
            actor=SYSTEM,
            at=at,
        )
        for row in rows
    )
    for row in rows:
        _tell(row, reason=ReservationReason.WINDOW_STARTED, at=at)
    openings.open_all(reservations=rows, at=at)


def _complete(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow active → completed."""
    _move(
        reservation,
        to=ReservationStatus.COMPLETED,
        reason=ReservationReason.WINDOW_ENDED,
        at=at,
        actor=SYSTEM,
    )


def _reclaim(reservation: Reservation, *, at: dt.datetime) -> None:
    """Take the arrow active → reclaimed."""
    _move(
        reservation,
        to=ReservationStatus.RECLAIMED,
        reason=ReservationReason.OWNER_RECLAIMED,
        at=at,
        actor=SYSTEM,
    )


def _fail(reservation: Reservation, *, reason: ReservationReason, at: dt.datetime) -> None:
    """Take the arrow scheduled or active → failed: the tenant is released, what is undelivered goes back."""
    _move(
        reservation,
        to=ReservationStatus.FAILED,
        reason=reason,
        at=at,
        actor=SYSTEM,
    )
    calendar.free_reservation(reservation_id=reservation.pk)


def _move(
    reservation: Reservation,
    *,
    to: ReservationStatus,
    reason: ReservationReason,
    at: dt.datetime,
    actor: str,
) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
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
    _tell(reservation, reason=reason, at=at)


def _tell(reservation: Reservation, *, reason: ReservationReason, at: dt.datetime) -> None:
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
