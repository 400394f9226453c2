"""What is sold under listings: until when it binds their machines, and where it meets a blackout.

A blackout, a pause and a retirement never touch what is sold. The owner is told of it instead.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import Max

from marketplace import listings
from marketplace.core.windows import Window
from marketplace.models import Listing
from scheduler.models import Allocation

WINDOWS_PER_LISTING_MAX = 100  # an owner reads a few; how many there are is told in any case


@dataclass(frozen=True, slots=True, kw_only=True)
class SoldWindow:
    """A window sold on some GPUs of one node. `lease_id` names the lease that serves it, if it has begun."""

    node_id: str
    gpus: int
    window: Window
    lease_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """What is sold under a listing and not over: until when, and what of it lies in a blackout.

    `in_blackouts` are the earliest ones of `in_blackouts_total`.
    """

    until: dt.datetime | None = None
    in_blackouts: tuple[SoldWindow, ...] = ()
    in_blackouts_total: int = 0


def sales_of(*, rows: Collection[Listing], at: dt.datetime) -> dict[str, Sales]:
    """Return what is sold under each listing, in two queries however many they are."""
    blackouts = {row.pk: listings.blackouts_of(listing=row) for row in rows}
    sold = Allocation.objects.filter(live=True, reservation__isnull=False, period__endswith__gt=at)
    until = dict(
        sold.filter(listing__in=blackouts)
        .values_list("listing")
        .annotate(until=Max("period__endswith"))
    )
    hits: dict[str, list[SoldWindow]] = defaultdict(list)
    for listing_id, node_id, slots, period, lease_id in (
        sold.filter(listing__in=[key for key, windows in blackouts.items() if windows])
        .order_by("period", "pk")
        .values_list("listing", "node", "slots", "period", "lease")
    ):
        window = Window(period.lower, period.upper)
        if any(window.intersection(blackout) for blackout in blackouts[listing_id]):
            hits[listing_id].append(
                SoldWindow(
                    node_id=node_id,
                    gpus=slots.upper - slots.lower,
                    window=window,
                    lease_id=lease_id,
                )
            )
    return {
        row.pk: Sales(
            until=until.get(row.pk),
            in_blackouts=tuple(hits[row.pk][:WINDOWS_PER_LISTING_MAX]),
            in_blackouts_total=len(hits[row.pk]),
        )
        for row in rows
    }
