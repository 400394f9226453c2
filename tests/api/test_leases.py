"""`/v1/leases`: the handover, and what was measured."""

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from agents.models import Gpu, GpuEvent, MeterReading, Node
from marketplace.models import Organization
from scheduler import reservations
from scheduler.models import Lease
from scheduler.states import LeaseStatus
from tests.api.world import a_fleet, a_quote, a_reservation, a_window, fund
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

pytestmark = pytest.mark.django_db

ACCESS = {"host": "10.0.0.1", "port": 22001, "username": "t1", "host_key_fingerprint": None}


def a_lease(api: ApiClient, *, organization: Organization, gpus: int = 2) -> Lease:
    """Return the lease of a reservation whose window has just begun, made by the scheduler's tick."""
    a_fleet(gpus=gpus)
    fund(organization)
    window = a_window(in_hours=1)
    reservation = a_reservation(api, quote=a_quote(api, window=window, gpus=gpus))
    assert reservations.start_due(at=window.starts_at) == 1
    return Lease.objects.get(reservation_id=reservation["id"])


def handed_over(lease: Lease, *, minutes: int) -> Lease:
    """Put a lease's handover some minutes into the past, and meter the first minute of its first GPU."""
    starts_at = timezone.now() - dt.timedelta(minutes=minutes)
    Lease.objects.filter(pk=lease.pk).update(
        status=LeaseStatus.ACTIVE,
        starts_at=starts_at,
        ends_at=starts_at + dt.timedelta(hours=1),
        handed_over_at=starts_at,
        access=ACCESS,
    )
    lease.refresh_from_db()
    MeterReading.objects.create(
        node=lease.node,
        epoch=1,
        sequence=1,
        lease_id=lease.pk,
        lease_epoch=1,
        gpu_uuid=lease.gpu_uuids[0],
        starts_at=starts_at,
        ends_at=starts_at + dt.timedelta(minutes=1),
        up_seconds=60,
        busy_seconds=45,
        attached_seconds=57,
        energy_millijoules=30_000_000,
        memory_used_bytes_max=2**34,
        temperature_celsius_max=64,
        simulated=True,
        received_at=starts_at,
    )
    return lease


class TestGet:
    def test_shows_a_lease_that_waits_for_its_handover(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = a_lease(api, organization=organization)
        shown = api.get(f"/v1/leases/{lease.pk}").json
        assert (shown["status"], shown["access"], shown["handed_over_at"]) == (
            "provisioning",
            None,
            None,
        )
        assert sorted(shown["gpu_uuids"]) == sorted(lease.gpu_uuids)
        assert shown["node"]["id"] == lease.node_id
        assert (shown["health"], shown["meter_coverage"], shown["simulated"]) == (
            "healthy",
            None,
            True,
        )
        assert shown["history"][0]["reason"] == "window_started"
        assert shown.pop("settlement") is None  # a list leaves it out
        assert api.get("/v1/leases").json["data"] == [shown]
        reservation = api.get(f"/v1/reservations/{lease.reservation_id}").json
        assert reservation["status"] == "active"
        assert [part["id"] for part in reservation["leases"]] == [lease.pk]

    def test_shows_how_to_get_in_after_the_handover(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = handed_over(a_lease(api, organization=organization), minutes=2)
        shown = api.get(f"/v1/leases/{lease.pk}").json
        assert (shown["status"], shown["access"]) == ("active", ACCESS)
        assert 0 < float(shown["meter_coverage"]) <= 0.25

    def test_names_the_worst_health_of_its_gpus(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = a_lease(api, organization=organization)
        Gpu.objects.filter(uuid=lease.gpu_uuids[0]).update(health="suspect")
        assert api.get(f"/v1/leases/{lease.pk}").json["health"] == "suspect"

    def test_does_not_find_what_is_somebody_elses(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = a_lease(api, organization=organization)
        _, secret = a_key(organization=an_organization())
        stranger = api.signed_in(secret=secret)
        assert stranger.get("/v1/leases").json["data"] == []
        for address in ("", "/utilization"):
            assert stranger.get(f"/v1/leases/{lease.pk}{address}").code == "not_found"


class TestList:
    def test_filters(self, api: ApiClient, organization: Organization) -> None:
        lease = a_lease(api, organization=organization)

        def found(**query: str) -> list[str]:
            return [shown["id"] for shown in api.get("/v1/leases", **query).json["data"]]

        assert found(status="provisioning") == [lease.pk]
        assert found(status="ended") == []
        assert found(reservation=lease.reservation_id) == [lease.pk]
        assert found(reservation="rsv_0") == []


class TestUtilization:
    def curve(self, api: ApiClient, lease: Lease, **query: str) -> Any:
        return api.get(f"/v1/leases/{lease.pk}/utilization", **query)

    def test_is_null_where_nothing_was_measured(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = handed_over(a_lease(api, organization=organization), minutes=3)
        Node.objects.update(protocol_version=1)  # its agent does not tell of Xids
        first, second, *_ = self.curve(api, lease).json["data"]
        assert first["busy_share"] == "0.7500"
        assert first["attached_share"] == "0.9500"
        assert (first["energy_millijoules"], first["power_draw_milliwatts_mean"]) == (
            30_000_000,
            500_000,
        )
        assert (first["memory_used_bytes_max"], first["temperature_celsius_max"]) == (2**34, 64)
        assert first["xid_count"] is None
        assert set(second.values()) - {
            second["gpu_uuid"],
            second["starts_at"],
            second["ends_at"],
        } == {None}

    def test_counts_the_errors_of_each_gpu_in_each_step(
        self, api: ApiClient, organization: Organization
    ) -> None:
        lease = handed_over(a_lease(api, organization=organization), minutes=3)
        assert lease.handed_over_at is not None
        for number, second in enumerate((-1, 0, 59, 60), start=1):
            GpuEvent.objects.create(
                node=lease.node,
                enrolment=1,
                epoch=1,
                sequence=number,
                gpu=Gpu.objects.get(uuid=lease.gpu_uuids[0]),
                at=lease.handed_over_at + dt.timedelta(seconds=second),
                kind="xid",
                source="kernel_log",
                cause="tenant",
                xid=31,
                received_at=lease.handed_over_at,
            )
        counts = [point["xid_count"] for point in self.curve(api, lease).json["data"]]
        assert counts[:3] == [2, 1, 0]

    def test_is_empty_before_the_handover(self, api: ApiClient, organization: Organization) -> None:
        lease = a_lease(api, organization=organization)
        assert self.curve(api, lease, resolution="hour").json["data"] == []

    def test_refuses_another_resolution(self, api: ApiClient, organization: Organization) -> None:
        lease = a_lease(api, organization=organization)
        answer = self.curve(api, lease, resolution="second")
        assert (answer.status, answer.json["errors"][0]["code"]) == (422, "invalid_choice")
