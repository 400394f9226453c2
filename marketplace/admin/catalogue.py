"""The catalogue for the operator: what the verbs allow, and histories that nobody can edit."""

import datetime as dt
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from marketplace import listings, organizations
from marketplace.admin.reporting import actor_of, report
from marketplace.core.read_only import ReadOnly
from marketplace.core.windows import format_duration
from marketplace.models import (
    ApiKey,
    AuditEvent,
    GpuModel,
    IdempotencyRecord,
    Listing,
    ListingTransition,
    Organization,
    User,
)
from marketplace.states import ListingStatus, Scope

STATUS_LABELS = {
    ListingStatus.PUBLISHED: "success",
    ListingStatus.PAUSED: "warning",
    ListingStatus.RETIRED: "danger",
    ListingStatus.DRAFT: "info",
}


@admin.register(Organization)
class OrganizationAdmin(ModelAdmin):  # type: ignore[misc] # unfold ships no types
    list_display = ("name", "id", "is_owner", "is_tenant", "created_at")
    list_filter = ("is_owner", "is_tenant")
    search_fields = ("name", "id")
    fields = ("name", "is_owner", "is_tenant")
    ordering = ("name",)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> tuple[str, ...]:
        return () if obj is None else self.fields

    def save_model(self, request: HttpRequest, obj: Organization, form: Any, change: bool) -> None:  # noqa: ANN401, FBT001 - Django's signature
        """Register the company through the verb, which leaves its trail."""
        if not change:
            made = organizations.create_organization(
                name=obj.name, is_owner=obj.is_owner, is_tenant=obj.is_tenant, at=timezone.now()
            )
            obj.pk = made.pk

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """Ask for what a new key needs; its secret is made by the verb."""

    scopes = forms.MultipleChoiceField(
        choices=Scope.choices, widget=UnfoldAdminCheckboxSelectMultipleWidget
    )

    class Meta:
        model = ApiKey
        fields = ("organization", "name", "scopes", "expires_at")

    def clean_expires_at(self) -> Any:  # noqa: ANN401 - whatever the field cleans to
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("This instant has passed.")
        return expires_at


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):  # type: ignore[misc] # unfold ships no types
    form = ApiKeyForm
    list_display = (
        "name",
        "organization",
        "prefix",
        "scope_list",
        "created_at",
        "expires_at",
        "revoked_at",
    )
    list_filter = ("organization", ("revoked_at", admin.EmptyFieldListFilter))
    list_select_related = ("organization",)
    search_fields = ("name", "prefix", "id", "organization__name")
    autocomplete_fields = ("organization",)
    actions = ("revoke",)

    @admin.display(description="scopes")
    def scope_list(self, api_key: ApiKey) -> str:
        return ", ".join(api_key.scopes)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> tuple[str, ...]:
        shown = ("organization", "name", "prefix", "scope_list", "created_at", "expires_at")
        return () if obj is None else (*shown, "revoked_at")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return self.get_readonly_fields(request, obj) or ApiKeyForm.Meta.fields

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:  # noqa: ANN401, FBT001 - Django's signature
        """Issue the key through the verb and show its secret, this once."""
        if change:
            return
        api_key, secret = organizations.issue_api_key(
            organization=obj.organization,
            name=obj.name,
            scopes=[Scope(scope) for scope in obj.scopes],
            at=timezone.now(),
            expires_at=obj.expires_at,
        )
        obj.pk = api_key.pk
        messages.warning(request, f"The secret is shown this once, copy it now: {secret}")

    @admin.action(description="Revoke the selected keys")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for api_key in queryset:
            report(
                request,
                lambda key=api_key: organizations.revoke_api_key(
                    api_key=key, at=timezone.now(), actor=actor_of(request)
                ),
                done=f"{api_key} is revoked",
            )

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(GpuModel)
class GpuModelAdmin(ModelAdmin):  # type: ignore[misc] # unfold ships no types
    list_display = ("name", "id", "memory_gib", "product_names")
    search_fields = ("name", "id", "nvml_names")

    @admin.display(description="NVML product names")
    def product_names(self, gpu_model: GpuModel) -> str:
        return ", ".join(gpu_model.nvml_names)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> tuple[str, ...]:
        return () if obj is None else ("id",)


class ListingTransitionInline(ReadOnly, TabularInline):  # type: ignore[misc] # unfold ships no types
    model = ListingTransition
    extra = 0
    fields = readonly_fields = ("at", "from_status", "to_status", "actor")
    ordering = ("-id",)


@admin.register(Listing)
class ListingAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """Owners change their wishes through the API; an operator may take them off offer."""

    list_display = (
        "name",
        "organization",
        "shown_status",
        "gpu_model",
        "region",
        "floor",
        "tier",
        "mode",
        "turn_round",
        "starts_at",
        "ends_at",
    )
    list_filter = ("status", "gpu_model", "tier", "mode", "region", "organization")
    list_select_related = ("organization", "gpu_model")
    search_fields = ("name", "id", "organization__name", "region")
    date_hierarchy = "created_at"
    actions = ("publish", "pause", "retire")
    inlines = (ListingTransitionInline,)

    @display(description="status", ordering="status", label=STATUS_LABELS)  # type: ignore[untyped-decorator] # unfold ships no types
    def shown_status(self, listing: Listing) -> tuple[str, str]:
        return listing.status, listing.get_status_display()

    @admin.display(description="floor per GPU-hour", ordering="floor_rate")
    def floor(self, listing: Listing) -> str:
        return f"{listing.floor_rate} {listing.currency.upper()}"

    @admin.display(description="turn-round", ordering="turnaround_seconds")
    def turn_round(self, listing: Listing) -> str:
        return format_duration(dt.timedelta(seconds=listing.turnaround_seconds))

    @admin.action(description="Publish the selected listings")
    def publish(self, request: HttpRequest, queryset: QuerySet[Listing]) -> None:
        self._move(request, queryset, verb=listings.publish)

    @admin.action(description="Pause the selected listings")
    def pause(self, request: HttpRequest, queryset: QuerySet[Listing]) -> None:
        self._move(request, queryset, verb=listings.pause)

    @admin.action(description="Retire the selected listings for good")
    def retire(self, request: HttpRequest, queryset: QuerySet[Listing]) -> None:
        self._move(request, queryset, verb=listings.retire)

    def _move(self, request: HttpRequest, queryset: QuerySet[Listing], *, verb: Any) -> None:  # noqa: ANN401 - one of three verbs
        for listing in queryset:
            report(
                request,
                lambda row=listing: verb(listing=row, at=timezone.now(), actor=actor_of(request)),
                done=f"{listing}: done",
            )


@admin.register(ListingTransition)
class ListingTransitionAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    list_display = ("at", "listing", "from_status", "to_status", "actor")
    list_filter = ("to_status",)
    list_select_related = ("listing",)
    search_fields = ("listing__id", "listing__name", "actor")
    date_hierarchy = "at"
    ordering = ("-id",)


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    list_display = ("at", "action", "object_id", "organization", "actor")
    list_filter = ("action", "organization")
    list_select_related = ("organization",)
    search_fields = ("object_id", "actor", "action")
    date_hierarchy = "at"


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    list_display = ("created_at", "organization", "key", "response_status")
    list_filter = ("response_status", "organization")
    list_select_related = ("organization",)
    search_fields = ("key", "organization__name")
    ordering = ("-id",)
    # The stored answer may hold a secret that is shown once.
    exclude = ("response_body",)


admin.site.index_title = "Today"
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[misc,type-arg] # unfold ships no types
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "organization", "is_staff", "is_superuser", "last_login")
    fieldsets = (*(DjangoUserAdmin.fieldsets or ()), ("Headroom", {"fields": ("organization",)}))


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc] # unfold ships no types
    pass
