"""What a change gives back: which GPUs for which time, what that was worth, and since when others had it.

An allocation is cut, moved and closed, and keeps no memory of whose time it was. So where a fee is kept of
what is given back, its places are written down with the change: whoever sells that time again can find who
left it.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg.types.range import Int4Range, TimestamptzRange

from marketplace.core.windows import Window
from scheduler.lots import Lots
from scheduler.models import Allocation, Change, Lease, ReleasedPlace, Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenBack:
    """A run of one node's slots for a time, and the number of the lot by which both were priced."""

    node_id: str
    owner_id: str
    slot_lower: int
    slot_upper: int
    lot: int
    window: Window


def places(
    *, reservation: Reservation, parts: Iterable[Window], of: Sequence[Lease] | None = None
) -> list[GivenBack]:
    """Return what a reservation has in the calendar within some parts of its time.

    With `of` only what is bound to these leases. To be asked before anything is given back.
    """
    windows = list(parts)
    held = Allocation.objects.filter(reservation=reservation, live=True).select_related("node")
    if of is not None:
        held = held.filter(lease__in=of)
    return [
        GivenBack(
            node_id=place.node_id,
            owner_id=place.node.organization_id,
            slot_lower=place.slots.lower,
            slot_upper=place.slots.upper,
            lot=place.lot,
            window=window,
        )
        for place in held.order_by("pk")
        for window in windows
    ]


def worth_by_owner(given_back: Iterable[GivenBack], *, lots: Lots) -> dict[str, int]:
    """Return what was given back on each owner's GPUs by the lots that priced it: micros × seconds."""
    worth: dict[str, int] = defaultdict(int)
    for place in given_back:
        numbers = [place.lot] * (place.slot_upper - place.slot_lower)
        worth[place.owner_id] += lots.micro_seconds_of(numbers=numbers, window=place.window)
    return dict(worth)


def write_down(given_back: Iterable[GivenBack], *, change: Change) -> None:
    """Keep the places that a change gave back."""
    ReleasedPlace.objects.bulk_create(
        ReleasedPlace(
            change=change,
            node_id=place.node_id,
            slots=Int4Range(place.slot_lower, place.slot_upper),
            lot=place.lot,
            period=TimestamptzRange(place.window.starts_at, place.window.ends_at),
        )
        for place in given_back
    )


def bought_at(*, reservation: Reservation) -> list[tuple[Window, dt.datetime]]:
    """Return the parts of a reservation's time with the instant since which it has had each.

    They are those of the reservation itself, less what changes gave up, and what changes added.
    """
    found = [(reservation.quote.window, reservation.created_at)]
    for change in reservation.changes.order_by("at", "pk"):
        if change.starts_at is None or change.ends_at is None:
            return []
        now, before = (
            Window(change.starts_at, change.ends_at),
            Window(change.from_starts_at, change.from_ends_at),
        )
        kept = [(window.intersection(now), at) for window, at in found]
        found = [(window, at) for window, at in kept if window is not None]
        found += [(part, change.at) for part in now.less(before)]
    return found
