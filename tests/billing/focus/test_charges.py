"""Rows of charges, one rule at a time: pure, without a database."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from billing.focus import charges, numbers
from billing.focus.facts import Deal, Documents, Fact, Payer, Place
from billing.focus.frames import Frames

STARTS = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
PAYER = Payer(
    account_id="org_1",
    account_name="Perceptron AG",
    issuer_name="Headroom",
    starts_at=STARTS,
    ends_at=dt.datetime(2026, 12, 1, tzinfo=dt.UTC),
)

PAPERS = Documents(charged=Place("HR-1", "inl_1", 600, 114, 7200))
SEVERAL = Documents(
    given_back=(Place("HR-CN-1", "inl_2", 200, 0, 1800), Place("HR-CN-2", "inl_3", 400, 80, 1800))
)


def frames(*, currency: str = "usd", **changes: Any) -> Frames:
    values: dict[str, Any] = {
        "reservation_id": "rsv_1",
        "quote_id": "qte_1",
        "gpu_model": "h100-sxm-80gb",
        "gpu_model_name": "NVIDIA H100",
        "gpus": 2,
        "region": "eu-north",
        "tier": "firm",
        "starts_at": STARTS,
        "ends_at": STARTS + 4 * HOUR,
        "rate": Decimal("3.000000"),
        "base_rate": Decimal("2.000000"),
        "multiplier": "1.500000",
        "is_dynamic": True,
        "name": "",
        "project": "",
        "tags": {},
        "simulated": False,
        "purchased_at": STARTS,
    }
    return Frames(payer=PAYER, deal=Deal(**{**values, **changes}), currency=currency)


def hour(**changes: Any) -> Fact:
    values: dict[str, Any] = {
        "reservation_id": "rsv_1",
        "lease_id": "lse_1",
        "entry_id": "ent_1",
        "kind": "earning",
        "currency": "usd",
        "effective_at": STARTS + HOUR,
        "starts_at": STARTS,
        "ends_at": STARTS + HOUR,
        "deferred_minor": -600,
        "delivered": 7200,
        "metered": 7200,
        "measured": 7200,
        "worth_micros": 3_000_000 * 7200,
    }
    return Fact(**{**values, **changes})


class TestHour:
    @pytest.mark.parametrize(
        ("attached", "busy", "measured", "used", "unused"),
        [
            pytest.param(7200, 100, 7200, "2.0", None, id="a workload all the time"),
            pytest.param(1800, 100, 7200, "0.5", "1.5", id="a workload for a part"),
            pytest.param(0, 0, 7200, None, "2.0", id="no workload"),
            pytest.param(None, 3600, 7200, "1.0", "1.0", id="only busy is known"),
            pytest.param(None, 0, 0, "2.0", None, id="nothing is known"),
            pytest.param(0, 3600, 7200, "1.0", "1.0", id="busy without a sign of memory"),
        ],
    )
    def test_is_divided_by_whether_a_workload_was_there(
        self,
        attached: int | None,
        busy: int,
        measured: int,
        used: str | None,
        unused: str | None,
    ) -> None:
        rows = charges.rows_of(
            hour(attached=attached, busy=busy, measured=measured), frames=frames()
        )
        found = {row["CapacityReservationStatus"]: row["PricingQuantity"] for row in rows}
        assert found == {
            name: hours for name, hours in (("Used", used), ("Unused", unused)) if hours
        }
        assert sum(Decimal(row["EffectiveCost"]) for row in rows) == Decimal("6.00")
        assert {row["BilledCost"] for row in rows} == {"0.0"}

    def test_says_nothing_of_what_nothing_measured(self) -> None:
        (row,) = charges.rows_of(hour(metered=0, measured=0), frames=frames())
        assert (row["x_AttachedGpuHours"], row["x_BusyGpuHours"]) == ("", "")
        assert row["x_EnergyKilowattHours"] == ""
        assert row["x_MeterCoverageRatio"] == "0.0"

    def test_says_zero_of_what_was_measured_and_was_none(self) -> None:
        (row,) = charges.rows_of(hour(attached=0, busy=0, energy_millijoules=0), frames=frames())
        assert (row["x_AttachedGpuHours"], row["x_BusyGpuHours"]) == ("0.0", "0.0")
        assert row["x_EnergyKilowattHours"] == "0.0"

    def test_tells_the_price_before_any_surge_beside_the_locked_one(self) -> None:
        (row,) = charges.rows_of(hour(), frames=frames())
        assert (row["ListUnitPrice"], row["ListCost"]) == ("2.0", "4.0")
        assert (row["ContractedUnitPrice"], row["ContractedCost"]) == ("3.0", "6.0")
        assert (row["x_SurgeMultiplier"], row["PricingCategory"]) == ("1.500000", "Dynamic")

    def test_has_the_price_of_its_own_hour_where_hours_differ(self) -> None:
        (row,) = charges.rows_of(hour(worth_micros=5_000_000 * 7200), frames=frames())
        assert row["ContractedUnitPrice"] == "5.0"


class TestRefund:
    def test_of_a_purchase_of_an_earlier_month_is_a_correction(self) -> None:
        fact = hour(
            kind="refund", net_minor=-300, deferred_minor=-300, delivered=0, undelivered=3600
        )
        for bought_at, expected in ((STARTS, ""), (STARTS - HOUR, "Correction")):
            (row,) = charges.rows_of(fact, frames=frames(purchased_at=bought_at))
            assert row["ChargeClass"] == expected
            assert (row["BilledCost"], row["PricingQuantity"]) == ("-3.0", "-1.0")
            assert Decimal(row["EffectiveCost"]) == 0


class TestChange:
    def test_that_gives_back_for_a_fee_is_a_refund_and_a_fee(self) -> None:
        fact = hour(
            kind="change",
            net_minor=-450,
            deferred_minor=-500,
            delivered=0,
            released=7200,
            fee_minor=150,
        )
        refund, fee = charges.rows_of(fact, frames=frames())
        assert (refund["BilledCost"], refund["ContractedUnitPrice"]) == ("-4.5", "3.0")
        assert (fee["BilledCost"], fee["EffectiveCost"]) == ("0.0", "1.5")
        assert (fee["SkuId"], fee["CapacityReservationStatus"]) == ("fee.cancellation", "Unused")

    def test_that_moves_a_window_charges_and_refunds(self) -> None:
        fact = hour(
            kind="change",
            net_minor=100,
            deferred_minor=100,
            delivered=0,
            bought=7200,
            released=3600,
            charged_minor=400,
        )
        added, back = charges.rows_of(fact, frames=frames())
        assert (added["BilledCost"], back["BilledCost"]) == ("4.0", "-3.0")


class TestUnknownEntry:
    def test_is_told_as_an_adjustment(self) -> None:
        fact = hour(kind="reversal", net_minor=-100, deferred_minor=-40, delivered=0)
        (row,) = charges.rows_of(fact, frames=frames())
        assert (row["ChargeCategory"], row["BilledCost"]) == ("Adjustment", "-1.0")
        assert row["EffectiveCost"] == "-0.6"


class TestDocuments:
    def test_name_what_was_charged_and_what_went_back_and_the_line_of_its_tax(self) -> None:
        fact = hour(kind="purchase", net_minor=600, deferred_minor=600, bought=7200, tax_minor=114)
        bought, tax = charges.rows_of(fact, frames=frames(), documents=PAPERS)
        assert (bought["InvoiceId"], bought["InvoiceDetailId"]) == ("HR-1", "inl_1")
        assert (tax["InvoiceId"], tax["InvoiceDetailId"]) == ("HR-1", "inl_1.tax")

    def test_are_not_named_by_what_is_not_on_them(self) -> None:
        credit = hour(kind="credit", net_minor=-60, deferred_minor=0)
        for fact in (credit, hour()):
            (row,) = charges.rows_of(fact, frames=frames(), documents=Documents())
            assert row["InvoiceId"] == ""

    @pytest.mark.parametrize(
        ("refunded", "expected"),
        [
            pytest.param(
                600, {"HR-CN-1": ("-2.0", "-0.5"), "HR-CN-2": ("-4.0", "-1.5")}, id="all credited"
            ),
            pytest.param(
                700,
                {"HR-CN-1": ("-2.0", "-0.5"), "HR-CN-2": ("-4.0", "-0.5"), "": ("-1.0", "-1.0")},
                id="more than was invoiced",
            ),
        ],
    )
    @pytest.mark.parametrize("kind", ["refund", "settlement", "change", "correction"])
    def test_that_share_a_refund_have_a_row_each_and_the_rest_is_on_none(
        self, kind: str, refunded: int, expected: dict[str, tuple[str, str]]
    ) -> None:
        fact = {
            "refund": hour(kind="refund", undelivered=7200, delivered=0),
            "settlement": hour(kind="settlement", undelivered=7200, delivered=0),
            "change": hour(kind="change", released=7200, delivered=0),
            "correction": hour(kind="correction", delivered=-7200, earned_minor=-refunded),
        }[kind]._replace(net_minor=-refunded, deferred_minor=-refunded, tax_minor=-90)
        rows = charges.rows_of(
            fact._replace(tax_refunded_minor=90), frames=frames(), documents=SEVERAL
        )
        billed = [row for row in rows if row["ChargeCategory"] != "Tax"]
        assert {
            row["InvoiceId"]: (row["BilledCost"], row["PricingQuantity"]) for row in billed
        } == (expected)
        assert sum(Decimal(row["PricingQuantity"]) for row in billed) == -2
        taxes = [row for row in rows if row["ChargeCategory"] == "Tax"]
        assert [(row["InvoiceDetailId"], row["BilledCost"]) for row in taxes] == [
            ("inl_3.tax", "-0.8"),
            ("", "-0.1"),
        ]


class TestNumbers:
    @pytest.mark.parametrize(
        ("number", "places", "text"),
        [(471, 2, "4.71"), (400, 2, "4.0"), (-5, 2, "-0.05"), (7, 0, "7.0"), (0, 6, "0.0")],
    )
    def test_always_have_a_point(self, number: int, places: int, text: str) -> None:
        assert numbers.decimal(number, places) == text

    @pytest.mark.parametrize(
        ("currency", "text"), [("usd", "4.71"), ("jpy", "471.0"), ("kwd", "0.471")]
    )
    def test_are_in_the_major_unit_of_their_currency(self, currency: str, text: str) -> None:
        assert numbers.money(471, currency) == text

    @pytest.mark.parametrize(("numerator", "expected"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2)])
    def test_round_ties_to_even(self, numerator: int, expected: int) -> None:
        assert numbers.half_even(numerator, 2) == expected

    @pytest.mark.parametrize("part", range(0, 7200, 601))
    def test_of_the_parts_of_an_hour_add_up(self, part: int) -> None:
        used, unused = numbers.shares(471, part=part, whole=7200, currency="usd")
        assert Decimal(used) + Decimal(unused) == Decimal("4.71")
