"""Stories of reservations that are paid by card or by bank."""

from billing import payments, provider
from marketplace.states import Tier
from tests.billing.card_market import BANK
from tests.billing.histories.market import ASKS, DISPUTES, PAYS, Market
from tests.billing.histories.plot import HELD_STARTS_IN, Acts


def a_reservation(market: Market, name: str, *methods: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.pays(payment, *methods)


def reservation_asked_by_the_bank(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.pays(payment, ASKS)
    market.answers_bank(payment, passed=True)


def reservation_cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.cancels_there(payment)


def abandoned(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant)
    market.pays(payment, ASKS)
    yield
    yield


def paid_late(market: Market, name: str, *, starts_in: int) -> Acts:
    """Pay what was released: it is booked again, or its window has begun and the money goes back."""
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=starts_in)
    yield
    market.pays(payment, PAYS)
    yield


def held_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant, starts_in=48, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)


def held_and_lapsed(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=48, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    market.cancels_there(payment)


def held_and_taken_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=HELD_STARTS_IN, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    market.stand_in.fail("timeout_after", f"POST /v1/payment_intents/{payment.provider_id}/capture")
    payments.capture_due(at=market.at)
    provider.drive_subject(subject_id=payment.pk, at=market.at)


def reservation_by_bank(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant, BANK)
    market.sends_by_bank(tenant, payment.amount_minor)


def reservation_by_bank_too_late(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, BANK)
    yield
    yield
    market.sends_by_bank(tenant, payment.amount_minor)


def disputed_reservation(market: Market, name: str, *, won: bool | None) -> Acts:
    _, payment = market.bought(market.tenant(name))
    yield
    yield
    market.disputes(payment, won=won)


def reservation_disputed_unheard(market: Market, name: str, *, won: bool | None) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.pays(payment, DISPUTES)
    market.decides(market.dispute_of(payment), won=won)


def late_payment_disputed_unheard(market: Market, name: str, *, won: bool | None) -> Acts:
    """Pay for what has begun, and dispute it: it bought nothing, so its dispute is the wallet's.

    None of these is won: whether its money could go back to the card would be a matter of the moment.
    """
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=1)
    yield
    market.pays(payment, DISPUTES)
    market.decides(market.dispute_of(payment), won=won)
    yield
