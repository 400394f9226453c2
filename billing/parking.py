"""Park an organization's money: where the books are not in order, nothing of it moves until people looked.

There are two doors through which money moves, and both ask here: `ledger.post`, for every entry that is not
the record of what has happened outside, and `intents`, before a call that moves money is made first.
"""

import datetime as dt
from collections.abc import Collection, Mapping

from django.db.models import QuerySet

from billing.models import Parking
from marketplace import audit, events
from marketplace.core.errors import DomainError
from marketplace.models import Organization
from marketplace.states import EventKind

ACTOR = "billing.check_books"


class MoneyParked(DomainError):
    """A check of the organization's books found something: nothing moves until people have looked."""

    code = "money_parked"
    title = "This organization's money is parked"


def is_parked(*, organizations: Collection[Organization]) -> bool:
    """Say whether the money of any of some organizations is parked."""
    return Parking.objects.filter(organization__in=organizations, ended_at__isnull=True).exists()


def parked() -> QuerySet[Parking, str]:
    """Return the ids of the organizations whose money is parked, for a condition of another query."""
    return Parking.objects.filter(ended_at__isnull=True).values_list("organization_id", flat=True)


def require_moving(*, organizations: Collection[Organization]) -> None:
    """Stop a movement of money while that of any organization in it is parked.

    :raises MoneyParked: while it is.
    """
    if is_parked(organizations=organizations):
        raise MoneyParked(
            "The books of an organization in this are being looked into; no money of it moves meanwhile."
        )


def park(*, breaches: Mapping[str, str], at: dt.datetime) -> int:
    """Park organizations, by id, for the reasons given; return how many were not parked before."""
    parked = 0
    for organization in Organization.objects.filter(pk__in=breaches).order_by("pk"):
        row, is_new = Parking.objects.get_or_create(
            organization=organization,
            ended_at=None,
            defaults={"reason": breaches[organization.pk], "parked_at": at},
        )
        if is_new:
            parked += 1
            audit.record(
                at=at,
                actor=ACTOR,
                action="money.parked",
                object_id=organization.pk,
                organization=organization,
                detail={"reason": breaches[organization.pk]},
            )
            events.record(
                organization=organization,
                kind=EventKind.MONEY_PARKED,
                object_id=organization.pk,
                data={},
                at=at,
                key=f"{organization.pk}:parked:{row.pk}",
            )
    return parked


def end(*, organization: Organization, at: dt.datetime, actor: str) -> None:
    """Let an organization's money move again; nothing happens where it was not parked."""
    ended = Parking.objects.filter(organization=organization, ended_at__isnull=True).update(
        ended_at=at
    )
    if ended:
        audit.record(
            at=at,
            actor=actor,
            action="money.unparked",
            object_id=organization.pk,
            organization=organization,
            detail={},
        )
