"""`/v1/leases`: the handover, and what the GPUs did while the tenant had them."""

import datetime as dt
from bisect import bisect_left
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from agents import events, metering
from agents.metering import UtilizationPoint
from agents.models import Gpu
from agents.protocol import Health
from billing import evidence
from billing.models import Settlement
from marketplace.api.evidence import EvidenceSerializer
from marketplace.api.fields import ChoiceField, InstantField, PageQuery, StrictSerializer, TextField
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.windows import Window
from marketplace.states import Scope
from scheduler.models import Lease, LeaseTransition
from scheduler.states import LeaseReason, LeaseStatus

_RESOLUTION_SECONDS = {"minute": 60, "hour": 3600}
_SHARE_QUANTUM = Decimal("0.0001")
_WORST_FIRST = (Health.LOST, Health.QUARANTINED, Health.SUSPECT, Health.HEALTHY)


def share(*, part: int, whole: int) -> str | None:
    """Return `part / whole` as a decimal string of four places; None where there is no whole."""
    if whole <= 0:
        return None
    return f"{(Decimal(part) / Decimal(whole)).quantize(_SHARE_QUANTUM, rounding=ROUND_HALF_EVEN)}"


class LeasesQuery(PageQuery):
    """Which leases."""

    status = ChoiceField(choices=LeaseStatus.choices, required=False, default=None)
    reservation = TextField(
        max_length=32, required=False, default=None, help_text="a reservation's id"
    )


class UtilizationQuery(StrictSerializer):
    """How fine."""

    resolution = ChoiceField(
        choices=[(name, name) for name in _RESOLUTION_SECONDS], required=False, default="minute"
    )


class AccessSerializer(serializers.Serializer[Any]):
    """How the tenant reaches its GPUs."""

    host = serializers.CharField()
    port = serializers.IntegerField()
    username = serializers.CharField()
    host_key_fingerprint = serializers.CharField(allow_null=True)


class LeaseNodeSerializer(serializers.Serializer[Any]):
    """The machine, by its place; whose it is stays unsaid."""

    id = serializers.CharField()
    region = serializers.CharField()
    fabric = serializers.SerializerMethodField()

    def get_fabric(self, node: Any) -> str | None:  # noqa: ANN401 - a row of agents
        return node.fabric or None


class LeaseMoveSerializer(serializers.Serializer[LeaseTransition]):
    """One move of a lease, whose doing it was, and why. An owner is not named to its tenant."""

    from_status = serializers.SerializerMethodField()
    to_status = ChoiceField(choices=LeaseStatus.choices)
    reason = ChoiceField(choices=LeaseReason.choices)
    actor = serializers.SerializerMethodField(
        help_text="`owner`, a key's id or a user's name of the tenant, or the part of the market"
    )
    at = InstantField()

    @extend_schema_field(ChoiceField(choices=LeaseStatus.choices, allow_null=True))
    def get_from_status(self, move: LeaseTransition) -> str | None:
        return move.from_status or None

    def get_actor(self, move: LeaseTransition) -> str:
        return "owner" if move.reason == LeaseReason.OWNER_RECLAIMED else move.actor


class LeaseSerializer(serializers.Serializer[Lease]):
    """The fact: one node's GPUs handed over, metered, and returned."""

    id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices)
    reservation_id = serializers.CharField()
    replaces = serializers.CharField(
        source="replaces_id", allow_null=True, help_text="the lease in whose place it came"
    )
    node = LeaseNodeSerializer()
    gpu_uuids = serializers.ListField(child=serializers.CharField())
    access = AccessSerializer(allow_null=True, help_text="null before the handover")
    starts_at = InstantField(help_text="promised")
    ends_at = InstantField(help_text="promised")
    handed_over_at = InstantField(allow_null=True)
    returned_at = InstantField(allow_null=True)
    closed_at = InstantField(allow_null=True)
    health = serializers.SerializerMethodField(
        help_text="of the worst GPU; null once the lease is over"
    )
    meter_coverage = serializers.SerializerMethodField(
        help_text="share of the time since the handover that readings cover; null before"
    )
    history = LeaseMoveSerializer(many=True, source="transitions")
    simulated = serializers.BooleanField(
        source="node.simulated", help_text="on GPUs that do not exist"
    )

    @extend_schema_field(ChoiceField(choices=[(h.value, h.value) for h in Health], allow_null=True))
    def get_health(self, lease: Lease) -> str | None:
        if lease.closed_at is not None:
            return None
        found = {gpu.health for gpu in self.context["gpus"].values() if gpu.uuid in lease.gpu_uuids}
        return next((health.value for health in _WORST_FIRST if health.value in found), None)

    def get_meter_coverage(self, lease: Lease) -> str | None:
        window = _delivered(lease, at=self.context["now"])
        if window is None:
            return None
        return share(
            part=self.context["metered"][lease.id], whole=len(lease.gpu_uuids) * window.seconds
        )


class LeaseDetailSerializer(LeaseSerializer):
    """A lease, and what its settlement rests on."""

    settlement = serializers.SerializerMethodField(help_text="null before it is settled")

    @extend_schema_field(EvidenceSerializer(allow_null=True))
    def get_settlement(self, lease: Lease) -> object:
        found = Settlement.objects.filter(lease=lease).prefetch_related("corrections").first()
        return None if found is None else EvidenceSerializer(evidence.of_settlement(found)).data


LeasePage = page_serializer(LeaseSerializer, name="LeasePage")


class UtilizationPointSerializer(serializers.Serializer[UtilizationPoint]):
    """What one GPU did in one step; null where nothing was measured."""

    gpu_uuid = serializers.CharField()
    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    busy_share = serializers.SerializerMethodField(help_text="of the measured seconds: `0.8731`")
    measured_seconds = serializers.SerializerMethodField()
    attached_share = serializers.SerializerMethodField(
        help_text="of the time in which memory was read: a process held the GPU, busy or not"
    )
    memory_used_bytes_max = serializers.SerializerMethodField()
    power_draw_milliwatts_mean = serializers.SerializerMethodField()
    energy_millijoules = serializers.SerializerMethodField()
    temperature_celsius_max = serializers.SerializerMethodField()
    xid_count = serializers.SerializerMethodField(
        help_text="errors that the driver reported of the GPU; null: its node does not tell of them"
    )

    def get_busy_share(self, point: UtilizationPoint) -> str | None:
        meter = point.meter
        return share(part=meter.busy_seconds, whole=meter.measured_seconds) if meter else None

    def get_measured_seconds(self, point: UtilizationPoint) -> int | None:
        return point.meter.measured_seconds if point.meter else None

    def get_attached_share(self, point: UtilizationPoint) -> str | None:
        meter = point.meter
        return (
            share(part=meter.attached_seconds, whole=meter.attachment_known_seconds)
            if meter
            else None
        )

    def get_memory_used_bytes_max(self, point: UtilizationPoint) -> int | None:
        return point.meter.memory_used_bytes_max if point.meter else None

    def get_power_draw_milliwatts_mean(self, point: UtilizationPoint) -> int | None:
        meter = point.meter
        if meter is None or meter.energy_millijoules is None or not meter.covered_seconds:
            return None
        return meter.energy_millijoules // meter.covered_seconds

    def get_energy_millijoules(self, point: UtilizationPoint) -> int | None:
        return point.meter.energy_millijoules if point.meter else None

    def get_temperature_celsius_max(self, point: UtilizationPoint) -> int | None:
        return point.meter.temperature_celsius_max if point.meter else None

    def get_xid_count(self, point: UtilizationPoint) -> int | None:
        instants = self.context["xids"]
        if instants is None:
            return None
        told = instants.get(point.gpu_uuid, ())
        return bisect_left(told, point.window.ends_at) - bisect_left(told, point.window.starts_at)


class UtilizationPage(serializers.Serializer[Any]):
    """The whole curve of a lease, on one page: GPU after GPU, step after step."""

    data = UtilizationPointSerializer(many=True)  # type: ignore[assignment] # every list of the contract calls it so
    next_cursor = serializers.CharField(allow_null=True)
    resolution = ChoiceField(choices=[(name, name) for name in _RESOLUTION_SECONDS])
    simulated = serializers.BooleanField()


class LeasesView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}
    queries: ClassVar = {"GET": LeasesQuery}

    @operation(
        summary="Leases, newest first",
        responses={200: LeasePage},
        query=LeasesQuery,
        operation_id="list_leases",
    )
    def get(self, request: Request) -> Response:
        wanted = Lease.objects.visible_to(self.organization)
        if self.query["status"] is not None:
            wanted = wanted.filter(status=self.query["status"])
        if self.query["reservation"] is not None:
            wanted = wanted.filter(reservation_id=self.query["reservation"])
        page = page_of(_shown(wanted), query=self.query)
        return Response(LeasePage(page, context=_context(page.data, at=self.now)).data)


class LeaseView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}

    @operation(
        summary="One lease: where its GPUs are and how to reach them",
        responses={200: LeaseDetailSerializer},
        refusals=("not_found",),
        operation_id="get_lease",
    )
    def get(self, request: Request, lease_id: str) -> Response:
        lease = find(_shown(Lease.objects.visible_to(self.organization)), lease_id)
        return Response(LeaseDetailSerializer(lease, context=_context([lease], at=self.now)).data)


class UtilizationView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}
    queries: ClassVar = {"GET": UtilizationQuery}

    @operation(
        summary="What each GPU of a lease did",
        responses={200: UtilizationPage},
        query=UtilizationQuery,
        refusals=("not_found", "invalid_value"),
        operation_id="get_lease_utilization",
    )
    def get(self, request: Request, lease_id: str) -> Response:
        lease = find(_shown(Lease.objects.visible_to(self.organization)), lease_id)
        resolution = self.query["resolution"]
        window = _delivered(lease, at=self.now)
        points = (
            metering.minutes(
                lease_id=lease.id, window=window, resolution_seconds=_RESOLUTION_SECONDS[resolution]
            )
            if window is not None
            else []
        )
        curve = {
            "data": points,
            "next_cursor": None,
            "resolution": resolution,
            "simulated": lease.node.simulated,
        }
        context = {"xids": _xids(lease, window=window)}
        return Response(UtilizationPage(curve, context=context).data)


def _shown(leases: Any) -> Any:  # noqa: ANN401 - a queryset of leases, annotated by nothing
    return leases.select_related("node").prefetch_related("transitions")


def _context(leases: list[Lease], *, at: dt.datetime) -> dict[str, object]:
    """Fetch what the answer needs beside the leases, in two queries however many they are."""
    uuids = [uuid for lease in leases if lease.closed_at is None for uuid in lease.gpu_uuids]
    delivered = {lease.id: _delivered(lease, at=at) for lease in leases}
    windows = {lease_id: window for lease_id, window in delivered.items() if window is not None}
    return {
        "now": at,
        "gpus": {gpu.uuid: gpu for gpu in Gpu.objects.filter(uuid__in=uuids)},
        "metered": metering.metered_seconds(windows=windows),
    }


def _xids(lease: Lease, *, window: Window | None) -> dict[str, list[dt.datetime]] | None:
    """Return when the lease's GPUs had Xids; None where their node's protocol has no word for them."""
    if window is None or lease.node.protocol_version < events.EVENTS_SINCE_PROTOCOL:
        return None
    return events.xid_instants(gpu_uuids=lease.gpu_uuids, window=window)


def _delivered(lease: Lease, *, at: dt.datetime) -> Window | None:
    """Return the time in which the tenant has had the GPUs so far, or None before the handover."""
    if lease.handed_over_at is None:
        return None
    ends_at = min(lease.returned_at or at, lease.ends_at)
    return Window(lease.handed_over_at, ends_at) if lease.handed_over_at < ends_at else None
