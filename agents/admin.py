"""What staff see of machines. Nothing is edited here: states move through the verbs, evidence stands."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from agents import alarms, enrolment, health, inventory, policies
from agents.models import (
    Alarm,
    EnrolmentToken,
    Gpu,
    GpuEvent,
    Grant,
    MeterReading,
    Node,
    NodeTransition,
    Outage,
    Policy,
    Reading,
    Receipt,
)
from agents.policy_form import OwnerForm, PolicyForm, tell
from marketplace.core.errors import DomainError
from marketplace.core.read_only import ReadOnly

ModelT = TypeVar("ModelT", bound=Model)
PUBLISH_PERMISSION = "agents.add_policy"
SHORT_UUID_CHARACTERS = (
    12  # the prefix and eight digits: enough within a fleet, and the page has all
)


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
        "device",
        "node",
        "slot",
        "model",
        "present",
        "health",
        "quarantined",
        "idle_state",
        "measured_at",
    ]
    list_filter = ["health", "idle_state", "present", "gpu_model", "node__region"]
    list_select_related = ["node", "gpu_model"]
    search_fields = ["id", "uuid", "serial", "product_name", "node__id", "node__hostname"]

    @admin.display(description="GPU", ordering="uuid")
    def device(self, gpu: Gpu) -> str:
        """Name the device as far as the column has room."""
        return _short(gpu)

    @admin.display(description="model", ordering="gpu_model")
    def model(self, gpu: Gpu) -> str:
        """Name the model by its id, which is short; a GPU may be of none that the catalogue has."""
        return gpu.gpu_model_id or "-"

    @admin.display(description="withdrawn", ordering="quarantined_by_market")
    def quarantined(self, gpu: Gpu) -> str:
        """Say why the market has taken it off sale, if it has."""
        return gpu.quarantined_by_market or "-"


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


def _short(gpu: Gpu) -> str:
    """Return a GPU's UUID as far as a column of a list has room."""
    return f"{gpu.uuid[:SHORT_UUID_CHARACTERS]}…"


@admin.register(GpuEvent)
class GpuEventAdmin(ReadOnlyAdmin):
    list_display = ["at", "node", "device", "what", "cause", "reason", "lease_id", "source"]
    list_filter = ["kind", "health", "cause", "source", "at"]
    list_select_related = ["gpu", "node"]
    search_fields = ["gpu__uuid", "node__id", "node__hostname", "lease_id", "xid", "reason"]
    ordering = ["-at"]

    @admin.display(description="GPU", ordering="gpu__uuid")
    def device(self, event: GpuEvent) -> str:
        return _short(event.gpu)

    @admin.display(description="What")
    def what(self, event: GpuEvent) -> str:
        return event.health or f"Xid {event.xid}"


@admin.register(Outage)
class OutageAdmin(ReadOnlyAdmin):
    list_display = [
        "starts_at",
        "ends_at",
        "node",
        "device",
        "health",
        "cause",
        "reason",
        "lease_id",
    ]
    list_filter = ["health", "cause", ("ends_at", admin.EmptyFieldListFilter), "starts_at"]
    list_select_related = ["gpu__node"]
    search_fields = ["gpu__uuid", "gpu__node__id", "gpu__node__hostname", "lease_id", "reason"]
    ordering = ["-starts_at"]

    @admin.display(description="Node", ordering="gpu__node__hostname")
    def node(self, outage: Outage) -> str:
        return outage.gpu.node.hostname

    @admin.display(description="GPU", ordering="gpu__uuid")
    def device(self, outage: Outage) -> str:
        return _short(outage.gpu)


@admin.register(Policy)
class PolicyAdmin(ReadOnlyAdmin):
    """Versions as they were published; a new one comes from a form of its own."""

    list_display = ["organization", "version", "created_at", "created_by", "changed"]
    list_filter = ["created_at", "organization"]
    list_select_related = ["organization"]
    search_fields = [
        "organization__name",
        "organization__id",
        "created_by",
        "organization__nodes__id",
    ]
    ordering = ["organization__name", "-version"]
    fields = ["organization", "version", "created_at", "created_by", "changes"]
    readonly_fields = ["changes"]

    @admin.display(description="Changes")
    def changed(self, policy: Policy) -> int:
        return len(_differences(policy))

    @admin.display(description="Against the version before")
    def changes(self, policy: Policy) -> SafeString:
        rows = [(d.pointer, d.before or "none", d.after or "none") for d in _differences(policy)]
        line = "<tr><td class='pr-6'>{}</td><td class='pr-6'>{}</td><td>{}</td></tr>"
        lines = format_html_join("", line, [("Rule", "Before", "Now"), *rows])
        return format_html("<table>{}</table>", lines)

    def get_urls(self) -> list[URLPattern]:
        """Add the page on which a new version is published."""
        publish = self.admin_site.admin_view(publish_view)
        return [path("publish/", publish, name="agents_policy_publish"), *super().get_urls()]


def _differences(policy: Policy) -> list[policies.Difference]:
    return policies.differences(
        before=policies.before(row=policy), after=policies.as_policy(policy)
    )


def publish_view(request: HttpRequest) -> HttpResponse:
    """Let staff choose an owner, change its rules, and publish them as the next version."""
    if not request.user.has_perm(PUBLISH_PERMISSION):
        raise PermissionDenied
    owners = OwnerForm(request.GET or None)
    if not owners.is_valid():
        return _publish_page(request, owners=owners)
    organization = owners.cleaned_data["organization"]
    current = policies.current(organization=organization)
    form = PolicyForm(request.POST or None, current=current)
    if request.method == "POST" and form.is_valid():
        try:
            row = policies.publish(
                organization=organization,
                document=form.document(),
                based_on=form.cleaned_data["based_on"],
                actor=_actor(request),
                at=timezone.now(),
            )
        except DomainError as refusal:
            tell(form=form, refusal=refusal)
        else:
            messages.success(request, f"Version {row.version} of {organization} is in force.")
            return HttpResponseRedirect(reverse("admin:agents_policy_change", args=[row.pk]))
    return _publish_page(
        request,
        form=form,
        organization=organization,
        version=current.version,
        next_version=current.version + 1,
    )


def _publish_page(request: HttpRequest, **context: Any) -> TemplateResponse:  # noqa: ANN401
    context |= {**admin.site.each_context(request), "title": "Publish a policy"}
    return TemplateResponse(request, "admin/agents/policy/publish.html", context)
