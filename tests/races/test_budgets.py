"""Many orders at once against one budget: exactly as many as it covers.

The twin leaves the budget's row unlocked and shows that the race is real.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from django.db import transaction

from billing import budgets, checkout
from billing.budgets import BudgetExceeded, BudgetWish, guard
from billing.models import Budget
from billing.promised import Promise
from billing.states import BudgetMode, BudgetPeriod
from marketplace.models import Organization
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from tests.billing.factories import tenant
from tests.races.test_last_gpus import at_once
from tests.scheduler.factories import NOW, make_pool, make_quote

BUYERS = 60
COVERED = 5

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


def ordering(quote: Quote) -> Callable[[], str]:
    def order() -> str:
        try:
            checkout.purchase(
                organization=quote.organization,
                quote_id=quote.pk,
                payment_method="wallet",
                details=ReservationDetails(),
                at=NOW,
                actor="test",
            )
        except BudgetExceeded:
            return "refused"
        return "bought"

    return order


def a_buyer_with_a_budget(
    *, mode: BudgetMode = BudgetMode.HARD
) -> tuple[Organization, list[Quote]]:
    make_pool(nodes=2, gpus=8)
    buyer = tenant(funds_minor=10_000_000)
    quotes = [make_quote(tenant=buyer) for _ in range(BUYERS)]
    wish = BudgetWish(
        project="",
        period=BudgetPeriod.MONTH,
        mode=mode,
        amount_minor=COVERED * quotes[0].total_minor,
        thresholds=(),  # telling of one is a wait of its own
    )
    budgets.put(organization=buyer, wishes=[wish], only_if=None, at=NOW, actor="test")
    return buyer, quotes


def test_a_budget_is_spent_to_the_cent_and_no_further() -> None:
    _, quotes = a_buyer_with_a_budget()

    outcomes = at_once([ordering(quote) for quote in quotes])

    assert outcomes == Counter(bought=COVERED, refused=BUYERS - COVERED)
    assert Reservation.objects.count() == COVERED


def test_without_the_lock_two_orders_both_take_what_is_left_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buyer, quotes = a_buyer_with_a_budget()
    Budget.objects.update(amount_minor=quotes[0].total_minor)
    monkeypatch.setattr(guard, "_locked", lambda known: list(known.filter(mode=BudgetMode.HARD)))

    with transaction.atomic():
        # What the other order has done is not committed yet, so this one cannot see it.
        assert ordering(quotes[0])() == "bought"
        (other,) = at_once([_asking(buyer, quotes[1])])

    assert other == "fits as well"


def test_with_the_lock_the_second_order_waits_for_the_first() -> None:
    buyer, quotes = a_buyer_with_a_budget()
    Budget.objects.update(amount_minor=quotes[0].total_minor)

    outcomes = at_once([ordering(quotes[0]), ordering(quotes[1])])

    assert outcomes == Counter(bought=1, refused=1)
    with pytest.raises(BudgetExceeded):
        _asking(buyer, quotes[2])()


def _asking(buyer: Organization, quote: Quote) -> Callable[[], str]:
    def ask() -> str:
        with transaction.atomic():
            budgets.require(organization=buyer, project="", promise=Promise.of(quote), at=NOW)
        return "fits as well"

    return ask
