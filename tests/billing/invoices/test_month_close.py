"""A month is closed once: what was charged is invoiced, what went back is credited, and the books agree."""

import datetime as dt

import pytest

from agents.protocol import ReceiptKind
from billing import (
    changes,
    checkout,
    corrections,
    invoices,
    purchases,
    settlements,
    wallet,
)
from billing.invoices import MonthNotOver
from billing.models import Correction, Invoice, MonthClose, Parking
from billing.states import InvoiceKind
from marketplace.core.money import Money
from scheduler import cancellations, extensions, rebookings
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from scheduler.rebookings import WindowWish
from scheduler.states import ReservationStatus
from tests.billing import factories
from tests.billing.invoices.closing import (
    CLOSED_AT,
    DECEMBER,
    NOVEMBER,
    SETTLED_AT,
    close,
    half_delivered,
    sound,
)
from tests.scheduler import factories as market

pytestmark = pytest.mark.django_db


class TestAMonth:
    def test_has_one_paid_invoice_and_a_credit_note_for_what_went_back(self) -> None:
        buyer = factories.tenant(funds_minor=10_000)
        settlement = half_delivered(buyer)
        other = factories.lease(
            of=factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        )
        settlements.settle(lease_id=other.id, at=SETTLED_AT)
        invoice, note = close(buyer)
        assert (invoice.kind, invoice.total_minor, invoice.due_at) == ("invoice", 2 * 471, None)
        assert (note.kind, note.corrects_id) == ("credit_note", invoice.pk)
        assert note.total_minor == settlement.refunded_minor == 235
        assert invoice.period == note.period == NOVEMBER
        line = note.lines.get()
        assert line.corrects_line == invoice.lines.filter(reservation=line.reservation).get()
        assert line.reservation_id == settlement.lease.reservation_id
        assert line.gpu_seconds == 3600
        assert line.description.startswith("Not delivered: 2 × h100-sxm-80gb")
        sound()

    def test_is_closed_once_however_often_it_is_asked_for(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        half_delivered(buyer)
        assert len(close(buyer)) == 2
        assert close(buyer) == []
        assert invoices.run_due(at=CLOSED_AT) == 0
        assert Invoice.objects.count() == 2

    def test_cannot_be_closed_before_it_is_over_and_what_is_late_has_come(self, settings) -> None:
        settings.MONTH_CLOSE_DELAY_SECONDS = 2 * 86_400
        buyer = factories.tenant(funds_minor=1_000)
        factories.reservation(buyer=buyer)
        for at in (factories.START, CLOSED_AT + dt.timedelta(hours=45)):
            with pytest.raises(MonthNotOver):
                close(buyer, at=at)
            assert invoices.run_due(at=at) == 0
        assert len(close(buyer, at=CLOSED_AT + dt.timedelta(hours=46))) == 1

    @pytest.mark.parametrize("month", ["2026-13", "november", "2026-1"])
    def test_must_be_one(self, month: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says
            close(factories.tenant(), month=month)

    def test_of_a_tenant_with_nothing_makes_no_document(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        assert close(buyer) == []
        assert invoices.run_due(at=CLOSED_AT) == 0
        assert not Invoice.objects.exists()

    def test_of_a_free_reservation_makes_no_document(self) -> None:
        buyer = factories.tenant()
        factories.reservation(buyer=buyer, total_minor=0)
        assert close(buyer) == []

    def test_waits_while_the_books_of_its_tenant_are_being_looked_into(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        half_delivered(buyer)
        row = Parking.objects.create(organization=buyer, reason="a breach", parked_at=CLOSED_AT)
        assert close(buyer) == []
        assert not MonthClose.objects.exists()
        Parking.objects.filter(pk=row.pk).update(ended_at=CLOSED_AT)
        assert len(close(buyer)) == 2

    def test_takes_up_what_was_posted_too_late_for_the_one_before(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        row = factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        (invoice,) = close(buyer)
        lease = factories.lease(of=row, returned_after_seconds=1800)
        settlements.settle(lease_id=lease.id, at=CLOSED_AT)
        (note,) = close(buyer, month=DECEMBER, at=CLOSED_AT + dt.timedelta(days=31))
        assert (note.corrects_id, note.period) == (invoice.pk, DECEMBER)
        sound()

    def test_is_closed_in_its_order_by_a_tick_that_comes_months_late(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        half_delivered(buyer)
        purchase = factories.reservation(buyer=buyer, paid=False)
        late = dt.datetime(2027, 3, 9, tzinfo=dt.UTC)
        purchases.post(reservation=purchase, at=dt.datetime(2026, 12, 3, tzinfo=dt.UTC))
        assert invoices.run_due(at=late) == 3
        rows = Invoice.objects.filter(kind=InvoiceKind.INVOICE).order_by("sequence")
        assert [(each.period, each.issued_at) for each in rows] == [
            (NOVEMBER, late),
            (DECEMBER, late),
        ]
        months = MonthClose.objects.order_by("month").values_list("month", flat=True)
        assert list(months) == [NOVEMBER, DECEMBER, "2027-01", "2027-02"]
        assert invoices.run_due(at=late) == 0

    def test_names_the_tax_that_the_books_moved(self) -> None:
        buyer = factories.taxed(buyer=factories.tenant(funds_minor=1_000))
        half_delivered(buyer)
        invoice, note = close(buyer)
        assert (invoice.net_minor, invoice.tax_minor, invoice.total_minor) == (471, 89, 560)
        assert (note.net_minor, note.tax_minor) == (235, 44)
        for document in (invoice, note):
            line = document.lines.get()
            assert (line.tax_jurisdiction, line.tax_rate_basis_points) == ("DE", 1900)
            assert line.tax_note == "VAT 19 % (DE)"
        sound()

    def test_holds_up_nobody_where_one_tenant_cannot_be_served(self, monkeypatch, caplog) -> None:
        for name in ("Broken AG", "Sound AG"):
            factories.reservation(buyer=factories.tenant(name=name, funds_minor=1_000))
        real = invoices.issue

        def failing(**fields):
            if fields["organization"].name == "Broken AG":
                raise ZeroDivisionError
            return real(**fields)

        monkeypatch.setattr("billing.invoices.month_close.issue", failing)
        assert invoices.run_due(at=CLOSED_AT) == 1
        assert "could not be closed" in caplog.text
        monkeypatch.undo()
        assert invoices.run_due(at=CLOSED_AT) == 1


class TestCorrections:
    def test_in_the_tenants_favour_are_credited_in_the_month_in_which_they_were_found(self) -> None:
        buyer = factories.tenant(funds_minor=1_000)
        lease = factories.lease(
            of=factories.reservation(buyer=buyer, status=ReservationStatus.COMPLETED)
        )
        settlements.settle(lease_id=lease.id, at=SETTLED_AT)
        (invoice,) = close(buyer)
        factories.outage(of=lease, seconds=1800)
        corrections.review_due(at=CLOSED_AT)
        (note,) = close(buyer, month=DECEMBER, at=CLOSED_AT + dt.timedelta(days=31))
        assert note.corrects_id == invoice.pk
        assert note.total_minor == Correction.objects.get().refunded_minor > 0
        sound(at=CLOSED_AT)

    @pytest.mark.parametrize(("deposited", "charged"), [(10_000, 235), (471, 235)])
    def test_against_the_tenant_are_invoiced_as_far_as_it_paid_them(
        self, deposited: int, charged: int
    ) -> None:
        buyer = factories.tenant(funds_minor=deposited)
        settlement = half_delivered(buyer)
        factories.receipt(of=settlement.lease, kind=ReceiptKind.RETURN)
        corrections.review_due(at=SETTLED_AT + dt.timedelta(hours=1))
        correction = Correction.objects.get()
        invoice, note = close(buyer)
        lines = list(invoice.lines.order_by("position"))
        paid = -correction.refunded_minor - correction.borne_minor
        assert [line.net_minor for line in lines] == [471, paid]
        assert lines[1].description.startswith("Delivered after all: ")
        assert note.total_minor == settlement.refunded_minor
        assert paid > 0
        sound()


class TestChanges:
    @pytest.fixture
    def booked(self):
        """Return a reservation bought on a small market; its own clock stands at the market's noon."""
        market.make_pool()
        buyer = market.make_organization()
        wallet.record_deposit(
            organization=buyer,
            amount=Money(10_000_000, "usd"),
            idempotency_key="1",
            at=market.NOW,
            actor="test",
        )
        return checkout.purchase(
            organization=buyer,
            quote_id=market.make_quote(tenant=buyer, at=market.NOW).pk,
            payment_method="wallet",
            details=ReservationDetails(name="training"),
            at=market.NOW,
            actor="test",
        )

    def documents(self, reservation: Reservation) -> list[Invoice]:
        starts = market.NOW.replace(day=1)
        after = (starts + dt.timedelta(days=32)).replace(day=1)
        found = close(
            reservation.organization, month=f"{market.NOW:%Y-%m}", at=after + dt.timedelta(days=1)
        )
        sound(at=market.NOW)
        return found

    def test_a_cancellation_leaves_the_fee_on_the_invoice(self, booked) -> None:
        quote = cancellations.quote(
            organization=booked.organization, reservation_id=booked.pk, at=market.NOW
        )
        change = changes.cancel(
            organization=booked.organization,
            reservation_id=booked.pk,
            quote_id=quote.pk,
            at=market.NOW,
            actor="test",
        )
        invoice, note = self.documents(booked)
        assert invoice.total_minor - note.total_minor == change.fee_minor > 0
        assert note.lines.get().description.startswith("Cancelled: ")

    def test_an_extension_has_a_line_of_its_own_and_goes_back_first(self, booked) -> None:
        quote = extensions.quote(
            organization=booked.organization,
            reservation_id=booked.pk,
            ends_at=booked.ends_at + market.hours(3),
            max_rate=None,
            at=market.NOW,
        )
        changes.extend(
            organization=booked.organization,
            reservation_id=booked.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=market.NOW,
            actor="test",
        )
        leaving = cancellations.quote(
            organization=booked.organization, reservation_id=booked.pk, at=market.NOW
        )
        changes.cancel(
            organization=booked.organization,
            reservation_id=booked.pk,
            quote_id=leaving.pk,
            at=market.NOW,
            actor="test",
        )
        invoice, note = self.documents(booked)
        bought, added = invoice.lines.order_by("position")
        assert added.description.startswith("Extension: ")
        assert (added.starts_at, added.ends_at) == (
            booked.ends_at,
            booked.ends_at + market.hours(3),
        )
        assert note.lines.get(position=1).corrects_line_id == added.pk
        taken = sum(
            line.net_minor for line in note.lines.all() if line.corrects_line_id == added.pk
        )
        assert taken == min(note.net_minor, added.net_minor)
        seconds = sum(line.gpu_seconds for line in note.lines.all())
        assert seconds == added.gpu_seconds + bought.gpu_seconds

    def test_a_move_has_a_line_of_its_own(self, booked) -> None:
        wish = WindowWish(
            starts_at=booked.starts_at + market.hours(1), ends_at=booked.ends_at + market.hours(4)
        )
        quote = rebookings.quote(
            organization=booked.organization,
            reservation_id=booked.pk,
            wish=wish,
            at=market.NOW,
        )
        change = changes.rebook(
            organization=booked.organization,
            reservation_id=booked.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=market.NOW,
            actor="test",
        )
        (invoice,) = self.documents(booked)
        _, moved = invoice.lines.order_by("position")
        assert moved.net_minor == change.charged_minor > 0
        assert moved.description.startswith("Difference for another window: ")
