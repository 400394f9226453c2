"""An owner's statement leads from balance to balance, line by line, and tells nothing of a tenant."""

import datetime as dt

import pytest

from agents import protocol
from billing import (
    approvals,
    changes,
    corrections,
    disputes,
    earnings,
    fee_shares,
    ledger,
    owner_statements,
    payouts,
    releases,
    settlements,
)
from billing.models import Entry, FeeShare, Payout, Reserve, Settlement
from billing.owner_statements import LineKind, Statement
from billing.states import AccountKind, ApprovalKind, EntryKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import ChangeKind, LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

NOVEMBER, DECEMBER = "2026-11", "2026-12"
AT = factories.START + dt.timedelta(days=20)
RELEASED = factories.START + dt.timedelta(days=40)
LATER = factories.START + dt.timedelta(days=200)


def statement_of(month: str = NOVEMBER, *, owner: Organization | None = None) -> Statement:
    found = owner_statements.statement(owner=owner or factories.owner(), month=month, at=LATER)
    assert found.opening.total + sum(found.totals.values()) == found.closing.total
    assert owner_statements.change_of(found) == sum(found.totals.values())
    return found


def a_lease(**changes) -> Lease:
    """Return a lease of two GPUs for an hour that was returned after half of it."""
    values = {"returned_after_seconds": 1800, **changes}
    row = factories.reservation(buyer=factories.tenant(funds_minor=100_000))
    return factories.lease(of=row, **values)


def settled(lease: Lease) -> Settlement:
    settlements.settle_ended(at=AT)
    return Settlement.objects.get(lease=lease)


def released(lease: Lease) -> Payout:
    settled(lease)
    releases.release_due(at=RELEASED)
    return Payout.objects.get(settlement__lease=lease)


class TestALease:
    def test_is_told_with_its_price_fee_and_what_was_not_delivered(self):
        found = settled(a_lease())
        told = statement_of()
        (line,) = told.leases
        assert (line.price, line.fee) == (found.earned_minor, found.fee_minor)
        assert line.earned == line.net == found.owner_minor == told.closing.accrued
        assert line.given_back == found.refunded_minor > 0
        assert (line.gpu_seconds_delivered, line.gpu_seconds_undelivered) == (3600, 3600)
        assert told.opening.total == 0

    def test_is_told_by_hours_while_it_runs(self):
        row = factories.reservation(buyer=factories.tenant(funds_minor=100_000), hours=5)
        lease = factories.lease(of=row, status=LeaseStatus.ACTIVE)
        factories.meter_fully(of=lease)
        assert earnings.close_due(at=factories.START + dt.timedelta(hours=4)) > 0
        (line,) = statement_of().leases
        assert line.earned > 0
        assert (line.evidence, statement_of().final) == (None, False)

    def test_bears_its_share_of_the_tenants_credit(self):
        lease = a_lease(returned_after_seconds=None)
        factories.outage(of=lease, seconds=1800)
        found = settled(lease)
        assert found.credit_of_owner_minor > 0
        (line,) = statement_of().leases
        assert line.sla_share == -found.credit_of_owner_minor
        assert line.net == found.owner_minor - found.credit_of_owner_minor

    def test_that_the_owner_took_back_bears_the_compensation(self):
        lease = a_lease()
        Reclaim.objects.create(
            lease=lease,
            notice_at=lease.starts_at,
            due_at=lease.returned_at,
            promised_until=lease.ends_at,
            remaining_minor=235,
            compensation_minor=900,
            currency="usd",
            actor="owner",
        )
        settled(lease)
        told = statement_of()
        (line,) = told.leases
        assert line.compensation == -900
        # More than the lease earned: the rest is owed, and the balance is below zero.
        assert told.closing.owed_by_owner == 900 - line.earned > 0
        assert told.closing.total == line.net < 0

    def test_that_earned_nothing_is_there_all_the_same(self):
        lease = a_lease(
            status=LeaseStatus.FAILED, handed_over_after_seconds=None, returned_after_seconds=None
        )
        Reservation.objects.filter(pk=lease.reservation_id).update(status=ReservationStatus.FAILED)
        settled(lease)
        (line,) = statement_of().leases
        assert (line.net, line.gpu_seconds_undelivered) == (0, 7200)

    def test_is_corrected_in_the_month_in_which_that_was_found(self):
        lease = a_lease(returned_after_seconds=None)
        found = settled(lease)
        released_by = RELEASED
        releases.release_due(at=released_by)
        factories.outage(of=lease, seconds=900)
        made = corrections.review(settlement_id=found.pk, at=released_by)
        assert made is not None
        (line,) = statement_of(DECEMBER).leases
        assert line.correction == made.owner_minor - made.credit_of_owner_minor < 0
        assert (line.earned, line.gpu_seconds_delivered) == (0, -900)
        assert statement_of(NOVEMBER).leases[0].correction == 0
        assert line.evidence is not None
        assert (line.evidence.corrections, line.evidence.outage_count) == (1, 1)
        assert line.evidence.gpu_seconds_delivered == 7200 - 900

    def test_shows_its_evidence(self):
        lease = a_lease(returned_after_seconds=None)
        factories.meter(of=lease, gpu=0, seconds=3600)
        factories.receipt(of=lease, kind=protocol.ReceiptKind.HANDOVER)
        factories.receipt(of=lease, kind=protocol.ReceiptKind.RETURN)
        factories.outage(of=lease, gpu=1, seconds=600)
        settled(lease)
        shown = statement_of().leases[0].evidence
        assert shown is not None
        assert [receipt.kind for receipt in shown.receipts] == ["handover", "return"]
        (outage,) = shown.outages
        assert (outage.gpu_uuid, outage.refunded) == (lease.gpu_uuids[1], True)
        assert shown.gpu_seconds_metered <= shown.gpu_seconds_delivered < 7200


class TestMovements:
    def test_between_the_owners_accounts_change_no_balance(self, settings):
        settings.OWNER_RESERVE_BASIS_POINTS = 1000
        payout = released(a_lease())
        told = statement_of(DECEMBER)
        (move,) = told.moves
        kept = Reserve.objects.get().amount_minor
        assert (move.kind, move.lease_id) == (EntryKind.RELEASE, payout.settlement.lease_id)
        assert (move.payable, move.kept, move.netted) == (payout.amount_minor, kept, 0)
        assert told.opening.total == told.closing.total == payout.amount_minor + kept
        assert (told.closing.payable, told.closing.reserve) == (payout.amount_minor, kept)
        releases.release_due(at=LATER)
        (later,) = statement_of("2027-05").moves
        assert (later.kind, later.payable, later.kept) == (EntryKind.RESERVE_RELEASE, kept, 0)

    def test_of_transfers_are_told_when_they_are_sent_and_when_they_come_back(self):
        payout = released(a_lease())
        payouts.send(payout_id=payout.pk, at=RELEASED, actor="test")
        payouts.fail(payout_id=payout.pk, at=RELEASED, actor="test")
        payouts.retry(payout_id=payout.pk, at=RELEASED, actor="test")
        payouts.send(payout_id=payout.pk, at=RELEASED, actor="test")
        payouts.confirm(payout_id=payout.pk, at=LATER, actor="test")
        told = statement_of(DECEMBER)
        assert [line.kind for line in told.lines] == [
            LineKind.TRANSFER,
            LineKind.TRANSFER_RETURNED,
            LineKind.TRANSFER,
        ]
        assert {line.reference for line in told.lines} == {payout.pk}
        assert told.totals[LineKind.TRANSFER] == -2 * payout.amount_minor
        assert told.closing.total == 0

    def test_that_pay_a_debt_are_told_too(self):
        payout = released(a_lease())
        disputes.open_dispute(
            dispute_id="dp_1",
            reservation=payout.settlement.lease.reservation,
            amount_minor=100,
            fee_minor=15,
            currency="usd",
            at=RELEASED,
            actor="test",
        )
        disputes.lose(dispute_id="dp_1", at=RELEASED, actor="test")
        asked = approvals.request(
            kind=ApprovalKind.DISPUTE,
            organization=factories.owner(),
            subject_id="dp_1",
            amount=Money(100, "usd"),
            reason="not what was listed",
            at=RELEASED,
            actor="anna",
        )
        approvals.approve(approval_id=asked.pk, at=RELEASED, actor="bert")
        payouts.record_reversal(
            owner=factories.owner(),
            reversal_id="trr_1",
            amount_minor=40,
            currency="usd",
            at=RELEASED,
        )
        told = statement_of(DECEMBER)
        assert told.totals[LineKind.DISPUTE] == -100
        assert told.totals[LineKind.TRANSFER_REVERSED] == 40
        assert told.closing.owed_by_owner == 60

    def test_of_a_fee_are_told_by_their_share(self):
        row = factories.reservation(
            buyer=factories.tenant(funds_minor=100_000), status=ReservationStatus.CANCELLED
        )
        made = factories.change(
            of=row, kind=ChangeKind.CANCELLATION, refunded=371, fee=100, released=7200
        )
        changes.post(change=made)
        share = FeeShare.objects.get()
        (line,) = statement_of().lines
        assert (line.kind, line.reference, line.amount) == (
            LineKind.FEE_SHARE,
            share.pk,
            share.amount_minor,
        )
        fee_shares.release_due(at=RELEASED)
        (move,) = statement_of(DECEMBER).moves
        assert (move.reference, move.lease_id) == (share.pk, None)

    def test_that_nothing_explains_are_adjustments(self):
        payout = released(a_lease())
        entry = Entry.objects.get(kind=EntryKind.SETTLEMENT)
        owned = ledger.AccountRef(
            AccountKind.OWNER_PAYABLE, "usd", factories.owner().pk, factories.owner()
        )
        ledger.post(
            idempotency_key="reversal:1",
            kind=EntryKind.REVERSAL,
            subject_id=entry.subject_id,
            effective_at=RELEASED,
            legs=ledger.transfer(
                debited=owned,
                credited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                amount=7,
            ),
        )
        told = statement_of(DECEMBER)
        assert told.totals[LineKind.ADJUSTMENT] == -7
        assert told.closing.total == payout.amount_minor - 7

    def test_lead_from_month_to_month(self, settings):
        settings.OWNER_RESERVE_BASIS_POINTS = 1000
        payout = released(a_lease())
        payouts.send(payout_id=payout.pk, at=RELEASED, actor="test")
        before = 0
        for month in (NOVEMBER, DECEMBER, "2027-01"):
            told = statement_of(month)
            assert told.opening.total == before
            before = told.closing.total
        assert before == Reserve.objects.get().amount_minor


class TestAStatement:
    def test_is_of_one_owner(self):
        settled(a_lease())
        other = factories.owner(name="Somebody Else")
        told = statement_of(owner=other)
        assert (told.leases, told.lines, told.closing.total) == ([], [], 0)

    def test_is_final_when_its_last_lease_is_settled(self):
        lease = a_lease()
        assert statement_of().final is False
        settled(lease)
        assert statement_of().final is True
        early = owner_statements.statement(owner=factories.owner(), month=NOVEMBER, at=AT)
        assert early.final is False

    def test_refuses_what_is_no_month(self):
        with pytest.raises(ValueError, match="2026-1"):
            owner_statements.statement(owner=factories.owner(), month="2026-1", at=AT)
