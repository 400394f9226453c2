"""What closing a month leaves: on account, credit notes, sound books, and once however many close it."""

import os
from collections import Counter

import pytest
from django.db import connection, transaction

from billing import (
    books,
    invoices,
    ledger,
    purchases,
    receivables,
    steps,
)
from billing.invoices import CreditExceedsInvoice, LineDraft
from billing.models import Invoice, InvoiceLine
from billing.states import InvoiceKind
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.billing.invoices.closing import (
    CLOSED_AT,
    DUE,
    KILLED,
    SETTLED_AT,
    close,
    half_delivered,
    sound,
)
from tests.races.test_last_gpus import at_once

pytestmark = pytest.mark.django_db


class TestOnAccount:
    @pytest.fixture
    def sold(self) -> tuple[Reservation, Invoice]:
        buyer = factories.taxed(buyer=factories.tenant(funds_minor=1_000))
        row = factories.reservation(buyer=buyer, paid=False, status=ReservationStatus.SCHEDULED)
        Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.INVOICE)
        row.refresh_from_db()
        invoice = invoices.issue_for_purchase(reservation=row, due_at=DUE, at=factories.START)
        purchases.capture_invoice(reservation=row, invoice_id=invoice.pk, at=factories.START)
        return row, invoice

    def test_says_what_the_books_say_is_owed(self, sold) -> None:
        row, invoice = sold
        owed = receivables.account(
            organization=row.organization, invoice_id=invoice.pk, currency="usd"
        )
        assert ledger.balance(account=owed) == invoice.total_minor == 560
        sound()

    def test_is_on_no_monthly_invoice(self, sold) -> None:
        row, _ = sold
        assert close(row.organization) == []
        sound()

    def test_is_credited_at_once_when_it_goes_back(self, sold) -> None:
        row, invoice = sold
        factories.given_back(row)
        assert invoices.run_due(at=SETTLED_AT) == 1
        assert invoices.run_due(at=SETTLED_AT) == 0
        note = Invoice.objects.get(kind=InvoiceKind.CREDIT_NOTE)
        assert (note.corrects_id, note.total_minor, note.period) == (invoice.pk, 560, "")
        assert note.lines.get().description.startswith("Cancelled: ")
        assert close(row.organization) == []


class TestACreditNote:
    def credit_of(self, line: InvoiceLine, *, net: int, key: str = "change:x") -> LineDraft:
        return LineDraft(
            entry_key=key,
            reservation=line.reservation,
            description="given back",
            window=None,
            gpu_seconds=0,
            net_minor=net,
            corrects_line=line,
        )

    def test_takes_back_no_more_than_was_invoiced(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        factories.reservation(buyer=buyer)
        (invoice,) = close(buyer)
        line = invoice.lines.get()
        invoices.credit_note(invoice=invoice, lines=[self.credit_of(line, net=400)], at=CLOSED_AT)
        with pytest.raises(CreditExceedsInvoice):
            invoices.credit_note(
                invoice=invoice, lines=[self.credit_of(line, net=72, key="y")], at=CLOSED_AT
            )
        twice = [self.credit_of(line, net=40, key=key) for key in ("y", "z")]
        with pytest.raises(CreditExceedsInvoice):
            invoices.credit_note(invoice=invoice, lines=twice, at=CLOSED_AT)

    def test_corrects_lines_of_its_own_invoice_alone(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        factories.reservation(buyer=buyer)
        (first,) = close(buyer)
        second = invoices.issue_for_purchase(
            reservation=factories.reservation(buyer=buyer, paid=False), due_at=DUE, at=CLOSED_AT
        )
        with pytest.raises(CreditExceedsInvoice):
            invoices.credit_note(
                invoice=second, lines=[self.credit_of(first.lines.get(), net=1)], at=CLOSED_AT
            )


class TestTheCheckOfTheBooks:
    @pytest.mark.parametrize(
        ("tampering", "name"),
        [
            ("DELETE FROM billing_invoice WHERE kind = 'invoice'", "invoice_numbers_have_no_gap"),
            ("UPDATE billing_invoiceseries SET last_sequence = 9", "invoice_numbers_have_no_gap"),
            ("UPDATE billing_invoice SET net_minor = 1, total_minor = 1", "invoice_lines_add_up"),
            (
                "UPDATE billing_invoiceline SET net_minor = 500 WHERE corrects_line_id IS NOT NULL",
                "credits_are_at_most_what_was_invoiced",
            ),
            (
                "UPDATE billing_invoiceline SET net_minor = 470 WHERE corrects_line_id IS NULL",
                "invoice_lines_equal_their_entries",
            ),
            (
                "UPDATE billing_invoiceline SET entry_key = 'nothing' WHERE corrects_line_id IS NOT NULL",
                "invoice_lines_equal_their_entries",
            ),
            (
                """
                DELETE FROM billing_invoiceline;
                UPDATE billing_monthclose SET recorded_at = recorded_at + interval '2 hours'
                """,
                "closed_months_are_told",
            ),
        ],
    )
    def test_finds_what_somebody_changed(self, unguarded, tampering: str, name: str) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        half_delivered(buyer)
        close(buyer)
        sound()
        with unguarded(), connection.cursor() as cursor:
            cursor.execute(tampering)
        assert name in {check.name for check in books.check(at=CLOSED_AT).checks if not check.ok}

    def test_finds_a_purchase_on_account_without_an_invoice(self) -> None:
        buyer = factories.tenant()
        row = factories.reservation(buyer=buyer, paid=False)
        purchases.capture_invoice(reservation=row, invoice_id="inv_nobody", at=factories.START)
        report = books.check(at=factories.START)
        (check,) = (each for each in report.checks if each.name == "what_is_owed_has_an_invoice")
        assert not check.ok
        assert set(check.organizations) == {buyer.pk}


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(180)
class TestSideBySide:
    def test_ten_ticks_at_once_close_a_month_once(self) -> None:
        buyers = [factories.tenant(name=f"Tenant {n}", funds_minor=1_000) for n in range(4)]
        for buyer in buyers:
            half_delivered(buyer)

        def tick() -> str:
            invoices.run_due(at=CLOSED_AT)
            return "done"

        assert at_once([tick] * 10) == Counter({"done": 10})
        invoices.run_due(at=CLOSED_AT)
        kinds = Counter(Invoice.objects.values_list("kind", flat=True))
        assert kinds == {"invoice": 4, "credit_note": 4}
        sound()

    @pytest.mark.parametrize("step", ["month.invoiced", "month.credited", "month.closed"])
    def test_a_worker_killed_at_a_step_changes_nothing_in_the_end(self, step: str) -> None:
        half_delivered(factories.tenant(funds_minor=1_000))
        connection.close()
        child = os.fork()
        if child == 0:
            try:
                steps.listen(lambda reached: os._exit(KILLED) if reached == step else None)
                invoices.run_due(at=CLOSED_AT)
            except BaseException:  # noqa: BLE001 - the child must not run on into the test suite
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == KILLED
        assert not Invoice.objects.exists()
        assert invoices.run_due(at=CLOSED_AT) == 2
        assert [each.sequence for each in Invoice.objects.all()] == [1, 1]
        sound()

    def test_a_close_that_is_rolled_back_leaves_no_gap(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        half_delivered(buyer)
        with transaction.atomic():
            assert len(close(buyer)) == 2
            transaction.set_rollback(True)
        assert [each.number for each in close(buyer)] == ["HR-2026-000001", "HR-CN-2026-000001"]
