"""Buying, with the real scheduler beneath: capacity and money move together, or neither does."""

import datetime as dt
import threading
from fractions import Fraction

import pytest
from django.db import connections

from billing import bills, books, checkout, ledger, releases, settlements, wallet
from billing.ledger import InsufficientFunds
from billing.models import Entry, Settlement
from billing.payment_methods import PaymentMethodUnavailable
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.core.errors import DomainError, InvalidValue, NotFound
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import leases, replacements, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Allocation, Lease, Quote, Reservation
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


def buyer(*, funds_minor: int) -> Organization:
    row = factories.make_organization()
    if funds_minor:
        wallet.record_deposit(
            organization=row,
            amount=Money(funds_minor, "usd"),
            idempotency_key="first",
            at=factories.NOW,
            actor="test",
        )
    return row


def buy(quote: Quote, *, payment_method: str = "wallet") -> Reservation:
    return checkout.purchase(
        organization=quote.organization,
        quote_id=quote.pk,
        payment_method=payment_method,
        details=ReservationDetails(name="training"),
        at=factories.NOW,
        actor="test",
    )


def nothing_was_stored() -> bool:
    return not (Reservation.objects.exists() or Allocation.objects.exists()) and (
        set(Entry.objects.values_list("kind", flat=True)) <= {EntryKind.DEPOSIT}
    )


class TestPurchase:
    def test_takes_the_price_and_schedules_the_reservation(self):
        factories.make_pool()
        tenant = buyer(funds_minor=100_000)
        quote = factories.make_quote(tenant=tenant, gpus=2)
        reservation = buy(quote)
        assert reservation.status == "scheduled"
        assert wallet.balance(organization=tenant) == Money(100_000 - quote.total_minor, "usd")
        deferred = ledger.AccountRef(AccountKind.DEFERRED, "usd", reservation.id)
        bought = ledger.AccountRef(AccountKind.U_BOUGHT, GPU_SECONDS, reservation.id)
        assert ledger.balance(account=deferred) == quote.total_minor
        assert ledger.balance(account=bought) == 2 * 2 * 3600
        assert books.check(at=factories.NOW).ok

    def test_spends_a_wallet_to_the_last_cent(self):
        factories.make_pool()
        tenant = buyer(funds_minor=0)
        quote = factories.make_quote(tenant=tenant)
        wallet.record_deposit(
            organization=tenant,
            amount=Money(quote.total_minor, "usd"),
            idempotency_key="exact",
            at=factories.NOW,
            actor="test",
        )
        buy(quote)
        assert wallet.balance(organization=tenant) == Money(0, "usd")

    @pytest.mark.parametrize("held", [True, False])
    def test_leaves_no_trace_when_the_wallet_is_short(self, held):
        factories.make_pool()
        tenant = buyer(funds_minor=1)
        quote = factories.make_quote(tenant=tenant, hold=held)
        allocations = set(Allocation.objects.values_list("pk", "quote_id"))
        with pytest.raises(InsufficientFunds) as caught:
            buy(quote)
        assert caught.value.extra["missing"] == {
            "amount_minor": quote.total_minor - 1,
            "currency": "usd",
        }
        assert not Reservation.objects.exists()
        assert set(Allocation.objects.values_list("pk", "quote_id")) == allocations
        quote.refresh_from_db()
        assert (quote.status, quote.used_at) == ("open", None)
        assert wallet.balance(organization=tenant) == Money(1, "usd")

    def test_succeeds_after_the_wallet_was_filled(self):
        factories.make_pool()
        tenant = buyer(funds_minor=0)
        quote = factories.make_quote(tenant=tenant)
        with pytest.raises(InsufficientFunds):
            buy(quote)
        wallet.record_deposit(
            organization=tenant,
            amount=Money(100_000, "usd"),
            idempotency_key="later",
            at=factories.NOW,
            actor="test",
        )
        assert buy(quote).status == "scheduled"

    @pytest.mark.parametrize("payment_method", ["card", "bank_transfer"])
    def test_says_that_a_payment_method_is_not_available_yet(self, payment_method):
        factories.make_pool()
        quote = factories.make_quote(tenant=buyer(funds_minor=100_000))
        with pytest.raises(PaymentMethodUnavailable, match="wallet"):
            buy(quote, payment_method=payment_method)
        assert nothing_was_stored()

    def test_refuses_a_payment_method_that_nobody_knows(self):
        factories.make_pool()
        quote = factories.make_quote(tenant=buyer(funds_minor=100_000))
        with pytest.raises(InvalidValue) as caught:
            buy(quote, payment_method="shells")
        assert caught.value.pointer == "/payment_method"
        assert nothing_was_stored()

    def test_charges_a_quote_once(self):
        factories.make_pool()
        tenant = buyer(funds_minor=100_000)
        quote = factories.make_quote(tenant=tenant)
        buy(quote)
        with pytest.raises(DomainError) as caught:
            buy(quote)
        assert caught.value.code == "quote_used"
        assert wallet.balance(organization=tenant) == Money(100_000 - quote.total_minor, "usd")

    def test_does_not_charge_for_a_strangers_quote(self):
        factories.make_pool()
        quote = factories.make_quote(tenant=buyer(funds_minor=100_000))
        stranger = buyer(funds_minor=50_000)
        with pytest.raises(NotFound):
            checkout.purchase(
                organization=stranger,
                quote_id=quote.pk,
                payment_method="wallet",
                details=ReservationDetails(),
                at=factories.NOW,
                actor="test",
            )
        assert nothing_was_stored()


class TestWholeLife:
    def test_of_a_lease_ends_in_balanced_books(self):
        factories.make_pool(nodes=2, gpus=4)
        tenant = buyer(funds_minor=1_000_000)
        reservation = buy(factories.make_quote(tenant=tenant, gpus=6))
        reservations.start_due(at=reservation.starts_at)
        first, second = Lease.objects.order_by("id")
        factories.say_handed_over(first)
        factories.say_handed_over(second, at=second.starts_at + factories.seconds(60))
        leases.advance(at=reservation.starts_at + factories.seconds(90))
        leases.advance(at=reservation.ends_at)
        factories.say_returned(first)
        factories.say_returned(second)
        closed_at = reservation.ends_at + factories.seconds(5)
        leases.advance(at=closed_at)
        reservations.finish_due(at=closed_at)
        much_later = closed_at + dt.timedelta(days=60)
        assert settlements.settle_ended(at=closed_at + dt.timedelta(days=1)) == 2
        assert releases.release_due(at=much_later) == 2
        reservation.refresh_from_db()
        bill = bills.reservation_bill(reservation=reservation, at=much_later)
        assert bill.final
        assert bill.gpu_seconds.undelivered == len(first.gpu_uuids) * 3 + len(second.gpu_uuids) * 60
        assert bill.bought == bill.earned + bill.refunded
        spent = Money(1_000_000, "usd") - wallet.balance(organization=tenant)
        # What was refunded comes with a tenth of it, rounded for each of the two leases.
        credited = sum(row.credit_minor for row in Settlement.objects.all())
        assert credited == sum(
            round(Fraction(row.refunded_minor, 10)) for row in Settlement.objects.all()
        )
        assert spent == bill.net - Money(credited, "usd")
        report = books.check(at=much_later + dt.timedelta(days=1))
        assert report.ok, [check for check in report.checks if not check.ok]

    def test_of_a_reservation_that_no_node_served_ends_in_a_refund(self):
        factories.make_pool()
        tenant = buyer(funds_minor=1_000_000)
        reservation = buy(factories.make_quote(tenant=tenant))
        reservations.start_due(at=reservation.starts_at)
        factories.say_failed(Lease.objects.get())
        failed_at = reservation.starts_at + factories.seconds(5)
        leases.advance(at=failed_at)
        replacements.replace_due(at=failed_at)
        reservations.finish_due(at=failed_at)
        settlements.settle_ended(at=failed_at)
        assert Settlement.objects.get().owner_minor == 0
        assert wallet.balance(organization=tenant) == Money(1_000_000 + 47, "usd")
        assert books.check(at=failed_at + dt.timedelta(days=1)).ok

    def test_of_a_reservation_that_nobody_started_ends_in_a_refund(self):
        factories.make_pool()
        tenant = buyer(funds_minor=1_000_000)
        reservation = buy(factories.make_quote(tenant=tenant))
        reservations.start_due(at=reservation.ends_at)
        reservation.refresh_from_db()
        assert reservation.status == "failed"
        settlements.settle_ended(at=reservation.ends_at)
        assert wallet.balance(organization=tenant) == Money(1_000_000 + 47, "usd")
        assert books.check(at=reservation.ends_at + dt.timedelta(days=1)).ok


@pytest.mark.django_db(transaction=True)
class TestRace:
    @pytest.mark.parametrize(
        ("clients", "nodes"), [(16, 3), pytest.param(200, 26, marks=pytest.mark.slow, id="200")]
    )
    def test_of_many_clients_for_a_wallet_that_covers_eight(self, clients, nodes):
        factories.make_pool(nodes=nodes)
        tenant = buyer(funds_minor=0)
        offers = [factories.make_quote(tenant=tenant) for _ in range(clients)]
        price = offers[0].total_minor
        assert {offer.total_minor for offer in offers} == {price}
        wallet.record_deposit(
            organization=tenant,
            amount=Money(8 * price, "usd"),
            idempotency_key="eight",
            at=factories.NOW,
            actor="test",
        )
        results: list[object] = []
        ready = threading.Barrier(len(offers))

        def client(quote: Quote) -> None:
            try:
                connections["default"].ensure_connection()
                ready.wait(timeout=60)
                results.append(buy(quote))
            except Exception as error:  # noqa: BLE001 - the refusals are the result
                results.append(error)
            finally:
                connections["default"].close()

        threads = [threading.Thread(target=client, args=(quote,)) for quote in offers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(result, Reservation) for result in results) == 8
        # There are GPUs for all of them: what a loser lacks is money, and nothing else is said.
        refused = sum(isinstance(result, InsufficientFunds) for result in results)
        assert refused == clients - 8
        assert Allocation.objects.filter(live=True).count() == 8
        assert wallet.balance(organization=tenant) == Money(0, "usd")
        assert books.check(at=factories.NOW).ok
