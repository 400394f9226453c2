"""What staff see of machines. Nothing is edited here: states move through the verbs, evidence stands."""

from collections.abc import Callable
from typing import TypeVar

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin

from agents import alarms, enrolment, health, inventory
from agents.models import (
    Alarm,
    EnrolmentToken,
    Gpu,
    Grant,
    MeterReading,
    Node,
    NodeTransition,
    Reading,
    Receipt,
)
from marketplace.core.errors import DomainError
from marketplace.core.read_only import ReadOnly

ModelT = TypeVar("ModelT", bound=Model)


class ReadOnlyAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """Show rows, which only actions that call a verb may move."""

    list_per_page = 50
    show_full_result_count = False  # counting a table of readings takes longer than showing a page

    def has_act_permission(self, request: HttpRequest) -> bool:
        """Say who may run the actions marked `permissions=["act"]`: whoever might change the rows."""
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def act(
        self, request: HttpRequest, rows: QuerySet[ModelT], verb: Callable[[ModelT], None]
    ) -> None:
        """Run a verb on each row and tell what was done and what was refused."""
        done = 0
        for row in rows:
            try:
                verb(row)
            except DomainError as refusal:
                self.message_user(request, f"{row}: {refusal.detail}", messages.ERROR)
            else:
                done += 1
        self.message_user(request, f"Done for {done}.", messages.SUCCESS)


def _actor(request: HttpRequest) -> str:
    return f"user:{request.user.get_username()}"[:100]


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "organization",
        "region",
        "fabric",
        "nodes_enrolled",
        "nodes_max",
        "allowed_networks",
        "expires_at",
        "revoked_at",
    ]
    list_filter = ["region", "expires_at", "revoked_at"]
    list_select_related = ["organization"]
    search_fields = ["id", "organization__name", "region", "fabric"]
    exclude = ["secret_sha256"]
    actions = ["revoke"]

    @admin.action(description="Revoke the selected tokens", permissions=["act"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[EnrolmentToken]) -> None:
        self.act(
            request, queryset, lambda row: enrolment.revoke_token(token=row, at=timezone.now())
        )


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = [
        "hostname",
        "id",
        "organization",
        "region",
        "fabric",
        "status",
        "liveness",
        "simulated",
        "last_report_at",
        "agent_version",
        "protocol_version",
        "key_since",
    ]
    list_filter = [
        *("status", "simulated", "region", "fabric"),
        *("agent_version", "protocol_version"),
    ]
    list_select_related = ["organization"]
    search_fields = ["id", "hostname", "machine_id", "organization__name", "gpus__uuid"]
    actions = ["drain", "resume", "revoke"]

    @admin.display(description="Heard of")
    def liveness(self, node: Node) -> str:
        return health.liveness(node=node, at=timezone.now())

    @admin.action(description="Drain: sell nothing more", permissions=["act"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        self._move(request, queryset, inventory.drain)

    @admin.action(description="Resume, and end the market's quarantine", permissions=["act"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        self._move(request, queryset, inventory.resume)

    @admin.action(description="Revoke for good", permissions=["act"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        self._move(request, queryset, inventory.revoke)

    def _move(self, request: HttpRequest, nodes: QuerySet[Node], verb: Callable[..., None]) -> None:
        at, actor = timezone.now(), _actor(request)
        self.act(request, nodes, lambda node: verb(node=node, at=at, actor=actor))


@admin.register(NodeTransition)
class NodeTransitionAdmin(ReadOnlyAdmin):
    list_display = ["at", "node", "from_status", "to_status", "actor"]
    list_filter = ["to_status", "at"]
    list_select_related = ["node"]
    search_fields = ["node__id", "node__hostname", "actor"]
    ordering = ["-at"]


@admin.register(Gpu)
class GpuAdmin(ReadOnlyAdmin):
    list_display = [
        "uuid",
        "node",
        "slot",
        "gpu_model",
        "present",
        "health",
        "quarantined_by_market",
        "idle_state",
        "measured_at",
    ]
    list_filter = ["health", "idle_state", "present", "gpu_model", "node__region"]
    list_select_related = ["node", "gpu_model"]
    search_fields = ["id", "uuid", "serial", "product_name", "node__id", "node__hostname"]


@admin.register(Grant)
class GrantAdmin(ReadOnlyAdmin):
    list_display = [
        "lease_id",
        "lease_epoch",
        "node",
        "desired_state",
        "reported_state",
        "not_before",
        "not_after",
        "closed_at",
    ]
    list_filter = ["desired_state", "reported_state", "closed_at"]
    list_select_related = ["node"]
    search_fields = ["lease_id", "node__id", "node__hostname"]
    ordering = ["-not_before"]


@admin.register(Receipt)
class ReceiptAdmin(ReadOnlyAdmin):
    list_display = ["lease_id", "lease_epoch", "kind", "node", "at", "is_clean", "received_at"]
    list_filter = ["kind", "is_clean", "at"]
    list_select_related = ["node"]
    search_fields = ["lease_id", "node__id", "node__hostname"]
    ordering = ["-received_at"]


@admin.register(MeterReading)
class MeterReadingAdmin(ReadOnlyAdmin):
    list_display = [
        "lease_id",
        "gpu_uuid",
        "starts_at",
        "ends_at",
        "up_seconds",
        "busy_seconds",
        "energy_millijoules",
        "simulated",
    ]
    list_filter = ["simulated", "starts_at"]
    list_select_related = ["node"]
    search_fields = ["lease_id", "gpu_uuid", "node__id"]
    ordering = ["-id"]


@admin.register(Reading)
class ReadingAdmin(ReadOnlyAdmin):
    list_display = [
        "gpu",
        "measured_at",
        "utilization_percent",
        "memory_used_bytes",
        "power_draw_milliwatts",
        "temperature_celsius",
        "process_count",
    ]
    list_filter = ["measured_at"]
    list_select_related = ["gpu"]
    search_fields = ["gpu__uuid", "gpu__node__id"]
    ordering = ["-id"]


@admin.register(Alarm)
class AlarmAdmin(ReadOnlyAdmin):
    list_display = [
        "raised_at",
        "kind",
        "node",
        "owner",
        "gpu_uuid",
        "detail",
        "settled_at",
        "settled_by",
    ]
    list_filter = ["kind", ("settled_at", admin.EmptyFieldListFilter), "raised_at"]
    list_select_related = ["node__organization"]
    search_fields = ["node__id", "node__hostname", "gpu_uuid", "node__organization__name"]
    ordering = ["-raised_at"]
    actions = ["settle"]

    @admin.display(description="Owner")
    def owner(self, alarm: Alarm) -> str:
        return alarm.node.organization.name

    @admin.action(
        description="Settle: the selected node has the GPU, or is the only one with its key",
        permissions=["act"],
    )
    def settle(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> None:
        at, actor = timezone.now(), _actor(request)
        self.act(
            request,
            queryset,
            lambda alarm: alarms.settle(alarm=alarm, rightful_node=alarm.node, at=at, actor=actor),
        )
