"""Money on its way to owners, and where it goes."""

from collections.abc import Callable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils import timezone

from billing import onboarding
from billing.admin.owner_statements import statement_view
from billing.admin.shown import Shown, badge, money, transitions_of, whose
from billing.models import Payout, PayoutAccount, PayoutTransition, Transfer
from billing.provider_states import TransferStatus
from billing.states import PayoutStatus
from marketplace.core.errors import DomainError

_PAYOUTS = {
    PayoutStatus.DUE.value: "warning",
    PayoutStatus.IN_TRANSIT.value: "info",
    PayoutStatus.PAID.value: "success",
    PayoutStatus.FAILED.value: "danger",
}
_TRANSFERS = {
    TransferStatus.SENDING.value: "info",
    TransferStatus.PAID.value: "success",
    TransferStatus.FAILED.value: "danger",
    TransferStatus.REVERSED.value: "warning",
}


@admin.register(Payout)
class PayoutAdmin(Shown):
    list_display = [
        *("id", whose("owner", name="owner"), money("amount_minor")),
        *(badge("status", _PAYOUTS), "due_at"),
    ]
    list_filter = ["status", "currency", "due_at"]
    search_fields = ["id", "owner__name", "settlement__id", "settlement__lease__id"]
    list_select_related = ["owner"]
    inlines = [transitions_of(PayoutTransition)]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(statement_view)
        return [path("statement/", view, name="billing_statement"), *super().get_urls()]


@admin.register(Transfer)
class TransferAdmin(Shown):
    """Attempts to send a payout to the account of its owner at the provider."""

    list_display = [
        *("id", whose("owner", name="owner"), "payout", badge("status", _TRANSFERS)),
        *(money("amount_minor"), money("reversed_minor", name="taken back")),
        *("failure_code", "created_at", "closed_at"),
    ]
    list_filter = ["status", "currency", "created_at"]
    search_fields = ["id", "provider_id", "owner__name", "payout__id", "payout__settlement__id"]
    list_select_related = ["owner", "payout"]


@admin.register(PayoutAccount)
class PayoutAccountAdmin(Shown):
    """Where owners are paid. A change is approved by somebody else than who asked for it."""

    list_display = ["id", "owner", "receives", "requested_by", "approved_by", "usable_at"]
    list_filter = [
        "receives",
        ("usable_at", admin.EmptyFieldListFilter),
        ("retired_at", admin.EmptyFieldListFilter),
    ]
    search_fields = ["id", "owner__name", "provider_id"]
    list_select_related = ["owner"]
    actions = ["approve", "withdraw"]

    @admin.action(description="Approve: in use once it has cooled off", permissions=["decide"])
    def approve(self, request: HttpRequest, chosen: QuerySet[PayoutAccount]) -> None:
        self._each(request, chosen, verb=onboarding.approve)

    @admin.action(description="Withdraw: never to be used", permissions=["decide"])
    def withdraw(self, request: HttpRequest, chosen: QuerySet[PayoutAccount]) -> None:
        self._each(request, chosen, verb=onboarding.withdraw)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_payoutaccount")

    def _each(
        self, request: HttpRequest, chosen: QuerySet[PayoutAccount], *, verb: Callable[..., object]
    ) -> None:
        for account in chosen:
            try:
                verb(account_id=account.pk, at=timezone.now(), actor=request.user.get_username())
            except DomainError as refusal:
                self.message_user(request, f"{account.pk}: {refusal.detail}", messages.ERROR)
            else:
                self.message_user(request, f"{account.pk} is done.")
