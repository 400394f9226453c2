"""Listings: the owner's standing wish. Every verb checks the whole wish; none touches what is sold."""

from marketplace.listings.checks import (
    BLACKOUTS_MAX,
    FABRIC_LENGTH_MAX,
    IDLE_FOR_MAX,
    RECLAIM_NOTICE_MAX,
    RECLAIM_NOTICE_MIN,
    REGION_LENGTH_MAX,
    BlackoutsRefused,
    DurationsRefused,
    FloorRateRefused,
    GpusMinRefused,
    ListingRefused,
    ModeRefused,
    PeriodRefused,
    ReclaimNoticeRefused,
)
from marketplace.listings.verbs import NotAnOwner, create, get, pause, publish, retire, update
from marketplace.listings.wish import ListingChanges, ListingFields, blackouts_of, fields_of

__all__ = [
    "BLACKOUTS_MAX",
    "FABRIC_LENGTH_MAX",
    "IDLE_FOR_MAX",
    "RECLAIM_NOTICE_MAX",
    "RECLAIM_NOTICE_MIN",
    "REGION_LENGTH_MAX",
    "BlackoutsRefused",
    "DurationsRefused",
    "FloorRateRefused",
    "GpusMinRefused",
    "ListingChanges",
    "ListingFields",
    "ListingRefused",
    "ModeRefused",
    "NotAnOwner",
    "PeriodRefused",
    "ReclaimNoticeRefused",
    "blackouts_of",
    "create",
    "fields_of",
    "get",
    "pause",
    "publish",
    "retire",
    "update",
]
