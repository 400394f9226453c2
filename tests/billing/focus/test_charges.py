"""Rows of charges, one rule at a time: pure, without a database."""

import datetime as dt
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.budgets import NO_LABELS, History
from billing.focus import charges, numbers, shares
from billing.focus.facts import Deal, Documents, Fact, Payer, Place
from billing.focus.frames import Frames
from billing.states import UndeliveredReason

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
        "said": History((), NO_LABELS),
        "simulated": False,
        "purchased_at": STARTS,
        "is_in_two_parts": False,
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


WHY = UndeliveredReason
NOTES = (Place("CN-1", "inl_2", 200, 0, 1800), Place("CN-2", "inl_3", 401, 0, 5400))


class TestReasons:
    def test_have_a_row_each_and_each_row_says_its_own(self) -> None:
        fact = hour(kind="settlement", net_minor=-100, deferred_minor=-100, delivered=0)
        rows = charges.rows_of(
            fact._replace(undelivered=5400),
            frames=frames(),
            reasons=Counter({WHY.HANDOVER: 1800, WHY.GPU_FAULT: 3600}),
        )
        assert [
            (row["x_UndeliveredReason"], row["x_UndeliveredGpuHours"], row["BilledCost"])
            for row in rows
        ] == [("gpu_fault", "1.0", "-0.67"), ("handover", "0.5", "-0.33")]
        assert rows[0]["ChargeDescription"].endswith(": a GPU failed")

    def test_that_are_not_known_of_all_of_it_leave_the_rest_unknown(self) -> None:
        fact = hour(kind="refund", net_minor=-300, deferred_minor=-300, delivered=0)
        rows = charges.rows_of(
            fact._replace(undelivered=5400),
            frames=frames(),
            reasons=Counter({WHY.RECLAIM: 3600}),
        )
        assert {row["x_UndeliveredReason"]: row["x_UndeliveredGpuHours"] for row in rows} == {
            "reclaim": "1.0",
            "unknown": "0.5",
        }

    def test_are_none_of_what_a_tenant_gave_back(self) -> None:
        fact = hour(kind="refund", net_minor=-300, deferred_minor=-300, delivered=0)
        (row,) = charges.rows_of(fact._replace(released=3600), frames=frames())
        assert (row["x_UndeliveredReason"], row["x_UndeliveredGpuHours"]) == ("", "0.0")

    @pytest.mark.parametrize(
        ("reasons", "expected"),
        [
            pytest.param(
                {WHY.NETWORK: 7200},
                [("CN-1", -200, 1800, "network"), ("CN-2", -401, 5400, "network")],
                id="one alone",
            ),
            pytest.param(
                {WHY.HANDOVER: 2700, WHY.NODE_DOWN: 4500},
                [
                    ("CN-1", -200, 1800, "node_down"),
                    ("CN-2", -200, 2700, "node_down"),
                    ("CN-2", -201, 2700, "handover"),
                ],
                id="over several notes",
            ),
            pytest.param(
                {WHY.GPU_FAULT: 9000, WHY.NETWORK: -1800},
                [
                    ("CN-1", -200, 1800, "gpu_fault"),
                    ("CN-2", -401, 7200, "gpu_fault"),
                    ("", 0, -1800, "network"),
                ],
                id="one taken back",
            ),
        ],
    )
    def test_keep_the_sum_of_each_note_and_of_each_reason(
        self,
        reasons: dict[UndeliveredReason, int],
        expected: list[tuple[str, int, int, str]],
    ) -> None:
        fact = hour(kind="correction", delivered=-7200, earned_minor=-601, net_minor=-601)
        rows = charges.rows_of(
            fact,
            frames=frames(),
            documents=Documents(given_back=NOTES),
            reasons=Counter(reasons),
        )
        found = [
            (
                row["InvoiceId"],
                int(Decimal(row["BilledCost"]) * 100),
                int(Decimal(row["x_UndeliveredGpuHours"]) * 3600),
                row["x_UndeliveredReason"],
            )
            for row in rows
        ]
        assert found == expected
        assert {Decimal(row["PricingQuantity"]) * 3600 for row in rows} == {
            -seconds for _, _, seconds, _ in expected
        }

    @given(
        st.dictionaries(st.sampled_from(UndeliveredReason), st.integers(-5000, 5000), max_size=5),
        st.lists(st.tuples(st.integers(1, 999), st.integers(0, 4000)), max_size=3),
        st.integers(0, 2000),
    )
    def test_add_up_whatever_they_are(
        self,
        reasons: dict[UndeliveredReason, int],
        lines: list[tuple[int, int]],
        rest: int,
    ) -> None:
        total = sum(reasons.values())
        places = tuple(
            Place(f"CN-{number}", f"inl_{number}", minor, 0, seconds)
            for number, (minor, seconds) in enumerate(lines if total >= 0 else [])
        )
        minor = sum(place.net_minor for place in places) + rest
        parts = shares.given_back(minor=minor, seconds=total, places=places)
        found = shares.by_reason(parts, reasons=reasons)
        for place in {part.place for part in parts} - {None}:
            of_place = sum(share.minor for share in found if share.place == place)
            assert place is not None
            assert of_place == place.net_minor
        assert sum(share.minor for share in found) == minor
        for reason in UndeliveredReason:
            of_reason = sum(share.seconds for share in found if share.reason == reason)
            assert of_reason == reasons.get(reason, 0)


class TestTwoParts:
    def test_say_what_they_are_and_the_deposit_alone_has_the_hours(self) -> None:
        bought = hour(kind="purchase", net_minor=250, deferred_minor=250, delivered=0, bought=7200)
        rest = hour(kind="balance", net_minor=350, deferred_minor=350, delivered=0)
        (deposit,) = charges.rows_of(bought, frames=frames(is_in_two_parts=True))
        (balance,) = charges.rows_of(rest, frames=frames(is_in_two_parts=True))
        assert deposit["ChargeDescription"].startswith("Deposit on a reservation")
        assert balance["ChargeDescription"].startswith("Balance of a reservation")
        assert (deposit["x_EventType"], balance["x_EventType"]) == ("purchase", "balance")
        assert (deposit["BilledCost"], balance["BilledCost"]) == ("2.5", "3.5")
        assert (deposit["PricingQuantity"], balance["PricingQuantity"]) == ("2.0", "0.0")
        assert (deposit["ContractedCost"], balance["ContractedCost"]) == ("6.0", "0.0")

    def test_are_not_said_of_what_is_paid_at_once(self) -> None:
        bought = hour(kind="purchase", net_minor=600, deferred_minor=600, delivered=0, bought=7200)
        (row,) = charges.rows_of(bought, frames=frames())
        assert row["ChargeDescription"] == "Reservation of GPUs, paid ahead"


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
