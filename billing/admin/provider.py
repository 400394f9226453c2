"""Payments, the calls that were made to Stripe, what it told, and where it and the ledger differ."""

from django.contrib import admin

from billing.admin.shown import Shown, amount_text
from billing.models import Difference, InboxEvent, Intent, Payment


@admin.register(Payment)
class PaymentAdmin(Shown):
    list_display = ["id", "organization", "purpose", "means", "amount_written", "status", "due_at"]
    list_filter = ["status", "purpose", "means", "created_at"]
    search_fields = ["id", "organization__name", "provider_id", "charge_id", "reservation__id"]
    list_select_related = ["organization"]
    # Whoever has the secret can pay, and see the page: nobody here needs it.
    exclude = ["client_secret"]

    @admin.display(description="amount", ordering="amount_minor")
    def amount_written(self, payment: Payment) -> str:
        return amount_text(minor=payment.amount_minor, currency=payment.currency)


@admin.register(Intent)
class IntentAdmin(Shown):
    list_display = ["id", "kind", "subject_id", "status", "attempts", "refusal_code", "due_at"]
    list_filter = ["status", "kind", "created_at"]
    search_fields = ["id", "subject_id", "object_id"]


@admin.register(Difference)
class DifferenceAdmin(Shown):
    list_display = ["id", "kind", "object_id", "detail", "first_seen_at", "resolved_at"]
    list_filter = ["kind", ("resolved_at", admin.EmptyFieldListFilter)]
    search_fields = ["object_id"]


@admin.register(InboxEvent)
class InboxEventAdmin(Shown):
    list_display = ["id", "type", "object_id", "source", "received_at", "outcome", "attempts"]
    list_filter = ["outcome", "source", "type"]
    search_fields = ["id", "object_id"]
