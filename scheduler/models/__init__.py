"""Quotes, reservations, their places in the calendar, and leases: one file per noun."""

from scheduler.models.allocations import Allocation
from scheduler.models.calendar import CalendarMark, CalendarWeek
from scheduler.models.changes import (
    Change,
    ChangeQuote,
    ChangeRule,
    ExtensionHold,
    ExtensionHoldQuerySet,
    ReleasedPlace,
)
from scheduler.models.demand import DemandSample
from scheduler.models.leases import Lease, LeaseQuerySet, LeaseTransition
from scheduler.models.limits import TenantLimit
from scheduler.models.price_rules import PriceRule, PriceRuleTransition
from scheduler.models.prices import PriceVersion
from scheduler.models.quotes import Quote, QuoteQuerySet
from scheduler.models.reclaims import Reclaim
from scheduler.models.repackings import Repacking
from scheduler.models.replacements import Relocation, Replacement
from scheduler.models.reservations import (
    EndWarning,
    Reservation,
    ReservationQuerySet,
    ReservationTransition,
)

__all__ = [
    "Allocation",
    "CalendarMark",
    "CalendarWeek",
    "Change",
    "ChangeQuote",
    "ChangeRule",
    "DemandSample",
    "EndWarning",
    "ExtensionHold",
    "ExtensionHoldQuerySet",
    "Lease",
    "LeaseQuerySet",
    "LeaseTransition",
    "PriceRule",
    "PriceRuleTransition",
    "PriceVersion",
    "Quote",
    "QuoteQuerySet",
    "Reclaim",
    "ReleasedPlace",
    "Relocation",
    "Repacking",
    "Replacement",
    "Reservation",
    "ReservationQuerySet",
    "ReservationTransition",
    "TenantLimit",
]
