"""Time is undelivered only on positive evidence: silence alone refunds nothing, and settles nothing."""

import datetime as dt
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from agents.protocol import ReceiptKind
from billing import approvals, bills, books, corrections, settlements, silences, wallet, watch
from billing.models import Approval, Entry, Settlement
from billing.states import ApprovalKind, ApprovalStatus, EntryKind, UndeliveredReason
from marketplace.core.errors import StateConflict
from marketplace.core.money import Money
from marketplace.models import User
from scheduler.models import Lease, LeaseTransition, Reservation
from scheduler.states import LeaseReason, LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

HALF = 1800
LATER = factories.START + dt.timedelta(days=1)
NOTHING = Money(0, "usd")


@pytest.fixture
def lease() -> Lease:
    """Return one of two GPUs for an hour, whose node was last heard of in its middle, and then given up."""
    row = factories.lease(
        of=factories.reservation(
            buyer=factories.tenant(funds_minor=471), status=ReservationStatus.COMPLETED
        ),
        returned_after_seconds=HALF,
    )
    LeaseTransition.objects.create(
        lease=row,
        from_status=LeaseStatus.RETURNING,
        to_status=LeaseStatus.ENDED,
        reason=LeaseReason.RETURN_UNCONFIRMED,
        actor="test",
        at=row.ends_at,
    )
    for gpu in range(2):
        factories.meter(of=row, gpu=gpu, seconds=HALF, busy=600)
    return row


def backfill(lease: Lease, *, seconds: int = HALF, gpus: int = 2) -> None:
    for gpu in range(gpus):
        factories.meter(of=lease, gpu=gpu, from_second=HALF, seconds=seconds, busy=0)


def held(lease: Lease) -> int:
    return wallet.balance(organization=lease.reservation.organization).amount_minor


def ask(lease: Lease, kind: ApprovalKind, *, actor: str = "ada") -> Approval:
    return approvals.request(
        kind=kind,
        organization=lease.reservation.organization,
        subject_id=lease.pk,
        amount=NOTHING,
        reason="the owner's own log",
        at=LATER,
        actor=actor,
    )


def rule(lease: Lease, kind: ApprovalKind) -> None:
    approvals.approve(approval_id=ask(lease, kind).pk, at=LATER, actor="grace")


class TestSilenceAlone:
    def test_settles_nothing_and_moves_no_money(self, lease: Lease) -> None:
        assert settlements.settle_ended(at=LATER) == 0
        assert held(lease) == 0
        assert Entry.objects.exclude(kind__in=(EntryKind.DEPOSIT, EntryKind.PURCHASE)).count() == 0
        bill = bills.reservation_bill(
            reservation=Reservation.objects.get(pk=lease.reservation_id), at=LATER
        )
        assert not bill.final
        assert (bill.gpu_seconds.undelivered, bill.refunded) == (0, NOTHING)
        assert silences.of_lease(lease=lease) == silences.Silence(
            factories.START + dt.timedelta(seconds=HALF), 2 * HALF
        )

    def test_is_no_breach_until_nothing_can_come_any_more(self, lease: Lease) -> None:
        settlements.settle_ended(at=LATER)
        assert books.check(at=LATER).ok
        assert lease.closed_at is not None
        limit = lease.closed_at + dt.timedelta(seconds=silences.SILENT_SECONDS_MAX)
        assert books.check(at=limit - dt.timedelta(seconds=1)).ok
        breaches = {each.name: each for each in books.check(at=limit).checks if not each.ok}
        assert "finished_leases_are_settled" in breaches
        assert not any(each.organizations for each in breaches.values())

    def test_is_shown_to_operators_with_its_reason(
        self, lease: Lease, client: Client, settings: Any
    ) -> None:
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }
        client.force_login(User.objects.create_superuser("ada@example.com", "ada", "x"))
        page = client.get(reverse("admin:billing_silentlease_changelist")).content.decode()
        assert lease.pk in page
        assert "no return, no reading since 2026-11-02 08:30" in page
        assert "3,600" in page

    def test_calls_an_operator(self, lease: Lease) -> None:
        (waiting,) = (each for each in watch.people(at=LATER) if each.kind == "silent_lease")
        assert (waiting.count, waiting.oldest_seconds) == (1, 23 * 3600)


class TestWhatTells:
    def test_readings_up_to_the_end_say_that_it_was_delivered(self, lease: Lease) -> None:
        backfill(lease)
        assert settlements.settle_ended(at=LATER) == 1
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.gpu_seconds_metered) == (7200, 7200)
        assert row.refunded_minor == 0
        assert books.check(at=LATER).ok

    def test_readings_that_end_before_it_or_are_of_one_gpu_do_not(self, lease: Lease) -> None:
        backfill(lease, seconds=HALF - 2)
        assert settlements.settle_ended(at=LATER) == 0
        silence = silences.of_lease(lease=lease)
        assert silence is not None
        assert silence.gpu_seconds == 4
        factories.meter(of=lease, gpu=0, from_second=3598, seconds=2)
        assert settlements.settle_ended(at=LATER) == 0

    def test_a_receipt_of_the_return_does(self, lease: Lease) -> None:
        factories.receipt(of=lease, kind=ReceiptKind.RETURN)
        assert settlements.settle_ended(at=LATER) == 1
        assert Settlement.objects.get().refunded_minor == 0

    def test_outages_up_to_the_end_say_that_it_was_not(self, lease: Lease) -> None:
        factories.outage(of=lease, gpu=0, from_second=HALF, seconds=None)
        assert settlements.settle_ended(at=LATER) == 0, "of the other GPU nobody tells"
        factories.outage(of=lease, gpu=1, from_second=HALF, seconds=HALF)
        assert settlements.settle_ended(at=LATER) == 1
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.refunded_minor) == (3600, 235)
        assert row.evidence["undelivered_by_reason"] == {"gpu_fault": 3600}
        assert books.check(at=LATER).ok

    def test_an_outage_that_was_over_before_the_end_does_not(self, lease: Lease) -> None:
        for gpu in range(2):
            factories.outage(of=lease, gpu=gpu, from_second=HALF, seconds=HALF - 2)
        assert settlements.settle_ended(at=LATER) == 0

    def test_a_lease_that_its_node_ended_is_never_silent(self, lease: Lease) -> None:
        Lease.objects.update(status=LeaseStatus.INTERRUPTED)
        lease.refresh_from_db()
        assert silences.of_lease(lease=lease) is None


class TestRuling:
    def test_takes_two_people(self, lease: Lease) -> None:
        approval = ask(lease, ApprovalKind.SILENCE_REFUNDED)
        assert approval.status == ApprovalStatus.REQUESTED
        with pytest.raises(approvals.FourEyesNeeded):
            approvals.approve(approval_id=approval.pk, at=LATER, actor="ada")
        assert settlements.settle_ended(at=LATER) == 0

    def test_that_it_was_not_delivered_refunds_it(self, lease: Lease) -> None:
        rule(lease, ApprovalKind.SILENCE_REFUNDED)
        assert settlements.settle_ended(at=LATER) == 1
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.refunded_minor) == (3600, 235)
        assert row.evidence["undelivered_by_reason"] == {UndeliveredReason.NETWORK.value: 3600}
        assert held(lease) == 235 + 24
        assert books.check(at=LATER).ok

    def test_that_it_was_delivered_pays_its_owner(self, lease: Lease) -> None:
        rule(lease, ApprovalKind.SILENCE_DELIVERED)
        assert settlements.settle_ended(at=LATER) == 1
        row = Settlement.objects.get()
        assert (row.gpu_seconds_delivered, row.gpu_seconds_metered) == (7200, 3600)
        assert (row.refunded_minor, held(lease)) == (0, 0)
        assert books.check(at=LATER).ok

    def test_is_corrected_by_what_comes_later(self, lease: Lease) -> None:
        rule(lease, ApprovalKind.SILENCE_REFUNDED)
        settlements.settle_ended(at=LATER)
        backfill(lease)
        assert corrections.review_due(at=LATER + dt.timedelta(hours=1)) == 1
        bill = bills.reservation_bill(
            reservation=Reservation.objects.get(pk=lease.reservation_id), at=LATER
        )
        assert (bill.gpu_seconds.delivered, bill.meter_coverage) == (7200, "1.0000")

    def test_is_made_once(self, lease: Lease) -> None:
        other = ask(lease, ApprovalKind.SILENCE_DELIVERED, actor="ida")
        rule(lease, ApprovalKind.SILENCE_REFUNDED)
        with pytest.raises(StateConflict, match="ruled on before"):
            approvals.approve(approval_id=other.pk, at=LATER, actor="grace")

    def test_is_refused_where_the_time_is_told(self, lease: Lease) -> None:
        backfill(lease)
        with pytest.raises(StateConflict, match="waits for anybody"):
            ask(lease, ApprovalKind.SILENCE_REFUNDED)

    def test_falls_when_the_time_is_told_before_it_is_made(self, lease: Lease) -> None:
        approval = ask(lease, ApprovalKind.SILENCE_REFUNDED)
        backfill(lease)
        with pytest.raises(StateConflict, match="waits for anybody"):
            approvals.approve(approval_id=approval.pk, at=LATER, actor="grace")
        approval.refresh_from_db()
        assert approval.status == ApprovalStatus.REQUESTED

    def test_is_refused_in_the_name_of_another_tenant(self, lease: Lease) -> None:
        with pytest.raises(StateConflict, match="no lease of theirs"):
            approvals.request(
                kind=ApprovalKind.SILENCE_REFUNDED,
                organization=factories.tenant(name="Another"),
                subject_id=lease.pk,
                amount=NOTHING,
                reason="why not",
                at=LATER,
                actor="ada",
            )
