"""What takes two people happens when the second one says so, once, and never before."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from billing import approvals, books, parking, receivables, wallet
from billing.models import Approval, BooksRun, CreditSale, Parking
from billing.states import ApprovalKind, ApprovalStatus
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Event, Organization
from scheduler.models import Quote
from tests.billing import debtors, factories
from tests.scheduler import factories as scheduled

pytestmark = pytest.mark.django_db

AT = factories.START


def ask(
    *,
    kind: ApprovalKind = ApprovalKind.REFUND,
    amount: int = 50_000,
    tenant: Organization | None = None,
    reason: str = "the cluster was slow",
    subject_id: str = "",
    at: dt.datetime = AT,
    actor: str = "anna",
) -> Approval:
    organization = tenant or factories.tenant()
    return approvals.request(
        kind=kind,
        organization=organization,
        subject_id=subject_id or organization.id,
        amount=Money(amount, "usd"),
        reason=reason,
        at=at,
        actor=actor,
    )


def sold_on_account() -> CreditSale:
    scheduled.make_pool()
    quote = scheduled.make_quote(tenant=debtors.a_debtor(), window=scheduled.window_in(24))
    return debtors.sale_of(debtors.buy(quote))


def held() -> int:
    return wallet.balance(organization=factories.tenant()).amount_minor


class TestRefund:
    def test_above_the_limit_waits_for_a_second_person(self):
        approval = ask()
        assert (approval.status, held()) == (ApprovalStatus.REQUESTED, 0)
        approvals.approve(approval_id=approval.id, at=AT, actor="bert")
        assert held() == 50_000
        assert books.check(at=AT).ok

    def test_up_to_the_limit_is_for_one(self, settings):
        ask(amount=settings.REFUND_ALONE_MINOR_MAX)
        assert held() == settings.REFUND_ALONE_MINOR_MAX

    def test_is_not_approved_by_whoever_asked(self):
        approval = ask()
        with pytest.raises(approvals.FourEyesNeeded):
            approvals.approve(approval_id=approval.id, at=AT, actor="anna")
        assert held() == 0

    def test_cannot_be_approved_by_one_person_in_the_database_either(self):
        approval = ask()
        with pytest.raises(IntegrityError, match="approval_needs_four_eyes"), transaction.atomic():
            Approval.objects.filter(pk=approval.pk).update(
                status=ApprovalStatus.APPROVED, decided_by="anna", decided_at=AT
            )

    def test_is_decided_once(self):
        approval = ask()
        approvals.approve(approval_id=approval.id, at=AT, actor="bert")
        for verb in (approvals.approve, approvals.refuse):
            with pytest.raises(StateConflict):
                verb(approval_id=approval.id, at=AT, actor="carl")
        assert held() == 50_000

    def test_that_is_refused_does_not_happen(self):
        approval = ask()
        approvals.refuse(approval_id=approval.id, at=AT, actor="bert")
        assert held() == 0
        assert AuditEvent.objects.filter(action="approval.refused").count() == 1

    @pytest.mark.parametrize("reason", ["", "   "])
    def test_needs_a_reason(self, reason):
        with pytest.raises(InvalidValue):
            ask(reason=reason)

    def test_is_asked_for_once_at_a_time(self):
        ask()
        with pytest.raises(InvalidValue, match="already"):
            ask()

    def test_does_not_stand_where_the_movement_is_refused(self):
        approval = ask()
        parking.park(breaches={factories.tenant().id: "why"}, at=AT)
        with pytest.raises(parking.MoneyParked), transaction.atomic():
            approvals.approve(approval_id=approval.id, at=AT, actor="bert")
        assert Approval.objects.get().status == ApprovalStatus.REQUESTED


class TestSingleDecisions:
    """A limit that each part passes alone is no limit."""

    LIMIT = 10_000

    @pytest.fixture(autouse=True)
    def limit(self, settings):
        settings.REFUND_ALONE_MINOR_MAX = self.LIMIT

    def test_of_one_person_add_up_over_a_day_whatever_they_are_about(self):
        assert ask(amount=6_000, subject_id="rsv_1").status == ApprovalStatus.APPROVED
        assert ask(amount=4_000, subject_id="rsv_2").status == ApprovalStatus.APPROVED
        assert ask(amount=1, subject_id="rsv_3").status == ApprovalStatus.REQUESTED
        assert held() == self.LIMIT
        tomorrow = AT + dt.timedelta(days=1)
        assert ask(amount=1, subject_id="rsv_4", at=tomorrow).status == ApprovalStatus.APPROVED

    def test_about_one_subject_add_up_whoever_decides_them(self):
        assert ask(amount=6_000, subject_id="rsv_1").status == ApprovalStatus.APPROVED
        waits = ask(amount=4_001, subject_id="rsv_1", actor="bert", at=AT + dt.timedelta(days=29))
        assert waits.status == ApprovalStatus.REQUESTED
        assert held() == 6_000

    def test_about_one_subject_begin_anew_after_a_month(self):
        ask(amount=self.LIMIT)
        assert ask(amount=1, at=AT + dt.timedelta(days=30)).status == ApprovalStatus.APPROVED

    def test_count_nothing_that_two_people_decided(self):
        approvals.approve(approval_id=ask(amount=50_000).id, at=AT, actor="bert")
        assert ask(amount=self.LIMIT).status == ApprovalStatus.APPROVED


class TestWriteOff:
    def test_takes_two_whatever_the_amount(self):
        approval = ask(kind=ApprovalKind.WRITE_OFF, amount=1, subject_id="inv_nobody")
        assert approval.status == ApprovalStatus.REQUESTED
        with pytest.raises(receivables.NothingReceivable), transaction.atomic():
            approvals.approve(approval_id=approval.id, at=AT, actor="bert")

    def test_in_parts_gives_up_each_part(self):
        """The second approval of an invoice is a decision of its own, and not a repeat of the first."""
        sale = sold_on_account()
        half = sale.amount_minor // 2
        for part, still_owed in ((half, sale.amount_minor - half), (sale.amount_minor - half, 0)):
            approval = approvals.request(
                kind=ApprovalKind.WRITE_OFF,
                organization=sale.organization,
                subject_id=sale.invoice_id,
                amount=Money(part, "usd"),
                reason="nobody pays",
                at=AT,
                actor="anna",
            )
            approvals.approve(approval_id=approval.id, at=AT, actor="bert")
            assert debtors.owed(sale) == still_owed
        assert books.check(at=AT).ok


class TestParking:
    def breach(self) -> Organization:
        """Break one tenant's books, and let the nightly check find it."""
        row = factories.reservation(buyer=factories.tenant(funds_minor=471))
        Quote.objects.filter(pk=row.quote_id).update(total_minor=1)
        books.run_if_due(at=AT)
        return row.organization

    def test_follows_a_breach_and_says_so(self):
        tenant = self.breach()
        row = Parking.objects.get()
        assert (row.organization, row.ended_at) == (tenant, None)
        assert row.reason.startswith("prices_are_locked: ")
        assert AuditEvent.objects.filter(action="money.parked").count() == 1
        assert Event.objects.filter(kind="money.parked", organization=tenant).count() == 1
        assert BooksRun.objects.get().ok is False

    def test_stops_that_tenant_and_nobody_else(self):
        self.breach()
        with pytest.raises(parking.MoneyParked):
            factories.reservation(buyer=factories.tenant(funds_minor=471))
        other = factories.tenant(name="Somebody Else", funds_minor=471)
        factories.reservation(buyer=other)

    def test_ends_by_two_people(self):
        tenant = self.breach()
        approval = ask(kind=ApprovalKind.UNPARK, amount=0, tenant=tenant)
        assert parking.is_parked(organizations=[tenant])
        approvals.approve(approval_id=approval.id, at=AT, actor="bert")
        assert not parking.is_parked(organizations=[tenant])

    def test_comes_back_while_the_breach_stays(self):
        tenant = self.breach()
        parking.end(organization=tenant, at=AT, actor="bert")
        books.run(at=AT + dt.timedelta(hours=1))
        assert parking.is_parked(organizations=[tenant])
        assert Parking.objects.count() == 2


class TestNightly:
    def test_runs_once_a_day(self):
        assert books.run_if_due(at=AT) is not None
        assert books.run_if_due(at=AT + dt.timedelta(hours=23)) is None
        assert books.run_if_due(at=AT + dt.timedelta(hours=24)) is not None
        assert BooksRun.objects.filter(ok=True).count() == 2
