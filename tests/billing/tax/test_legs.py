"""The tax of every entry that moves a price: charged with it, given back with it, never off by a unit."""

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing import (
    accounts,
    books,
    corrections,
    ledger,
    promotions,
    purchases,
    receivables,
    refunds,
    service_credits,
    settlements,
    tax,
    tax_reports,
    wallet,
)
from billing.models import Entry, ReservationTax, Settlement, TaxLine
from billing.states import AccountKind, EntryKind
from billing.tax_rules import publish_rule
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.billing.debtors import grant
from tests.billing.readings import balance

pytestmark = pytest.mark.django_db

AT = factories.START
LATER = AT + dt.timedelta(days=2)


def buyer(*, funds: int = 10_000, basis_points: int = 1900, treatment: str = "standard"):
    return factories.taxed(
        buyer=factories.tenant(funds_minor=funds), basis_points=basis_points, treatment=treatment
    )


def payable(*, place: str = "DE", currency: str = "usd") -> int:
    return ledger.balance(account=accounts.tax_payable(jurisdiction=place, currency=currency))


def held(row: Reservation) -> int:
    return wallet.balance(organization=row.organization).amount_minor


def assert_books_hold() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
    report = books.check(at=LATER)
    assert report.ok, [check for check in report.checks if not check.ok]


# Worked by hand: the tax of the net price, and what goes back with each refund until nothing is kept.
# 471 × 19 % = 89.49; 353 keep 67.07. 625 × 10 % = 62.5, half to even. 10 × 25.5 % = 2.55; of 9, 8, … kept:
# 2.295 2.04 1.785 1.53 1.275 1.02 0.765 0.51 0.255. 2 × 25 % = 0.5 and 6 × 25 % = 1.5, half to even.
TABLE = [
    ("usd", 1900, 471, 89, [(118, 22), (353, 67)]),
    ("jpy", 1000, 625, 62, [(313, 31), (312, 31)]),
    ("usd", 2550, 10, 3, [(1, b) for b in (1, 0, 0, 0, 1, 0, 0, 0, 1, 0)]),
    ("usd", 2500, 2, 0, [(1, 0), (1, 0)]),
    ("usd", 2500, 6, 2, [(4, 2), (2, 0)]),
    ("kwd", 500, 4706, 235, [(1, 0), (4705, 235)]),
    ("usd", 0, 471, 0, [(471, 0)]),
]


@pytest.mark.parametrize(("currency", "rate", "net", "whole", "steps"), TABLE)
def test_the_parts_of_a_tax_are_those_of_the_table_and_come_back_to_nothing(
    settings, currency, rate, net, whole, steps
):
    settings.CURRENCY = currency
    tenant = factories.tenant()
    wallet.record_deposit(
        organization=tenant,
        amount=Money(net + whole, currency),
        idempotency_key="all of it",
        at=AT,
        actor="test",
    )
    factories.taxed(buyer=tenant, basis_points=rate)
    row = factories.reservation(buyer=tenant, total_minor=net, currency=currency)
    assert payable(currency=currency) == whole
    assert wallet.balance(organization=tenant).amount_minor == 0
    for number, (given_back, taxed) in enumerate(steps):
        part = tax.part_of(reservation=row, key=f"step {number}", refunded=given_back)
        assert part.refunded == taxed, (number, part)
        entry = ledger.post(
            idempotency_key=f"step {number}",
            kind=EntryKind.CHANGE,
            subject_id=f"step {number}",
            effective_at=AT,
            legs=ledger.differences(
                [
                    (
                        accounts.of_reservation(
                            kind=AccountKind.DEFERRED, reservation=row, currency=currency
                        ),
                        accounts.wallet(organization=tenant, currency=currency),
                        given_back,
                    ),
                    *tax.rows(
                        part,
                        reservation=row,
                        payer=accounts.wallet(organization=tenant, currency=currency),
                        payee=accounts.wallet(organization=tenant, currency=currency),
                    ),
                ]
            ),
        )
        tax.note(part, reservation=row, entry=entry, at=AT)
    assert payable(currency=currency) == 0
    assert wallet.balance(organization=tenant).amount_minor == net + whole


class TestPurchase:
    def test_takes_the_tax_with_the_price(self):
        row = factories.reservation(buyer=buyer(funds=560))
        assert (held(row), payable(), balance(AccountKind.DEFERRED, row.id)) == (0, 89, 471)
        line = TaxLine.objects.get()
        assert (line.net_charged_minor, line.tax_charged_minor, line.currency) == (471, 89, "usd")
        assert_books_hold()

    def test_names_what_is_missing_with_the_tax(self):
        tenant = buyer(funds=559)
        with pytest.raises(ledger.InsufficientFunds) as refused:
            factories.reservation(buyer=tenant)
        assert refused.value.extra["missing"] == {"amount_minor": 1, "currency": "usd"}

    def test_that_is_repeated_moves_nothing(self):
        row = factories.reservation(buyer=buyer())
        purchases.post(reservation=Reservation.objects.get(pk=row.pk), at=AT)
        assert (payable(), TaxLine.objects.count()) == (89, 1)

    @pytest.mark.parametrize("treatment", ["reverse_charge", "exempt"])
    def test_that_is_not_taxed_is_in_the_report_all_the_same(self, treatment):
        row = factories.reservation(buyer=buyer(funds=471, treatment=treatment))
        line = TaxLine.objects.get()
        assert (line.net_charged_minor, line.tax_charged_minor) == (471, 0)
        assert (held(row), payable()) == (0, 0)
        assert_books_hold()

    def test_of_a_tenant_without_a_status_keeps_no_terms_and_writes_no_line(self):
        factories.reservation(buyer=factories.tenant(funds_minor=471))
        assert not ReservationTax.objects.exists()
        assert not TaxLine.objects.exists()

    def test_spends_a_promotion_on_the_tax_as_well(self):
        row = factories.reservation(buyer=buyer(funds=0), paid=False)
        factories.promotion(buyer=row.organization, minor=600)
        price = purchases.price_with_tax(reservation=row)
        spent = promotions.spend(reservation=row, amount_minor=price, key=row.pk, at=AT)
        assert spent == price == 560
        purchases.post(reservation=row, at=AT)
        assert (held(row), payable()) == (0, 89)


class TestSettlement:
    def test_leaves_the_tax_of_what_was_delivered(self):
        row = factories.reservation(buyer=buyer())
        lease = factories.lease(of=row)
        factories.meter_fully(of=lease)
        settlements.settle(lease_id=lease.id, at=LATER)
        assert (held(row), payable()) == (10_000 - 560, 89)
        assert_books_hold()

    def test_gives_back_the_tax_of_what_was_not_and_credits_without_tax(self):
        row = factories.reservation(buyer=buyer())
        lease = factories.lease(of=row, returned_after_seconds=2700)
        settlement = settlements.settle(lease_id=lease.id, at=LATER)
        assert (settlement.refunded_minor, settlement.credit_minor) == (118, 12)
        assert held(row) == 10_000 - 560 + 118 + 22 + 12
        assert payable() == 67
        filed = TaxLine.objects.order_by("-pk").first().at
        assert filed == lease.ends_at - dt.timedelta(microseconds=1)  # with the lease's own month
        assert_books_hold()

    def test_of_several_leases_adds_up_to_the_tax_of_what_all_delivered(self):
        row = factories.reservation(buyer=buyer(), gpus=3, total_minor=1000)
        for seconds in (1, 1799, 3599):
            factories.lease(of=row, gpus=1, returned_after_seconds=seconds)
        for lease in row.leases.order_by("-pk"):
            settlements.settle(lease_id=lease.id, at=LATER)
        kept = 1000 - sum(each.refunded_minor for each in Settlement.objects.all())
        assert payable() == round(kept * 19 / 100)
        assert_books_hold()

    def test_of_nothing_gives_all_of_the_tax_back(self):
        row = factories.reservation(buyer=buyer(), status=ReservationStatus.FAILED)
        assert settlements.refund_rest(reservation_id=row.id, at=LATER)
        credit = service_credits.credit_for(refunded_minor=471)
        assert (held(row), payable()) == (10_000 + credit, 0)
        assert_books_hold()

    def test_sends_the_tax_back_the_way_it_came(self):
        row = factories.reservation(buyer=buyer(), paid=False)
        row.payment_method = PaymentMethod.CARD
        row.save(update_fields=["payment_method"])
        factories.paid_by_card(row)
        assert balance(AccountKind.PSP_CLEARING, "pi_1") == 560
        Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.FAILED)
        settlements.refund_rest(reservation_id=row.id, at=LATER)
        (refund,) = refunds.open_for(reservation_id=row.id, at=LATER)
        assert refund.amount_minor == 560

    def test_asks_no_more_of_the_database_where_nobody_is_taxed(self):
        counts = []
        for tenant in (factories.tenant(funds_minor=5000), buyer(funds=5000)):
            row = factories.reservation(buyer=tenant)
            lease = factories.lease(of=row)
            factories.meter_fully(of=lease)
            with CaptureQueriesContext(
                connection,
            ) as caught:
                settlements.settle(lease_id=lease.id, at=LATER)
            counts.append(len(caught))
        # A lease that was delivered whole moves no tax: what its purchase charged stands.
        assert counts[0] == counts[1]


class TestCorrection:
    def late(self, row: Reservation, *, seconds: int = 900) -> Settlement:
        lease = factories.lease(of=row)
        factories.meter_fully(of=lease)
        settlements.settle(lease_id=lease.id, at=LATER)
        factories.outage(of=lease, seconds=seconds)
        return Settlement.objects.get(lease=lease)

    def test_in_the_tenants_favour_gives_back_its_tax(self):
        row = factories.reservation(buyer=buyer())
        settlement = self.late(row)
        made = corrections.review(settlement_id=settlement.pk, at=settlement.review_due_at)
        assert made.refunded_minor == 59
        assert (payable(), held(row)) == (78, 10_000 - 560 + 59 + 11 + made.credit_minor)
        assert_books_hold()

    @pytest.mark.parametrize(
        ("left", "charged", "taxed"),
        [(1000, 118, 22), (140, 118, 22), (139, 117, 22), (1, 1, 0), (0, 0, 0)],
    )
    def test_against_the_tenant_charges_what_the_wallet_covers_with_the_tax_of_that(
        self, left, charged, taxed
    ):
        row = factories.reservation(buyer=buyer())
        lease = factories.lease(of=row)
        outage = factories.outage(of=lease, seconds=1800)
        settlement = settlements.settle(lease_id=lease.id, at=LATER)
        assert settlement.refunded_minor == 118
        spend_down(row, left=left)
        outage.delete()
        made = corrections.review(settlement_id=settlement.pk, at=settlement.review_due_at)
        assert (made.refunded_minor, made.borne_minor) == (-118, 118 - charged)
        assert (payable(), held(row)) == (67 + taxed, left - charged - taxed)
        assert_books_hold()


def spend_down(row: Reservation, *, left: int) -> None:
    """Take out of a wallet what is more than `left`."""
    ledger.post(
        idempotency_key="spent",
        kind=EntryKind.WITHDRAWAL,
        subject_id="spent",
        effective_at=AT,
        legs=ledger.differences(
            [
                (
                    accounts.wallet(organization=row.organization, currency="usd"),
                    accounts.shared(kind=AccountKind.BANK, currency="usd"),
                    held(row) - left,
                )
            ]
        ),
    )


class TestInvoice:
    def on_account(self) -> Reservation:
        row = factories.reservation(buyer=buyer(funds=0), paid=False)
        row.payment_method = PaymentMethod.INVOICE
        row.save(update_fields=["payment_method"])
        self.invoice_id = factories.bought_on_account(row)
        return row

    def test_asks_for_price_and_tax(self):
        self.on_account()
        assert (balance(AccountKind.RECEIVABLE, self.invoice_id), payable()) == (560, 89)
        assert_books_hold()

    def test_of_what_is_given_back_is_owed_by_nobody(self):
        grant(factories.tenant(), at=AT)
        factories.given_back(self.on_account())
        assert (balance(AccountKind.RECEIVABLE, self.invoice_id), payable()) == (0, 0)
        assert_books_hold()

    @pytest.mark.parametrize(
        ("has_relief", "given_up", "relief"), [(True, 560, 89), (True, 100, 16), (False, 560, 0)]
    )
    def test_that_is_written_off_gives_relief_where_the_law_does(
        self, settings, has_relief, given_up, relief
    ):
        settings.TAX_RELIEF_ON_BAD_DEBT = has_relief
        row = self.on_account()
        for _ in range(2):
            receivables.write_off(
                organization=row.organization,
                invoice_id=self.invoice_id,
                amount_minor=given_up,
                currency="usd",
                decision_id="apr_1",
                at=AT,
            )
        bad_debt = ledger.balance(account=ledger.AccountRef(AccountKind.BAD_DEBT, "usd"))
        assert (bad_debt, payable()) == (given_up - relief, 89 - relief)
        assert balance(AccountKind.RECEIVABLE, self.invoice_id) == 560 - given_up
        # The sale stands: what it keeps, and what is filed as sold, is what it was.
        assert tax.net_kept(reservation=row) == 471
        (filed,) = tax_reports.month_report(month="2026-11", at=LATER)
        assert (filed.net, filed.tax, filed.relief, filed.due) == (471, 89, relief, 89 - relief)
        assert_books_hold()

    def test_that_is_written_off_in_parts_gives_the_relief_of_the_whole(self, settings):
        settings.TAX_RELIEF_ON_BAD_DEBT = True
        row = self.on_account()
        for number in range(7):
            receivables.write_off(
                organization=row.organization,
                invoice_id=self.invoice_id,
                amount_minor=80,
                currency="usd",
                decision_id=f"apr_{number}",
                at=AT,
            )
        assert (balance(AccountKind.RECEIVABLE, self.invoice_id), payable()) == (0, 0)
        assert_books_hold()

    def test_that_is_written_off_after_a_refund_gives_relief_for_what_is_still_taxed_alone(
        self, settings
    ):
        settings.TAX_RELIEF_ON_BAD_DEBT = True
        row = self.on_account()
        Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.FAILED)
        settlements.refund_rest(reservation_id=row.id, at=LATER)
        assert payable() == 0
        receivables.write_off(
            organization=row.organization,
            invoice_id=self.invoice_id,
            amount_minor=560,
            currency="usd",
            decision_id="apr_1",
            at=LATER,
        )
        assert payable() == 0
        assert_books_hold()

    @pytest.mark.parametrize(
        ("given_up", "delivered_seconds", "kept_tax"),
        [(560, 0, 0), (560, 1800, 45), (100, 1800, 45), (100, 0, 0)],
    )
    def test_that_is_written_off_before_a_refund_gives_back_no_tax_twice(
        self, settings, given_up, delivered_seconds, kept_tax
    ):
        settings.TAX_RELIEF_ON_BAD_DEBT = True
        row = self.on_account()
        receivables.write_off(
            organization=row.organization,
            invoice_id=self.invoice_id,
            amount_minor=given_up,
            currency="usd",
            decision_id="apv_1",
            at=AT,
        )
        relief = 89 - payable()
        if delivered_seconds:
            lease = factories.lease(of=row, returned_after_seconds=delivered_seconds)
            settlements.settle(lease_id=lease.id, at=LATER)
        Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.FAILED)
        settlements.refund_rest(reservation_id=row.id, at=LATER)
        assert payable() == kept_tax - min(relief, kept_tax)
        (filed,) = tax_reports.month_report(month="2026-11", at=LATER)
        assert (filed.tax, filed.relief) == (kept_tax, min(relief, kept_tax))
        # What the office does not give is the market's loss.
        bad_debt = ledger.balance(account=ledger.AccountRef(AccountKind.BAD_DEBT, "usd"))
        assert bad_debt == given_up - filed.relief
        assert_books_hold()


class TestInvariants:
    def broken(self) -> list[str]:
        return [check.name for check in books.check(at=LATER).checks if not check.ok]

    def test_find_a_tax_that_is_not_that_of_what_was_kept(self, unguarded):
        factories.reservation(buyer=buyer())
        with unguarded():
            ReservationTax.objects.update(rate_basis_points=700)
        assert self.broken() == ["tax_is_that_of_what_was_kept", "tax_payable_is_what_sales_owe"]

    def test_find_a_line_that_says_something_else_than_its_entry(self, unguarded):
        factories.reservation(buyer=buyer())
        with unguarded():
            TaxLine.objects.update(tax_charged_minor=88)
        assert self.broken() == ["tax_is_that_of_what_was_kept", "tax_postings_equal_their_lines"]

    def test_find_a_line_that_is_missing(self, unguarded):
        row = factories.reservation(buyer=buyer())
        with unguarded():
            TaxLine.objects.all().delete()
        report = books.check(at=LATER)
        assert {"tax_is_that_of_what_was_kept", "tax_postings_equal_their_lines"} <= set(
            self.broken()
        )
        assert set(books.breaches_of(report)) == {row.organization_id}

    def test_find_tax_that_was_moved_to_another_place(self, unguarded):
        factories.reservation(buyer=buyer())
        publish_rule(jurisdiction="FR", name="TVA", rate_basis_points=2000, at=AT, actor="test")
        with unguarded():
            ReservationTax.objects.update(jurisdiction="FR")
        assert "tax_payable_is_what_sales_owe" in self.broken()


def test_a_settlement_of_a_taxed_lease_that_is_killed_leaves_no_line(monkeypatch):
    row = factories.reservation(buyer=buyer())
    lease = factories.lease(of=row, returned_after_seconds=1800)

    def die(step: str) -> None:
        if step == "settlement.posted":
            raise RuntimeError(step)

    monkeypatch.setattr("billing.steps.reached", die)
    with pytest.raises(RuntimeError):
        settlements.settle(lease_id=lease.id, at=LATER)
    assert (TaxLine.objects.count(), Entry.objects.filter(kind="settlement").count()) == (1, 0)
    monkeypatch.undo()
    settlements.settle(lease_id=lease.id, at=LATER)
    assert_books_hold()
