"""Which amounts are asked for and sent back in which currency: what the provider takes, and no other."""

from typing import Any

import pytest

from billing import chargeable, invoice_payments, payments
from billing.deposits import collecting
from billing.models import Payment
from marketplace.core.errors import InvalidValue
from marketplace.core.money import currency_exponent
from tests.billing import debtors
from tests.billing import factories as billed
from tests.billing.card_market import CARD, World
from tests.billing.deposits.market import InTwoParts
from tests.fakes.stripe import currencies
from tests.fakes.stripe.world import ApiError
from tests.scheduler import factories


@pytest.mark.parametrize(
    ("currency", "amount", "is_taken"),
    [
        ("usd", 49, False),
        ("usd", 50, True),
        ("gbp", 30, True),
        ("huf", 17_499, False),
        ("jpy", 50, True),
        ("jpy", 51, True),
        ("kwd", 5_120, True),
        ("kwd", 5_124, False),
        ("usd", 99_999_999, True),
        ("usd", 100_000_000, False),
    ],
)
def test_an_amount_is_taken_alike_here_and_by_the_stand_in(
    *, currency: str, amount: int, is_taken: bool
) -> None:
    assert chargeable.is_taken(amount_minor=amount, currency=currency) == is_taken
    if is_taken:
        currencies.require_charge(amount, currency)
    else:
        with pytest.raises(ApiError):
            currencies.require_charge(amount, currency)


def test_both_tables_say_the_same() -> None:
    assert currencies.LEAST_OF == chargeable.LEAST_MINOR
    assert {currency_exponent(currency) for currency in currencies.THREE_DECIMALS} == {3}


@pytest.mark.parametrize(
    ("currency", "amount", "up", "down"),
    [("kwd", 4_706, 4_710, 4_700), ("kwd", 4_700, 4_700, 4_700), ("jpy", 625, 625, 625)],
)
def test_what_is_asked_for_covers_the_price_and_what_goes_back_does_not_exceed_it(
    currency: str, amount: int, up: int, down: int
) -> None:
    assert chargeable.rounded_up(amount_minor=amount, currency=currency) == up
    assert chargeable.rounded_down(amount_minor=amount, currency=currency) == down


@pytest.mark.django_db
class TestInSteps:
    """Every charge that is asked for is one that the provider takes: here of a dollar with three decimals."""

    @pytest.fixture(autouse=True)
    def three_decimals(self, monkeypatch: Any, settings: Any) -> None:
        settings.DEPOSIT_PRICE_MINOR_MIN = 10_000
        monkeypatch.setattr(chargeable, "currency_exponent", lambda _currency: 3)

    def test_a_deposit_and_its_balance_are_paid(self, provider: Any, clock: Any) -> None:
        world = InTwoParts(provider, clock)
        world.booked()
        payment = collecting.pay_early(
            organization=world.tenant,
            reservation_id=world.reservation.pk,
            wishes=CARD,
            at=clock(),
        )
        parts = ((world.first, world.plan.gross_minor), (payment, world.plan.balance_gross_minor))
        assert any(part % 10 for _, part in parts)
        for asked, part in parts:
            assert asked.amount_minor % 10 == 0
            assert 0 <= asked.amount_minor - part < 10
        world.turn()
        payment.refresh_from_db()
        world.pays(payment)
        world.turn()
        world.see()
        assert (world.plan.status, world.deferred()) == ("paid", world.reservation.total_minor)
        assert world.balance() == sum(asked.amount_minor - part for asked, part in parts)
        world.sound()

    def test_an_invoice_is_paid(self, provider: Any, clock: Any) -> None:
        world = World(provider, clock)
        world.tenant = debtors.a_debtor()
        factories.make_pool()
        sale = debtors.sale_of(debtors.buy(factories.make_quote(tenant=world.tenant, gpus=2)))
        payment = invoice_payments.through_provider(
            sale=sale, amount_minor=None, wishes=CARD, at=clock()
        )
        assert sale.amount_minor % 10
        assert payment.amount_minor == sale.amount_minor + 10 - sale.amount_minor % 10
        world.turn()
        payment.refresh_from_db()
        world.pays(payment)
        world.turn()
        assert (debtors.owed(sale), world.balance()) == (
            0,
            payment.amount_minor - sale.amount_minor,
        )
        world.sound()


@pytest.mark.parametrize("total_minor", [0, 49])
def test_a_price_that_the_provider_does_not_take_is_refused_before_it_is_asked(
    db: None, total_minor: int
) -> None:
    row = billed.reservation(buyer=billed.tenant(), total_minor=total_minor, paid=False)
    with pytest.raises(InvalidValue, match="from 50 to 99999999 minor units") as refused:
        payments.open_for_reservation(reservation=row, wishes=CARD, at=billed.START)
    assert refused.value.pointer == "/payment_method"
    assert not Payment.objects.exists()
