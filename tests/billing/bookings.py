"""What tenants do with what they book from their wallets, and what nodes and wallets make of it."""

import datetime as dt

from agents.models import Node, Receipt
from agents.protocol import ReceiptKind
from billing import changes, checkout, settlements, wallet
from billing.states import GPU_SECONDS, AccountKind
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler import cancellations, extensions, leases, rebookings, replacements, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Change, Lease, Quote, Reservation
from scheduler.rebookings import WindowWish
from tests.billing.readings import balance
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, seconds

FUNDS_MINOR = 1_000_000
LONG_AFTER = dt.timedelta(days=60)


def a_tenant(*, funds_minor: int = FUNDS_MINOR, currency: str = "usd") -> Organization:
    """Return a tenant with so much in its wallet."""
    tenant = factories.make_organization()
    if funds_minor:
        wallet.record_deposit(
            organization=tenant,
            amount=Money(funds_minor, currency),
            idempotency_key="first",
            at=NOW,
            actor="test",
        )
    return tenant


def purchase(quote: Quote, *, at: dt.datetime = NOW) -> Reservation:
    """Buy what was quoted from the wallet."""
    return checkout.purchase(
        organization=quote.organization,
        quote_id=quote.pk,
        payment_method="wallet",
        details=ReservationDetails(),
        at=at,
        actor="test",
    )


def buy(*, at: dt.datetime = NOW, **wishes: object) -> Reservation:
    """Let a tenant with money buy what is wished, and return the reservation."""
    return purchase(factories.make_quote(tenant=a_tenant(), at=at, **wishes), at=at)


def leave(reservation: Reservation, *, at: dt.datetime = NOW) -> Change:
    """Cancel a reservation, or return it early, on the terms of a quote."""
    organization = reservation.organization
    quote = cancellations.quote(organization=organization, reservation_id=reservation.pk, at=at)
    return changes.cancel(
        organization=organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=at,
        actor="test",
    )


def extend(
    reservation: Reservation,
    *,
    by: float = 2,
    payment_method: str = "wallet",
    at: dt.datetime = NOW,
) -> Change:
    """Add hours to the end of a reservation, of which the nodes have just reported."""
    Node.objects.update(last_report_at=at)
    quote = extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + hours(by),
        max_rate=None,
        at=at,
    )
    return changes.extend(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method=payment_method,
        at=at,
        actor="test",
    )


def rebook(
    reservation: Reservation,
    *,
    window: Window,
    payment_method: str = "wallet",
    at: dt.datetime = NOW,
) -> Change:
    """Give a reservation another window."""
    quote = rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=window.starts_at, ends_at=window.ends_at),
        at=at,
    )
    return changes.rebook(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        payment_method=payment_method,
        at=at,
        actor="test",
    )


def gpu_seconds(kind: AccountKind, *, of: Reservation) -> int:
    return balance(kind, of.pk, currency=GPU_SECONDS)


def start(reservation: Reservation) -> list[Lease]:
    """Start a reservation and let its nodes hand over at the first second."""
    reservations.start_due(at=reservation.starts_at)
    found = list(Lease.objects.filter(reservation=reservation))
    for lease in found:
        factories.say_handed_over(lease, at=lease.starts_at)
    leases.advance(at=reservation.starts_at + seconds(1))
    return list(Lease.objects.filter(reservation=reservation))


def finish(reservation: Reservation, *, at: dt.datetime) -> None:
    """Let the nodes return what they have, and settle everything."""
    unsaid = Lease.objects.filter(reservation=reservation, closed_at__isnull=True).exclude(
        pk__in=Receipt.objects.filter(kind=ReceiptKind.RETURN).values("lease_id")
    )
    for lease in unsaid:
        factories.say_returned(lease, at=at - seconds(4))
    leases.advance(at=at)
    leases.advance(at=at)
    replacements.advance(at=at)
    reservations.finish_due(at=at)
    settlements.settle_ended(at=at + LONG_AFTER)
