"""Who bears a dispute that was lost: an owner, when two people say so, out of what is least its own first."""

import datetime as dt
from typing import Any

import pytest

from billing import approvals, books, disputes, owner_debts, releases, settlements
from billing import provider as doors
from billing.approvals import FourEyesNeeded
from billing.models import DisputeCharge, Payout, Reserve, Reversal, Settlement
from billing.states import AccountKind, ApprovalKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Event
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
