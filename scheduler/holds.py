"""The arrows of a quote, and what they do to the GPUs it holds.

A quote moves once in its life, so its own columns tell the whole story: `created_at`, then either
`used_at` or, for an expired one, `expires_at`. There is no table of its transitions.
"""

import datetime as dt
from collections.abc import Iterable

from django.db import transaction

from marketplace.core.errors import DomainError
from marketplace.core.windows import format_instant
from scheduler import calendar
from scheduler.models import Quote
from scheduler.states import QUOTE_ARROWS, QuoteStatus


class QuoteUsed(DomainError):
    code = "quote_used"
    title = "The quote was used already"


class QuoteExpired(DomainError):
    code = "quote_expired"
    title = "The quote has expired"


def require_usable(*, quote: Quote, at: dt.datetime) -> None:
    """Refuse a quote of which nothing can be made any more.

    A quote is expired from `expires_at` on, whether or not the sweep has seen it.

    :raises QuoteUsed: when a reservation was made from it.
    :raises QuoteExpired: when it is not open, or its time is up.
    """
    if quote.used_at is not None:
        raise QuoteUsed(
            f"quote {quote.pk} was used at {format_instant(quote.used_at)}", pointer="/quote_id"
        )
    if quote.status != QuoteStatus.OPEN or quote.expires_at <= at:
        raise QuoteExpired(
            f"quote {quote.pk} expired at {format_instant(quote.expires_at)}", pointer="/quote_id"
        )


def use(*, quote: Quote, at: dt.datetime) -> None:
    """Take the arrow open → used: one reservation, once.

    :raises QuoteUsed: when a reservation was made from it; likewise `QuoteExpired`, see `require_usable`.
    """
    assert QUOTE_ARROWS.allows(QuoteStatus.OPEN, QuoteStatus.USED)
    won = Quote.objects.filter(pk=quote.pk, status=QuoteStatus.OPEN, expires_at__gt=at).update(
        status=QuoteStatus.USED, used_at=at
    )
    if not won:
        quote.refresh_from_db(fields=["status", "used_at"])
        require_usable(quote=quote, at=at)
        raise AssertionError(f"nobody but us may use {quote.pk}, which is open")
    quote.status, quote.used_at = QuoteStatus.USED, at


@transaction.atomic
def release(*, quote_id: str) -> bool:
    """Take the arrow open → expired before its time, and free what is held; say whether it was open."""
    assert QUOTE_ARROWS.allows(QuoteStatus.OPEN, QuoteStatus.EXPIRED)
    ended = Quote.objects.filter(pk=quote_id, status=QuoteStatus.OPEN).update(
        status=QuoteStatus.EXPIRED
    )
    if ended:
        calendar.free_holds(quote_ids=[quote_id])
    return bool(ended)


@transaction.atomic
def expire(*, quote_ids: Iterable[str], at: dt.datetime) -> int:
    """Take the arrow open → expired for those of the quotes that are due, and free what they hold.

    A quote that another writer has locked just now is left to that writer. Return how many expired.
    """
    assert QUOTE_ARROWS.allows(QuoteStatus.OPEN, QuoteStatus.EXPIRED)
    due = list(
        Quote.objects.filter(pk__in=list(quote_ids), status=QuoteStatus.OPEN, expires_at__lte=at)
        .order_by("pk")
        .select_for_update(skip_locked=True, no_key=True)
        .values_list("pk", flat=True)
    )
    Quote.objects.filter(pk__in=due, status=QuoteStatus.OPEN).update(status=QuoteStatus.EXPIRED)
    calendar.free_holds(quote_ids=due)
    return len(due)
