"""Which hours of a reservation nobody has paid: what the sales that are still owed have brought into it.

A purchase brings the window that was first bought, an extension the hours that it adds, and another window
those that the old one did not have. Where that one gives up others for them, those others have paid for the
new hours as far as they go, and the difference is of the outermost. What was shortened or left is gone.
"""

import datetime as dt
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from django.conf import settings

from billing.models import CreditSale
from marketplace.core.windows import Window
from scheduler.lots import Lots
from scheduler.models import Change, Reservation
from scheduler.states import ChangeKind

_PURCHASE = ""
Sources = frozenset[str]  # ids of changes; the purchase has none


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Hours of a window, and what brought them; of several sources each paid for a part of them."""

    window: Window
    sources: Sources


def kept(*, reservation: Reservation, unpaid: Collection[CreditSale]) -> Window | None:
    """Return the shortest window that has all hours which are paid; None where none is.

    `unpaid` are the sales of the reservation that are owed. Hours of theirs between two that are paid stay in
    the window, and so does what is paid in part.
    """
    owed = {sale.change_id or _PURCHASE for sale in unpaid}
    paid = [part.window for part in _parts(reservation) if not part.sources <= owed]
    if not paid:
        return None
    return Window(min(window.starts_at for window in paid), max(window.ends_at for window in paid))


def _parts(reservation: Reservation) -> list[_Part]:
    """Return the hours that a reservation has now by what brought them."""
    bought = Window(reservation.quote.starts_at, reservation.quote.ends_at)
    parts = [_Part(window=bought, sources=frozenset({_PURCHASE}))]
    changes = reservation.changes.select_related("quote")
    # Their ids begin with their kind; what follows has the order in which they were made.
    for change in sorted(changes, key=lambda each: (each.at, each.pk.rpartition("_")[2])):
        match ChangeKind(change.kind):
            case ChangeKind.EXTENSION:
                assert change.ends_at is not None, change
                added = Window(change.from_ends_at, change.ends_at)
                parts.append(_Part(window=added, sources=frozenset({change.pk})))
            case ChangeKind.SHORTENING | ChangeKind.EARLY_RETURN:
                parts = list(_clipped(parts, to=_window_after(change)))
            case ChangeKind.MOVE:
                parts = list(_moved(parts, change=change))
            case ChangeKind.CANCELLATION:
                parts = []
    return parts


def _window_after(change: Change) -> Window:
    assert change.starts_at is not None, change
    assert change.ends_at is not None, change
    return Window(change.starts_at, change.ends_at)


def _clipped(parts: list[_Part], *, to: Window) -> Iterator[_Part]:
    for part in parts:
        left = part.window.intersection(to)
        if left is not None:
            yield replace(part, window=left)


def _moved(parts: list[_Part], *, change: Change) -> Iterator[_Part]:
    """Yield what another window keeps and what it adds; what was charged for it are the outermost hours."""
    old, new = Window(change.from_starts_at, change.from_ends_at), _window_after(change)
    yield from _clipped(parts, to=new)
    own = frozenset({change.pk})
    given_up = frozenset[str]().union(
        *(part.sources for part in parts if not new.covers(part.window))
    )
    for added in new.less(old):
        owed = _outermost(change, added=added) if given_up else added
        if owed is not None:
            yield _Part(window=owed, sources=own)
        for rest in added.less(owed) if owed is not None else [added]:
            yield _Part(window=rest, sources=given_up)


def _outermost(change: Change, *, added: Window) -> Window | None:
    """Return the hours that a move's charge pays: of what it adds the farthest from what it keeps."""
    new, lots = _window_after(change), Lots.from_json(change.quote.lots)
    step = dt.timedelta(seconds=settings.GRID_SECONDS)
    is_in_front = added.ends_at == change.from_starts_at

    def outer(steps: int) -> Window:
        if is_in_front:
            return Window(added.starts_at, added.starts_at + step * steps)
        return Window(added.ends_at - step * steps, added.ends_at)

    def worth(steps: int) -> int:
        """Return what the price would be less by without some of them, rounded as prices are."""
        if not steps:
            return 0
        kept = (
            lots.amount(window=window, currency=change.currency).amount_minor
            for window in new.less(outer(steps))
        )
        return lots.amount(window=new, currency=change.currency).amount_minor - sum(kept)

    all_steps = range(added.duration // step + 1)
    steps = bisect_right(all_steps, change.charged_minor, key=worth) - 1
    return outer(steps) if steps else None
