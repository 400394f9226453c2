"""Leases that are not settled because nobody tells what became of their GPUs, for two people to rule on."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince

from billing import silences
from billing.admin.shown import Shown
from billing.models import SilentLease
from billing.states import RULINGS, ApprovalKind


@admin.register(SilentLease)
class SilentLeaseAdmin(Shown):
    list_display = ["id", "reservation", "node", "why", "gpu_seconds", "age", "ask"]
    search_fields = ["id", "reservation__id", "node__hostname"]
    list_select_related = ["reservation", "node"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[SilentLease]:
        shown: QuerySet[SilentLease] = super().get_queryset(request)
        return shown.filter(pk__in=silences.candidates().values("pk"))

    @admin.display(description="why it waits")
    def why(self, lease: SilentLease) -> str:
        silence = silences.of_lease(lease=lease)
        if silence is None:
            return "all is told; it is settled by the next run"
        ruling = silences.ruling_on(lease_id=lease.pk)
        if ruling is not None:
            return f"{ApprovalKind(ruling.kind).label}, by {ruling.id}; settled by the next run"
        return f"no return, no reading since {silence.since:%Y-%m-%d %H:%M} and no outage for it"

    @admin.display(description="GPU-seconds untold")
    def gpu_seconds(self, lease: SilentLease) -> str:
        silence = silences.of_lease(lease=lease)
        return "0" if silence is None else f"{silence.gpu_seconds:,}"

    @admin.display(description="waits for")
    def age(self, lease: SilentLease) -> str:
        return timesince(lease.closed_at, timezone.now()) if lease.closed_at else ""

    @admin.display(description="ask for")
    def ask(self, lease: SilentLease) -> str:
        """Link to what one person may ask for, filled in."""
        delivered, refunded = (
            f"{reverse('admin:billing_request')}?kind={kind.value}&subject_id={lease.pk}"
            f"&organization={lease.reservation.organization_id}&amount_minor=0"
            for kind in RULINGS
        )
        return format_html(
            '<a class="text-link" href="{}">it was delivered</a> · '
            '<a class="text-link" href="{}">it was not</a>',
            delivered,
            refunded,
        )
