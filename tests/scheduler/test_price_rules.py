"""Price rules: two people change them, quotes keep theirs, and their curves are seen beforehand."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from agents.models import Node
from marketplace.core.errors import NotFound, StateConflict
from marketplace.models import AuditEvent, Listing, User
from marketplace.states import Tier
from scheduler import price_rules
from scheduler.models import PriceRule, PriceRuleTransition
from scheduler.pool_keys import PoolKey
from scheduler.price_rules import RuleWish
from scheduler.prices import PriceTable, refresh, replay, tables
from scheduler.pricing import Rule, RuleInvalid
from scheduler.states import PriceRuleStatus
from tests.marketplace.test_admin import PLAIN_FILES
from tests.scheduler.factories import (
    MODEL,
    NOW,
    REGION,
    hours,
    lots_of,
    make_pool,
    make_quote,
    make_reservation,
    window_in,
)

pytestmark = pytest.mark.django_db
KEY = PoolKey(gpu_model_id=MODEL, region=REGION, tier=Tier.FIRM)
ADD = "/admin/scheduler/pricerule/propose/"
LIST = "/admin/scheduler/pricerule/"


@pytest.fixture(autouse=True)
def _plain_files() -> Iterator[None]:
    with PLAIN_FILES:
        yield


def a_user(name: str) -> User:
    return User.objects.create_user(username=name, is_staff=True, is_superuser=True)


def a_proposal(*, by: User, **changes: Any) -> PriceRule:
    values: dict[str, Any] = {
        "rule": Rule(),
        "gpu_model_id": None,
        "base_rate": None,
        "reason": "a try",
        **changes,
    }
    return price_rules.propose(wish=RuleWish(**values), by=by, at=NOW)


def an_approved_rule(**changes: Any) -> PriceRule:
    number = PriceRule.objects.count()
    row = a_proposal(by=a_user(f"alice{number}"), **changes)
    return price_rules.approve(number=row.number, by=a_user(f"bob{number}"), at=NOW)


def refreshed(at: dt.datetime) -> PriceTable:
    Node.objects.update(last_report_at=at)
    refresh.refresh_due(at=at)
    return tables(keys=[KEY], at=at)[KEY]


class TestRule:
    def test_is_not_in_force_before_somebody_else_approves(self) -> None:
        alice, bob = a_user("alice"), a_user("bob")
        row = a_proposal(by=alice, rule=Rule(cap_multiple=Decimal(2)))

        assert price_rules.in_force(gpu_model_id=MODEL, at=NOW).number == 0
        with pytest.raises(price_rules.FourEyes):
            price_rules.approve(number=row.number, by=alice, at=NOW)
        price_rules.approve(number=row.number, by=bob, at=NOW)

        found = price_rules.in_force(gpu_model_id=MODEL, at=NOW)
        assert (found.number, found.rule.cap_multiple) == (1, Decimal(2))
        assert price_rules.in_force(gpu_model_id=MODEL, at=NOW - hours(1)).number == 0

    def test_needs_four_eyes_in_the_database_too(self) -> None:
        alice = a_user("alice")
        a_proposal(by=alice)

        with pytest.raises(IntegrityError, match="four_eyes"), transaction.atomic():
            PriceRule.objects.update(status="approved", decided_by=alice, decided_at=NOW)

    def test_needs_four_eyes_though_its_proposer_takes_another_name(self) -> None:
        alice = a_user("alice")
        row = a_proposal(by=alice)
        User.objects.update(username="mallory")
        alice.refresh_from_db()

        with pytest.raises(price_rules.FourEyes):
            price_rules.approve(number=row.number, by=alice, at=NOW)

    def test_of_a_model_goes_before_that_of_all(self) -> None:
        make_pool()
        an_approved_rule(gpu_model_id=MODEL, base_rate=Decimal(5))
        an_approved_rule(base_rate=Decimal(7))

        assert price_rules.in_force(gpu_model_id=MODEL, at=NOW).base_rate == 5
        assert price_rules.in_force(gpu_model_id="l40s-48gb", at=NOW).base_rate == 7

    def test_is_decided_once(self) -> None:
        row = an_approved_rule()

        for verb in (price_rules.approve, price_rules.reject, price_rules.withdraw):
            with pytest.raises(StateConflict):
                verb(number=row.number, by=a_user(verb.__name__), at=NOW)

    def test_leaves_a_trail(self) -> None:
        row = a_proposal(by=a_user("alice"))
        price_rules.reject(number=row.number, by=a_user("bob"), at=NOW)

        moves = PriceRuleTransition.objects.values_list("to_status", "actor")
        assert list(moves) == [("proposed", "admin:alice"), ("rejected", "admin:bob")]
        assert AuditEvent.objects.filter(action__startswith="price_rule.").count() == 2

    def test_is_withdrawn_by_who_proposed_it(self) -> None:
        alice = a_user("alice")
        row = a_proposal(by=alice)

        assert price_rules.withdraw(number=row.number, by=alice, at=NOW).status == "withdrawn"

    @pytest.mark.parametrize(
        "changes",
        [
            {"base_rate": Decimal(0)},
            {"base_rate": Decimal("NaN")},
            {"base_rate": Decimal("1.2345678")},
            {"reason": " "},
        ],
    )
    def test_must_make_sense(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RuleInvalid):
            a_proposal(by=a_user("alice"), **changes)
        assert not PriceRule.objects.exists()

    def test_that_nobody_proposed_cannot_be_approved(self) -> None:
        with pytest.raises(NotFound):
            price_rules.approve(number=1, by=a_user("bob"), at=NOW)

    def test_comes_back_from_its_text(self) -> None:
        rule = Rule(cap_multiple=Decimal("2.5"), no_fall_hours=6, fee_basis_points=900)
        assert price_rules.from_json(price_rules.as_json(rule)) == rule


class TestPrices:
    def test_follow_a_base_that_two_people_set_a_step_an_hour(self) -> None:
        make_pool()
        refreshed(NOW - hours(1))
        an_approved_rule(base_rate=Decimal(3), rule=replace(Rule(), small_pool_share=Decimal(1)))

        after = refreshed(NOW)

        assert (after.rule_version, after.base_micros) == (1, 3_000_000)
        assert int(after.target_micros[100]) == 3_000_000
        assert int(after.rate_micros[100]) == 2_352_942 * 105 // 100
        for n in range(1, 6):
            after = refreshed(NOW + hours(n))
        assert int(after.rate_micros[100]) == 3_000_000

    def test_follow_floors_that_owners_raise_a_step_an_hour_and_pay_them_at_once(self) -> None:
        make_pool()
        was = refreshed(NOW - hours(1)).rate_micros
        Listing.objects.update(floor_rate=Decimal(4))

        after = refreshed(NOW)

        assert after.base_micros == 4_705_883
        assert (after.rate_micros[:100] * 100 <= was[:100] * 105).all()
        (lot,) = lots_of(make_quote())
        assert {segment.rate_micros for segment in lot.tariff.segments} == {4_705_883}

    def test_that_were_quoted_keep_their_rule(self) -> None:
        make_pool()
        refreshed(NOW)
        quote = make_quote(gpus=3)
        an_approved_rule(base_rate=Decimal(9), rule=Rule(fee_basis_points=3_000))
        refreshed(NOW + hours(1))

        quote.refresh_from_db()
        assert quote.price_breakdown["rule_version"] == 0
        assert quote.fee_basis_points == 1_500
        assert all(c.agrees for c in replay.replay(quote=quote))

    def test_carry_the_rules_fee(self) -> None:
        make_pool()
        an_approved_rule(rule=Rule(fee_basis_points=2_000))
        refreshed(NOW)

        quote = make_quote()

        assert (quote.fee_basis_points, quote.rate) == (2_000, Decimal("2.5"))


class TestAdmin:
    def form(self, **changes: Any) -> dict[str, Any]:
        return {**price_rules.as_json(Rule()), "reason": "a try", "base_rate": "", **changes}

    def test_shows_the_curve_before_anything_is_proposed(self, admin_client: Client) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(24))
        refreshed(NOW)

        answer = admin_client.post(ADD, self.form(cap_multiple="2", preview="1"))

        text = answer.content.decode()
        assert answer.status_code == 200
        assert "as proposed" in text
        assert text.count("<polyline") >= 4
        assert not PriceRule.objects.exists()

    def test_proposes_and_somebody_else_approves(
        self, admin_client: Client, client: Client
    ) -> None:
        admin_client.post(ADD, self.form(cap_multiple="2", propose="1"))
        row = PriceRule.objects.get()
        assert (row.status, row.parameters["cap_multiple"]) == (PriceRuleStatus.PROPOSED, "2")

        action = {"action": "approve", "_selected_action": [row.pk]}
        own = admin_client.post(LIST, action, follow=True).content.decode()
        assert "somebody else must decide" in own
        client.force_login(a_user("bob"))
        client.post(LIST, action)

        row.refresh_from_db()
        assert row.status == PriceRuleStatus.APPROVED
        page = client.get(f"{LIST}{row.pk}/change/").content.decode()
        assert "cap_multiple: 4 → 2" in page
        assert "<svg" in page

    def test_names_the_parameter_that_does_not_fit(self, admin_client: Client) -> None:
        answer = admin_client.post(ADD, self.form(cap_multiple="11", propose="1"))

        assert "it must lie between 1 and 10" in answer.content.decode()
        assert not PriceRule.objects.exists()

    def test_is_closed_to_whoever_may_not_propose(self, client: Client) -> None:
        client.force_login(User.objects.create_user(username="eve", is_staff=True))

        assert client.get(ADD).status_code == 403

    def test_draws_the_tables(self, admin_client: Client) -> None:
        make_pool()
        table = refreshed(NOW)

        page = admin_client.get(f"/admin/scheduler/priceversion/{table.id}/change/")

        assert "<polyline" in page.content.decode()
        assert admin_client.get("/admin/scheduler/demandsample/").status_code == 200
