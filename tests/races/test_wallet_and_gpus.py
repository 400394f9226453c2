"""Who pays from one wallet for one GPU in two ways at once: one is refused, and neither is broken off.

Money is locked before GPUs. The twin locks it afterwards, and PostgreSQL ends one of the two.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection

from billing import changes, ledger
from marketplace.models import Organization
from scheduler import rebookings
from scheduler.models import Reservation
from scheduler.rebookings import WindowWish
from tests.billing.bookings import a_tenant, purchase
from tests.races.interleaving import before, heard
from tests.races.test_changes import books_are_sound, buy, extending
from tests.scheduler.factories import NOW, hours, make_pool, make_quote, window_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


def moving(reservation: Reservation) -> Callable[[], str]:
    """Return a change that takes the same GPU for four hours instead of two, later."""
    quote = rebookings.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        wish=WindowWish(starts_at=NOW + hours(26), ends_at=NOW + hours(30)),
        at=NOW,
    )
    return heard(
        lambda: changes.rebook(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=NOW,
            actor="test",
        )
    )


def the_last_gpu() -> tuple[Organization, Reservation, Callable[[], str]]:
    """Return a tenant, what it has of the last GPU, and how it buys the hours after that."""
    make_pool(gpus=1)
    tenant = a_tenant()
    reservation = buy(tenant, window=window_in(24))
    wanted = make_quote(tenant=tenant, window=window_in(27))
    return tenant, reservation, heard(lambda: purchase(wanted))


@pytest.mark.parametrize(
    "change", [lambda row: extending(row, by=2), moving], ids=["end", "window"]
)
def test_a_change_and_a_purchase_of_one_tenant_have_one_winner(change, monkeypatch) -> None:
    _, reservation, buy_as_well = the_last_gpu()
    take = change(reservation)
    buyer = before(monkeypatch, changes, "_post_paid", buy_as_well)

    assert take() in {"extended", "done"}
    assert buyer.outcome() == "capacity_taken"
    assert Reservation.objects.get(pk=reservation.pk).ends_at > reservation.ends_at
    assert books_are_sound()


def test_with_the_money_locked_last_one_of_them_is_broken_off(monkeypatch) -> None:
    _, reservation, buy_as_well = the_last_gpu()
    take = extending(reservation, by=2)
    buyer = before(monkeypatch, changes, "_post_paid", buy_as_well)
    require_funds = ledger.require_funds

    def only_for_the_buyer(**arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            require_funds(**arguments)

    monkeypatch.setattr(ledger, "require_funds", only_for_the_buyer)
    with connection.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '10ms'")  # it is we who are broken off
    try:
        with pytest.raises(OperationalError, match="deadlock"):
            take()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET deadlock_timeout")
    assert buyer.outcome() == "done"
