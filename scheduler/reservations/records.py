"""A tenant's own reservation: find it, and change what is said of it."""

import datetime as dt

from django.db import transaction

from marketplace.core.errors import NotFound, StateConflict
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from scheduler.details import DetailChanges, ReservationDetails, check_details
from scheduler.models import Reservation
from scheduler.reservations.moves import find
from scheduler.states import RESERVATION_ARROWS, ReservationStatus


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
    current = find(reservation.pk)
    is_over = RESERVATION_ARROWS.is_final(ReservationStatus(current.status))
    # A late payment may bring an expired one back, but nobody prepares for that.
    if is_over or current.status == ReservationStatus.EXPIRED:
        raise StateConflict(f"{current.pk} is {current.status} since before {format_instant(at)}")
    check_details(ReservationDetails(**{n: getattr(current, n) for n in names} | given))
    if given:
        Reservation.objects.filter(pk=current.pk).update(**given)
    return find(reservation.pk)


def get(*, organization: Organization, reservation_id: str) -> Reservation:
    """Return a tenant's reservation.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = Reservation.objects.visible_to(organization)
    found = known.filter(pk=reservation_id).first() if "\x00" not in reservation_id else None
    if found is None:
        raise NotFound(f"no reservation {reservation_id}")
    return found
