"""Money that goes out: onboarding of owners, transfers, what fails of them, and what is taken back."""

import datetime as dt

import pytest
import stripe

from billing import ledger, onboarding, parking, payouts, transfers
from billing import provider as doors
from billing.models import Intent, Payout, PayoutAccount, Reversal, Transfer
from billing.onboarding import NotAnotherPerson
from billing.states import AccountKind
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import Event
from tests.billing import factories as books
from tests.billing.owner_market import OwnerWorld, released_settlement
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(provider, clock):
    clock(days=60)  # the settlement of the payouts lies back that far
    return OwnerWorld(provider, clock)


class TestOnboarding:
    def test_begins_at_the_provider_and_ends_when_it_may_receive(self, world):
        account = world.onboard(finished=False)
        assert account.provider_id.startswith("acct_")
        assert (account.receives, bool(account.missing)) == (False, True)
        assert onboarding.link(account=account).startswith(world.stand_in.base_url)
        world.stand_in.control("/_control/capability", {"id": account.provider_id})
        assert onboarding.read_due(at=world.clock(hours=1)) == 1
        account.refresh_from_db()
        assert (account.receives, account.missing) == (True, [])

    def test_is_for_those_who_sell(self, world):
        with pytest.raises(InvalidValue):
            world.onboard(books.tenant())

    @pytest.mark.parametrize(("email", "country"), [("x", "DE"), ("a@b.c", "de"), ("a@b.c", "")])
    def test_takes_no_nonsense(self, world, email, country):
        with pytest.raises(InvalidValue):
            onboarding.ask(
                owner=books.owner(), email=email, country=country, at=world.clock(), actor="k"
            )

    def test_of_another_account_takes_a_second_person_and_three_days(self, world):
        first = world.onboard()
        second = world.onboard()
        assert onboarding.current(owner=first.owner, at=world.clock()) == first
        with pytest.raises(NotAnotherPerson):
            onboarding.approve(account_id=second.pk, at=world.clock(), actor="key_1")
        onboarding.approve(account_id=second.pk, at=world.clock(), actor="staff")
        with pytest.raises(StateConflict):
            onboarding.approve(account_id=second.pk, at=world.clock(), actor="other")
        assert onboarding.current(owner=first.owner, at=world.clock(hours=71)) == first
        assert onboarding.current(owner=first.owner, at=world.clock(hours=2)) == second
        told = Event.objects.filter(kind="payout_account.changed").order_by("at", "id")
        assert [row.data["step"] for row in told] == ["requested", "approved"]

    def test_of_another_account_can_be_withdrawn_while_it_cools_off(self, world):
        first, second = world.onboard(), world.onboard()
        onboarding.approve(account_id=second.pk, at=world.clock(), actor="staff")
        onboarding.withdraw(account_id=second.pk, at=world.clock(hours=1), actor="key_1")
        assert onboarding.current(owner=first.owner, at=world.clock(days=9)) == first
        with pytest.raises(StateConflict):
            onboarding.withdraw(account_id=first.pk, at=world.clock(), actor="key_1")

    def test_asks_for_one_change_at_a_time(self, world):
        world.onboard()
        world.onboard()
        with pytest.raises(StateConflict):
            world.onboard()
        assert PayoutAccount.objects.count() == 2


class TestTransfers:
    def test_send_what_is_due(self, world):
        world.onboard()
        payout = world.earn()
        world.turn()
        assert (payout.status, world.sent()) == ("paid", [400])
        transfer = Transfer.objects.get()
        assert transfer.provider_id.startswith("tr_")
        payable = ledger.AccountRef(AccountKind.OWNER_PAYABLE, "usd", payout.owner_id)
        transit = ledger.AccountRef(AccountKind.PAYOUT_IN_TRANSIT, "usd", payout.pk)
        assert (ledger.balance(account=payable), ledger.balance(account=transit)) == (0, 0)
        assert Event.objects.filter(kind="payout.sent", object_id=payout.pk).exists()

    def test_send_nothing_twice(self, world):
        world.onboard()
        world.earn()
        for _ in range(3):
            world.turn(hours=2)
        assert world.sent() == [400]

    def test_wait_for_an_owner_who_may_receive(self, world):
        payout = world.earn()
        world.turn()
        account = world.onboard(finished=False)
        world.turn()
        assert (payout.status, world.sent()) == ("due", [])
        world.stand_in.control("/_control/capability", {"id": account.provider_id})
        onboarding.read(account=account, at=world.clock())
        world.turn()
        assert (payout.status, world.sent()) == ("paid", [400])

    def test_fail_for_lack_of_balance_and_go_once_it_is_there(self, world):
        world.fund(-99_900)
        world.onboard()
        payout = world.earn()
        world.turn()
        assert payout.status == "failed"
        assert Transfer.objects.get().failure_code == "balance_insufficient"
        payable = ledger.AccountRef(AccountKind.OWNER_PAYABLE, "usd", payout.owner_id)
        assert ledger.balance(account=payable) == 400
        world.fund(5000)
        world.turn(minutes=5)
        assert payout.status == "failed"
        world.turn(hours=1)
        assert (payout.status, world.sent()) == ("paid", [400])
        assert [t.status for t in Transfer.objects.order_by("pk")] == ["failed", "paid"]

    def test_stop_for_an_account_that_was_disabled(self, world):
        account = world.onboard()
        world.stand_in.control(
            "/_control/capability", {"id": account.provider_id, "status": "restricted"}
        )
        payout = world.earn()
        world.turn()
        account.refresh_from_db()
        assert (payout.status, account.receives) == ("failed", False)
        world.turn(hours=2)
        assert Transfer.objects.count() == 1
        assert Event.objects.filter(kind="payout.failed").count() == 1
        world.stand_in.control("/_control/capability", {"id": account.provider_id})
        onboarding.read(account=account, at=world.clock())
        world.turn()
        assert (payout.status, world.sent()) == ("paid", [400])

    def test_stop_while_the_owners_money_is_parked(self, world):
        world.onboard()
        payout = world.earn()
        parking.park(breaches={payout.owner_id: "looked into"}, at=world.clock())
        world.turn()
        assert (payout.status, world.sent()) == ("due", [])

    def test_that_lost_their_answer_are_found_and_not_sent_again(self, world):
        world.onboard()
        payout = world.earn()
        world.stand_in.fail("timeout_after", "POST /v1/transfers")
        world.turn()
        assert (payout.status, world.sent()) == ("in_transit", [400])
        world.turn(days=2)  # the provider has forgotten the key meanwhile
        assert (payout.status, world.sent()) == ("paid", [400])

    def test_go_by_the_account_that_is_in_use_and_not_by_the_one_that_cools_off(self, world):
        first = world.onboard()
        second = world.onboard()
        onboarding.approve(account_id=second.pk, at=world.clock(), actor="staff")
        world.earn()
        world.turn()
        (row,) = world.stand_in.world.all("transfer")
        assert row["destination"] == first.provider_id


class TestTakingBack:
    def test_reverses_a_transfer_in_part_and_then_more_of_it(self, world):
        payout = world.owing(390)
        world.take_back(payout, 150)
        assert ledger.balance(account=world.owed(payout)) == 240
        assert Transfer.objects.get().reversed_minor == 150
        assert payout.status == "paid"
        world.take_back(payout, 240)
        transfer = Transfer.objects.get()
        assert (transfer.reversed_minor, transfer.status) == (390, "paid")
        assert ledger.balance(account=world.owed(payout)) == 0
        assert [r["amount"] for r in world.stand_in.world.all("transfer_reversal")] == [240, 150]

    def test_asks_for_no_more_than_was_sent_while_a_part_is_under_way(self, world):
        payout = world.owing(900)
        assert [r.amount_minor for r in world.ask(payout, 300)] == [300]
        assert [r.amount_minor for r in world.ask(payout, 300)] == [100]
        assert world.ask(payout, 300) == []
        doors.drive_due(at=world.clock())
        assert Transfer.objects.get().status == "reversed"
        assert ledger.balance(account=world.owed(payout)) == 500

    def test_is_not_netted_as_well_while_it_is_under_way(self, world):
        payout = world.owing(150)
        world.ask(payout, 150)
        released_settlement()
        assert Payout.objects.order_by("pk").last().amount_minor == 400
        doors.drive_due(at=world.clock())
        assert ledger.balance(account=world.owed(payout)) == 0

    def test_leaves_owed_what_is_no_longer_there(self, world):
        payout = world.owing(150)
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": world.stand_in.base_url})
        account = PayoutAccount.objects.get().provider_id
        client.v1.payouts.create({"amount": 400, "currency": "usd"}, {"stripe_account": account})
        world.take_back(payout, 150)
        assert ledger.balance(account=world.owed(payout)) == 150
        assert Intent.objects.get(kind="reversal").refusal_code == "balance_insufficient"
        reversal = Reversal.objects.get()
        assert (reversal.status, reversal.failure_code) == ("refused", "balance_insufficient")

    def test_is_netted_with_what_comes_next(self, world):
        payout = world.owing(150)
        released_settlement()
        latest = Payout.objects.order_by("pk").last()
        assert (latest.pk != payout.pk, latest.amount_minor) == (True, 400 - 150)
        assert ledger.balance(account=world.owed(payout)) == 0


def test_a_payout_is_sent_by_one_of_two_tasks_alone(world):
    world.onboard()
    payout = world.earn()
    assert transfers.send(payout_id=payout.pk, at=world.clock())
    assert not transfers.send(payout_id=payout.pk, at=world.clock() + dt.timedelta(hours=2))
    with pytest.raises(StateConflict):
        payouts.send(payout_id=payout.pk, at=world.clock(), actor="test")
    assert world.clock() > factories.NOW
