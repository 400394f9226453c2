"""Who pays which tax: rules and statuses by version, and the terms that a sale keeps."""

import datetime as dt

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from billing import tax, tax_rules
from billing.models import TaxRule, TaxStatus
from billing.states import TaxTreatment
from marketplace.core.errors import InvalidValue
from marketplace.models import AuditEvent
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = factories.START
DAY = dt.timedelta(days=1)


def publish(*, place: str = "DE", rate: int = 1900, valid_from: dt.datetime | None = None, **more):
    return tax_rules.publish_rule(
        jurisdiction=place,
        name=more.pop("name", "VAT"),
        rate_basis_points=rate,
        valid_from=valid_from,
        at=more.pop("at", AT),
        actor="anna",
    )


def put(*, place: str = "DE", treatment: str = "standard", **more):
    return tax_rules.set_status(
        organization=more.pop("organization", None) or factories.tenant(),
        jurisdiction=place,
        treatment=treatment,
        at=more.pop("at", AT),
        actor="anna",
        **more,
    )


class TestRules:
    def test_hold_from_their_instant_on_and_leave_the_version_before_in_force_until_then(self):
        publish(rate=1900)
        publish(rate=1600, valid_from=AT + DAY)
        at_once, later = (
            tax_rules.rule_at(jurisdiction="DE", at=AT + hours)
            for hours in (DAY - dt.timedelta(microseconds=1), DAY)
        )
        assert (at_once.rate_basis_points, later.rate_basis_points) == (1900, 1600)
        assert tax_rules.rule_at(jurisdiction="DE", at=AT - DAY) is None
        assert tax_rules.rule_at(jurisdiction="FR", at=AT) is None

    def test_are_corrected_before_they_hold_by_a_higher_version_of_the_same_instant(self):
        for rate in (1900, 700):
            publish(rate=rate, valid_from=AT + DAY)
        assert tax_rules.rule_at(jurisdiction="DE", at=AT + DAY).rate_basis_points == 700

    def test_leave_a_line_in_the_trail(self):
        publish(rate=1900)
        line = AuditEvent.objects.get(action="tax_rule.published")
        assert (line.object_id, line.actor, line.detail["rate_basis_points"]) == (
            "DE:1",
            "anna",
            1900,
        )

    @pytest.mark.parametrize("place", ["", "de", "D", "DEU", "DE-", "US-CALI", "DE\n"])
    def test_refuse_what_is_no_place(self, place):
        with pytest.raises(InvalidValue) as refused:
            publish(place=place)
        assert refused.value.pointer == "/jurisdiction"

    @pytest.mark.parametrize(
        ("wrong", "pointer"),
        [
            ({"rate": -1}, "/rate_basis_points"),
            ({"rate": 10_001}, "/rate_basis_points"),
            ({"name": " "}, "/name"),
            ({"valid_from": AT - DAY}, "/valid_from"),
        ],
    )
    def test_refuse_what_makes_no_sense(self, wrong, pointer):
        with pytest.raises(InvalidValue) as refused:
            publish(**wrong)
        assert refused.value.pointer == pointer
        assert not TaxRule.objects.exists()


class TestStatus:
    def test_says_no_tax_for_whom_nobody_gave_one(self):
        publish()
        assert tax.current_terms(organization=factories.tenant(), at=AT) == tax.NO_TAX

    def test_takes_the_rate_from_the_rule_of_its_place(self):
        publish(rate=2550)
        put()
        terms = tax.current_terms(organization=factories.tenant(), at=AT)
        assert (terms.jurisdiction, terms.rate_basis_points) == ("DE", 2550)
        assert terms.note == "VAT 25.5 % (DE)"

    def test_of_reverse_charge_names_who_accounts_for_the_tax_and_asks_for_none(self):
        put(treatment="reverse_charge", tax_id="DE123456789")
        terms = tax.current_terms(organization=factories.tenant(), at=AT)
        assert (terms.rate_basis_points, terms.treatment) == (0, TaxTreatment.REVERSE_CHARGE)
        assert "DE123456789" in terms.note

    def test_changes_at_its_instant(self):
        publish()
        put()
        put(treatment="exempt", valid_from=AT + DAY)
        treatments = [
            tax.current_terms(organization=factories.tenant(), at=at).treatment
            for at in (AT, AT + DAY)
        ]
        assert treatments == [TaxTreatment.STANDARD, TaxTreatment.EXEMPT]
        assert AuditEvent.objects.filter(action="tax_status.set").count() == 2

    def test_refuses_a_place_without_a_rule_where_it_would_tax(self):
        publish(valid_from=AT + DAY)
        with pytest.raises(tax_rules.NoTaxRule):
            put()
        put(valid_from=AT + DAY)

    @pytest.mark.parametrize(
        ("wrong", "pointer"),
        [
            ({"treatment": "reverse_charge"}, "/tax_id"),
            ({"treatment": "lower"}, "/treatment"),
            ({"place": "Germany"}, "/jurisdiction"),
            ({"valid_from": AT - DAY}, "/valid_from"),
            ({"tax_id": "x" * 41}, "/tax_id"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, wrong, pointer):
        publish()
        with pytest.raises(InvalidValue) as refused:
            put(**wrong)
        assert refused.value.pointer == pointer
        assert not TaxStatus.objects.exists()

    def test_refuses_an_organization_that_buys_nothing(self):
        publish()
        with pytest.raises(InvalidValue, match="buys"):
            put(organization=factories.owner())


class TestTerms:
    def test_of_a_reservation_are_those_of_its_purchase_whatever_comes_later(self):
        buyer = factories.taxed(buyer=factories.tenant(funds_minor=10_000))
        row = factories.reservation(buyer=buyer)
        publish(rate=700)
        put(organization=buyer, treatment="exempt")
        row.refresh_from_db()
        assert tax.terms_of(reservation=row).rate_basis_points == 1900
        tax.freeze(reservation=row, at=AT)
        assert tax.terms_of(reservation=row).rate_basis_points == 1900

    def test_of_one_that_was_bought_without_a_status_stay_no_tax(self):
        row = factories.reservation(buyer=factories.tenant(funds_minor=10_000))
        factories.taxed(buyer=row.organization)
        row.refresh_from_db()
        assert tax.terms_of(reservation=row) == tax.NO_TAX


class TestGuards:
    """What PostgreSQL refuses, whoever asks."""

    @pytest.mark.parametrize("table", ["reservationtax", "taxline", "taxrule", "taxstatus"])
    @pytest.mark.parametrize(
        "statement",
        ["UPDATE billing_{} SET {}", "DELETE FROM billing_{}", "TRUNCATE billing_{} CASCADE"],
    )
    def test_refuse_every_change_of_what_was_written(self, table, statement):
        factories.reservation(buyer=factories.taxed(buyer=factories.tenant(funds_minor=10_000)))
        change = {
            "reservationtax": "rate_basis_points = 0",
            "taxline": "tax_charged_minor = 0",
            "taxrule": "rate_basis_points = 0",
            "taxstatus": "treatment = 'exempt'",
        }[table]
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
                cursor.execute(statement.format(table, change))

    def test_refuse_a_rule_for_the_past(self):
        with pytest.raises(IntegrityError, match="tax_rule_is_not_backdated"), transaction.atomic():
            TaxRule.objects.create(
                jurisdiction="DE",
                version=1,
                name="VAT",
                rate_basis_points=1900,
                valid_from=AT - DAY,
                created_at=AT,
                created_by="",
            )

    def test_refuse_reverse_charge_for_nobody(self):
        with pytest.raises(IntegrityError, match="tax_status_names_who_pays"), transaction.atomic():
            TaxStatus.objects.create(
                organization=factories.tenant(),
                version=1,
                jurisdiction="DE",
                treatment="reverse_charge",
                valid_from=AT,
                created_at=AT,
                created_by="",
            )
