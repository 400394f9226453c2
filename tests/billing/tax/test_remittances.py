"""Collected tax goes to its tax office: of a closed month, at most what is owed, and by two people."""

import datetime as dt
import io
import json
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from billing import accounts, approvals, books, ledger, purchases, settlements, tax_remittances
from billing.approvals import FourEyesNeeded
from billing.invoices import MonthNotOver
from billing.models import Approval, Entry, TaxRemittance
from billing.states import AccountKind, ApprovalKind, ApprovalStatus
from billing.tax_remittances import NothingToRemit, RemittanceReversed
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Organization
from scheduler.models import Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

NOVEMBER, DECEMBER = "2026-11", "2026-12"
SUBJECT = "DE:2026-11"
SETTLED_AT = factories.START + dt.timedelta(hours=4)
FILED_AT = dt.datetime(2026, 12, 10, tzinfo=dt.UTC)
FEBRUARY = dt.datetime(2027, 2, 10, tzinfo=dt.UTC)


@pytest.fixture
def sold() -> Organization:
    """Sell 471 with 89 of tax in Germany, all of it delivered in November."""
    return sell()


def sell() -> Organization:
    buyer = factories.taxed(buyer=factories.tenant(funds_minor=10_000))
    row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
    lease = factories.lease(of=row)
    settlements.settle(lease_id=lease.id, at=SETTLED_AT)
    return buyer


def ask(minor: int = 89, *, subject: str = SUBJECT, at: dt.datetime = FILED_AT) -> Approval:
    return approvals.request(
        kind=ApprovalKind.TAX_REMITTANCE,
        organization=None,
        subject_id=subject,
        amount=Money(minor, "usd"),
        reason="filed on the tenth",
        at=at,
        actor="anna",
    )


def approve(approval: Approval, *, at: dt.datetime = FILED_AT) -> Approval:
    return approvals.approve(approval_id=approval.pk, at=at, actor="bert")


def take_back(remittance: Approval, *, minor: int = 89) -> Approval:
    return approvals.request(
        kind=ApprovalKind.REMITTANCE_REVERSAL,
        organization=None,
        subject_id=remittance.pk,
        amount=Money(minor, "usd"),
        reason="the bank returned it",
        at=FILED_AT,
        actor="anna",
    )


def payable() -> int:
    return ledger.balance(account=accounts.tax_payable(jurisdiction="DE", currency="usd"))


def bank() -> int:
    return ledger.balance(account=accounts.shared(kind=AccountKind.BANK, currency="usd"))


def of_november() -> tuple[int, int, int]:
    found = tax_remittances.period(jurisdiction="DE", month=NOVEMBER, currency="usd")
    return found.due, found.remitted, found.open


def sound() -> None:
    report = books.check(at=FEBRUARY)
    assert report.ok, [check for check in report.checks if not check.ok]


@pytest.mark.usefixtures("sold")
class TestRemit:
    def test_moves_what_was_collected_out_of_the_bank(self) -> None:
        before = bank()
        done = approve(ask())
        assert (done.status, done.organization) == (ApprovalStatus.APPROVED, None)
        assert (payable(), bank()) == (0, before - 89)
        assert of_november() == (89, 89, 0)
        row = TaxRemittance.objects.get()
        assert (row.jurisdiction, row.month, row.amount_minor, row.at) == (
            "DE",
            NOVEMBER,
            89,
            FILED_AT,
        )
        actions = AuditEvent.objects.filter(object_id=done.pk).order_by("pk")
        assert [(event.action, event.organization_id) for event in actions] == [
            ("approval.requested", None),
            ("approval.approved", None),
        ]
        sound()

    def test_needs_a_second_person(self) -> None:
        asked = ask(1)  # however little it is
        assert asked.status == ApprovalStatus.REQUESTED
        with pytest.raises(FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=FILED_AT, actor="anna")
        assert payable() == 89
        approve(asked)
        assert payable() == 88

    def test_does_nothing_where_the_second_person_refuses(self) -> None:
        asked = ask()
        approvals.refuse(approval_id=asked.pk, at=FILED_AT, actor="bert")
        with pytest.raises(StateConflict):
            approve(asked)
        assert of_november() == (89, 0, 89)

    def test_may_be_done_in_parts_and_never_twice(self) -> None:
        approve(ask(50))
        approve(ask(39))
        for minor in (1, 89):
            with pytest.raises(NothingToRemit):
                ask(minor)
        assert of_november() == (89, 89, 0)
        sound()

    def test_is_asked_for_once_at_a_time(self) -> None:
        ask(50)
        with pytest.raises(InvalidValue, match="asked for already"):
            ask(39)

    @pytest.mark.parametrize("minor", [0, 90, 10_000])
    def test_is_of_what_is_owed_and_no_more(self, minor: int) -> None:
        with pytest.raises(NothingToRemit, match="DE is owed"):
            ask(minor)
        assert not Approval.objects.exists()

    def test_is_looked_at_again_when_it_is_decided(self) -> None:
        asked = ask()
        with (
            connection.cursor() as cursor
        ):  # as if it had been asked for before the tax went elsewhere
            cursor.execute("SET LOCAL session_replication_role = replica")
            Approval.objects.filter(pk=asked.pk).update(amount_minor=90)
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")
        with pytest.raises(NothingToRemit):
            approve(asked)
        asked.refresh_from_db()
        assert asked.status == ApprovalStatus.REQUESTED
        assert of_november() == (89, 0, 89)

    @pytest.mark.parametrize(
        "subject", ["DE", "DE:", "DE:2026-13", "FI:2026-11", "de:2026-11", ":2026-11"]
    )
    def test_is_of_a_place_and_a_month(self, subject: str) -> None:
        with pytest.raises(InvalidValue):
            ask(subject=subject)

    def test_waits_for_the_close_of_the_month(self, settings: Any) -> None:
        settings.MONTH_CLOSE_DELAY_SECONDS = 86_400
        for at in (SETTLED_AT, dt.datetime(2026, 12, 1, 23, tzinfo=dt.UTC)):
            with pytest.raises(MonthNotOver):
                ask(at=at)
        ask(at=dt.datetime(2026, 12, 2, tzinfo=dt.UTC))

    def test_is_nobodys_but_the_markets(self, sold: Organization) -> None:
        with pytest.raises(InvalidValue, match="nobody"):
            approvals.request(
                kind=ApprovalKind.TAX_REMITTANCE,
                organization=sold,
                subject_id=SUBJECT,
                amount=Money(89, "usd"),
                reason="whose is it",
                at=FILED_AT,
                actor="anna",
            )
        with pytest.raises(InvalidValue, match="whose"):
            approvals.request(
                kind=ApprovalKind.REFUND,
                organization=None,
                subject_id="case_1",
                amount=Money(89, "usd"),
                reason="whose is it",
                at=FILED_AT,
                actor="anna",
            )


class TestReversal:
    def test_lets_the_month_be_owed_again(self, sold: Organization) -> None:
        del sold
        remitted, before = approve(ask()), bank()
        asked = take_back(remitted)
        with pytest.raises(FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=FILED_AT, actor="anna")
        approve(asked)
        assert (payable(), bank(), of_november()) == (89, before + 89, (89, 0, 89))
        sound()
        approve(ask())
        assert of_november() == (89, 89, 0)
        sound()

    def test_happens_once_and_of_the_whole(self, sold: Organization) -> None:
        del sold
        remitted = approve(ask())
        with pytest.raises(InvalidValue, match="as a whole"):
            take_back(remitted, minor=88)
        approve(take_back(remitted))
        with pytest.raises(RemittanceReversed):
            take_back(remitted)
        assert payable() == 89

    def test_is_of_a_remittance(self) -> None:
        with pytest.raises(NotFound):
            take_back(Approval(pk="apr_unknown"))


def test_what_an_earlier_month_gave_back_is_carried_forward(sold: Organization) -> None:
    """Give a second sale of November back in December, after November was filed; sell once in January."""
    returned = factories.reservation(buyer=sold)
    approve(ask(2 * 89))
    Reservation.objects.filter(pk=returned.pk).update(status=ReservationStatus.FAILED)
    settlements.refund_rest(reservation_id=returned.pk, at=dt.datetime(2026, 12, 20, tzinfo=dt.UTC))
    again = factories.reservation(buyer=sold, gpus=4, paid=False)
    purchases.post(reservation=again, at=dt.datetime(2027, 1, 2, tzinfo=dt.UTC))
    found = [
        tax_remittances.period(jurisdiction="DE", month=month, currency="usd").open
        for month in (NOVEMBER, DECEMBER, "2027-01")
    ]
    assert found == [0, -89, 179]
    with pytest.raises(NothingToRemit, match=r"0\.90"):
        ask(91, subject="DE:2027-01", at=FEBRUARY)
    approve(ask(90, subject="DE:2027-01", at=FEBRUARY), at=FEBRUARY)
    assert payable() == 0
    sound()


def test_the_report_says_what_is_owed_and_what_was_paid(sold: Organization) -> None:
    del sold
    approve(ask(50))
    text = io.StringIO()
    call_command("tax_report", NOVEMBER, "--by", "office", stdout=text)
    assert json.loads(text.getvalue()) == [
        {
            "jurisdiction": "DE",
            "month": NOVEMBER,
            "currency": "usd",
            "due": 89,
            "remitted": 50,
            "open": 39,
        }
    ]


class TestInvariants:
    def broken(self) -> set[str]:
        return {check.name for check in books.check(at=FEBRUARY).checks if not check.ok}

    def test_find_a_remittance_that_nobody_posted(self, sold: Organization, unguarded: Any) -> None:
        del sold
        approve(ask())
        with unguarded():
            TaxRemittance.objects.update(amount_minor=80)
        assert self.broken() == {"tax_postings_equal_their_lines", "tax_payable_is_what_sales_owe"}

    def test_find_more_than_was_owed(self, sold: Organization, unguarded: Any) -> None:
        del sold
        approve(ask())
        with unguarded():
            TaxRemittance.objects.update(month="2026-10")
        assert self.broken() == {"remitted_is_at_most_what_was_owed"}

    def test_find_a_posting_without_a_remittance(self, sold: Organization, unguarded: Any) -> None:
        del sold
        approve(ask())
        with unguarded(), connection.cursor() as cursor:
            cursor.execute("DELETE FROM billing_taxremittance")
        assert self.broken() == {"tax_postings_equal_their_lines", "tax_payable_is_what_sales_owe"}
        assert Entry.objects.filter(kind="tax_remittance").exists()
