"""Many orders at once on one promotion: each cent of it is spent once.

The twin leaves the lock on the grant out and shows that the race is real.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from django.db import transaction

from billing import checkout, ledger, promotions, wallet
from billing.ledger import InsufficientFunds
from billing.models import Promotion
from marketplace.models import Organization
from scheduler.details import ReservationDetails
from scheduler.models import Quote
from tests.billing import factories
from tests.races.test_last_gpus import at_once
from tests.scheduler.factories import NOW, make_pool, make_quote

BUYERS = 20
COVERED = 4

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
        except InsufficientFunds:
            return "refused"
        return "bought"

    return order


def a_gifted_buyer(*, orders: int) -> tuple[Organization, list[Quote], Promotion]:
    """Return a tenant with quotes, and a promotion that covers so many of them to the cent."""
    make_pool(nodes=2, gpus=8)
    buyer = factories.tenant()
    quotes = [make_quote(tenant=buyer) for _ in range(BUYERS)]
    made = factories.promotion(buyer=buyer, minor=orders * quotes[0].total_minor, at=NOW)
    return buyer, quotes, made


def left(made: Promotion) -> int:
    return ledger.kept_balance(account=promotions.account(made))


def test_a_promotion_is_spent_to_the_cent_and_no_further() -> None:
    buyer, quotes, made = a_gifted_buyer(orders=COVERED)

    outcomes = at_once([ordering(quote) for quote in quotes])

    assert outcomes == Counter(bought=COVERED, refused=BUYERS - COVERED)
    assert left(made) == wallet.balance(organization=buyer).amount_minor == 0


def test_without_the_lock_two_orders_count_on_what_is_left_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buyer, quotes, made = a_gifted_buyer(orders=1)
    locked = promotions._locked_rows
    monkeypatch.setattr(
        promotions, "_locked_rows", lambda ids: list(Promotion.objects.filter(pk__in=list(ids)))
    )

    def count_on_it() -> str:
        with transaction.atomic():
            given = promotions.lock_minor(organization=buyer, currency="usd", at=NOW)
        return "enough" if given == quotes[0].total_minor else "nothing"

    with transaction.atomic():
        # What the other order has spent is not committed yet, so this one cannot see it.
        assert ordering(quotes[0])() == "bought"
        assert at_once([count_on_it]) == Counter(enough=1)

    monkeypatch.setattr(promotions, "_locked_rows", locked)
    assert ordering(quotes[1])() == "refused"
    assert left(made) == 0
