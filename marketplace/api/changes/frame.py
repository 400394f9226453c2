"""What the calls of all changes share."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse

from billing import purchase_requests
from marketplace.api.changes.answers import (
    ChangeQuoteSerializer,
    ChangeSerializer,
    of_extension,
)
from marketplace.api.views import ApiView, find
from marketplace.states import Scope
from scheduler.models import Change, ChangeQuote, ExtensionHold, Reservation

QUOTE_REFUSALS = ("not_found", "state_conflict", "limit_exceeded")
CHANGE_REFUSALS = (
    "not_found",
    "quote_used",
    "quote_expired",
    "state_conflict",
    "money_parked",
)
ADDING_REFUSALS = (
    "balance_open",
    "capacity_taken",
    "payment_held",
    "limit_exceeded",
    "approval_required",
    "approval_refused",
    "budget_exceeded",
    "project_frozen",
    "payment_required",
    "payment_method_unavailable",
    "credit_not_granted",
    "credit_limit_exceeded",
    "invoice_overdue",
    "invalid_value",
)


class ChangeFrame(ApiView):
    scopes: ClassVar = {"POST": Scope.RESERVATIONS_WRITE}

    def quoted(self, make: Callable[[], ChangeQuote]) -> HttpResponse:
        """Answer with the quote that `make` returns."""

        def action() -> tuple[int, Any]:
            return HTTPStatus.CREATED, ChangeQuoteSerializer(make()).data

        return self.once(key_required=False, action=action)

    def changed(self, make: Callable[[], Change]) -> HttpResponse:
        """Answer with the change that `make` returns."""

        def action() -> tuple[int, Any]:
            return HTTPStatus.CREATED, ChangeSerializer(make()).data

        return self.once(key_required=True, action=action)

    def shown(self, reservation_id: str, extension_id: str) -> Any:  # noqa: ANN401 - plain values
        """Return how an extension of the caller's stands."""
        reservation = find(Reservation.objects.visible_to(self.organization), reservation_id)
        return of_extension(
            holds=ExtensionHold.objects.filter(reservation=reservation),
            changes=reservation.changes.all(),
            order_id=extension_id,
        )

    def ask(self, reservation_id: str, *, quote_id: str, payment_method: str) -> None:
        """Ask for what takes a second person, before the key is used: it may be ordered again with it."""
        purchase_requests.ask_for_change(
            organization=self.organization,
            reservation_id=reservation_id,
            quote_id=quote_id,
            payment_method=payment_method,
            at=self.now,
            actor=self.caller.actor,
        )
