"""Staff's view of promises and facts. Everything is read-only: statuses move by verbs alone."""

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline

from agents.admin import GpuAdmin
from agents.models import Gpu
from marketplace.core.money import Money, grouped
from marketplace.core.read_only import ReadOnly
from scheduler import (
    onoffer,
    rule_admin,  # noqa: F401 - registers its own classes
)
from scheduler.models import (
    Allocation,
    DemandSample,
    ExtensionHold,
    Lease,
    LeaseTransition,
    PriceRule,
    PriceVersion,
    Quote,
    Reclaim,
    Relocation,
    Replacement,
    Reservation,
    ReservationTransition,
)
from scheduler.prices import admin as price_pages


class Priced:
    """Show what a promise costs as money, not as a number of minor units."""

    @admin.display(description="total", ordering="total_minor")
    def total(self, priced: Quote | Reservation) -> str:
        return grouped(Money(priced.total_minor, priced.currency))


class ReservationTransitionInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = ReservationTransition
    fields: ClassVar = ["at", "from_status", "to_status", "reason", "actor"]
    extra = 0
    hide_title = True


class LeaseTransitionInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = LeaseTransition
    fields: ClassVar = ["at", "from_status", "to_status", "reason", "actor"]
    extra = 0
    hide_title = True


class LeaseInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = Lease
    fields: ClassVar = ["id", "node", "status", "handed_over_at", "returned_at", "closed_at"]
    show_change_link = True
    extra = 0
    hide_title = True


class RelocationInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = Relocation
    fields: ClassVar = ["at", "from_node", "gpus", "reason", "actor"]
    extra = 0
    hide_title = True


class ReplacementInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = Replacement
    fields: ClassVar = ["opened_at", "due_at", "attempts", "closed_at", "outcome"]
    extra = 0
    hide_title = True


class ReclaimInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = Reclaim
    currency_of = "lease__reservation__currency"
    fields: ClassVar = [
        "notice_at",
        "due_at",
        "promised_until",
        "remaining_minor",
        "compensation_minor",
        "stopped_at",
        "actor",
    ]
    extra = 0
    hide_title = True


class AllocationInline(ReadOnly, TabularInline):  # type: ignore[misc]  # unfold has no types
    model = Allocation
    fields: ClassVar = ["node", "listing", "slots", "period", "live"]
    extra = 0
    hide_title = True


@admin.register(Quote)
class QuoteAdmin(Priced, ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "id", "organization", "status", "gpus", "gpu_model", "region", "starts_at", "ends_at",
        "rate", "total", "hold", "expires_at", "simulated",
    ]  # fmt: skip
    list_filter: ClassVar = ["status", "gpu_model", "tier", "hold", "region", "simulated"]
    list_select_related: ClassVar = ["organization", "gpu_model"]
    search_fields: ClassVar = ["id", "organization__id", "organization__name"]
    date_hierarchy = "created_at"
    inlines: ClassVar = [AllocationInline]


@admin.register(Reservation)
class ReservationAdmin(Priced, ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "id", "organization", "status", "gpus", "gpu_model", "region", "starts_at", "ends_at",
        "rate", "total", "payment_method", "simulated",
    ]  # fmt: skip
    list_filter: ClassVar = ["status", "gpu_model", "tier", "payment_method", "region", "simulated"]
    list_select_related: ClassVar = ["organization", "gpu_model"]
    search_fields: ClassVar = ["id", "quote__id", "organization__id", "organization__name", "name"]
    date_hierarchy = "starts_at"
    inlines: ClassVar = [
        ReservationTransitionInline,
        LeaseInline,
        RelocationInline,
        AllocationInline,
    ]


@admin.register(Lease)
class LeaseAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "id", "reservation", "node", "status", "starts_at", "ends_at",
        "handed_over_at", "returned_at", "closed_at",
    ]  # fmt: skip
    list_filter: ClassVar = ["status", "node__region"]
    list_select_related: ClassVar = ["reservation", "node"]
    search_fields: ClassVar = ["id", "reservation__id", "node__id", "node__hostname"]
    date_hierarchy = "starts_at"
    inlines: ClassVar = [
        LeaseTransitionInline,
        ReplacementInline,
        ReclaimInline,
        AllocationInline,
    ]


@admin.register(ExtensionHold)
class ExtensionHoldAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    """Hours that are kept for a reservation until they are paid for, made, or dropped for a reason."""

    list_display: ClassVar = [
        *("id", "tenant", "kind", "state", "price", "wanted", "held_until", "reservation"),
    ]
    list_filter: ClassVar = [
        "drop_reason",
        ("made_at", admin.EmptyFieldListFilter),
        ("dropped_at", admin.EmptyFieldListFilter),
        "created_at",
    ]
    search_fields: ClassVar = [
        "id",
        "reservation__id",
        "reservation__organization__id",
        "reservation__organization__name",
    ]
    list_select_related: ClassVar = ["reservation__organization", "quote"]
    # What its quote says of it is told here: quotes of changes have no page.
    fields: ClassVar = [
        *("id", "reservation", "tenant", "kind", "state", "wanted", "price", "held_until"),
        *("kept", "actor", "created_at", "made_at", "dropped_at", "drop_reason"),
    ]
    readonly_fields: ClassVar = ["tenant", "state", "kind", "wanted", "price"]

    @admin.display(description="tenant", ordering="reservation__organization__name")
    def tenant(self, hold: ExtensionHold) -> str:
        return str(hold.reservation.organization)

    @admin.display(description="state")
    def state(self, hold: ExtensionHold) -> str:
        if hold.made_at is not None:
            late = ", after it was dropped" if hold.dropped_at is not None else ""
            return f"made{late}"
        return f"dropped: {hold.get_drop_reason_display()}" if hold.dropped_at else "held"

    @admin.display(description="kind", ordering="quote__kind")
    def kind(self, hold: ExtensionHold) -> str:
        return str(hold.quote.get_kind_display())

    @admin.display(description="asked for")
    def wanted(self, hold: ExtensionHold) -> str:
        """Return the window that the reservation is to have."""
        window = hold.window
        return f"{window.starts_at:%Y-%m-%d %H:%M} to {window.ends_at:%Y-%m-%d %H:%M} UTC"

    @admin.display(description="price")
    def price(self, hold: ExtensionHold) -> str:
        return grouped(Money(hold.quote.charge_minor, hold.reservation.currency))


@admin.register(Allocation)
class AllocationAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]  # unfold has no types
    list_display: ClassVar = [
        "id",
        "node",
        "slots",
        "period",
        "occupied",
        "live",
        "listing",
        "quote",
        "reservation",
    ]
    list_filter: ClassVar = ["live", "node__region"]
    list_select_related: ClassVar = ["node", "listing", "quote", "reservation"]
    search_fields: ClassVar = [
        "quote__id", "reservation__id", "lease__id", "node__id", "node__hostname", "listing__id"
    ]  # fmt: skip


class OnOfferFilter(admin.SimpleListFilter):
    """Keep the GPUs that are, or are not, on offer just now."""

    title = "on offer"
    parameter_name = "on_offer"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - as Django types it
        del request, model_admin
        return [("yes", "Yes"), ("no", "No")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Gpu]) -> QuerySet[Gpu]:
        del request
        if self.value() not in ("yes", "no"):
            return queryset
        gpus = onoffer.annotated(gpus=queryset, at=timezone.now())
        return gpus.filter(Q(on_offer=self.value() == "yes"))


class OfferedGpuAdmin(GpuAdmin):
    """The machines' page of GPUs, with what the market knows beside: why each is or is not on offer."""

    # Whether it sells is what people look for: right after what it is.
    list_display = [*GpuAdmin.list_display[:4], "offer", *GpuAdmin.list_display[4:]]

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        """Put whether a GPU is on offer before what the machines say."""
        return [OnOfferFilter, *super().get_list_filter(request)]

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """Read the offers of a whole page at once."""
        changes: ChangeList = super().get_changelist_instance(request)
        offers = onoffer.read(gpus=changes.result_list, at=timezone.now())
        for gpu in changes.result_list:
            gpu.offer_of_the_page = offers[gpu.pk]
        return changes

    @admin.display(description="on offer")
    def offer(self, gpu: Gpu) -> str:
        """Say yes, or the codes of what stands against it."""
        found: onoffer.Offer = vars(gpu)["offer_of_the_page"]
        return "yes" if found.on_offer else ", ".join(reason.code for reason in found.reasons)


admin.site.unregister(Gpu)
admin.site.register(Gpu, OfferedGpuAdmin)
admin.site.register(PriceRule, price_pages.PriceRuleAdmin)
admin.site.register(PriceVersion, price_pages.PriceVersionAdmin)
admin.site.register(DemandSample, price_pages.DemandSampleAdmin)
