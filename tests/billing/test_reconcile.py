"""The provider's books against ours: what was booked is matched, what differs is found, adopted and told."""

import datetime as dt

import pytest
import stripe
import time_machine
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.db import transaction as db_transaction
from django.urls import reverse
from django.utils import timezone

from billing import (
    books,
    card_refunds,
    changes,
    findings,
    ledger,
    payments,
    provider_books,
    reconcile,
    refunds,
    reservation_refunds,
    transfers,
    unknown_intents,
    watch,
)
from billing import provider as doors
from billing.models import (
    BalanceTransaction,
    Difference,
    Dismissal,
    Intent,
    Payment,
    TopUpDispute,
    Transfer,
)
from billing.states import AccountKind
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import AuditEvent
from scheduler import cancellations
from tests.billing.card_market import World
from tests.billing.test_transfers import World as Payouts
from tests.fakes.stripe import balance as standin_balance

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    return Market(provider, clock)


class Market(World):
    """A market whose every booking at the provider is one of its own."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        for row in stand_in.world.all("balance_transaction"):
            del stand_in.world.objects[row["id"]]  # the endowment of other tests

    def paid(self, amount=5000, method="pm_card_bypassPending"):
        payment = self.top_up(amount)
        self.pays(payment, method)
        self.turn()
        payment.refresh_from_db()
        return payment

    def client(self):
        return stripe.StripeClient("sk_test_x", base_addresses={"api": self.stand_in.base_url})

    def shared(self, kind):
        return ledger.balance(account=ledger.AccountRef(kind, "usd"))

    def differences(self, **passed):
        return [(d.kind, d.object_id) for d in reconcile.run(at=self.clock(**passed))]


class TestBookings:
    def test_of_a_payment_clear_it_and_bring_the_fee(self, world):
        payment = world.paid()
        assert provider_books.fetch(at=world.clock()) == 1
        assert ledger.balance(account=payments.clearing(payment=payment)) == 0
        assert world.shared(AccountKind.PSP_FEES) == 175
        assert world.shared(AccountKind.STRIPE_AVAILABLE) == 4825
        assert world.shared(AccountKind.STRIPE_PENDING) == 0

    def test_become_available_when_the_provider_lets_them(self, world):
        world.paid(method="pm_card_visa")
        provider_books.fetch(at=world.clock())
        assert world.shared(AccountKind.STRIPE_PENDING) == 4825
        provider_books.fetch(at=world.clock(days=3))
        assert world.shared(AccountKind.STRIPE_PENDING) == 0
        assert world.shared(AccountKind.STRIPE_AVAILABLE) == 4825

    def test_are_booked_once(self, world):
        world.paid()
        assert [provider_books.fetch(at=world.clock()) for _ in range(3)] == [1, 0, 0]
        assert BalanceTransaction.objects.count() == 1

    def test_wait_for_the_object_that_they_are_about(self, world):
        payment = world.top_up()
        world.pays(payment)
        provider_books.fetch(at=world.clock())
        assert BalanceTransaction.objects.get().matched_at is None
        world.turn()
        provider_books.fetch(at=world.clock())
        assert BalanceTransaction.objects.get().subject_id == payment.pk

    def test_of_refunds_that_come_back_end_at_zero(self, world):
        world.paid()
        payment = world.paid(method="pm_card_refundFail")
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.turn()
        refund.refresh_from_db()
        provider_books.fetch(at=world.clock())
        world.clock(days=3)
        made = doors.gateway.read_refund(refund_id=refund.provider_id)
        card_refunds.apply(refund_id=refund.pk, made=made, at=world.clock())
        assert world.differences() == []
        assert ledger.balance(account=card_refunds.clearing(refund=refund)) == 0
        assert world.balance() == 10_000
        world.sound()

    def test_of_refunds_of_reservations_that_come_back_end_at_zero(self, world):
        world.paid()
        reservation, payment = world.reserve()
        world.pays(payment)
        world.turn()
        who = {"organization": world.tenant, "reservation_id": reservation.pk}
        quote = cancellations.quote(**who, at=world.clock())
        changes.cancel(**who, quote_id=quote.pk, at=world.clock(), actor="test")
        (refund,) = refunds.open_for(reservation_id=reservation.pk, at=world.clock())
        reservation_refunds.ask(refund_id=refund.pk, at=world.clock())
        world.turn()
        provider_books.fetch(at=world.clock())
        (made,) = world.stand_in.world.all("refund")
        world.stand_in.control("/_control/fail-refund", {"id": made["id"]})
        doors.READERS["refund"](made["id"], world.clock())
        refund.refresh_from_db()
        assert refund.status == "failed"
        assert world.differences(hours=1) == []
        assert world.balance() == 5000 + refund.amount_minor
        world.sound()

    def test_of_our_own_payouts_go_to_the_bank(self, world):
        world.paid()
        world.client().v1.payouts.create({"amount": 4000, "currency": "usd"})
        provider_books.fetch(at=world.clock())
        assert world.shared(AccountKind.BANK) == 4000
        assert world.differences() == []


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


class TestCommand:
    def call(self, world, capsys, *arguments):
        with time_machine.travel(world.clock(), tick=False):
            try:
                call_command("reconcile", *arguments)
            except SystemExit as stop:
                return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    def test_says_that_all_is_well(self, world, capsys):
        world.paid()
        status, text = self.call(world, capsys)
        assert (status, text.splitlines()[-1]) == (0, "the provider and the ledger agree")

    def test_lists_what_differs_fails_by_its_age_and_adopts(self, world, capsys):
        payment = world.top_up()
        world.pays(payment)
        world.clock(hours=1)
        status, text = self.call(world, capsys)
        assert (status, "payment_differs" in text) == (0, True)
        world.clock(minutes=20)
        status, text = self.call(world, capsys)
        assert (status, "OVERDUE" in text) == (1, True)
        number = str(Difference.objects.get(kind="payment_differs").pk)
        with pytest.raises(CommandError):
            call_command("reconcile", "--adopt", number)
        assert self.call(world, capsys, "--adopt", number, "--as", "cfo")[0] == 0
        assert Payment.objects.get().status == "succeeded"

    def test_needs_a_provider(self, db):
        with pytest.raises(CommandError, match="no payment provider"):
            call_command("reconcile")


def test_the_window_covers_a_weekend():
    assert dt.timedelta(seconds=findings.WINDOW_SECONDS) > dt.timedelta(days=3)


class Owners(Payouts):
    """An owner with a payout, of whose transfer the two sides tell."""

    def __init__(self, stand_in, clock):
        clock(days=60)
        super().__init__(stand_in, clock)
        self.onboard()
        self.earn()
        self.turn()
        self.transfer = Transfer.objects.get()
        self.object = stand_in.world.get(self.transfer.provider_id, "transfer")

    def kinds(self, **passed):
        return {d.kind: d.object_id for d in reconcile.run(at=self.clock(**passed))}


def adopt(kind, at):
    return reconcile.adopt(difference=Difference.objects.get(kind=kind), at=at, actor="cfo")


class TestRefunds:
    def given_back(self, world):
        payment = world.paid()
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.turn()
        refund.refresh_from_db()
        return refund

    def test_of_which_the_answer_was_lost_are_shown_and_adopted(self, world):
        payment = world.paid()
        world.stand_in.fail("timeout_after", "POST /v1/refunds")
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        doors.drive_due(at=world.clock())
        (made,) = world.stand_in.world.all("refund")
        assert ("refund_without_row", made["id"]) in world.differences(hours=1)
        adopt("refund_without_row", world.clock())
        refund.refresh_from_db()
        assert (refund.status, refund.provider_id) == ("succeeded", made["id"])
        assert world.differences() == []

    def test_that_are_not_there_are_shown(self, world):
        refund = self.given_back(world)
        del world.stand_in.world.objects[refund.provider_id]
        assert ("refund_without_object", refund.pk) in world.differences(minutes=30)
        with pytest.raises(StateConflict):
            adopt("refund_without_object", world.clock())

    def test_of_another_state_are_shown_and_adopted(self, world):
        refund = self.given_back(world)
        world.stand_in.control("/_control/fail-refund", {"id": refund.provider_id})
        assert ("refund_differs", refund.provider_id) in world.differences(hours=1)
        adopt("refund_differs", world.clock())
        refund.refresh_from_db()
        assert refund.status == "failed"
        assert world.differences() == []

    def test_of_another_amount_are_shown(self, world):
        refund = self.given_back(world)
        world.stand_in.world.get(refund.provider_id, "refund")["amount"] = 1999
        assert ("refund_differs", refund.provider_id) in world.differences(hours=1)


class TestTransfers:
    @pytest.fixture
    def owners(self, provider, clock):
        return Owners(provider, clock)

    def test_of_which_the_answer_was_lost_are_shown_and_adopted(self, provider, clock):
        clock(days=60)
        owners = Payouts(provider, clock)
        owners.onboard()
        owners.earn()
        provider.fail("timeout_after", "POST /v1/transfers")
        owners.turn()
        (made,) = provider.world.all("transfer")
        kinds = {d.kind: d.object_id for d in reconcile.run(at=clock(hours=1))}
        assert kinds["transfer_without_row"] == made["id"]
        adopt("transfer_without_row", clock())
        assert Transfer.objects.get().status == "paid"

    def test_that_are_not_there_are_shown(self, owners):
        del owners.stand_in.world.objects[owners.transfer.provider_id]
        assert owners.kinds(minutes=30)["transfer_without_object"] == owners.transfer.pk
        with pytest.raises(StateConflict):
            adopt("transfer_without_object", owners.clock())

    def test_of_another_amount_are_shown(self, owners):
        owners.object["amount"] += 1
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]

    def test_whose_reversal_lost_its_answer_are_shown_and_adopted(self, owners):
        owner = owners.transfer.owner
        owners.stand_in.fail("timeout_after", "POST /v1/transfers/")
        transfers.take_back(owner=owner, currency="usd", amount_minor=100, at=owners.clock())
        doors.drive_due(at=owners.clock())
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]
        adopt("transfer_differs", owners.clock())
        owners.transfer.refresh_from_db()
        assert owners.transfer.reversed_minor == 100
        assert "transfer_differs" not in owners.kinds()

    def test_that_somebody_else_reversed_are_for_a_person(self, owners):
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": owners.stand_in.base_url})
        client.v1.transfers.reversals.create(owners.object["id"], {"amount": 100})
        assert owners.kinds(minutes=30)["transfer_differs"] == owners.object["id"]
        with pytest.raises(StateConflict):
            adopt("transfer_differs", owners.clock())


class TestDisputes:
    def disputed(self, world):
        payment = world.paid()
        return world.stand_in.control("/_control/dispute", {"id": payment.charge_id})

    def test_that_no_event_told_of_are_shown_and_adopted(self, world):
        made = self.disputed(world)
        assert ("dispute_without_row", made["id"]) in world.differences(hours=1)
        adopt("dispute_without_row", world.clock())
        assert TopUpDispute.objects.get().status == "open"
        assert world.differences() == []

    def test_that_were_decided_meanwhile_are_shown_and_adopted(self, world):
        made = self.disputed(world)
        doors.READERS["dispute"](made["id"], world.clock())
        world.stand_in.control("/_control/close-dispute", {"id": made["id"], "won": True})
        assert ("dispute_differs", made["id"]) in world.differences(hours=1)
        adopt("dispute_differs", world.clock())
        assert TopUpDispute.objects.get().status == "won"
        assert world.differences() == []

    def test_that_are_not_there_are_shown(self, world):
        made = self.disputed(world)
        doors.READERS["dispute"](made["id"], world.clock())
        del world.stand_in.world.objects[made["id"]]
        assert ("dispute_without_object", made["id"]) in world.differences(hours=1)
        with pytest.raises(StateConflict):
            adopt("dispute_without_object", world.clock())


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


class TestUnknownCalls:
    def unknown(self, world, *, happened):
        """Return a refund of which the call's outcome was never known: the provider's own fault is stored."""
        self.payment = world.paid()
        fault = "timeout_after" if happened else "server_error_stored"
        refund = card_refunds.write(
            payment=self.payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.stand_in.fail(fault, "POST /v1/refunds")
        doors.drive_due(at=world.clock())
        intent = Intent.objects.get(subject_id=refund.pk)
        Intent.objects.filter(pk=intent.pk).update(status="unknown")
        return refund, intent

    def test_that_did_not_happen_have_the_consequences_of_a_refusal(self, world):
        refund, intent = self.unknown(world, happened=False)
        assert ("intent_unknown", intent.pk) in world.differences()
        with pytest.raises(StateConflict):
            adopt("intent_unknown", world.clock())
        unknown_intents.did_not_happen(
            intent_id=intent.pk, reason="Stripe's support says so", at=world.clock(), actor="cfo"
        )
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("failed", 5000)
        assert world.differences() == []
        trail = AuditEvent.objects.get(action="intent.did_not_happen")
        assert (trail.actor, trail.detail["reason"]) == ("cfo", "Stripe's support says so")
        world.sound()

    def test_that_did_happen_cannot_be_said_not_to_have(self, world):
        refund, intent = self.unknown(world, happened=True)
        with pytest.raises(StateConflict, match="did happen"):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason="I think so", at=world.clock(), actor="cfo"
            )
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("succeeded", 3000)

    def test_are_adopted_when_their_object_bears_our_mark(self, world):
        refund, intent = self.unknown(world, happened=True)
        assert ("intent_unknown", intent.pk) in world.differences()
        adopt("intent_unknown", world.clock())
        refund.refresh_from_db()
        assert refund.status == "succeeded"

    def test_are_given_an_object_that_a_person_names(self, world):
        refund, intent = self.unknown(world, happened=False)
        client = world.client()
        made = client.v1.refunds.create(
            {"payment_intent": self.payment.provider_id, "amount": 2000}
        )
        unknown_intents.is_object(
            intent_id=intent.pk, object_id=made.id, at=world.clock(), actor="cfo"
        )
        refund.refresh_from_db()
        assert (refund.status, refund.provider_id) == ("succeeded", made.id)
        assert AuditEvent.objects.filter(action="intent.is_object", actor="cfo").exists()

    def test_are_given_no_object_of_another_call_or_amount(self, world):
        _, intent = self.unknown(world, happened=False)
        other = world.client().v1.refunds.create(
            {"payment_intent": self.payment.provider_id, "amount": 1}
        )
        for object_id, refusal in (
            (other.id, unknown_intents.NotThisObject),
            ("re_nobody", StateConflict),
        ):
            with pytest.raises(refusal):
                unknown_intents.is_object(
                    intent_id=intent.pk, object_id=object_id, at=world.clock(), actor="cfo"
                )

    def test_that_are_known_are_left_alone(self, world):
        _, intent = self.unknown(world, happened=False)
        Intent.objects.filter(pk=intent.pk).update(status="sent")
        with pytest.raises(StateConflict):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason="I think so", at=world.clock(), actor="cfo"
            )
        with pytest.raises(InvalidValue):
            unknown_intents.did_not_happen(
                intent_id=intent.pk, reason=" ", at=world.clock(), actor="cfo"
            )

    def test_are_settled_by_the_command(self, world, capsys):
        refund, intent = self.unknown(world, happened=False)
        with time_machine.travel(world.clock(), tick=False):
            with pytest.raises(CommandError, match="one of"):
                call_command("reconcile", "--call", intent.pk, "--as", "cfo")
            with pytest.raises(CommandError, match="who"):
                call_command("reconcile", "--call", intent.pk, "--object", "re_1")
            call_command(
                "reconcile", "--call", intent.pk, "--did-not-happen", "asked them", "--as", "cfo"
            )
        assert "refused" in capsys.readouterr().out
        refund.refresh_from_db()
        assert refund.status == "failed"


class TestDismissal:
    @pytest.fixture
    def foreign(self, world):
        """Return the difference of a payment that somebody made by hand."""
        world.client().v1.payment_intents.create({"amount": 900, "currency": "usd"})
        ((kind, object_id),) = world.differences(hours=1)
        return Difference.objects.get(kind=kind, object_id=object_id)

    def dismiss(self, world, difference, reason="a trial by our accountant"):
        return reconcile.dismiss(
            difference=difference, reason=reason, at=world.clock(), actor="cfo"
        )

    def test_stays_listed_calls_nobody_and_stands_in_the_trail(self, world, foreign):
        assert reconcile.is_overdue(difference=foreign, at=world.clock())
        assert waiting_payments(world.clock()) == 1
        made = self.dismiss(world, foreign)
        assert (made.actor, made.reason) == ("cfo", "a trial by our accountant")
        assert not reconcile.is_overdue(difference=foreign, at=world.clock())
        assert waiting_payments(world.clock()) == 0
        assert world.differences(hours=9) == [(foreign.kind, foreign.object_id)]
        trail = AuditEvent.objects.get(action="difference.dismissed")
        assert (trail.actor, trail.detail["reason"]) == ("cfo", made.reason)

    def test_is_told_by_the_command(self, world, foreign, capsys):
        self.dismiss(world, foreign)
        with time_machine.travel(world.clock(hours=9), tick=False):
            call_command("reconcile")
        assert f"dismissed  {foreign.pk:>6}" in capsys.readouterr().out

    def test_needs_a_reason_and_happens_once(self, world, foreign):
        with pytest.raises(InvalidValue):
            self.dismiss(world, foreign, reason="  ")
        self.dismiss(world, foreign)
        with pytest.raises(StateConflict, match="decided before"):
            self.dismiss(world, foreign)

    def test_never_changes(self, world, foreign):
        self.dismiss(world, foreign)
        with pytest.raises(DatabaseError, match="append-only"), db_transaction.atomic():
            Dismissal.objects.update(reason="something else")
        with pytest.raises(DatabaseError, match="append-only"), db_transaction.atomic():
            Dismissal.objects.all().delete()

    def test_is_of_nothing_that_bears_our_mark(self, world):
        world.top_up()
        world.stand_in.fail("timeout_after", "POST /v1/payment_intents")
        lost = world.top_up()
        assert dict(world.differences(hours=1)).keys() == {"payment_without_row"}
        with pytest.raises(StateConflict, match="was taken over"):
            self.dismiss(world, Difference.objects.get())
        lost.refresh_from_db()
        assert lost.status == "open"
        assert not Dismissal.objects.exists()

    def test_is_of_nothing_that_is_for_us_to_end(self, world):
        payment = world.top_up()
        world.pays(payment)
        world.differences(hours=1)
        with pytest.raises(StateConflict, match="for us to end"):
            self.dismiss(world, Difference.objects.get(kind="payment_differs"))

    def test_waits_while_the_provider_is_away(self, world, foreign):
        world.stand_in.fail("server_error", "GET")
        with pytest.raises(StateConflict, match="the provider says"):
            self.dismiss(world, foreign)
        assert not Dismissal.objects.exists()

    def test_is_made_in_the_admin(self, world, foreign, admin_client, settings):
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }
        listing = reverse("admin:billing_difference_changelist")
        form = {"action": "dismiss", "_selected_action": [foreign.pk]}
        admin_client.post(listing, {**form, "reason": ""})
        assert not Dismissal.objects.exists()
        admin_client.post(listing, {**form, "reason": "a trial"})
        assert Dismissal.objects.get().actor == "admin"
        assert "admin: a trial" in admin_client.get(listing).content.decode()


def waiting_payments(at):
    (row,) = (row for row in watch.differences(at=at) if row.kind == "payment_without_row")
    return row.count


def test_every_kind_of_difference_has_a_limit_and_a_way_out():
    without = {"balance_differs"}  # the sum of what the others tell
    assert set(reconcile.ALERT_AFTER_SECONDS) - set(reconcile._ADOPTERS) == without
