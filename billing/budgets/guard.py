"""What an order must pass before it is accepted: no freeze, and room in every hard budget it counts against.

The budgets' rows are locked before anything is counted, in the transaction that accepts the order: of two
orders that would both fit alone the second one sees the first. They are the first locks of that transaction,
and taken in one order by everybody.
"""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from django.db import connection

from billing.budgets import periods, spending
from billing.budgets.telling import tell_of
from billing.models import Budget, BudgetQuerySet, ProjectFreeze
from billing.promised import Promise
from billing.states import BudgetMode, BudgetPeriod
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.core.windows import Window, format_instant
from marketplace.models import Organization
from scheduler.models import Reservation


class BudgetExceeded(DomainError):
    """It costs more than a hard budget has left in a period; `extra` says which, and how much is left."""

    code = "budget_exceeded"
    title = "A budget of the organization does not cover this"


class ProjectFrozen(DomainError):
    """The organization has stopped orders of this project, or all of them."""

    code = "project_frozen"
    title = "The organization has stopped new orders"


class _Rules(NamedTuple):
    is_frozen: bool
    is_capped: bool


def require(
    *,
    organization: Organization,
    project: str,
    promise: Promise,
    at: dt.datetime,
    instead_of: Reservation | None = None,
) -> None:
    """Refuse what a tenant's budgets do not cover; call it in the transaction that accepts it, first.

    `instead_of` is a reservation that it changes: only what is added is asked for, and a period in which
    nothing is added refuses nothing, because a budget that was lowered takes nothing away.

    :raises ProjectFrozen: while the project or the organization is frozen.
    :raises BudgetExceeded: when a period of a hard budget has less left than this adds to it.
    """
    rules = _rules_of(organization=organization, project=project)
    _require(
        rules,
        organization=organization,
        project=project,
        promise=promise,
        before=Promise.of(instead_of) if instead_of is not None else None,
        at=at,
    )


def lock(*, organization: Organization, project: str) -> None:
    """Lock the hard budgets that count a project, before what decides whether they are asked is locked.

    Budgets come first: whoever locks a reservation does not wait for them.
    """
    if _rules_of(organization=organization, project=project).is_capped:
        _locked(Budget.objects.visible_to(organization).counting(project=project))


def require_move(*, reservation: Reservation, project: str, at: dt.datetime) -> None:
    """Refuse to count a reservation under a project whose own budget does not cover it.

    :raises ProjectFrozen: while that project is frozen.
    :raises BudgetExceeded: when a period of its hard budget has less left than the reservation costs there.
    """
    if not project or project == reservation.project:
        return
    organization = reservation.organization
    if ProjectFreeze.objects.filter(organization=organization, project=project).exists():
        raise _frozen(project)
    known = Budget.objects.visible_to(organization).filter(project=project)
    _require_rooms(_locked(known), promise=Promise.of(reservation), before=None, at=at)


def _require(
    rules: _Rules,
    *,
    organization: Organization,
    project: str,
    promise: Promise,
    before: Promise | None,
    at: dt.datetime,
) -> None:
    if rules.is_frozen and (before is None or promise.total_minor > before.total_minor):
        raise _frozen(project)
    if rules.is_capped:
        known = Budget.objects.visible_to(organization).counting(project=project)
        _require_rooms(_locked(known), promise=promise, before=before, at=at)


def _require_rooms(
    budgets: Sequence[Budget], *, promise: Promise, before: Promise | None, at: dt.datetime
) -> None:
    for budget in budgets:
        for window in periods.touched(period=BudgetPeriod(budget.period), window=promise.window):
            kept = before.part_minor(within=window) if before else 0
            asked = promise.part_minor(within=window) - kept
            if asked > 0:
                _require_room(budget, window=window, asked_minor=asked, at=at)


def _frozen(project: str) -> ProjectFrozen:
    scope = f"project {project}" if project else "this organization"
    return ProjectFrozen(
        f"nothing more is ordered for {scope}; whoever keeps its budgets can lift that"
    )


def _rules_of(*, organization: Organization, project: str) -> _Rules:
    """Return whether orders are stopped, and whether a hard budget counts them: one query for everybody."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM billing_projectfreeze"
            " WHERE organization_id = %(organization)s AND project IN ('', %(project)s)),"
            " EXISTS (SELECT FROM billing_budget WHERE organization_id = %(organization)s"
            " AND project IN ('', %(project)s) AND mode = %(hard)s)",
            {
                "organization": organization.pk,
                "project": project,
                "hard": BudgetMode.HARD.value,
            },
        )
        return _Rules(*cursor.fetchone())


def _locked(known: BudgetQuerySet) -> list[Budget]:
    """Lock and return the hard ones of some budgets, in one order for all writers."""
    return list(known.filter(mode=BudgetMode.HARD).order_by("pk").select_for_update(no_key=True))


def _require_room(budget: Budget, *, window: Window, asked_minor: int, at: dt.datetime) -> None:
    committed = spending.committed(
        organization=budget.organization,
        project=budget.project,
        window=window,
        currency=budget.currency,
    )
    left = budget.amount_minor - committed
    if asked_minor <= left:
        tell_of(budget, window=window, committed_minor=committed + asked_minor, at=at)
        return
    currency = budget.currency
    asked, has = Money(asked_minor, currency), Money(max(0, left), currency)
    scope = f"of project {budget.project}" if budget.project else "of the organization"
    when = "" if budget.period == BudgetPeriod.TOTAL else f" of the {budget.period} from "
    since = "" if budget.period == BudgetPeriod.TOTAL else f"{window.starts_at:%Y-%m-%d}"
    raise BudgetExceeded(
        f"{asked} is asked for, and {has} of {budget.amount} is left in the budget {scope}{when}{since}",
        extra={
            "budget_id": budget.pk,
            "project": budget.project,
            "period": budget.period,
            "period_starts_at": format_instant(window.starts_at),
            "period_ends_at": format_instant(window.ends_at),
            "amount": _json(budget.amount),
            "left": _json(has),
            "asked": _json(asked),
        },
    )


def _json(money: Money) -> dict[str, object]:
    return {"amount_minor": money.amount_minor, "currency": money.currency}
