"""What the machines brought in, and what is due to their owner."""

import datetime as dt
from typing import Any

import pytest

from agents.models import Node
from billing import changes, corrections, releases, settlements
from billing.models import FeeShare, Settlement
from marketplace.models import Organization
from marketplace.states import Scope
from scheduler.states import ChangeKind, ReservationStatus
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db
LATER = books.START + dt.timedelta(days=20)


@pytest.fixture
def settled(organization: Organization) -> Settlement:
    """Return the settlement of a lease of two GPUs for an hour, half of which was delivered."""
    node: Node = books.node(of=organization)
    tenant = books.tenant(funds_minor=100_000)
    lease = books.lease(of=books.reservation(buyer=tenant), on=node, returned_after_seconds=1800)
    settlements.settle_ended(at=LATER)
    return Settlement.objects.get(lease=lease)


def period(**changes: Any) -> dict[str, Any]:
    return {"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"} | changes


class TestEarnings:
    @pytest.mark.parametrize(
        ("group_by", "key"),
        [("day", "2026-11-22"), ("gpu_model", "h100-sxm-80gb"), ("region", "eu-north")],
    )
    def test_add_up(self, api: ApiClient, settled: Settlement, group_by: str, key: str) -> None:
        answer = api.get("/v1/owner/earnings", **period(group_by=group_by))
        assert answer.status == 200
        assert [row["key"] for row in answer.json["groups"]] == [key]
        for row in (answer.json["total"], *answer.json["groups"]):
            assert row["earned"]["amount_minor"] == settled.earned_minor > 0
            assert row["fee"]["amount_minor"] + row["net"]["amount_minor"] == settled.earned_minor
            assert row["credits"]["amount_minor"] == row["fee_shares"]["amount_minor"] == 0
            assert row["gpu_seconds_sold"] == 7200
            assert row["gpu_seconds_delivered"] == 3600

    @pytest.mark.parametrize("group_by", ["day", "gpu_model", "region", "node"])
    def test_count_a_late_correction_where_it_was_made(
        self, api: ApiClient, settled: Settlement, group_by: str
    ) -> None:
        books.outage(of=settled.lease, seconds=900)
        at = settled.review_due_at
        assert at is not None
        correction = corrections.review(settlement_id=settled.pk, at=at + dt.timedelta(days=1))
        assert correction is not None
        assert correction.earned_minor < 0
        answer = api.get("/v1/owner/earnings", **period(group_by=group_by)).json
        borne = correction.credit_of_owner_minor
        assert borne > 0
        for name, both in (
            ("earned", settled.earned_minor + correction.earned_minor),
            ("fee", settled.fee_minor + correction.fee_minor),
            ("credits", borne),
            ("net", settled.owner_minor + correction.owner_minor - borne),
        ):
            assert answer["total"][name]["amount_minor"] == both
            assert sum(row[name]["amount_minor"] for row in answer["groups"]) == both
        assert [row["leases"] for row in answer["groups"]] == ([1, 0] if group_by == "day" else [1])
        earlier = api.get("/v1/owner/earnings", **period(to="2026-11-23T00:00:00Z")).json
        assert earlier["total"]["earned"]["amount_minor"] == settled.earned_minor

    @pytest.mark.parametrize("group_by", ["day", "gpu_model", "region", "node"])
    def test_leave_what_the_owner_bore_out_of_its_net_and_count_its_share_of_a_fee(
        self, api: ApiClient, organization: Organization, group_by: str
    ) -> None:
        tenant = books.tenant(funds_minor=100_000)
        lease = books.lease(of=books.reservation(buyer=tenant), on=books.node(of=organization))
        books.outage(of=lease, seconds=1800)
        settlements.settle_ended(at=LATER)
        row = Settlement.objects.get(lease=lease)
        assert row.credit_of_owner_minor > 0
        left = books.reservation(buyer=tenant, status=ReservationStatus.CANCELLED)
        change = books.change(
            of=left, kind=ChangeKind.CANCELLATION, refunded=371, fee=100, released=7200
        )
        change.given_back_by_owner = {organization.pk: 471}
        changes.post(change=change)
        share = FeeShare.objects.get().amount_minor
        answer = api.get("/v1/owner/earnings", **period(group_by=group_by)).json
        net = row.owner_minor - row.credit_of_owner_minor + share
        assert answer["total"]["net"]["amount_minor"] == net
        assert answer["total"]["credits"]["amount_minor"] == row.credit_of_owner_minor
        assert answer["total"]["fee_shares"]["amount_minor"] == share > 0
        assert sum(each["net"]["amount_minor"] for each in answer["groups"]) == net
        statement = api.get("/v1/owner/statements/2026-11").json
        assert statement["closing"]["total"]["amount_minor"] == net

    def test_are_nothing_outside_of_the_period_or_for_a_stranger(
        self, api: ApiClient, settled: Settlement
    ) -> None:
        before = api.get("/v1/owner/earnings", **period(to="2026-11-22T00:00:00Z")).json
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret).get("/v1/owner/earnings", **period()).json
        for answer in (before, stranger):
            assert answer["total"]["net"]["amount_minor"] == 0
            assert answer["groups"] == []

    @pytest.mark.parametrize(
        "wrong",
        [
            {"from": "2026-12-01T00:00:00Z"},
            {"from": "2020-01-01T00:00:00Z"},
            {"to": "yesterday"},
            {"group_by": "tenant"},
            {"organization": "org_1"},
        ],
    )
    def test_refuse_a_period_or_a_grouping_that_makes_no_sense(
        self, api: ApiClient, wrong: dict[str, str]
    ) -> None:
        assert api.get("/v1/owner/earnings", **period(**wrong)).status == 422

    def test_need_the_scope(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.OWNER_WRITE])
        answer = ApiClient(secret=secret).get("/v1/owner/earnings")
        assert (answer.status, answer.code) == (403, "scope_missing")


class TestPayouts:
    def test_name_the_lease_and_not_the_tenant(self, api: ApiClient, settled: Settlement) -> None:
        assert api.get("/v1/payouts").json["data"] == []
        releases.release_due(at=settled.release_due_at)
        answer = api.get("/v1/payouts", status="due")
        (payout,) = answer.json["data"]
        assert payout["lease_id"] == settled.lease_id
        assert payout["amount"] == {"amount_minor": settled.owner_minor, "currency": "usd"}
        assert settled.lease.reservation.organization.name not in answer.content.decode()
        assert api.get("/v1/payouts", status="paid").json["data"] == []

    def test_name_the_lease_of_a_reserve_and_of_a_correction_too(
        self, api: ApiClient, organization: Organization, settings
    ) -> None:
        settings.OWNER_RESERVE_BASIS_POINTS = 1000
        tenant = books.tenant(funds_minor=100_000)
        lease = books.lease(of=books.reservation(buyer=tenant), on=books.node(of=organization))
        lost = books.outage(of=lease, seconds=1800)
        settlements.settle_ended(at=LATER)
        row = Settlement.objects.get()
        releases.release_due(at=row.release_due_at)
        lost.delete()
        assert corrections.review(settlement_id=row.pk, at=row.release_due_at)
        releases.release_due(at=LATER + dt.timedelta(days=100))
        listed = api.get("/v1/payouts").json["data"]
        assert {each["reason"] for each in listed} == {"settlement", "reserve", "correction"}
        assert {each["lease_id"] for each in listed} == {lease.pk}

    def test_are_nobody_elses_business(self, settled: Settlement) -> None:
        releases.release_due(at=settled.release_due_at)
        _, secret = a_key(organization=an_organization())
        assert ApiClient(secret=secret).get("/v1/payouts").json["data"] == []
