"""Money that goes back to tenants, and what they dispute."""

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display

from billing.admin.shown import NOT_SET, Shown, badge, money, transitions_of, whose
from billing.models import (
    CardInquiry,
    CardRefund,
    Dispute,
    DisputeTransition,
    Refund,
    RefundTransition,
    TopUpDispute,
)
from billing.provider_states import CardRefundStatus
from billing.states import DisputeStatus, RefundStatus

_DISPUTES = {
    DisputeStatus.OPEN.value: "warning",
    DisputeStatus.WON.value: "success",
    DisputeStatus.LOST.value: "danger",
}
_OF_RESERVATION = whose("reservation__organization", name="tenant")
_OF_PAYMENT = whose("payment__organization", name="tenant")
_INQUIRIES = {"asked": "warning", "content": "success", "disputed": "danger"}


@admin.register(Refund)
class RefundAdmin(Shown):
    """What goes back of reservations that were not paid from the wallet."""

    list_display = [
        *("id", _OF_RESERVATION, "reservation"),
        badge(
            "status",
            {RefundStatus.SETTLED.value: "success", RefundStatus.FAILED.value: "danger"},
        ),
        *(money("amount_minor"), "created_at"),
    ]
    list_filter = ["status", "created_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation__organization"]
    readonly_fields = [_OF_RESERVATION]
    inlines = [transitions_of(RefundTransition)]


@admin.register(CardRefund)
class CardRefundAdmin(Shown):
    """What goes back of top-ups, of payments that bought nothing, and for withdrawals."""

    list_display = [
        *("id", _OF_PAYMENT, "payment"),
        badge(
            "status",
            {CardRefundStatus.SUCCEEDED.value: "success", CardRefundStatus.FAILED.value: "danger"},
        ),
        *(money("amount_minor"), "reason", "created_at", "closed_at"),
    ]
    list_filter = ["status", "reason", "created_at"]
    search_fields = ["id", "provider_id", "payment__id", "payment__organization__name"]
    list_select_related = ["payment__organization"]
    readonly_fields = [_OF_PAYMENT]


@admin.register(Dispute)
class DisputeAdmin(Shown):
    """Payments of reservations that a bank has called into question, and what became of them."""

    list_display = [
        *("id", _OF_RESERVATION, "reservation", badge("status", _DISPUTES)),
        *(money("amount_minor"), money("fee_minor"), "opened_at"),
    ]
    list_filter = ["status", "opened_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation__organization"]
    readonly_fields = [_OF_RESERVATION]
    inlines = [transitions_of(DisputeTransition)]


@admin.register(TopUpDispute)
class TopUpDisputeAdmin(Shown):
    """Top-ups that a bank has called into question: their money is withheld from the wallet."""

    list_display = [
        *("id", _OF_PAYMENT, "payment", badge("status", _DISPUTES)),
        *(money("amount_minor"), money("fee_minor"), "opened_at", "closed_at"),
    ]
    list_filter = ["status", "opened_at"]
    search_fields = ["id", "payment__id", "payment__organization__name"]
    list_select_related = ["payment__organization"]
    readonly_fields = [_OF_PAYMENT]
    ordering = ["-opened_at"]


@admin.register(CardInquiry)
class CardInquiryAdmin(Shown):
    """What banks only ask about: nothing was taken yet, and a good answer keeps it so."""

    list_display = [
        *("id", _OF_PAYMENT, "payment", "outcome", money("amount_minor")),
        *("opened_at", "closed_at", "disputed_at"),
    ]
    list_filter = [
        "state",
        ("closed_at", admin.EmptyFieldListFilter),
        ("disputed_at", admin.EmptyFieldListFilter),
        "opened_at",
    ]
    search_fields = ["id", "payment__id", "payment__organization__name"]
    list_select_related = ["payment__organization"]
    readonly_fields = [_OF_PAYMENT, "dispute"]

    @display(description="outcome", label=_INQUIRIES)  # type: ignore[untyped-decorator] # unfold has no types
    def outcome(self, inquiry: CardInquiry) -> tuple[str, str]:
        if inquiry.disputed_at is not None:
            return "disputed", "became a dispute"
        return ("content", "bank is content") if inquiry.closed_at else ("asked", "bank asks")

    @admin.display(description="dispute that it became")
    def dispute(self, inquiry: CardInquiry) -> str:
        """Lead to the dispute of the same id, of a reservation or of a top-up."""
        for model in (Dispute, TopUpDispute):
            if model.objects.filter(pk=inquiry.pk).exists():
                name = f"admin:billing_{model.__name__.lower()}_change"
                address = reverse(name, args=[quote(inquiry.pk)])
                return format_html('<a class="text-link" href="{}">{}</a>', address, inquiry.pk)
        return NOT_SET
