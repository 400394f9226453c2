"""The owner's machines over HTTP: tokens, nodes, GPUs, and who is on them."""

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from agents import protocol
from agents.models import Alarm, EnrolmentToken, Gpu, Node
from agents.protocol import GpuCounters, to_json
from agents.states import AlarmKind, NodeStatus
from marketplace.models import IdempotencyRecord, Organization
from scheduler.states import LeaseStatus
from tests.agents.factories import make_node
from tests.api import world
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.marketplace.factories import a_published_listing

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(organization: Organization) -> Node:
    """Return a machine of the caller's, with two GPUs, that reported just now."""
    return make_node(organization=organization, at=timezone.now())


def a_lease_on(node: Node, *, status: LeaseStatus = LeaseStatus.ACTIVE) -> Any:
    lease = books.lease(
        of=books.reservation(buyer=books.tenant(), paid=False), status=status, on=node
    )
    lease.gpu_uuids = list(node.gpus.order_by("slot").values_list("uuid", flat=True)[:1])
    lease.save(update_fields=["gpu_uuids"])
    return lease


class TestEnrolmentTokens:
    def a_body(self, **changes: Any) -> dict[str, Any]:
        expires_at = (timezone.now() + dt.timedelta(days=1)).isoformat().replace("+00:00", "Z")
        return {"region": "us-east", "max_nodes": 4, "expires_at": expires_at} | changes

    def test_shows_the_secret_once_and_keeps_it_nowhere(self, api: ApiClient) -> None:
        answer = api.post("/v1/enrolment-tokens", self.a_body(labels={"rack": "r1"}), key="retry")
        assert answer.status == 201
        secret = answer.json["token"]
        assert not any(secret in str(row) for row in EnrolmentToken.objects.values())
        assert not any(secret in str(row) for row in IdempotencyRecord.objects.values())
        assert answer.json["fabric"] is None

    @pytest.mark.parametrize(
        ("part", "pointer"),
        [
            ({"max_nodes": 0}, "/max_nodes"),
            ({"max_nodes": "4"}, "/max_nodes"),
            ({"region": ""}, "/region"),
            ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
            ({"expires_at": "2099-01-01T00:00:00Z"}, "/expires_at"),
            ({"labels": ["rack"]}, "/labels"),
            ({"allowed_networks": ["nowhere"]}, "/allowed_networks/0"),
            ({"allowed_networks": "10.0.0.0/8"}, "/allowed_networks"),
            ({"owner": "me"}, "/owner"),
        ],
    )
    def test_refuses_nonsense(self, api: ApiClient, part: dict[str, Any], pointer: str) -> None:
        answer = api.post("/v1/enrolment-tokens", self.a_body(**part))
        assert answer.status == 422
        assert pointer in [error["pointer"] for error in answer.json["errors"]]
        assert not EnrolmentToken.objects.exists()

    def test_can_be_bound_to_networks(self, api: ApiClient) -> None:
        answer = api.post("/v1/enrolment-tokens", self.a_body(allowed_networks=["203.0.113.7"]))
        assert answer.json["allowed_networks"] == ["203.0.113.7/32"]
        free = api.post("/v1/enrolment-tokens", self.a_body())
        assert free.json["allowed_networks"] == []


class TestNodes:
    def test_tell_what_is_wrong_with_them(self, api: ApiClient, node: Node) -> None:
        uuid = node.gpus.first().uuid  # type: ignore[union-attr] # it has two
        host = protocol.to_json(protocol.HostFacts(driver_version="580.95.05"))
        Node.objects.update(host=host, warnings=["podman is not installed"])
        now = timezone.now()
        for gpu_uuid, kind, settled_at in (
            (uuid, AlarmKind.GPU_CLAIMED_TWICE, None),
            ("", AlarmKind.NODE_CLONED, None),
            ("", AlarmKind.NODE_CLONED, now),
        ):
            Alarm.objects.create(
                node=node,
                kind=kind,
                gpu_uuid=gpu_uuid,
                detail="why",
                raised_at=now,
                settled_at=settled_at,
            )
        answer = api.get(f"/v1/nodes/{node.id}").json
        assert answer["host"] == host
        assert answer["warnings"] == ["podman is not installed"]
        assert [(alarm["kind"], alarm["gpu_uuid"]) for alarm in answer["alarms"]] == [
            ("gpu_claimed_twice", uuid),
            ("node_cloned", None),
        ]

    def test_of_the_first_protocol_tell_nothing_of_their_host(
        self, api: ApiClient, node: Node
    ) -> None:
        answer = api.get(f"/v1/nodes/{node.id}").json
        assert (answer["host"], answer["warnings"], answer["alarms"]) == (None, [], [])

    def test_show_their_gpus_and_the_leases_on_them_but_not_the_tenant(
        self, api: ApiClient, node: Node
    ) -> None:
        lease = a_lease_on(node)
        answer = api.get(f"/v1/nodes/{node.id}")
        assert answer.status == 200
        assert answer.json["liveness"] == "fresh"
        assert [gpu["leased"] for gpu in answer.json["gpus"]] == [True, False]
        assert [row["id"] for row in answer.json["leases"]] == [lease.id]
        tenant = lease.reservation.organization
        for secret in (tenant.name, tenant.id, lease.reservation_id):
            assert secret not in answer.content.decode()

    def test_forget_a_lease_that_is_over(self, api: ApiClient, node: Node) -> None:
        a_lease_on(node, status=LeaseStatus.ENDED)
        answer = api.get("/v1/nodes").json["data"][0]
        assert answer["leases"] == []
        assert not any(gpu["leased"] for gpu in answer["gpus"])

    def test_take_new_labels(self, api: ApiClient, node: Node) -> None:
        answer = api.patch(f"/v1/nodes/{node.id}", {"labels": {"rack": "r9"}})
        assert answer.json["labels"] == {"rack": "r9"}

    @pytest.mark.parametrize(
        "body", [{"labels": {"rack": 9}}, {"labels": None}, {}, {"region": "eu-west"}]
    )
    def test_refuse_other_changes(self, api: ApiClient, node: Node, body: dict[str, Any]) -> None:
        assert api.patch(f"/v1/nodes/{node.id}", body).status == 422

    def test_refuse_a_label_with_a_control_character(self, api: ApiClient, node: Node) -> None:
        answer = api.patch(f"/v1/nodes/{node.id}", {"labels": {"rack": "a\nb"}})
        assert (answer.status, answer.code) == (422, "invalid_value")

    def test_drain_and_resume(self, api: ApiClient, node: Node) -> None:
        assert api.post(f"/v1/nodes/{node.id}/drain").json["status"] == "draining"
        again = api.post(f"/v1/nodes/{node.id}/drain", {})
        assert (again.status, again.code) == (409, "state_conflict")
        assert api.get("/v1/nodes", status=NodeStatus.ACTIVE).json["data"] == []
        Gpu.objects.filter(node=node).update(quarantined_by_market="return_unconfirmed")
        resumed = api.post(f"/v1/nodes/{node.id}/resume", {}).json
        assert resumed["status"] == "active"
        assert {gpu["quarantined"] for gpu in resumed["gpus"]} == {""}

    @pytest.mark.parametrize("path", ["", "/drain", "/resume"])
    def test_look_to_a_stranger_as_if_there_were_none(self, node: Node, path: str) -> None:
        _, secret = a_key(organization=an_organization())
        stranger = ApiClient(secret=secret)
        address = f"/v1/nodes/{node.id}{path}"
        answer = stranger.post(address, {}) if path else stranger.get(address)
        assert (answer.status, answer.code) == (404, "not_found")
        assert stranger.get("/v1/nodes").json["data"] == []
        assert stranger.get("/v1/gpus").json["data"] == []
        assert stranger.get("/v1/gpus", node_id=node.id).json["data"] == []


class TestGpus:
    def test_show_why_they_are_unfit_and_what_was_counted(self, api: ApiClient, node: Node) -> None:
        at = timezone.now()
        counted = to_json(GpuCounters(gpu_uuid="GPU-1", ecc_uncorrected=2, row_remap_failed=True))
        first, second = node.gpus.order_by("slot")
        Gpu.objects.filter(pk=first.pk).update(
            health="quarantined", health_reason="Xid 48", counters=counted, counters_at=at
        )
        rows = {row["uuid"]: row for row in api.get("/v1/gpus").json["data"]}
        shown = rows[first.uuid]
        assert (shown["health"], shown["health_reason"]) == ("quarantined", "Xid 48")
        assert (shown["counters"]["ecc_uncorrected"], shown["counters"]["nvlinks_active"]) == (
            2,
            None,
        )
        assert shown["counters"]["row_remap_failed"] is True
        assert shown["counters_at"] is not None
        assert (rows[second.uuid]["counters"], rows[second.uuid]["counters_at"]) == (None, None)

    def uuids(self, api: ApiClient, **query: Any) -> set[str]:
        return {row["uuid"] for row in api.get("/v1/gpus", **query).json["data"]}

    def test_are_found_by_what_they_are_and_do(self, api: ApiClient, node: Node) -> None:
        lease = a_lease_on(node)
        first, second = node.gpus.order_by("slot")
        Gpu.objects.filter(pk=second.pk).update(idle_state="free", health="suspect")
        assert self.uuids(api) == {first.uuid, second.uuid}
        assert self.uuids(api, leased="true") == set(lease.gpu_uuids) == {first.uuid}
        assert self.uuids(api, leased="false") == {second.uuid}
        assert self.uuids(api, idle="true", health="suspect") == {second.uuid}
        assert self.uuids(api, idle="false") == {first.uuid}
        assert self.uuids(api, gpu_model="h100-sxm-80gb") == {first.uuid, second.uuid}
        assert self.uuids(api, gpu_model="l40s-48gb") == set()

    def test_that_are_offerable_are_idle_too(self, api: ApiClient, node: Node) -> None:
        assert self.uuids(api, idle="true") == set()
        Gpu.objects.filter(node=node).update(idle_state="offerable")
        assert len(self.uuids(api, idle="true")) == 2

    def test_say_why_they_are_not_on_offer(
        self, api: ApiClient, node: Node, organization: Organization
    ) -> None:
        for row in api.get("/v1/gpus").json["data"]:
            assert row["offer"]["on_offer"] is False
            assert [reason["code"] for reason in row["offer"]["reasons"]] == ["not_listed"]
        a_published_listing(owner=organization, starts_at=timezone.now() - dt.timedelta(hours=1))
        lease = a_lease_on(node)
        rows = {row["uuid"]: row["offer"] for row in api.get("/v1/gpus").json["data"]}
        leased = rows.pop(lease.gpu_uuids[0])
        assert leased == {
            "on_offer": False,
            "reasons": [{"code": "leased", "detail": "a lease has it"}],
        }
        assert list(rows.values()) == [{"on_offer": True, "reasons": []}]
        in_node = {
            gpu["uuid"]: gpu["offer"] for gpu in api.get(f"/v1/nodes/{node.id}").json["gpus"]
        }
        assert in_node == {**rows, lease.gpu_uuids[0]: leased}
        assert self.uuids(api, on_offer="true") == set(rows)
        assert self.uuids(api, on_offer="false") == set(lease.gpu_uuids)

    @pytest.mark.parametrize(
        ("wish", "listed"),
        [
            ({}, 2),
            ({"region": "eu-north", "fabric": "ib-1", "labels": {"rack": "a1"}}, 2),
            ({"region": "us-east"}, 0),
            ({"fabric": "ib-2"}, 0),
            ({"labels": {"rack": "a2"}}, 0),
            ({"gpu_model": "l40s-48gb"}, 0),
        ],
    )
    def test_are_listed_when_a_published_listing_selects_them(
        self,
        api: ApiClient,
        node: Node,
        organization: Organization,
        wish: dict[str, Any],
        listed: int,
    ) -> None:
        started = timezone.now() - dt.timedelta(hours=1)
        a_published_listing(owner=organization, starts_at=started, **wish)
        a_published_listing(starts_at=started)  # another owner's listing selects nothing here
        assert len(self.uuids(api, listed="true")) == listed
        assert len(self.uuids(api, listed="false")) == 2 - listed

    @pytest.mark.parametrize(
        "query",
        [
            {"leased": "maybe"},
            {"on_offer": "perhaps"},
            {"health": "fine"},
            {"model": "x"},
            {"limit": "201"},
        ],
    )
    def test_refuse_a_filter_that_does_not_exist(
        self, api: ApiClient, query: dict[str, str]
    ) -> None:
        answer = api.get("/v1/gpus", **query)
        assert (answer.status, answer.code) == (422, "invalid_request")


class TestDrain:
    def test_says_what_still_runs_what_moved_and_what_stays(
        self, api: ApiClient, organization: Organization, node: Node
    ) -> None:
        lease = a_lease_on(node)

        drained = api.post(f"/v1/nodes/{node.id}/drain").json

        assert [row["id"] for row in drained["leases"]] == [lease.pk]
        assert drained["free_at"] == drained["leases"][0]["ends_at"]
        assert (drained["moved"], drained["kept"]) == ([], [])

    def test_shows_a_window_that_the_machine_must_honour_without_its_tenant(
        self, anybody: ApiClient
    ) -> None:
        machine = world.a_fleet(gpus=4)
        tenant = an_organization()
        _, secret = a_key(organization=tenant)
        world.fund(tenant)
        reservation = world.a_reservation(anybody.signed_in(secret=secret))
        _, secret = a_key(organization=machine.organization)

        drained = anybody.signed_in(secret=secret).post(f"/v1/nodes/{machine.id}/drain").json

        (kept,) = drained["kept"]
        assert kept == {name: reservation[name] for name in ("starts_at", "ends_at", "gpus")}
        assert drained["free_at"] == reservation["ends_at"]
        assert reservation["id"] not in str(drained)
