"""Documents as PDF say what was issued, in bytes that do not change, whatever the names and amounts are."""

import datetime as dt
import re
from decimal import Decimal

import pytest
from reportlab.pdfgen.textobject import PDFTextObject

from billing import (
    corrections,
    invoices,
    month_bills,
    owner_statements,
    pdf,
    settlements,
)
from billing.invoices import LineDraft, profiles
from billing.models import Invoice
from scheduler.models import Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = dt.datetime(2026, 12, 1, 3, tzinfo=dt.UTC)
NOVEMBER = "2026-11"


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """Return what is drawn onto pages from now on, piece by piece."""
    pieces: list[str] = []
    real = PDFTextObject._formatText

    def keep(self, text):
        pieces.append(text if isinstance(text, str) else text.decode())
        return real(self, text)

    monkeypatch.setattr(PDFTextObject, "_formatText", keep)
    return pieces


def month_of(buyer) -> bytes:
    bill = month_bills.month_bill(organization=buyer, month=NOVEMBER, at=AT)
    return pdf.month_bill(bill=bill, organization=buyer, at=AT)


def pages(content: bytes) -> int:
    return content.count(b"/Type /Page\n") + content.count(b"/Type /Page ")


def an_invoice(*, currency: str = "usd", net: int = 1_234_567, lines: int = 1) -> Invoice:
    return invoices.issue(
        organization=factories.tenant(),
        currency=currency,
        lines=[
            LineDraft(
                entry_key=f"purchase:{number}",
                reservation=None,
                description=f"<b>line</b> {number} & more",
                window=None,
                gpu_seconds=3600,
                net_minor=net,
            )
            for number in range(lines)
        ],
        at=AT,
    )


class TestAnInvoice:
    def test_says_its_number_its_parties_and_its_total(self, drawn, settings) -> None:
        settings.SELLER = dict(settings.SELLER, name="Seller Ltd", payment_details="IBAN 1")
        buyer = factories.taxed(buyer=factories.tenant())
        profiles.put(
            organization=buyer,
            fields={"legal_name": "Perceptron SE", "city": "Łódź", "purchase_order_number": "P7"},
            at=AT,
            actor="test",
        )
        row = factories.reservation(buyer=buyer, paid=False)
        invoice = Invoice.objects.get(pk=factories.bought_on_account(row))
        assert pdf.invoice(invoice=invoice).startswith(b"%PDF-")
        said = " ".join(drawn)
        for words in (
            "HR-2026-000001",
            "Seller Ltd",
            "Perceptron SE",
            "Łódź",
            "P7",
            "VAT 19 % (DE) on 4.71",
            "0.89",
            "5.60",
            "Payable by 2026-12-02",
            "IBAN 1",
            row.pk,
            "Simulated",
        ):
            assert words in said, words

    def test_is_the_same_bytes_for_the_same_document(self) -> None:
        invoice = an_invoice()
        first = pdf.invoice(invoice=invoice)
        again = pdf.invoice(invoice=Invoice.objects.get(pk=invoice.pk))
        assert pdf.sha256(first) == pdf.sha256(again)

    @pytest.mark.parametrize(
        ("currency", "total"), [("jpy", "1,234,567"), ("kwd", "1,234.567"), ("usd", "12,345.67")]
    )
    def test_has_the_digits_of_its_currency(self, drawn, currency: str, total: str) -> None:
        pdf.invoice(invoice=an_invoice(currency=currency))
        assert total in drawn

    def test_shows_anybodys_words_as_words(self, drawn) -> None:
        pdf.invoice(invoice=an_invoice())
        assert "<b>line</b> 0 & more" in "".join(drawn)

    def test_goes_on_over_pages_with_its_head_and_their_numbers(self, drawn) -> None:
        content = pdf.invoice(invoice=an_invoice(lines=200))
        count = pages(content)
        assert count > 2
        assert drawn.count("Description") in {count, count - 1}  # the sums may have the last alone
        assert f"{count} / {count}" in drawn

    @pytest.mark.parametrize("name", ["قطر", "😀", "\u0007"])
    def test_can_be_made_out_to_a_name_that_no_font_has(self, name: str) -> None:
        buyer = factories.tenant()
        profiles.put(organization=buyer, fields={"legal_name": name}, at=AT, actor="test")
        assert pages(pdf.invoice(invoice=an_invoice())) == 1

    def test_marks_a_character_that_no_font_has(self, drawn) -> None:
        buyer = factories.tenant()
        profiles.put(organization=buyer, fields={"legal_name": "A قط"}, at=AT, actor="test")
        pdf.invoice(invoice=an_invoice())
        assert "A ??" in drawn

    def test_of_what_went_back_names_what_it_corrects(self, drawn) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        lease = factories.lease(of=row, returned_after_seconds=1800)
        settlements.settle(lease_id=lease.id, at=factories.START + dt.timedelta(hours=2))
        _, note = invoices.issue_month(organization=buyer, month=NOVEMBER, at=AT)
        pdf.invoice(invoice=note)
        said = " ".join(drawn)
        assert "Credit note" in said
        assert "This corrects HR-2026-000001" in said


class TestAMonth:
    def test_says_what_was_delivered_what_it_cost_and_what_is_ahead(self, drawn) -> None:
        buyer = factories.taxed(buyer=factories.tenant(funds_minor=10_000_000))
        row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        Reservation.objects.filter(pk=row.pk).update(project="vision", tags={"team": "a"})
        lease = factories.lease(of=row)
        factories.meter_fully(of=lease)
        settlements.settle(lease_id=lease.id, at=factories.START + dt.timedelta(hours=2))
        factories.reservation(buyer=buyer, hours=1_000, status=ReservationStatus.SCHEDULED)
        invoices.run_due(at=AT)
        month_of(buyer)
        said = " ".join(drawn)
        for words in (
            "HR-2026-000001",
            "paid",
            "vision",
            "team: a",
            "2026-12",
            "4.71",
            "Busy",
            "2.355000",
        ):
            assert words in said, words
        assert drawn.count("100.0 %") == 3  # of each division, and no share is broken in two

    def test_of_a_tenant_with_nothing_is_one_page_that_says_so(self, drawn) -> None:
        content = month_of(factories.tenant())
        assert pages(content) == 1
        said = " ".join(drawn)
        assert "Nothing is promised beyond the month." in said
        assert "energy not measured" in said
        assert "of what was delivered" not in said

    def test_that_is_final_is_the_same_bytes_later(self) -> None:
        buyer = factories.tenant(funds_minor=10_000)
        row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        settlements.settle(
            lease_id=factories.lease(of=row).id, at=factories.START + dt.timedelta(hours=2)
        )
        later = AT + dt.timedelta(days=3)
        bill = month_bills.month_bill(organization=buyer, month=NOVEMBER, at=later)
        assert bill.final
        assert month_of(buyer) == pdf.month_bill(bill=bill, organization=buyer, at=later)

    def test_of_a_long_price_and_a_long_name_is_drawn(self) -> None:
        buyer = factories.tenant(name="N" * 200, funds_minor=1_000_000_000)
        row = factories.reservation(
            buyer=buyer, rate=Decimal("99999"), total_minor=1_000_000_000, hours=1
        )
        Reservation.objects.filter(pk=row.pk).update(name="W" * 200, project="P" * 200)
        assert pages(month_of(buyer)) >= 2


class TestAnOwnersStatement:
    def test_says_no_rate_of_a_lease_that_was_corrected_in_the_month(self, drawn) -> None:
        buyer = factories.tenant(funds_minor=10_000)
        leases = [
            factories.lease(
                of=factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
            )
            for _ in range(2)
        ]
        for lease in leases:
            settlements.settle(lease_id=lease.id, at=factories.START + dt.timedelta(hours=2))
        factories.outage(of=leases[0], seconds=1800)
        assert corrections.review_due(at=factories.START + dt.timedelta(days=3)) == 1
        found = owner_statements.statement(owner=factories.owner(), month=NOVEMBER, at=AT)
        assert sorted(line.correction < 0 for line in found.leases) == [False, True]
        pdf.owner_statement(statement=found, owner=factories.owner(), at=AT)
        rates = [piece for piece in drawn if re.fullmatch(r"\d+\.\d{6}", piece)]
        assert rates == ["2.355000"]
