"""What a tenant says of its reservation; the project is where the reservation counts."""

import datetime as dt

from django.db import transaction

from billing.budgets import guard
from scheduler import reservations
from scheduler.details import DetailChanges
from scheduler.models import Reservation


@transaction.atomic
def change_details(
    *, reservation: Reservation, changes: DetailChanges, at: dt.datetime
) -> Reservation:
    """Change the details of a reservation, and its project where that one's budget covers it.

    :raises ProjectFrozen: when it is to go to a frozen project.
    :raises BudgetExceeded: when the project's hard budget does not cover it.
    :raises DomainError: whatever refuses the change; see `scheduler.reservations.change_details`.
    """
    if changes.project is not None:
        guard.require_move(reservation=reservation, project=changes.project, at=at)
    return reservations.change_details(reservation=reservation, changes=changes, at=at)
