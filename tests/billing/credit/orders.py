"""What tenants do with what they buy on account."""

import datetime as dt

from agents.models import Node
from billing import (
    books,
    changes,
    wallet,
)
from marketplace.models import Organization
from scheduler import cancellations, extensions, rebookings
from scheduler.models import Change, Quote, Reservation
from scheduler.rebookings import WindowWish
from tests.scheduler.factories import NOW, hours, make_quote, window_in

LONG_AFTER = dt.timedelta(days=60)


def breaches(*, at: dt.datetime) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in books.check(at=at).checks if not c.ok]


def purse(organization: Organization) -> int:
    return wallet.balance(organization=organization).amount_minor


def quoted_at(at: dt.datetime, *, tenant: Organization, starts: float) -> Quote:
    """Return a quote of an hour at which the nodes have just reported, too."""
    Node.objects.update(last_report_at=at)
    return make_quote(tenant=tenant, window=window_in(starts), at=at)


def leave(reservation: Reservation, *, at: dt.datetime = NOW) -> Change:
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=at
    )
    return changes.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )


def extend(reservation: Reservation, *, payment_method: str = "invoice") -> Change:
    quote = extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + hours(2),
        max_rate=None,
        at=NOW,
    )
    return changes.extend(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method=payment_method,
        at=NOW,
        actor="test",
    )


def rebook(reservation: Reservation, *, starts: float, ends: float) -> Change:
    quote = rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=NOW + hours(starts), ends_at=NOW + hours(ends)),
        at=NOW,
    )
    return changes.rebook(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method="invoice",
        at=NOW,
        actor="test",
    )
