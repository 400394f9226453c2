"""Withdrawals of tenants, and the way to ask for the ones that wait."""

from urllib.parse import urlencode

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from billing.admin.shown import Shown, ShownInline, money
from billing.models import Withdrawal, WithdrawalPart, WithdrawalQuerySet
from billing.states import ApprovalKind


class PartInline(ShownInline):
    model = WithdrawalPart
    fields = ["refund"]
    verbose_name_plural = "Goes back to cards by"


@admin.register(Withdrawal)
class WithdrawalAdmin(Shown):
    list_display = [
        "id",
        "organization",
        money("amount_minor"),
        money("bank_minor", name="of it by bank"),
        "requested_at",
        "outcome",
    ]
    list_filter = [("carried_out_at", admin.EmptyFieldListFilter), "requested_at"]
    search_fields = ["id", "organization__name", "organization__id"]
    list_select_related = ["organization"]
    readonly_fields = ["outcome"]
    inlines = [PartInline]

    def get_queryset(self, request: HttpRequest) -> WithdrawalQuerySet:
        rows: WithdrawalQuerySet = super().get_queryset(request)
        return rows.with_refusal()

    @admin.display(description="outcome")
    def outcome(self, row: Withdrawal) -> str:
        if row.carried_out_at is not None:
            return "carried out"
        if row.is_refused:  # type: ignore[attr-defined] # annotated
            return "refused"
        query = urlencode(
            {
                "kind": ApprovalKind.WITHDRAWAL.value,
                "organization": row.organization_id,
                "subject_id": row.pk,
                "amount_minor": row.amount_minor,
            }
        )
        return format_html(
            '<a class="underline" href="{}?{}">Ask for it</a>',
            reverse("admin:billing_request"),
            query,
        )
