"""What can be had, when and for how much: offerings, the price curve, the state of the market.

Only reads. Nothing of it is stored, and nothing is promised: a quote is.
"""

from scheduler.availability.curve import (
    CURVE_POINTS_MAX,
    CurvePoint,
    ModelSummary,
    market_summary,
    price_curve,
)
from scheduler.availability.search import (
    LEAD_SECONDS,
    OFFERS_MAX,
    Change,
    OfferingQuery,
    SearchResult,
    price_window,
    search,
)
from scheduler.availability.words import check_gpus, check_region, parse_spread, parse_tier

__all__ = [
    "CURVE_POINTS_MAX",
    "LEAD_SECONDS",
    "OFFERS_MAX",
    "Change",
    "CurvePoint",
    "ModelSummary",
    "OfferingQuery",
    "SearchResult",
    "check_gpus",
    "check_region",
    "market_summary",
    "parse_spread",
    "parse_tier",
    "price_curve",
    "price_window",
    "search",
]
