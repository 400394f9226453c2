"""Budgets: hard caps and thresholds, per organization and project, by what is delivered in a period."""

from billing.budgets.guard import (
    BudgetExceeded,
    ProjectFrozen,
    lock,
    require,
    require_move,
)
from billing.budgets.keeping import (
    BUDGETS_MAX,
    THRESHOLD_PERCENT_MAX,
    THRESHOLDS_DEFAULT,
    THRESHOLDS_MAX,
    BudgetsChanged,
    BudgetStanding,
    BudgetWish,
    freeze,
    put,
    standing_of,
    standings,
    unfreeze,
    version,
)
from billing.budgets.labels import NO_LABELS, History, Labels, change_details, histories
from billing.budgets.labels import before as labels_before
from billing.budgets.telling import watch_due

__all__ = [
    "BUDGETS_MAX",
    "NO_LABELS",
    "THRESHOLDS_DEFAULT",
    "THRESHOLDS_MAX",
    "THRESHOLD_PERCENT_MAX",
    "BudgetExceeded",
    "BudgetStanding",
    "BudgetWish",
    "BudgetsChanged",
    "History",
    "Labels",
    "ProjectFrozen",
    "change_details",
    "freeze",
    "histories",
    "labels_before",
    "lock",
    "put",
    "require",
    "require_move",
    "standing_of",
    "standings",
    "unfreeze",
    "version",
    "watch_due",
]
