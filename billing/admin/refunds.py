"""Money that goes back to tenants, and what they dispute."""

from django.contrib import admin

from billing.admin.shown import Shown, money, transitions_of
from billing.models import CardInquiry, Dispute, DisputeTransition, Refund, RefundTransition


@admin.register(Refund)
class RefundAdmin(Shown):
    list_display = ["id", "reservation", "status", money("amount_minor"), "created_at"]
    list_filter = ["status", "created_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation"]
    inlines = [transitions_of(RefundTransition)]


@admin.register(Dispute)
class DisputeAdmin(Shown):
    list_display = ["id", "reservation", "status", money("amount_minor"), "opened_at"]
    list_filter = ["status", "opened_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation"]
    inlines = [transitions_of(DisputeTransition)]


@admin.register(CardInquiry)
class CardInquiryAdmin(Shown):
    list_display = [
        *("id", "payment", "state", money("amount_minor")),
        *("opened_at", "closed_at", "disputed_at"),
    ]
    list_filter = ["state", "opened_at"]
    search_fields = ["id", "payment__id", "payment__organization__name"]
    list_select_related = ["payment"]
