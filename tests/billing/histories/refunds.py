"""Stories of money that goes back."""

from billing import card_refunds, changes, provider, refunds, reservation_refunds
from billing.models import Payment
from scheduler import cancellations
from scheduler.models import Reservation
from tests.billing.histories.market import PAYS, REFUND_WAITS, Market
from tests.billing.histories.plot import Acts


def a_card_refund(market: Market, name: str, ending: str) -> Acts:
    """Return a part of a top-up: `settles`, `fails` while it waits, `comes back` later, or is `lost`."""
    tenant = market.tenant(name)
    payment = market.top_up(tenant)
    market.pays(payment, REFUND_WAITS if ending in {"settles", "fails"} else PAYS)
    market.learns(payment)
    if ending in {"settles", "comes back"}:
        _give_back(market, payment)
    yield
    if ending == "fails":  # young enough to wait still, the next day
        _give_back(market, payment)
    yield
    if ending == "lost":
        market.stand_in.fail("timeout_after", "POST /v1/refunds")
        _give_back(market, payment)
    if ending in {"fails", "comes back"}:
        market.refund_fails(payment)


def a_refund_of_a_reservation(market: Market, name: str, ending: str) -> Acts:
    """Cancel a reservation that was paid by card; what it owes ends as a card refund may."""
    tenant = market.tenant(name)
    reservation, payment = market.bought(
        tenant, REFUND_WAITS if ending in {"settles", "fails"} else PAYS
    )
    if ending in {"settles", "comes back"}:
        _cancel(market, reservation)
    yield
    if ending == "fails":
        _cancel(market, reservation)
    yield
    if ending == "lost":
        market.stand_in.fail("timeout_after", "POST /v1/refunds")
        _cancel(market, reservation)
    if ending in {"fails", "comes back"}:
        market.refund_fails(payment)


def _give_back(market: Market, payment: Payment) -> None:
    refund = card_refunds.write(payment=payment, amount_minor=500, reason="asked", at=market.at)
    provider.drive_subject(subject_id=refund.pk, at=market.at)
    market.hears()


def _cancel(market: Market, reservation: Reservation) -> None:
    """Cancel what was paid, and ask the provider to give back what that owes."""
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=market.at
    )
    changes.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=market.at,
        actor="test",
    )
    (refund,) = refunds.open_for(reservation_id=reservation.pk, at=market.at)
    reservation_refunds.ask(refund_id=refund.pk, at=market.at)
    provider.drive_subject(subject_id=refund.pk, at=market.at)
    market.hears()
