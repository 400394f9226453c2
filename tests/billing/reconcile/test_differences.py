"""What differs between the provider's books and ours is found, adopted and told."""

import datetime as dt

import pytest
from django.utils import timezone

from billing import books, card_refunds, findings, ledger, payments, provider_books, reconcile
from billing.models import BalanceTransaction, Difference, Intent
from billing.states import AccountKind
from marketplace.core.errors import StateConflict
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db


class TestDifferences:
    def test_are_none_after_a_day_of_business(self, world):
        payment = world.paid()
        world.paid(3000)
        world.paid(4000, "pm_card_visa")
        card_refunds.write(payment=payment, amount_minor=100, reason="asked", at=world.clock())
        world.turn()
        reservation, paid = world.reserve()
        world.pays(paid)
        world.turn()
        assert world.differences(hours=2) == []
        assert world.differences(days=3) == []
        assert reservation.pk
        assert books.check(at=world.clock()).ok

    def test_show_a_payment_that_we_do_not_know(self, world):
        made = world.client().v1.payment_intents.create(
            {"amount": 900, "currency": "usd", "confirm": True, "payment_method": "pm_card_visa"}
        )
        assert world.differences() == []  # it may be on its way
        found = world.differences(hours=1)
        assert ("payment_without_row", made.id) in found
        assert "booking_unmatched" in dict(found)

    def test_show_a_payment_that_is_further_there_than_here_and_adopt_it(self, world):
        payment = world.top_up()
        world.pays(payment)
        kinds = dict(world.differences(hours=1))
        assert kinds["payment_differs"] == payment.provider_id
        difference = Difference.objects.get(kind="payment_differs")
        reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")
        assert world.balance() == 5000
        difference.refresh_from_db()
        assert difference.resolution == "adopted by cfo"
        assert world.differences() == []
        with pytest.raises(StateConflict):
            reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")

    def test_show_a_payment_that_the_provider_does_not_know(self, world):
        payment = world.paid()
        world.clock(minutes=20)
        theirs = world.stand_in.world.objects
        del theirs[payment.provider_id]
        assert ("payment_without_object", payment.pk) in world.differences()

    def test_show_money_that_was_not_matched_and_put_it_aside(self, world):
        world.paid()
        standin_balance.move(
            world.stand_in.world,
            source={"id": "adj_1"},
            kind="adjustment",
            category="other_adjustment",
            amount=777,
            currency="usd",
        )
        ((kind, object_id),) = world.differences(hours=1)
        assert kind == "booking_unmatched"
        difference = Difference.objects.get()
        reconcile.adopt(difference=difference, at=world.clock(), actor="cfo")
        assert world.shared(AccountKind.SUSPENSE) == 777
        assert world.differences() == []
        assert object_id.startswith("txn_")

    def test_show_a_balance_that_is_another(self, world):
        world.paid()
        provider_books.fetch(at=world.clock())
        ledger.transfer(
            debited=ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, "usd"),
            credited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
            amount=1,
        )
        row = BalanceTransaction.objects.get()
        theirs = world.stand_in.world.get(row.pk, "balance_transaction")
        theirs["net"] -= 1
        ((kind, _),) = world.differences()
        assert kind == "balance_differs"

    def test_show_an_intent_that_nobody_knows_the_outcome_of(self, world):
        payment = world.top_up()
        Intent.objects.filter(subject_id=payment.pk).update(status="unknown", closed_at=None)
        assert ("intent_unknown", Intent.objects.get(subject_id=payment.pk).pk) in (
            world.differences()
        )

    def test_vanish_when_they_are_gone(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        world.turn()
        assert world.differences() == []
        assert set(Difference.objects.values_list("resolution", flat=True)) == {"vanished"}

    def test_become_overdue_by_their_kind(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        difference = Difference.objects.get(kind="payment_differs")
        assert not reconcile.is_overdue(difference=difference, at=world.clock(minutes=14))
        assert reconcile.is_overdue(difference=difference, at=world.clock(minutes=1))

    def test_cannot_be_looked_for_while_the_provider_is_away(self, world):
        world.stand_in.fail("server_error", "GET", times=9)
        with pytest.raises(reconcile.ProviderAway):
            reconcile.run(at=world.clock())


def test_the_window_covers_a_weekend():
    assert dt.timedelta(seconds=findings.WINDOW_SECONDS) > dt.timedelta(days=3)


class TestClearings:
    def test_that_stay_open_are_shown_and_put_aside(self, world):
        payment = world.paid()
        for row in world.stand_in.world.all("balance_transaction"):
            del world.stand_in.world.objects[row["id"]]  # the provider never booked it
        world.clock(hours=2)
        at = timezone.now() + dt.timedelta(hours=2)  # a clearing is as old as its last posting
        found = [(row.kind, row.object_id) for row in findings.clearings(at=at)]
        assert ("clearing_open", payment.pk) in found
        opened = Difference.objects.create(
            kind="clearing_open",
            object_id=payment.pk,
            detail="",
            first_seen_at=world.clock(),
            last_seen_at=world.clock(),
        )
        reconcile.adopt(difference=opened, at=world.clock(), actor="cfo")
        assert ledger.balance(account=payments.clearing(payment=payment)) == 0
        assert world.shared(AccountKind.SUSPENSE) == -5000
        assert not list(findings.clearings(at=at))


def test_every_kind_of_difference_has_a_limit_and_a_way_out():
    without = {"balance_differs"}  # the sum of what the others tell
    assert set(reconcile.ALERT_AFTER_SECONDS) - set(reconcile._ADOPTERS) == without
