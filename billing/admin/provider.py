"""Payments, the calls that were made to Stripe, what it told, and where it and the ledger differ."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.decorators import display
from unfold.forms import ActionForm
from unfold.widgets import UnfoldAdminTextInputWidget

from billing import reconcile, unknown_intents
from billing.admin.shown import NOT_SET, Shown, ShownInline, badge, linked, money, whose
from billing.models import (
    Difference,
    Dismissal,
    DisputeCharge,
    DisputeReturn,
    InboxEvent,
    Intent,
    Payment,
    Reversal,
)
from billing.provider_states import IntentStatus, PaymentStatus
from marketplace.core.errors import DomainError

_PAYMENTS = {
    PaymentStatus.SUCCEEDED.value: "success",
    PaymentStatus.FAILED.value: "danger",
    PaymentStatus.CANCELLED.value: "warning",
}
_CALLS = {
    IntentStatus.DONE.value: "success",
    IntentStatus.REFUSED.value: "warning",
    IntentStatus.UNKNOWN.value: "danger",
}
# What a person has to know of each kind of difference before ending or dismissing one.
MEANINGS = {
    "payment_without_row": "Somebody paid at the provider, and nothing here asked for it.",
    "payment_without_object": "A payment of ours is not in the provider's list.",
    "payment_differs": "State or amount of a payment is another one at the provider.",
    "refund_without_row": "Money went back at the provider, and nothing here asked for it.",
    "refund_without_object": "A refund of ours is not in the provider's list.",
    "refund_differs": "State or amount of a refund is another one at the provider.",
    "transfer_without_row": "Money was sent to an owner at the provider, and not by us.",
    "transfer_without_object": "A transfer of ours is not in the provider's list.",
    "transfer_differs": "Amount of a transfer, or what was taken back of it, is another one there.",
    "dispute_without_row": "A bank disputes a payment, and nothing here has heard of it.",
    "dispute_without_object": "A dispute of ours is not in the provider's list.",
    "dispute_differs": "State or amount of a dispute is another one at the provider.",
    "booking_unmatched": "The provider booked money for which no entry of ours was found.",
    "clearing_open": "The provider has taken money, and its booking of it has not come.",
    "balance_differs": "What lies at the provider is not what the books say.",
    "intent_unknown": "Nobody knows whether a call of ours has happened there.",
    "cash_left": "Money that a tenant sent by bank lies at the provider, for no payment.",
}


@admin.register(Payment)
class PaymentAdmin(Shown):
    list_display = [
        *("id", whose("organization", name="tenant"), "purpose", "means", money("amount_minor")),
        *(badge("status", _PAYMENTS), "due_at"),
    ]
    list_filter = ["status", "purpose", "means", "created_at"]
    search_fields = ["id", "organization__name", "provider_id", "charge_id", "reservation__id"]
    list_select_related = ["organization"]
    # Whoever has the secret can pay, and see the page: nobody here needs it.
    exclude = ["client_secret"]


def _each(
    room: Shown, request: HttpRequest, chosen: QuerySet[Any], verb: Callable[[Any], object]
) -> None:
    """Run a verb for each chosen row, and say what came of it."""
    for row in chosen:
        try:
            verb(row)
        except DomainError as refusal:
            room.message_user(request, f"{row.pk}: {refusal.detail}", messages.ERROR)
        else:
            room.message_user(request, f"{row.pk} is done.")


class OutcomeForm(ActionForm):  # type: ignore[misc] # unfold has no types
    """What a person found out about a call: the object that it made, or how it is known that it made none."""

    found = forms.CharField(
        required=False,
        max_length=500,
        label="",
        widget=UnfoldAdminTextInputWidget(
            attrs={"placeholder": "The object, or how you know that there is none"}
        ),
    )


@admin.register(Intent)
class IntentAdmin(Shown):
    list_display = [
        *("id", "kind", linked("subject_id", name="about"), badge("status", _CALLS)),
        *("attempts", "refusal_code", "due_at"),
    ]
    list_filter = ["status", "kind", "created_at"]
    search_fields = ["id", "subject_id", "object_id"]
    action_form = OutcomeForm
    actions = ["did_not_happen", "is_object"]

    @admin.action(description="Unknown: it did not happen", permissions=["decide"])
    def did_not_happen(self, request: HttpRequest, chosen: QuerySet[Intent]) -> None:
        _each(
            self,
            request,
            chosen,
            lambda row: unknown_intents.did_not_happen(
                intent_id=row.pk,
                reason=request.POST.get("found", ""),
                at=timezone.now(),
                actor=request.user.get_username(),
            ),
        )

    @admin.action(description="Unknown: this object is it", permissions=["decide"])
    def is_object(self, request: HttpRequest, chosen: QuerySet[Intent]) -> None:
        _each(
            self,
            request,
            chosen,
            lambda row: unknown_intents.is_object(
                intent_id=row.pk,
                object_id=request.POST.get("found", "").strip(),
                at=timezone.now(),
                actor=request.user.get_username(),
            ),
        )

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_intent")


class ReasonForm(ActionForm):  # type: ignore[misc] # unfold has no types
    """What a person found out about an object of the provider's that is nobody's here."""

    reason = forms.CharField(
        required=False,
        max_length=reconcile.DETAIL_LENGTH_MAX,
        label="",
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "To dismiss: what it is"}),
    )


@admin.register(Difference)
class DifferenceAdmin(Shown):
    """What the provider and the books disagree on. It ends by itself, by a person, or is dismissed by one."""

    list_display = [
        *("kind", linked("object_id", name="object"), "state", "detail"),
        *("first_seen_at", "resolved_at"),
    ]
    names_of_others = {"object_id": "object"}
    readonly_fields = ["meaning", "dismissed"]
    list_filter = [
        "kind",
        ("resolved_at", admin.EmptyFieldListFilter),
        ("dismissal", admin.EmptyFieldListFilter),
    ]
    list_select_related = ["dismissal"]
    search_fields = ["object_id"]
    action_form = ReasonForm
    actions = ["adopt", "dismiss"]

    @display(  # type: ignore[untyped-decorator] # unfold has no types
        description="state",
        label={"open": "danger", "dismissed": "info", "resolved": "success"},
    )
    def state(self, difference: Difference) -> str:
        if difference.resolved_at is not None:
            return "resolved"
        return "dismissed" if _dismissal_of(difference) else "open"

    @admin.display(description="what it means")
    def meaning(self, difference: Difference) -> str:
        return MEANINGS.get(difference.kind, NOT_SET)

    @admin.display(description="dismissed")
    def dismissed(self, difference: Difference) -> str:
        found = _dismissal_of(difference)
        if found is None:
            return "by nobody"
        return f"by {found.actor}, {found.at:%Y-%m-%d %H:%M} UTC: {found.reason}"

    @admin.action(
        description="Dismiss: it is nobody's here, for this reason", permissions=["decide"]
    )
    def dismiss(self, request: HttpRequest, chosen: QuerySet[Difference]) -> None:
        _each(
            self,
            request,
            chosen,
            lambda row: reconcile.dismiss(
                difference=row,
                reason=request.POST.get("reason", ""),
                at=timezone.now(),
                actor=request.user.get_username(),
            ),
        )

    @admin.action(description="Adopt: take over what Stripe says", permissions=["decide"])
    def adopt(self, request: HttpRequest, chosen: QuerySet[Difference]) -> None:
        _each(
            self,
            request,
            chosen,
            lambda row: reconcile.adopt(
                difference=row, at=timezone.now(), actor=request.user.get_username()
            ),
        )

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_difference")


def _dismissal_of(difference: Difference) -> Dismissal | None:
    try:
        return difference.dismissal
    except Dismissal.DoesNotExist:
        return None


@admin.register(InboxEvent)
class InboxEventAdmin(Shown):
    list_display = ["id", "type", "object_id", "source", "received_at", "outcome", "attempts"]
    list_filter = ["outcome", "source", "type"]
    search_fields = ["id", "object_id"]


class DisputeReturnInline(ShownInline):
    model = DisputeReturn
    verbose_name_plural = "What the owner got back of it, since it was set off as well"
    fields = ["returned_at", "amount_minor", "netted_minor", "entry"]


@admin.register(DisputeCharge)
class DisputeChargeAdmin(Shown):
    inlines = [DisputeReturnInline]
    list_display = ["dispute", "owner", money("amount_minor"), money("drawn_minor"), "charged_at"]
    list_filter = ["charged_at"]
    search_fields = ["dispute__id", "owner__name", "approval__id"]
    list_select_related = ["dispute", "owner"]


@admin.register(Reversal)
class ReversalAdmin(Shown):
    currency_of = "transfer__currency"
    list_display = [
        "id",
        "transfer",
        "status",
        money("amount_minor", currency="transfer__currency"),
        "failure_code",
        "created_at",
    ]
    list_filter = ["status", "created_at"]
    search_fields = ["id", "transfer__id", "transfer__owner__name", "provider_id"]
    list_select_related = ["transfer"]
