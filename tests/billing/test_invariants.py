"""Each invariant of hours, corrections, credits, refunds, payouts and disputes finds its own breach."""

import datetime as dt
from typing import Any

import pytest
from django.db.models import F

from billing import (
    books,
    corrections,
    disputes,
    earnings,
    ledger,
    refunds,
    releases,
    settlements,
)
from billing.models import (
    Correction,
    Dispute,
    EarnedHour,
    Payout,
    Refund,
    Reserve,
    Settlement,
)
from billing.states import AccountKind, EntryKind
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = factories.START + dt.timedelta(hours=6)
RELEASED_AT = AT + dt.timedelta(days=30)


@pytest.fixture
def story(settings: Any) -> Settlement:
    """Return a lease that went through everything: hours, a correction, a reserve, a payout, a dispute."""
    settings.OWNER_RESERVE_BASIS_POINTS = 1000
    row = factories.reservation(buyer=factories.tenant(funds_minor=1000), hours=2, gpus=1)
    lease = factories.lease(of=row, status=LeaseStatus.ACTIVE)
    factories.meter_fully(of=lease)
    assert earnings.close_due(at=AT) == 1
    Lease.objects.filter(pk=lease.pk).update(
        status=LeaseStatus.ENDED, returned_at=lease.ends_at, closed_at=lease.ends_at
    )
    Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.COMPLETED)
    factories.outage(of=lease, seconds=600)
    settled = settlements.settle(lease_id=lease.id, at=AT)
    assert settled is not None
    assert settled.review_due_at is not None
    factories.outage(of=lease, from_second=3600, seconds=300)
    assert corrections.review(settlement_id=settled.id, at=settled.review_due_at) is not None
    assert releases.release(settlement_id=settled.id, at=RELEASED_AT)
    card = factories.reservation(
        buyer=factories.tenant(), paid=False, status=ReservationStatus.FAILED
    )
    Reservation.objects.filter(pk=card.pk).update(payment_method=PaymentMethod.CARD)
    card.refresh_from_db()
    factories.paid_by_card(card, at=AT)
    assert settlements.refund_rest(reservation_id=card.id, at=AT)
    (refund,) = refunds.open_for(reservation_id=card.id, at=AT)
    refunds.send(refund_id=refund.id, at=AT, actor="test")
    disputes.open_dispute(
        dispute_id="dp_1",
        reservation=card,
        amount_minor=471,
        fee_minor=15,
        currency="usd",
        at=AT,
        actor="test",
    )
    return settled


def broken() -> list[str]:
    return [check.name for check in books.check(at=RELEASED_AT).checks if not check.ok]


class TestBreach:
    def test_is_not_found_where_there_is_none(self, story):
        assert broken() == []

    def test_of_an_hour(self, story, unguarded):
        with unguarded():
            EarnedHour.objects.update(
                fee_minor=F("fee_minor") + 1, owner_minor=F("owner_minor") - 1
            )
        assert broken() == ["hours_equal_their_entries"]

    def test_of_an_hour_that_was_closed_twice(self, story, unguarded):
        hour = EarnedHour.objects.get()
        with unguarded():
            hour.pk, hour.entry = None, None
            hour.starts_at += dt.timedelta(minutes=1)
            hour.gpu_seconds_delivered = hour.gpu_seconds_busy = 0
            hour.earned_minor = hour.fee_minor = hour.owner_minor = 0
            hour.save(force_insert=True)
        assert broken() == ["hours_equal_their_entries"]
        assert set(books.breaches_of(books.check(at=RELEASED_AT))) == {story.owner_id}

    def test_of_a_correction(self, story, unguarded):
        with unguarded():
            Correction.objects.update(credit_minor=F("credit_minor") + 1)
        assert broken() == ["corrections_equal_their_entries"]

    def test_of_a_credit(self, story, unguarded):
        with unguarded():
            Settlement.objects.update(credit_minor=F("credit_minor") + 1)
        assert broken() == ["credits_equal_their_entries"]

    def test_of_a_lease_that_keeps_something_after_its_release(self, story):
        ledger.post(
            idempotency_key="stray",
            kind=EntryKind.DEPOSIT,
            subject_id="stray",
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.BANK, "usd"),
                credited=ledger.AccountRef(
                    AccountKind.OWNER_ACCRUED, "usd", story.lease_id, story.owner
                ),
                amount=1,
            ),
        )
        assert broken() == ["released_leases_are_empty"]

    def test_of_a_reserve(self, story, unguarded):
        with unguarded():
            Reserve.objects.update(amount_minor=F("amount_minor") + 1)
        report = books.check(at=RELEASED_AT)
        assert [c.name for c in report.checks if not c.ok] == [
            "owners_are_owed_what_their_payouts_say"
        ]
        assert books.breaches_of(report).keys() == {story.owner_id}

    def test_of_a_payout_that_is_said_to_be_paid(self, story, unguarded):
        with unguarded():
            Payout.objects.update(status="paid")
        assert broken() == ["owners_are_owed_what_their_payouts_say"]

    @pytest.mark.parametrize("status", ["due", "settled", "failed"])
    def test_of_a_refund(self, story, unguarded, status):
        with unguarded():
            Refund.objects.update(status=status)
        assert broken() == ["refunds_are_on_their_way"]

    @pytest.mark.parametrize("status", ["won", "lost"])
    def test_of_a_dispute(self, story, unguarded, status):
        with unguarded():
            Dispute.objects.update(status=status)
        assert broken() == ["disputes_hold_what_is_open"]


def test_every_invariant_can_be_asked_in_one_go(story):
    assert tuple(check.name for check in books.check(at=RELEASED_AT).checks) == books.NAMES
