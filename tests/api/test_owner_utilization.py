"""Did the machines work: each figure from its own source, and null where that says nothing."""

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agents.models import Gpu, Node
from agents.protocol import IdleState
from billing import corrections, earnings, owner_utilization, settlements
from billing.models import Correction, Settlement
from marketplace import listings
from marketplace.core.windows import Window
from marketplace.models import Listing, Organization
from marketplace.states import ListingMode, Scope
from scheduler.models import Lease
from scheduler.states import LeaseStatus, ReservationStatus
from tests.agents.factories import make_node
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.marketplace.factories import a_listing, a_published_listing

pytestmark = pytest.mark.django_db
LATER = books.START + dt.timedelta(days=20)
DAY = dt.timedelta(days=1)
NOVEMBER = Window(dt.datetime(2026, 11, 1, tzinfo=dt.UTC), dt.datetime(2026, 12, 1, tzinfo=dt.UTC))


def ask(api: ApiClient, **changes: Any) -> dict[str, Any]:
    period = {"from": "2026-11-01T00:00:00Z", "to": "2026-11-04T00:00:00Z"}
    answer = api.get("/v1/owner/utilization", **(period | changes))
    assert answer.status == 200, answer.content
    found: dict[str, Any] = answer.json
    return found


@pytest.fixture
def machine(organization: Organization) -> Node:
    """Return a node with two GPUs that came on the first of November."""
    node = make_node(organization=organization, at=NOVEMBER.starts_at, region="eu-north")
    Gpu.objects.filter(node=node).update(first_seen_at=NOVEMBER.starts_at)
    return node


@pytest.fixture
def lease(machine: Node) -> Lease:
    """Return an ended lease of two GPUs for an hour, half of which was delivered and metered."""
    tenant = books.tenant(funds_minor=100_000)
    lease = books.lease(
        of=books.reservation(buyer=tenant, status=ReservationStatus.COMPLETED),
        on=machine,
        returned_after_seconds=1800,
    )
    for gpu in range(2):
        books.meter(of=lease, gpu=gpu, seconds=1800, busy=600)
    return lease


def listed(organization: Organization, **changes: Any) -> Listing:
    """Return a listing that was on offer on the second of November."""
    listing = a_listing(
        owner=organization, starts_at=NOVEMBER.starts_at, region="eu-north", **changes
    )
    day = NOVEMBER.starts_at + DAY
    listing = listings.publish(listing=listing, at=day, actor="test")
    return listings.pause(listing=listing, at=day + DAY, actor="test")


class TestFigures:
    @pytest.mark.parametrize("group_by", owner_utilization.GROUPS)
    def test_add_up_to_the_settlement(
        self, api: ApiClient, machine: Node, lease: Lease, group_by: str
    ) -> None:
        settlements.settle_ended(at=LATER)
        settlement = Settlement.objects.get()
        answer = ask(api, group_by=group_by)
        (worked,) = [row for row in answer["groups"] if row["gpu_seconds_sold"]]
        assert (
            worked["key"]
            == {
                "node": machine.pk,
                "gpu_model": "h100-sxm-80gb",
                "region": "eu-north",
                "day": "2026-11-02",
            }[group_by]
        )
        for row in (worked, answer["total"]):
            assert row["gpu_seconds_sold"] == 7200
            assert row["gpu_seconds_delivered"] == 3600
            assert row["gpu_seconds_busy"] == 1200
            assert row["income"]["amount_minor"] == (
                settlement.owner_minor - settlement.credit_of_owner_minor
            )

    def test_of_a_running_lease_are_those_of_its_closed_hours(
        self, api: ApiClient, machine: Node
    ) -> None:
        tenant = books.tenant(funds_minor=100_000)
        running = books.lease(
            of=books.reservation(buyer=tenant, hours=48), on=machine, status=LeaseStatus.ACTIVE
        )
        row = ask(api)["total"]
        assert (row["gpu_seconds_sold"], row["gpu_seconds_delivered"]) == (2 * 40 * 3600, None)
        books.meter_fully(of=running)
        assert earnings.close_due(at=books.START + dt.timedelta(hours=3)) > 0
        row = ask(api)["total"]
        assert row["gpu_seconds_delivered"] == 7200
        assert row["income"]["amount_minor"] > 0

    def test_divide_what_is_sold_by_days(self, api: ApiClient, machine: Node) -> None:
        tenant = books.tenant(funds_minor=100_000)
        books.lease(of=books.reservation(buyer=tenant, hours=24), on=machine)
        sold = {row["key"]: row["gpu_seconds_sold"] for row in ask(api)["groups"]}
        assert sold == {
            "2026-11-01": 0,
            "2026-11-02": 2 * 16 * 3600,
            "2026-11-03": 2 * 8 * 3600,
        }

    def test_take_a_late_correction_where_it_was_made(
        self, api: ApiClient, organization: Organization
    ) -> None:
        tenant = books.tenant(funds_minor=100_000)
        lease = books.lease(of=books.reservation(buyer=tenant), on=books.node(of=organization))
        settlements.settle(lease_id=lease.id, at=books.START + dt.timedelta(hours=2))
        books.outage(of=lease, seconds=900)
        corrections.review_due(at=books.START + 25 * dt.timedelta(hours=1))
        change = Correction.objects.get()
        by_day = {row["key"]: row for row in ask(api)["groups"]}
        assert by_day["2026-11-03"]["gpu_seconds_delivered"] == change.gpu_seconds_delivered < 0
        income = change.owner_minor - change.credit_of_owner_minor
        assert by_day["2026-11-03"]["income"]["amount_minor"] == income < change.owner_minor

    def test_say_null_for_busy_where_nothing_was_measured(
        self, api: ApiClient, machine: Node
    ) -> None:
        tenant = books.tenant(funds_minor=100_000)
        books.lease(of=books.reservation(buyer=tenant), on=machine)
        settlements.settle_ended(at=LATER)
        row = ask(api)["total"]
        assert (row["gpu_seconds_delivered"], row["gpu_seconds_busy"]) == (7200, None)


class TestListed:
    def test_is_the_time_in_which_a_listing_was_published(
        self, api: ApiClient, organization: Organization, machine: Node
    ) -> None:
        listed(organization)
        listed(organization)
        by_day = {row["key"]: row["gpu_seconds_listed"] for row in ask(api)["groups"]}
        assert by_day == {"2026-11-01": 0, "2026-11-02": 2 * 86_400, "2026-11-03": 0}

    def test_leaves_out_blackouts_and_gpus_that_came_later(
        self, api: ApiClient, organization: Organization, machine: Node
    ) -> None:
        noon = NOVEMBER.starts_at + DAY + DAY / 2
        Gpu.objects.filter(node=machine).update(first_seen_at=noon)
        listing = listed(organization)
        blackout = [noon.isoformat(), (noon + dt.timedelta(hours=2)).isoformat()]
        Listing.objects.filter(pk=listing.pk).update(blackouts=[blackout])
        assert ask(api, group_by="node")["total"]["gpu_seconds_listed"] == 2 * 10 * 3600

    def test_is_not_known_where_a_listing_offers_what_is_idle(
        self, api: ApiClient, organization: Organization, machine: Node
    ) -> None:
        listing = listed(organization)
        Listing.objects.filter(pk=listing.pk).update(
            mode=ListingMode.WHEN_IDLE, idle_for_seconds=3600, rolling_seconds=86_400
        )
        by_day = {row["key"]: row["gpu_seconds_listed"] for row in ask(api)["groups"]}
        assert by_day == {"2026-11-01": 0, "2026-11-02": None, "2026-11-03": 0}

    def test_is_nothing_where_a_listing_selects_others(
        self, api: ApiClient, organization: Organization, machine: Node
    ) -> None:
        listing = listed(organization)
        Listing.objects.filter(pk=listing.pk).update(labels={"rack": "7"})
        assert ask(api)["total"]["gpu_seconds_listed"] == 0


class TestIdle:
    def test_is_how_long_those_are_free_that_are_free_now(
        self, api: ApiClient, machine: Node
    ) -> None:
        one = Gpu.objects.filter(node=machine).first()
        assert one is not None
        Gpu.objects.filter(node=machine).update(
            idle_since=NOVEMBER.starts_at + DAY, measured_at=NOVEMBER.starts_at + 1.5 * DAY
        )
        Gpu.objects.filter(pk=one.pk).update(idle_state=IdleState.FREE)
        Gpu.objects.exclude(pk=one.pk).update(idle_state=IdleState.BUSY)
        by_day = {row["key"]: row["gpu_seconds_idle"] for row in ask(api)["groups"]}
        assert by_day == {"2026-11-01": None, "2026-11-02": 43_200, "2026-11-03": None}


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"from": "2026-12-01T00:00:00Z"},
            {"from": "2020-01-01T00:00:00Z"},
            {"to": "yesterday"},
            {"group_by": "tenant"},
            {"owner": "org_1"},
        ],
    )
    def test_meet_a_period_or_a_grouping_that_makes_no_sense(
        self, api: ApiClient, wrong: dict[str, str]
    ) -> None:
        period = {"from": "2026-11-01T00:00:00Z", "to": "2026-11-04T00:00:00Z"}
        assert api.get("/v1/owner/utilization", **(period | wrong)).status == 422

    def test_show_a_stranger_nothing(self, lease: Lease) -> None:
        settlements.settle_ended(at=LATER)
        _, secret = a_key(organization=an_organization())
        answer = ask(ApiClient(secret=secret), group_by="node")
        assert answer["groups"] == []
        assert answer["total"]["income"]["amount_minor"] == 0

    def test_meet_a_key_without_the_scope(self, organization: Organization) -> None:
        _, secret = a_key(organization=organization, scopes=[Scope.BILLING_READ])
        assert ApiClient(secret=secret).get("/v1/owner/utilization").code == "scope_missing"


def test_many_machines_take_no_query_more(organization: Organization) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            owner_utilization.utilization(
                owner=organization, window=NOVEMBER, group_by="node", at=LATER
            )
        return len(captured)

    counts = []
    for _ in range(2):
        for _ in range(4):
            node = make_node(organization=organization, at=NOVEMBER.starts_at)
            tenant = books.tenant(funds_minor=1_000)
            books.lease(of=books.reservation(buyer=tenant), on=node)
            a_published_listing(owner=organization)
        settlements.settle_ended(at=LATER)
        counts.append(queries())
    assert Settlement.objects.count() == 8
    assert counts[0] == counts[1]
