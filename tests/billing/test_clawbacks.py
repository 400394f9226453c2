"""Who bears a dispute that was lost: an owner, when two people say so, out of what is least its own first."""

import datetime as dt
from typing import Any

import pytest

from billing import (
    approvals,
    books,
    corrections,
    disputes,
    owner_debts,
    owner_statements,
    parking,
    refunds,
    releases,
    settlements,
)
from billing import provider as doors
from billing.approvals import FourEyesNeeded
from billing.models import (
    Dispute,
    DisputeCharge,
    DisputeReturn,
    Entry,
    Payout,
    Reserve,
    Reversal,
    Settlement,
)
from billing.owner_statements import LineKind
from billing.states import AccountKind, ApprovalKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Event
from scheduler.models import Reservation
from tests.billing import factories
from tests.billing.owner_market import OwnerWorld
from tests.billing.readings import balance

pytestmark = pytest.mark.django_db

AT = factories.START + dt.timedelta(hours=2)


def settled() -> Settlement:
    row = factories.reservation(buyer=factories.tenant(funds_minor=471))
    lease = factories.lease(of=row)
    made = settlements.settle(lease_id=lease.id, at=AT)
    assert made is not None
    return made


def lost(row: Settlement, *, amount: int = 471, dispute_id: str = "dp_1") -> None:
    disputes.open_dispute(
        dispute_id=dispute_id,
        reservation=row.lease.reservation,
        amount_minor=amount,
        fee_minor=15,
        currency="usd",
        at=AT,
        actor="test",
    )
    disputes.lose(dispute_id=dispute_id, at=AT, actor="test")


def asked(row: Settlement, *, amount: int, dispute_id: str = "dp_1", **changes: Any) -> Any:
    return approvals.request(
        **{
            "kind": ApprovalKind.DISPUTE,
            "organization": row.owner,
            "subject_id": dispute_id,
            "amount": Money(amount, "usd"),
            "reason": "The node was never what it was listed as.",
            "at": AT,
            "actor": "anna",
            **changes,
        }
    )


def charged(row: Settlement, *, amount: int, at: dt.datetime = AT, **changes: Any) -> DisputeCharge:
    approval = asked(row, amount=amount, **changes)
    approvals.approve(approval_id=approval.pk, at=at, actor="ben")
    return DisputeCharge.objects.get(approval=approval)


class TestCharging:
    def test_takes_two_people(self) -> None:
        row = settled()
        lost(row)
        approval = asked(row, amount=100)
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        with pytest.raises(FourEyesNeeded):
            approvals.approve(approval_id=approval.pk, at=AT, actor="anna")

    def test_moves_the_loss_to_the_owner(self) -> None:
        row = settled()
        lost(row)
        charged(row, amount=400)
        assert balance(AccountKind.DISPUTE_LOSSES) == 71
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 400
        assert books.check(at=AT).ok

    def test_is_told_to_the_owner(self) -> None:
        row = settled()
        lost(row)
        charged(row, amount=400)
        told = Event.objects.get(kind="dispute.charged")
        assert (told.organization, told.object_id) == (row.owner, "dp_1")
        assert told.data == {
            "amount_minor": 400,
            "drawn_minor": 0,
            "currency": "usd",
            "lease_ids": [row.lease_id],
        }

    @pytest.mark.parametrize("amount", [0, 472])
    def test_is_of_what_nobody_else_bears(self, amount: int) -> None:
        row = settled()
        lost(row)
        with pytest.raises(InvalidValue):
            charged(row, amount=amount)
        assert not DisputeCharge.objects.exists()

    def test_is_of_an_owner_of_what_was_leased(self) -> None:
        row = settled()
        lost(row)
        stranger = factories.owner(name="Somebody else")
        with pytest.raises(InvalidValue):
            charged(row, amount=100, organization=stranger)

    def test_happens_once(self) -> None:
        row = settled()
        lost(row)
        charged(row, amount=100)
        with pytest.raises(InvalidValue):
            charged(row, amount=100)

    def test_is_not_of_a_dispute_that_is_open(self) -> None:
        row = settled()
        disputes.open_dispute(
            dispute_id="dp_1",
            reservation=row.lease.reservation,
            amount_minor=471,
            fee_minor=15,
            currency="usd",
            at=AT,
            actor="test",
        )
        with pytest.raises(InvalidValue):
            charged(row, amount=100)


class TestCollecting:
    @pytest.fixture(autouse=True)
    def reserve(self, settings: Any) -> None:
        settings.OWNER_RESERVE_BASIS_POINTS = 1000

    def test_draws_on_the_reserve_first(self) -> None:
        row = settled()
        releases.release_due(at=row.release_due_at)
        lost(row)
        charge = charged(row, amount=30, at=row.release_due_at)
        reserve = Reserve.objects.get()
        assert (charge.drawn_minor, reserve.drawn_minor, reserve.released_at) == (30, 30, None)
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        assert balance(AccountKind.OWNER_RESERVE, row.owner_id) == 10
        assert books.check(at=row.release_due_at).ok
        releases.release_due(at=reserve.release_due_at)
        assert Payout.objects.get(reserve=reserve).amount_minor == 10
        assert books.check(at=reserve.release_due_at).ok

    def test_nets_the_rest_with_what_comes_next(self) -> None:
        row = settled()
        releases.release_due(at=row.release_due_at)
        lost(row)
        charge = charged(row, amount=140, at=row.release_due_at)
        assert charge.drawn_minor == 40
        assert Reserve.objects.get().released_at == row.release_due_at
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 100
        later = settled()
        releases.release_due(at=later.release_due_at)
        # Of 400 earned 100 are owed, and a tenth of the rest is kept back.
        assert Payout.objects.get(settlement=later).amount_minor == 270
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        assert books.check(at=later.release_due_at).ok

    def test_takes_back_of_transfers_what_is_owed_after_a_fortnight(
        self, provider: Any, clock: Any
    ) -> None:
        clock(days=60)
        world = OwnerWorld(provider, clock)
        world.onboard()
        payout = world.earn()
        world.turn()
        row = Settlement.objects.get()
        lost(row)
        charged(row, amount=200, at=clock())
        assert owner_debts.collect_due(at=clock(days=13)) == 0
        assert owner_debts.collect_due(at=clock(days=1)) == 1
        assert owner_debts.collect_due(at=clock()) == 0
        doors.drive_due(at=clock())
        reversal = Reversal.objects.get()
        assert (reversal.status, reversal.amount_minor) == ("done", 160)
        assert balance(AccountKind.OWNER_CLAWBACK, payout.owner_id) == 0
        assert owner_debts.collect_due(at=clock(days=8)) == 0
        assert books.check(at=clock()).ok


class TestGivingBack:
    """What an owner bears and late evidence sets off as well is the owner's again."""

    def by_card(self, row: Settlement) -> Reservation:
        """Let a settled lease have been paid by card: what it owes waits to go back by that."""
        Reservation.objects.filter(pk=row.lease.reservation_id).update(payment_method="card")
        return Reservation.objects.get(pk=row.lease.reservation_id)

    def half_is_refunded(self, row: Settlement, *, gpu: int = 0) -> dt.datetime:
        """Learn that a GPU was lost for half the time, and set off what that gives back: 118."""
        factories.outage(of=row.lease, gpu=gpu, seconds=1800)
        row.refresh_from_db()
        at = row.review_due_at
        assert at is not None
        assert corrections.review_due(at=at) == 1
        refunds.open_due(at=at)
        return at

    def test_lowers_what_the_owner_owes(self) -> None:
        row = settled()
        self.by_card(row)
        lost(row)
        charged(row, amount=400)
        at = self.half_is_refunded(row)
        returned = DisputeReturn.objects.get()
        assert (returned.amount_minor, returned.netted_minor) == (47, 47)
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 353
        assert (Dispute.objects.get().set_off_minor, balance(AccountKind.DISPUTE_LOSSES)) == (
            118,
            0,
        )
        assert not Payout.objects.exists()
        assert books.check(at=at).ok

    def test_is_told_to_the_owner_and_stands_on_its_statement(self) -> None:
        row = settled()
        self.by_card(row)
        lost(row)
        charged(row, amount=400)
        at = self.half_is_refunded(row)
        told = Event.objects.get(kind="dispute.returned")
        assert (told.organization, told.object_id) == (row.owner, "dp_1")
        assert told.data == {"amount_minor": 47, "netted_minor": 47, "currency": "usd"}
        month = owner_statements.statement(owner=row.owner, month="2026-11", at=at)
        assert [(each.kind, each.amount) for each in month.lines] == [
            (LineKind.DISPUTE, -400),
            (LineKind.DISPUTE, 47),
        ]
        assert owner_statements.change_of(month) == month.closing.total - month.opening.total

    def test_pays_out_what_the_owner_does_not_owe(self) -> None:
        row = settled()
        self.by_card(row)
        releases.release_due(at=row.release_due_at)
        lost(row)
        charged(row, amount=471, at=row.release_due_at)
        settled_later = [settled() for _ in range(2)]
        releases.release_due(at=settled_later[0].release_due_at)
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        at = self.half_is_refunded(row)
        # By the correction it owes 100, and the credit of 12.
        returned = DisputeReturn.objects.get()
        assert (returned.amount_minor, returned.netted_minor) == (118, 112)
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        payout = Payout.objects.get(dispute_return=returned)
        assert (payout.amount_minor, payout.owner, payout.due_at) == (6, row.owner, at)
        assert books.check(at=at).ok

    def test_comes_as_often_as_something_is_set_off(self) -> None:
        row = settled()
        self.by_card(row)
        lost(row)
        charged(row, amount=400)
        self.half_is_refunded(row)
        at = self.half_is_refunded(row, gpu=1)
        assert list(DisputeReturn.objects.values_list("amount_minor", flat=True)) == [47, 117]
        assert (Dispute.objects.get().set_off_minor, balance(AccountKind.DISPUTE_LOSSES)) == (
            235,
            0,
        )
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 236
        assert books.check(at=at).ok

    def test_is_split_by_what_each_owner_bears(self) -> None:
        row = settled()
        reservation = self.by_card(row)
        other = factories.owner(name="Somebody else")
        factories.lease(of=reservation, gpus=1, on=factories.node(of=other))
        lost(row)
        charged(row, amount=300)
        charged(row, amount=100, organization=other)
        self.half_is_refunded(row)
        given = DisputeReturn.objects.order_by("pk").values_list("charge__owner", "amount_minor")
        assert list(given) == [(row.owner_id, 35), (other.pk, 12)]
        assert balance(AccountKind.DISPUTE_LOSSES) == 0

    def test_waits_with_what_is_set_off_while_the_owners_money_is_parked(self) -> None:
        row = settled()
        reservation = self.by_card(row)
        lost(row)
        charged(row, amount=400)
        factories.outage(of=row.lease, seconds=1800)
        row.refresh_from_db()
        at = row.review_due_at
        assert at is not None
        corrections.review_due(at=at)
        parking.park(breaches={row.owner_id: "why"}, at=at)
        refunds.open_due(at=at)
        assert balance(AccountKind.REFUND_PAYABLE, reservation.pk) == 118
        assert not Entry.objects.filter(kind="dispute_set_off").exists()
        parking.end(organization=row.owner, at=at, actor="test")
        refunds.open_due(at=at)
        assert balance(AccountKind.REFUND_PAYABLE, reservation.pk) == 0
        assert DisputeReturn.objects.get().amount_minor == 47
        assert books.check(at=at).ok

    def test_does_not_happen_where_the_owner_bears_only_what_is_left(self) -> None:
        row = settled()
        self.by_card(row)
        lost(row)
        at = self.half_is_refunded(row)
        asking = asked(row, amount=354)
        with pytest.raises(InvalidValue, match="1 to 353"):
            approvals.approve(approval_id=asking.pk, at=at, actor="ben")
        approvals.refuse(approval_id=asking.pk, at=at, actor="ben")
        charged(row, amount=353, at=at)
        assert balance(AccountKind.DISPUTE_LOSSES) == 0
        assert not DisputeReturn.objects.exists()
        assert books.check(at=at).ok

    def test_lets_nobody_be_charged_again_with_what_was_given_back(self) -> None:
        row = settled()
        reservation = self.by_card(row)
        other = factories.owner(name="Somebody else")
        factories.lease(of=reservation, gpus=1, on=factories.node(of=other))
        lost(row)
        charged(row, amount=400)
        at = self.half_is_refunded(row)
        with pytest.raises(InvalidValue, match="not borne yet"):
            charged(row, amount=1, at=at, organization=other)


class TestBreach:
    """Each invariant of who bears a dispute finds its own breach."""

    @pytest.fixture
    def at(self) -> dt.datetime:
        row = settled()
        giving = TestGivingBack()
        giving.by_card(row)
        lost(row)
        charged(row, amount=400)
        return giving.half_is_refunded(row)

    def broken(self, *, at: dt.datetime) -> list[str]:
        return [check.name for check in books.check(at=at).checks if not check.ok]

    def test_of_what_was_set_off(self, at: dt.datetime, unguarded: Any) -> None:
        with unguarded():
            Dispute.objects.update(set_off_minor=117)
        assert self.broken(at=at) == ["disputes_cost_what_they_say"]

    def test_of_what_was_given_back(self, at: dt.datetime, unguarded: Any) -> None:
        with unguarded():
            DisputeReturn.objects.update(amount_minor=48)
        assert self.broken(at=at) == ["disputes_cost_what_they_say"]

    def test_of_what_was_borne_twice(self, at: dt.datetime, unguarded: Any) -> None:
        assert self.broken(at=at) == []
        with unguarded():
            Dispute.objects.update(amount_minor=470)
        assert self.broken(at=at) == ["disputes_are_borne_once"]
