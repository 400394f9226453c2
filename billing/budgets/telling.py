"""Thresholds of budgets: each is told once per period, whatever comes and goes."""

import datetime as dt

from django.db import transaction
from django.db.models import Max

from billing.budgets import periods, spending
from billing.models import Budget
from billing.states import BudgetPeriod
from marketplace import events
from marketplace.core.windows import Window, format_instant
from marketplace.states import EventKind
from scheduler.models import Reservation

WATCH_SECONDS = 60  # what a bill says now was asked for by nobody a minute ago
WATCHED_PER_RUN_MAX = 200  # some two seconds of counting; the next tick takes the rest
PERCENT = 100


def watch_due(*, at: dt.datetime) -> int:
    """Tell of what the budgets that are due have reached, in this period and those ahead; return how many.

    Safe to run twice, late or side by side.
    """
    due = Budget.objects.filter(watch_due_at__lte=at).order_by("watch_due_at", "pk")
    ids = list(due.values_list("pk", flat=True)[:WATCHED_PER_RUN_MAX])
    return sum(_watch(budget_id=budget_id, at=at) for budget_id in ids)


def tell_of(budget: Budget, *, window: Window, committed_minor: int, at: dt.datetime) -> None:
    """Tell of each threshold that a sum reaches; one that was told of in this period stays told."""
    for threshold in budget.thresholds:
        if not committed_minor or committed_minor * PERCENT < budget.amount_minor * threshold:
            continue
        events.record(
            organization=budget.organization,
            kind=EventKind.BUDGET_THRESHOLD_REACHED,
            object_id=budget.pk,
            data={
                "project": budget.project,
                "period": budget.period,
                "period_starts_at": format_instant(window.starts_at),
                "period_ends_at": format_instant(window.ends_at),
                "threshold_percent": threshold,
                "committed_minor": committed_minor,
                "amount_minor": budget.amount_minor,
                "currency": budget.currency,
                "mode": budget.mode,
            },
            at=at,
            key=f"{budget.pk}:{window.starts_at:%Y-%m-%d}:{threshold}",
        )


@transaction.atomic
def _watch(*, budget_id: str, at: dt.datetime) -> bool:
    budget = (
        Budget.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=budget_id, watch_due_at__lte=at)
        .select_related("organization")
        .first()
    )
    if budget is None:
        return False
    for window in _watched(budget, at=at):
        committed = spending.committed(
            organization=budget.organization,
            project=budget.project,
            window=window,
            currency=budget.currency,
        )
        tell_of(budget, window=window, committed_minor=committed, at=at)
    Budget.objects.filter(pk=budget.pk).update(
        watch_due_at=at + dt.timedelta(seconds=WATCH_SECONDS)
    )
    return True


def _watched(budget: Budget, *, at: dt.datetime) -> list[Window]:
    """Return this period and those in which something is promised."""
    orders = Reservation.objects.visible_to(budget.organization).filter(
        status__in=spending.COUNTED, ends_at__gt=at
    )
    last = orders.aggregate(ends_at=Max("ends_at"))["ends_at"] or at
    ahead = Window(at, max(last, at + dt.timedelta(seconds=1)))
    return list(periods.touched(period=BudgetPeriod(budget.period), window=ahead))
