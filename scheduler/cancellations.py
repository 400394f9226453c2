"""Leave: give back the whole window before it begins, or the time that is left once it has begun.

Before the start the GPUs are on sale again in the same transaction. After it the leases end through their
nodes, and the GPUs are on sale again when they have come back clean.
"""

import datetime as dt
from dataclasses import replace

from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Coalesce

from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.models import Organization
from scheduler import change_rules, changes, extension_holds, given_back, leases, reservations
from scheduler.lots import Lots
from scheduler.models import Change, ChangeQuote, Lease, Reservation
from scheduler.states import (
    LEASE_ARROWS,
    ChangeKind,
    ExtensionDropReason,
    LeaseStatus,
    ReservationStatus,
)

KINDS = frozenset({ChangeKind.CANCELLATION, ChangeKind.EARLY_RETURN})
# Why leaving costs nothing, whatever the notice.
NOT_PAID, NOT_DELIVERED, RECLAIMED = "not_paid", "not_delivered", "reclaimed_by_owner"
_FINAL_LEASES = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]


@transaction.atomic
def quote(
    *,
    organization: Organization,
    reservation_id: str,
    at: dt.datetime,
    fee_basis_points: int | None = None,
) -> ChangeQuote:
    """Say what a tenant gets back if it leaves now, and promise it for `CANCELLATION_QUOTE_SECONDS`.

    The terms are promised in any case. Before the start so are the amounts; after it they are those of
    leaving at this second, and each second later there is less left to give back. A fee that
    is named counts instead of the ladder's: for who leaves because a balance was not paid.

    :raises NotFound: when the tenant has no such reservation.
    :raises StateConflict: when it is over, or its time to pay is.
    :raises LimitExceeded: when the tenant has too many quotes open.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    _check(reservation, at=at)
    terms = changes.terms_of(
        reservation=reservation, at=at, waived_because=_waived_because(reservation)
    )
    if fee_basis_points is not None:
        terms = replace(terms, fee_basis_points=fee_basis_points)
    has_begun = reservation.status == ReservationStatus.ACTIVE
    kept = _kept(reservation, at=at) if has_begun else None
    made = changes.new_quote(
        reservation=reservation,
        kind=ChangeKind.EARLY_RETURN if has_begun else ChangeKind.CANCELLATION,
        terms=terms,
        lots=kept,
        total_minor=_total(reservation, lots=kept) if kept else 0,
        lifetime_seconds=changes.CANCELLATION_QUOTE_SECONDS,
        at=at,
    )
    made.save(force_insert=True)
    return made


@transaction.atomic
def cancel(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> Change:
    """Leave on the terms of a quote: all or nothing.

    :raises NotFound: when the tenant has no such reservation, or that no such quote.
    :raises QuoteUsed: when the quote was used.
    :raises QuoteExpired: when its time is up.
    :raises StateConflict: when the reservation is over, or has changed since the quote.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    _check(reservation, at=at)
    used = changes.use(reservation=reservation, quote_id=quote_id, kinds=KINDS, at=at)
    extension_holds.drop(
        reservation=reservation, reason=ExtensionDropReason.RESERVATION_CHANGED, at=at
    )
    if used.kind == ChangeKind.EARLY_RETURN:
        return _return_early(reservation, used=used, at=at, actor=actor)
    released = given_back.places(reservation=reservation, parts=[reservation.window])
    change = changes.record(
        reservation=reservation,
        quote=used,
        window=None,
        money=change_rules.Difference(charge=0, refund=used.refund_minor, fee=used.fee_minor),
        gpu_seconds_added=0,
        gpu_seconds_released=reservation.gpus * reservation.window.seconds
        if reservation.is_paid
        else 0,
        released=released,
        at=at,
        actor=actor,
    )
    reservations.cancel(reservation=reservation, at=at, actor=actor)
    return change


def _return_early(
    reservation: Reservation, *, used: ChangeQuote, at: dt.datetime, actor: str
) -> Change:
    """End all leases now, and the promise with them.

    Leases that are over ended before, and have no part of the time that is given back.
    """
    held = _held_leases(reservation)
    kept = _kept(reservation, at=at)
    total_minor = _total(reservation, lots=kept)
    ends_at = kept.window.ends_at
    rest = Window(ends_at, reservation.ends_at)
    seconds_left = (reservation.ends_at - ends_at) // dt.timedelta(seconds=1)
    change = changes.record(
        reservation=reservation,
        quote=used,
        window=kept.window,
        money=change_rules.difference(
            before=reservation.total_minor,
            after=total_minor,
            fee_basis_points=used.fee_basis_points,
        ),
        gpu_seconds_added=0,
        gpu_seconds_released=reservation.gpus * seconds_left,
        released=given_back.places(reservation=reservation, parts=[rest], of=held),
        at=at,
        actor=actor,
    )
    changes.rewrite(reservation=reservation, lots=kept, total_minor=total_minor)
    for lease in held:
        leases.leave(lease=lease, ends_at=ends_at, at=at)
    return change


def _check(reservation: Reservation, *, at: dt.datetime) -> None:
    """Refuse a reservation that there is nothing left of to give back.

    :raises StateConflict: then.
    """
    status = ReservationStatus(reservation.status)
    if status is ReservationStatus.PAYMENT_PENDING and reservation.payment_due_at <= at:
        raise StateConflict(
            f"{reservation.pk} had to be paid by {format_instant(reservation.payment_due_at)}"
        )
    leavable = (
        ReservationStatus.PAYMENT_PENDING,
        ReservationStatus.SCHEDULED,
        ReservationStatus.ACTIVE,
    )
    if status not in leavable:
        raise StateConflict(f"{reservation.pk} is {status}")
    if reservation.ends_at <= _leaving_at(reservation, at=at):
        raise StateConflict(f"{reservation.pk} ends at {format_instant(reservation.ends_at)}")
    if status is ReservationStatus.ACTIVE and not _held_leases(reservation):
        raise StateConflict(f"{reservation.pk} has no GPUs that could be given back")


def _waived_because(reservation: Reservation) -> str:
    """Return why leaving costs nothing, or an empty text."""
    if not reservation.is_paid:
        return NOT_PAID
    if reservation.status != ReservationStatus.ACTIVE:
        return ""
    known = Lease.objects.filter(reservation=reservation)
    if known.filter(status=LeaseStatus.RECLAIMING).exists():
        return RECLAIMED
    held = known.exclude(status__in=_FINAL_LEASES).aggregate(
        gpus=Coalesce(Sum("gpu_uuids__len"), 0)
    )["gpus"]
    return NOT_DELIVERED if held < reservation.gpus else ""


def _held_leases(reservation: Reservation) -> list[Lease]:
    """Lock and return the leases whose GPUs can be given back, in one order for all writers."""
    return list(
        Lease.objects.filter(
            reservation=reservation,
            status__in=[LeaseStatus.PROVISIONING, LeaseStatus.ACTIVE, LeaseStatus.RECLAIMING],
        )
        .select_related("node")
        .order_by("pk")
        .select_for_update(no_key=True, of=("self",))
    )


def _leaving_at(reservation: Reservation, *, at: dt.datetime) -> dt.datetime:
    """Return when a promise ends that its tenant leaves at `at`: at the next second.

    A lease that has just taken another's place begins a second after that one, and ends after it begins.
    """
    next_second = (at + dt.timedelta(seconds=1)).replace(microsecond=0)
    begun = max((lease.starts_at for lease in _held_leases(reservation)), default=at)
    return max(next_second, begun + dt.timedelta(seconds=1)).replace(microsecond=0)


def _kept(reservation: Reservation, *, at: dt.datetime) -> Lots:
    """Return the lots of what stays bought when a tenant leaves at `at`."""
    return Lots.from_json(reservation.lots).clipped(
        window=Window(reservation.starts_at, _leaving_at(reservation, at=at))
    )


def _total(reservation: Reservation, *, lots: Lots) -> int:
    return lots.amount(window=lots.window, currency=reservation.currency).amount_minor
