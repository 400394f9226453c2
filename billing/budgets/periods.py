"""Periods of budgets, of UTC: pure, and half-open like every window."""

import datetime as dt
from collections.abc import Iterator

from billing.states import BudgetPeriod
from marketplace.core.windows import EPOCH, Window

_MONTHS = {BudgetPeriod.MONTH: 1, BudgetPeriod.QUARTER: 3, BudgetPeriod.YEAR: 12}
_ALWAYS = Window(EPOCH, dt.datetime(9999, 1, 1, tzinfo=dt.UTC))


def period_of(*, period: BudgetPeriod, instant: dt.datetime) -> Window:
    """Return the period in which an instant lies; for `total` all of time."""
    if period is BudgetPeriod.TOTAL:
        return _ALWAYS
    months = _MONTHS[period]
    at = instant.astimezone(dt.UTC)
    first = (at.month - 1) // months * months
    years, month = divmod(first + months, 12)
    midnight = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Window(
        midnight.replace(month=first + 1), midnight.replace(year=at.year + years, month=month + 1)
    )


def touched(*, period: BudgetPeriod, window: Window) -> Iterator[Window]:
    """Yield the periods in which a window has a part, in their order."""
    found = period_of(period=period, instant=window.starts_at)
    yield found
    while found.ends_at < window.ends_at:
        found = period_of(period=period, instant=found.ends_at)
        yield found
