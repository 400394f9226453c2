"""How far the provider's lists were read: in slices of time, the oldest first, each read to its end.

The provider lists the newest first. A mark that moved to now after a part of a list would leave out what is
older for ever, so it moves behind a slice when everything in it is stored, and what fails later begins there.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import TypeVar

from billing.models import Watermark

Row = TypeVar("Row")

# So much is read again when the provider fails in the middle; after a month away it is 120 slices.
SLICE_SECONDS = 6 * 3600


def read(
    *,
    name: str,
    overlap_seconds: int,
    begins_seconds: int,
    list_between: Callable[..., Iterator[Row]],
    store: Callable[[Row], bool],
    at: dt.datetime,
) -> int:
    """Store every row of a list since its mark, slice by slice; return how many are new.

    Each slice begins `overlap_seconds` early, because a row may appear in the list after later ones. Without
    a mark the first begins `begins_seconds` ago. `list_between` takes `since` and `until`; `store` says what
    is news.

    :raises GatewayError: when the provider fails; what was stored until then stays, and so does the mark.
    """
    count = 0
    mark = Watermark.objects.filter(pk=name).first()
    since = mark.at if mark else at - dt.timedelta(seconds=begins_seconds)
    overlap = dt.timedelta(seconds=overlap_seconds)
    end = at + dt.timedelta(seconds=1)  # lists go by whole seconds, and this one counts
    while since < end:
        until = min(since + dt.timedelta(seconds=SLICE_SECONDS), end)
        count += sum(store(row) for row in list_between(since=since - overlap, until=until))
        Watermark.objects.update_or_create(pk=name, defaults={"at": min(until, at)})
        since = until
    return count
