"""What a tenant says of its reservation: the project and the tags are where its cost counts.

Both hold from the purchase on, and a change of them holds forward: the bill of a month keeps what was said by
its end, and each row of an export what was said when it was charged, so that nothing is divided anew.
"""

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from django.db import transaction

from billing import tag_policy
from billing.budgets import guard
from billing.models import LabelChange
from scheduler import reservations as scheduled
from scheduler.details import DetailChanges
from scheduler.models import Reservation


class Labels(NamedTuple):
    """The project and the tags of a reservation at an instant."""

    project: str
    tags: Mapping[str, str]


NO_LABELS = Labels("", MappingProxyType({}))


@transaction.atomic
def change_details(
    *, reservation: Reservation, changes: DetailChanges, at: dt.datetime, actor: str
) -> Reservation:
    """Change the details of a reservation, and its project where that one's budget covers it.

    :raises ProjectFrozen: when it is to go to a frozen project.
    :raises BudgetExceeded: when the project's hard budget does not cover it.
    :raises tag_policy.TagRequired: when its tags are to be others and one that is required is not among
        them; likewise `TagValueNotAllowed`.
    :raises DomainError: whatever refuses the change; see `scheduler.reservations.change_details`.
    """
    if changes.project is not None:
        guard.require_move(reservation=reservation, project=changes.project, at=at)
    if changes.tags is not None:
        tag_policy.require(organization=reservation.organization, tags=changes.tags)
    before = Reservation.objects.select_for_update(no_key=True).get(pk=reservation.pk)
    changed = scheduled.change_details(reservation=reservation, changes=changes, at=at)
    if (before.project, before.tags) != (changed.project, changed.tags):
        LabelChange.objects.create(
            reservation=before,
            project_before=before.project,
            tags_before=before.tags,
            actor=actor,
            at=at,
        )
    return changed


@dataclass(frozen=True, slots=True)
class History:
    """What was said of a reservation, in its order: until each of some instants, and since the last."""

    past: tuple[tuple[dt.datetime, Labels], ...]
    present: Labels

    def before(self, at: dt.datetime) -> Labels:
        """Return what was said just before an instant: the earliest change since then ended it."""
        return next((labels for until, labels in self.past if until >= at), self.present)


def histories(*, reservations: Collection[Reservation]) -> dict[str, History]:
    """Return what was ever said of each reservation; one query."""
    past: dict[str, list[tuple[dt.datetime, Labels]]] = {each.pk: [] for each in reservations}
    for change in LabelChange.objects.filter(reservation__in=list(past)).order_by("at", "pk"):
        labels = Labels(change.project_before, change.tags_before)
        past[change.reservation_id].append((change.at, labels))
    return {
        each.pk: History(tuple(past[each.pk]), Labels(each.project, each.tags))
        for each in reservations
    }


def before(*, reservations: Collection[Reservation], at: dt.datetime) -> dict[str, Labels]:
    """Return what was said of each reservation just before an instant; one query."""
    found = histories(reservations=reservations)
    return {key: history.before(at) for key, history in found.items()}
