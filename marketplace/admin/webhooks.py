"""What organizations are told, where they are called, and what became of each call."""

import datetime as dt

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display

from marketplace import deliveries
from marketplace.admin.reporting import actor_of, report
from marketplace.core.read_only import ReadOnly
from marketplace.models import Event, WebhookCall, WebhookDelivery, WebhookEndpoint
from marketplace.states import DeliveryState

DELIVERY_LABELS = {
    DeliveryState.DELIVERED: "success",
    DeliveryState.WAITING: "info",
    DeliveryState.GIVEN_UP: "danger",
}


@admin.register(Event)
class EventAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """What organizations were told, and by which deliveries."""

    list_display = ("id", "at", "kind", "object_id", "organization")
    list_filter = ("kind",)
    list_select_related = ("organization",)
    search_fields = ("id", "object_id", "organization__name")
    fields = ("id", "at", "kind", "object_id", "organization", "data", "deliveries")
    readonly_fields = ("deliveries",)

    @admin.display(description="deliveries")
    def deliveries(self, event: Event) -> str:
        rows = (
            (
                reverse("admin:marketplace_webhookdelivery_change", args=[each.pk]),
                each.endpoint.url,
                each.state.label.lower(),
            )
            for each in event.deliveries.select_related("endpoint").order_by("pk")
        )
        line = '<div><a class="text-link" href="{}">{}</a>, {}</div>'
        return format_html_join("", line, rows) or "nobody wants it"


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """Organizations keep their endpoints through the API; an operator may stop one that does harm."""

    list_display = ("url", "organization", "created_at", "failing_since", "disabled_because")
    list_filter = (("disabled_at", admin.EmptyFieldListFilter), "disabled_because")
    list_select_related = ("organization",)
    search_fields = ("url", "id", "organization__name")
    ordering = ("-id",)
    # Who has a secret can sign what we never sent.
    exclude = ("sealed_secret", "sealed_secret_before", "kinds")
    readonly_fields = ("wanted",)
    actions = ("disable",)

    @admin.display(description="kinds of events")
    def wanted(self, endpoint: WebhookEndpoint) -> str:
        return ", ".join(endpoint.kinds) or "all"

    @admin.action(description="Call the selected endpoints no more", permissions=["stop"])
    def disable(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        for endpoint in queryset:
            report(
                request,
                lambda row=endpoint: deliveries.stop(
                    endpoint=row, at=timezone.now(), actor=actor_of(request)
                ),
                done=f"{endpoint} is called no more",
            )

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("marketplace.change_webhookendpoint"))


class WebhookCallInline(ReadOnly, TabularInline):  # type: ignore[misc] # unfold ships no types
    model = WebhookCall
    extra = 0
    hide_title = True
    fields = ("at", "response_status", "error")
    verbose_name_plural = "Calls"


class DeliveryStateFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [(value, str(label)) for value, label in DeliveryState.choices]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]
    ) -> QuerySet[WebhookDelivery]:
        value = self.value()
        found: QuerySet[WebhookDelivery] = (
            queryset.in_state(DeliveryState(value))  # type: ignore[attr-defined] # of its own class
            if value in DeliveryState.values
            else queryset
        )
        return found


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """Events on their way to organizations; what was given up can be sent once more."""

    list_display = (
        *("event_kind", "organization", "shown_state", "attempts", "last_status"),
        *("next_call", "endpoint"),
    )
    list_filter = (DeliveryStateFilter, "event__kind")
    list_select_related = ("event", "endpoint__organization")
    search_fields = ("event__id", "event__object_id", "endpoint__url", "endpoint__id")
    ordering = ("-id",)
    fields = (
        *("written_state", "event", "organization", "endpoint", "attempts", "next_call"),
        *("delivered_at", "last_status", "last_answer"),
    )
    readonly_fields = ("written_state", "organization", "next_call")
    inlines = (WebhookCallInline,)
    actions = ("resend",)

    @admin.display(description="event", ordering="event__kind")
    def event_kind(self, delivery: WebhookDelivery) -> str:
        return delivery.event.kind

    @admin.display(description="organization", ordering="endpoint__organization__name")
    def organization(self, delivery: WebhookDelivery) -> str:
        return str(delivery.endpoint.organization)

    @admin.display(description="next call", ordering="due_at", empty_value="none")
    def next_call(self, delivery: WebhookDelivery) -> dt.datetime | None:
        return delivery.due_at

    @display(description="status", label=DELIVERY_LABELS)  # type: ignore[untyped-decorator] # unfold ships no types
    def shown_state(self, delivery: WebhookDelivery) -> tuple[str, str]:
        return delivery.state.value, str(delivery.state.label)

    @admin.display(description="status")
    def written_state(self, delivery: WebhookDelivery) -> str:
        return str(delivery.state.label)

    @admin.action(description="Send the selected ones once more", permissions=["resend"])
    def resend(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> None:
        for delivery in queryset.select_related("endpoint__organization"):
            report(
                request,
                lambda row=delivery: deliveries.resend(
                    organization=row.endpoint.organization,
                    endpoint_id=row.endpoint_id,
                    event_id=row.event_id,
                    at=timezone.now(),
                    actor=actor_of(request),
                ),
                done=f"{delivery} is sent once more",
            )

    def has_resend_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("marketplace.change_webhookdelivery"))
