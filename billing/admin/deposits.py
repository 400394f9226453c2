"""Prices that are paid in two parts: how far each has come, and what happens next."""

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html_join

from billing.admin.shown import Shown, money, whose
from billing.models import Deposit, Payment, ProviderTransition
from billing.provider_states import DepositStatus, Machine

# What the beat does at `act_due_at`, or whom a plan waits for.
_NEXT = {
    DepositStatus.AWAITED: "the deposit is to be paid, or the reservation expires",
    DepositStatus.OPEN: "the balance is announced, then charged",
    DepositStatus.ASKED: "its tenant is to return and pay, or the reservation is given up",
}


@admin.register(Deposit)
class DepositAdmin(Shown):
    list_display = [
        "reservation",
        whose("reservation__organization", name="tenant"),
        "status",
        "next_step",
        money("gross_minor", name="deposit, with tax"),
        money("balance_gross_minor", name="balance, with tax"),
        "balance_due_at",
    ]
    list_filter = ["status", "balance_due_at", ("closed_at", admin.EmptyFieldListFilter)]
    search_fields = [
        "reservation__id",
        "reservation__organization__id",
        "reservation__organization__name",
    ]
    list_select_related = ["reservation__organization"]
    readonly_fields = ["next_step", "payments", "moves"]

    @admin.display(description="next")
    def next_step(self, plan: Deposit) -> str:
        if plan.act_due_at is None:
            return _NEXT.get(DepositStatus(plan.status), "nothing")
        return f"{plan.act_due_at:%Y-%m-%d %H:%M} UTC: {_NEXT[DepositStatus(plan.status)]}"

    @admin.display(description="payments")
    def payments(self, plan: Deposit) -> str:
        """Link to every payment of the reservation, the oldest first."""
        rows = Payment.objects.filter(reservation=plan.reservation).order_by("pk")
        links = (
            (
                reverse("admin:billing_payment_change", args=[row.pk]),
                row.pk,
                row.purpose,
                row.status,
            )
            for row in rows
        )
        each = '<div><a class="text-link" href="{}">{}</a> {}, {}</div>'
        return format_html_join("", each, links) or "none"

    @admin.display(description="moves")
    def moves(self, plan: Deposit) -> str:
        rows = ProviderTransition.objects.filter(machine=Machine.DEPOSIT, subject_id=plan.pk)
        moves = (
            (f"{row.at:%Y-%m-%d %H:%M}", row.from_status or "—", row.to_status)
            for row in rows.order_by("at", "pk")
        )
        return format_html_join("", "<div>{} UTC: {} → {}</div>", moves) or "none"
