"""Setting budgets and freezes, and reading how they stand."""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import connection, transaction

from billing.budgets import periods, spending
from billing.models import Budget, ProjectFreeze
from billing.states import BudgetMode, BudgetPeriod
from marketplace import audit, events
from marketplace.core.errors import DomainError, InvalidValue, NotFound
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import EventKind

BUDGETS_MAX = 200  # per organization: more is a list that nobody keeps
THRESHOLDS_MAX = 10
THRESHOLD_PERCENT_MAX = 1_000
THRESHOLDS_DEFAULT = (50, 80, 100)
_LOCK_SPACE = (
    0x42756467  # namespace of the advisory locks under which an organization's are replaced
)


class BudgetsChanged(DomainError):
    """Somebody else has changed the budgets since they were read."""

    code = "budgets_changed"
    title = "The budgets have changed since they were read"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetWish:
    """One budget as its keeper wants it; an empty project is the whole organization."""

    project: str
    period: BudgetPeriod
    mode: BudgetMode
    amount_minor: int
    thresholds: Sequence[int] = THRESHOLDS_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStanding:
    """A budget in one of its periods, in both views."""

    budget: Budget
    period: Window
    committed: Money
    paid: Money

    @property
    def left(self) -> Money:
        """Return what may still be ordered; nothing where more is committed than the budget is now."""
        left = self.budget.amount_minor - self.committed.amount_minor
        return Money(max(0, left), self.budget.currency)


def standings(*, organization: Organization, at: dt.datetime) -> list[BudgetStanding]:
    """Return each budget in the period in which an instant lies."""
    return [
        standing_of(budget=budget, at=at)
        for budget in Budget.objects.visible_to(organization).select_related("organization")
    ]


def standing_of(*, budget: Budget, at: dt.datetime) -> BudgetStanding:
    """Return a budget in the period in which an instant lies."""
    window = periods.period_of(period=BudgetPeriod(budget.period), instant=at)
    committed, paid = (
        Money(
            view(
                organization=budget.organization,
                project=budget.project,
                window=window,
                currency=budget.currency,
            ),
            budget.currency,
        )
        for view in (spending.committed, spending.paid)
    )
    return BudgetStanding(budget=budget, period=window, committed=committed, paid=paid)


def version(*, organization: Organization) -> str:
    """Return a word for the budgets as they are set; it changes with any of them."""
    columns = ("project", "period", "mode", "amount_minor", "currency", "thresholds")
    rows = [
        [getattr(budget, name) for name in columns]
        for budget in Budget.objects.visible_to(organization)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]


@transaction.atomic
def put(
    *,
    organization: Organization,
    wishes: Sequence[BudgetWish],
    only_if: str | None,
    at: dt.datetime,
    actor: str,
) -> None:
    """Replace an organization's budgets by those wished for, all or nothing.

    A budget of the same project and period stays itself, with what was told of it. An amount below what is
    committed is taken: it refuses what comes, and takes nothing away. `only_if` is the version that the
    wish was made from; None replaces whatever is there.

    :raises InvalidValue: when two are of one project and period, or thresholds make no sense.
    :raises BudgetsChanged: when the budgets are not any more of the version named.
    """
    _check(wishes)
    _one_at_a_time(organization)
    if only_if is not None and only_if != version(organization=organization):
        raise BudgetsChanged("read them again, and decide again")
    held = Budget.objects.visible_to(organization).order_by("pk").select_for_update(no_key=True)
    known = {(budget.project, budget.period): budget for budget in held}
    for wish in wishes:
        budget = known.pop((wish.project, wish.period), None) or Budget(
            organization=organization,
            project=wish.project,
            period=wish.period,
            created_at=at,
        )
        budget.mode, budget.amount_minor = wish.mode, wish.amount_minor
        budget.currency = settings.CURRENCY
        budget.thresholds = sorted(wish.thresholds)
        budget.updated_at = budget.watch_due_at = at
        budget.save()
    Budget.objects.filter(pk__in=[budget.pk for budget in known.values()]).delete()
    audit.record(
        at=at,
        actor=actor,
        action="budgets.replaced",
        object_id=organization.pk,
        organization=organization,
        detail={
            "budgets": [
                {
                    "project": wish.project,
                    "period": wish.period,
                    "mode": wish.mode,
                    "amount_minor": wish.amount_minor,
                }
                for wish in wishes
            ]
        },
    )


@transaction.atomic
def freeze(
    *, organization: Organization, project: str, reason: str, at: dt.datetime, actor: str
) -> ProjectFreeze:
    """Stop new orders and extensions of a project, or of all where it is empty; a second time is the first.

    What is booked stays, and what runs runs on.
    """
    made, is_new = ProjectFreeze.objects.get_or_create(
        organization=organization,
        project=project,
        defaults={"reason": reason, "frozen_by": actor, "frozen_at": at},
    )
    if is_new:
        _tell(made, kind=EventKind.PROJECT_FROZEN, at=at, actor=actor)
    return made


@transaction.atomic
def unfreeze(*, organization: Organization, freeze_id: str, at: dt.datetime, actor: str) -> None:
    """Let a project order again.

    :raises NotFound: when nothing of this id is frozen, or it is somebody else's.
    """
    known = ProjectFreeze.objects.filter(organization=organization).select_for_update(of=("self",))
    found = known.filter(pk=freeze_id).first() if "\x00" not in freeze_id else None
    if found is None:
        raise NotFound(f"no freeze {freeze_id}")
    _tell(found, kind=EventKind.PROJECT_UNFROZEN, at=at, actor=actor)
    found.delete()


def _one_at_a_time(organization: Organization) -> None:
    """Let two who replace the budgets of one organization do so one after the other.

    Not by its row, which is locked after the budgets: see the order of locks in `billing/README.md`.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCK_SPACE, organization.pk]
        )


def _check(wishes: Sequence[BudgetWish]) -> None:
    if len(wishes) > BUDGETS_MAX:
        raise InvalidValue(f"at most {BUDGETS_MAX} budgets", pointer="/budgets")
    seen = set()
    for index, wish in enumerate(wishes):
        if (wish.project, wish.period) in seen:
            raise InvalidValue(
                "there is one budget for a project and a period", pointer=f"/budgets/{index}"
            )
        seen.add((wish.project, wish.period))
        if len(set(wish.thresholds)) != len(wish.thresholds):
            raise InvalidValue("name each once", pointer=f"/budgets/{index}/thresholds")


def _tell(freeze: ProjectFreeze, *, kind: EventKind, at: dt.datetime, actor: str) -> None:
    detail = {"project": freeze.project, "reason": freeze.reason}
    audit.record(
        at=at,
        actor=actor,
        action=kind.value,
        object_id=freeze.pk,
        organization=freeze.organization,
        detail=detail,
    )
    events.record(
        organization=freeze.organization,
        kind=kind,
        object_id=freeze.pk,
        data=detail,
        at=at,
        key=f"{freeze.pk}:{kind.value}",
    )
