"""Evidence that comes after a settlement is posted as the difference that it makes, when it is found."""

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from agents.protocol import Cause, ReceiptKind
from billing import books, corrections, ledger, releases, settlements, wallet
from billing.models import Correction, Entry, Payout, Settlement
from billing.states import AccountKind
from scheduler.models import Lease, Reclaim
from scheduler.states import LeaseStatus
from tests.billing import factories
from tests.billing.readings import balance

pytestmark = pytest.mark.django_db

SETTLED_AT = factories.START + dt.timedelta(hours=2)
REVIEWED_AT = SETTLED_AT + dt.timedelta(hours=1)
MUCH_LATER = SETTLED_AT + dt.timedelta(days=60)


def settled(**changes: Any) -> Settlement:
    reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
    lease = factories.lease(of=reservation, **changes)
    row = settlements.settle(lease_id=lease.id, at=SETTLED_AT)
    assert row is not None
    return row


def held(settlement: Settlement) -> int:
    tenant = settlement.lease.reservation.organization
    return wallet.balance(organization=tenant).amount_minor


class TestReview:
    def test_finds_nothing_where_nothing_came(self):
        settled()
        assert corrections.review_due(at=REVIEWED_AT) == 0
        assert not Correction.objects.exists()

    def test_comes_some_times_and_then_no_more(self):
        row = settled()
        seen = []
        while row.review_due_at is not None:
            seen.append(row.review_due_at - SETTLED_AT)
            corrections.review_due(at=row.review_due_at)
            row.refresh_from_db()
        assert seen == [dt.timedelta(seconds=s) for s in settlements.REVIEWS_AFTER_SECONDS]

    def test_refunds_an_outage_that_was_told_late(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        assert corrections.review_due(at=REVIEWED_AT) == 1
        change = Correction.objects.get()
        # As if the settlement had known it: 353 are earned of 471, 53 are the fee.
        assert (change.earned_minor, change.owner_minor, change.refunded_minor) == (-118, -100, 118)
        assert change.gpu_seconds_delivered == -1800
        assert held(row) == 118 + 12
        assert change.evidence["outage_count"] == 1
        assert Settlement.objects.get().earned_minor == 471
        assert books.check(at=MUCH_LATER).ok

    def test_is_dated_when_it_is_found_and_leaves_the_settlements_entry_alone(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        corrections.review_due(at=REVIEWED_AT)
        entry = Entry.objects.get(kind="correction")
        assert entry.effective_at == REVIEWED_AT
        assert row.entry.effective_at == row.lease.closed_at

    def test_notes_late_readings_of_work_without_moving_money(self):
        row = settled()
        factories.meter_fully(of=row.lease, busy_of_each=600)
        assert corrections.review_due(at=REVIEWED_AT) == 1
        change = Correction.objects.get()
        assert (change.gpu_seconds_busy, change.earned_minor) == (1200, 0)
        assert held(row) == 0

    def test_notes_what_more_the_meters_cover_without_an_entry_where_nothing_moves(self):
        row = settled()
        factories.meter_fully(of=row.lease, busy_of_each=0)
        assert corrections.review_due(at=REVIEWED_AT) == 1
        change = Correction.objects.get()
        assert (change.entry, change.gpu_seconds_metered, change.earned_minor) == (None, 7200, 0)
        row.refresh_from_db()
        assert corrections.review_due(at=row.review_due_at) == 0
        assert books.check(at=MUCH_LATER).ok

    def test_pays_the_owner_for_a_return_that_was_proved_late(self):
        row = settled(status=LeaseStatus.ENDED, returned_after_seconds=1800)
        assert (row.earned_minor, held(row)) == (236, 235 + 24)
        factories.receipt(of=row.lease, kind=ReceiptKind.RETURN)
        corrections.review_due(at=REVIEWED_AT)
        change = Correction.objects.get()
        assert (change.earned_minor, change.borne_minor) == (235, 0)
        assert held(row) == 24
        assert balance(AccountKind.OWNER_ACCRUED, row.lease_id) == 400

    def test_lets_the_market_bear_what_the_wallet_does_not_cover(self):
        row = settled(returned_after_seconds=1800)
        wallet_account = wallet.account(
            organization=row.lease.reservation.organization, currency="usd"
        )
        ledger.post(
            idempotency_key="spend",
            kind=ledger.EntryKind.DEPOSIT,
            subject_id="elsewhere",
            effective_at=SETTLED_AT,
            legs=ledger.transfer(
                debited=wallet_account,
                credited=ledger.AccountRef(AccountKind.BANK, "usd"),
                amount=200,
            ),
        )
        factories.receipt(of=row.lease, kind=ReceiptKind.RETURN)
        corrections.review_due(at=REVIEWED_AT)
        change = Correction.objects.get()
        assert (held(row), change.borne_minor) == (0, 235 - 59)
        assert books.check(at=REVIEWED_AT).ok

    def test_corrects_what_was_corrected_before(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        corrections.review_due(at=REVIEWED_AT)
        factories.outage(of=row.lease, gpu=1, seconds=1800)
        row.refresh_from_db()
        corrections.review_due(at=row.review_due_at)
        first, second = Correction.objects.all()
        assert (first.number, second.number) == (1, 2)
        assert first.refunded_minor + second.refunded_minor == 235
        assert books.check(at=MUCH_LATER).ok

    def test_waits_while_the_tenants_money_is_parked(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        tenant = row.lease.reservation.organization
        corrections.parking.park(breaches={tenant.id: "why"}, at=REVIEWED_AT)
        assert corrections.review_due(at=REVIEWED_AT) == 0
        row.refresh_from_db()
        assert row.review_due_at == REVIEWED_AT


class TestCredit:
    """Told late it is what it would have been in time, and at the same party's cost."""

    @pytest.mark.parametrize(("cause", "of_owner"), [(Cause.HARDWARE, 12), (Cause.UNKNOWN, 0)])
    def test_is_borne_as_if_the_settlement_had_known(self, cause, of_owner):
        row = settled()
        factories.outage(of=row.lease, seconds=1800, cause=cause)
        corrections.review_due(at=REVIEWED_AT)
        change = Correction.objects.get()
        assert (change.credit_minor, change.credit_of_owner_minor) == (12, of_owner)
        assert balance(AccountKind.OWNER_ACCRUED, row.lease_id) == 300 - of_owner
        assert balance(AccountKind.SLA_CREDITS) == 12 - of_owner
        assert held(row) == 118 + 12
        assert books.check(at=MUCH_LATER).ok

    def test_grows_with_what_is_refunded(self):
        row = settled()
        for gpu, given in ((0, 12), (1, 24)):
            factories.outage(of=row.lease, gpu=gpu, seconds=1800)
            row.refresh_from_db()
            corrections.review_due(at=row.review_due_at)
            assert sum(change.credit_minor for change in Correction.objects.all()) == given
        assert balance(AccountKind.OWNER_ACCRUED, row.lease_id) == 201 - 24
        assert books.check(at=MUCH_LATER).ok

    def test_is_given_once_however_often_the_evidence_turns(self):
        row = settled(status=LeaseStatus.ENDED, returned_after_seconds=1800)
        assert (row.refunded_minor, row.credit_minor) == (235, 24)
        factories.receipt(of=row.lease, kind=ReceiptKind.RETURN)
        corrections.review_due(at=REVIEWED_AT)
        factories.outage(of=row.lease, seconds=1800)
        row.refresh_from_db()
        corrections.review_due(at=row.review_due_at)
        back, lost = Correction.objects.all()
        assert (back.refunded_minor, lost.refunded_minor) == (-235, 118)
        # 24 are more than the 12 that go with 118: nothing is added, and nothing taken back.
        assert (back.credit_minor, lost.credit_minor) == (0, 0)
        assert held(row) == 118 + 24
        # Now something speaks for the owner's hardware, so the credit is the owner's cost.
        assert (back.credit_of_owner_minor, lost.credit_of_owner_minor) == (0, 24)
        assert balance(AccountKind.SLA_CREDITS) == 0
        assert books.check(at=MUCH_LATER).ok

    def test_costs_the_owner_no_more_than_the_lease_earned(self):
        row = settled()
        for gpu, seconds in ((0, 1800), (1, None)):
            factories.outage(of=row.lease, gpu=gpu, seconds=seconds)
            row.refresh_from_db()
            corrections.review_due(at=row.review_due_at)
        factories.outage(of=row.lease, from_second=1800, seconds=None)
        row.refresh_from_db()
        corrections.review_due(at=row.review_due_at)
        assert [change.credit_of_owner_minor for change in Correction.objects.all()] == [
            12,
            23,
            -35,
        ]
        assert balance(AccountKind.OWNER_ACCRUED, row.lease_id) == 0
        assert balance(AccountKind.SLA_CREDITS) == 47
        assert held(row) == 471 + 47
        assert books.check(at=MUCH_LATER).ok

    def test_is_none_beside_the_compensation_for_a_lease_that_was_taken_back(self):
        reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
        lease = factories.lease(of=reservation, returned_after_seconds=1800)
        Reclaim.objects.create(
            lease=lease,
            notice_at=lease.starts_at,
            due_at=lease.starts_at + dt.timedelta(seconds=1800),
            promised_until=lease.ends_at,
            remaining_minor=235,
            compensation_minor=59,
            currency="usd",
            actor="test",
        )
        row = settlements.settle(lease_id=lease.id, at=SETTLED_AT)
        assert (row.credit_minor, row.credit_of_owner_minor) == (59, 59)
        factories.outage(of=lease, seconds=600)
        corrections.review_due(at=REVIEWED_AT)
        change = Correction.objects.get()
        assert change.refunded_minor > 0
        assert (change.credit_minor, change.credit_of_owner_minor) == (0, 0)
        assert books.check(at=MUCH_LATER).ok


class TestAfterRelease:
    def released(self, **changes: Any) -> Settlement:
        row = settled(**changes)
        at = row.release_due_at
        assert releases.release(settlement_id=row.id, at=at)
        row.refresh_from_db()
        return row

    def test_what_the_owner_loses_it_owes_and_the_next_release_nets(self):
        row = self.released()
        factories.outage(of=row.lease, seconds=1800)
        corrections.review_due(at=MUCH_LATER)
        # 100 less are earned, and 12 are its tenant's credit for the owner's hardware.
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 112
        other = settled()
        releases.release_due(at=MUCH_LATER)
        assert Payout.objects.get(settlement=other).amount_minor == 288
        assert balance(AccountKind.OWNER_CLAWBACK, row.owner_id) == 0
        assert books.check(at=MUCH_LATER).ok

    def test_what_the_owner_gains_becomes_a_payout_of_its_own(self):
        row = self.released(returned_after_seconds=1800)
        factories.receipt(of=row.lease, kind=ReceiptKind.RETURN)
        corrections.review_due(at=MUCH_LATER)
        assert releases.release_due(at=MUCH_LATER) == 1
        change = Correction.objects.get()
        # Of 471 the owner gets 400, and had 201 for the first half.
        assert change.payout.amount_minor == change.owner_minor == 199
        assert releases.release_due(at=MUCH_LATER) == 0
        assert balance(AccountKind.OWNER_ACCRUED, row.lease_id) == 0
        assert books.check(at=MUCH_LATER).ok


class TestGuard:
    def test_refuses_a_correction_that_moves_something_without_an_entry(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        corrections.review_due(at=REVIEWED_AT)
        change = Correction.objects.get()
        change.pk, change.number, change.entry, change._state.adding = None, 2, None, True
        with (
            pytest.raises(IntegrityError, match="correction_without_entry_moves_nothing"),
            transaction.atomic(),
        ):
            change.save(force_insert=True)

    def test_refuses_to_change_a_correction(self):
        row = settled()
        factories.outage(of=row.lease, seconds=1800)
        corrections.review_due(at=REVIEWED_AT)
        with (
            pytest.raises(IntegrityError, match="only released_at may change"),
            transaction.atomic(),
        ):
            Correction.objects.update(owner_minor=0, earned_minor=0, fee_minor=0, refunded_minor=0)

    def test_keeps_a_settlement_final_but_for_release_and_review(self):
        row = settled()
        assert Settlement.objects.filter(pk=row.pk).update(review_due_at=None) == 1
        with pytest.raises(IntegrityError, match="is final"), transaction.atomic():
            Settlement.objects.filter(pk=row.pk).update(review_due_at=MUCH_LATER, fee_minor=1)


def test_a_lease_that_was_given_up_ends_with_its_return_receipt():
    row = settled(returned_after_seconds=600)
    assert row.gpu_seconds_delivered == 1200
    factories.receipt(of=row.lease, kind=ReceiptKind.RETURN)
    assert Lease.objects.get().returned_at == factories.START + dt.timedelta(seconds=600)
    corrections.review_due(at=REVIEWED_AT)
    assert Correction.objects.get().gpu_seconds_delivered == 6000
