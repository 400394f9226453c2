"""Stories of money for the wallet."""

from billing.models import Payer
from tests.billing.card_market import BANK, SAVED, SAVING
from tests.billing.histories.market import ASKS, DECLINED, DISPUTES, PAYS, Market
from tests.billing.histories.plot import Acts


def a_top_up(market: Market, name: str, *methods: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.pays(market.top_up(tenant), *methods)


def asked_by_the_bank(market: Market, name: str, *, passed: bool) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    payment = market.top_up(tenant)
    market.pays(payment, ASKS)
    market.answers_bank(payment, passed=passed)


def cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.cancels_there(market.top_up(tenant))


def declined_and_cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    payment = market.top_up(tenant)
    market.pays(payment, DECLINED)
    market.cancels_there(payment)


def saved_card_whose_answer_is_lost(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    first = market.top_up(tenant, wishes=SAVING)
    market.pays(first, PAYS)
    market.learns(first)
    yield
    yield
    market.top_up(tenant, 7000, SAVED, lost=True)


def saved_card_that_is_declined(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    first = market.top_up(tenant, wishes=SAVING)
    market.pays(first, PAYS)
    market.learns(first)
    yield
    yield
    saved = Payer.objects.get(organization=tenant).saved_card_id
    card = market.stand_in.world.get(saved, "payment_method")
    card["_behaves"] = "insufficient_funds"
    market.top_up(tenant, 7000, SAVED, lost=True)


def card_saved_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.pays(market.top_up(tenant, wishes=SAVING), PAYS)
    market.client().v1.setup_intents.create(
        {
            "customer": tenant.payer.customer_id,
            "payment_method": "pm_card_visa",
            "confirm": True,
        }
    )


def sent_by_bank(market: Market, name: str, *parts: int) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.top_up(tenant, 10_000, BANK)
    for part in parts:
        market.sends_by_bank(tenant, part)


def disputed_top_up(market: Market, name: str, *, won: bool | None) -> Acts:
    tenant = market.tenant(name)
    payment = market.top_up(tenant)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    market.disputes(payment, won=won)


def top_up_disputed_unheard(market: Market, name: str, *, won: bool | None) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    payment = market.top_up(tenant)
    market.pays(payment, DISPUTES)
    market.decides(market.dispute_of(payment), won=won)
