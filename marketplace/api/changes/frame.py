"""What the calls of all changes share."""

from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse

from billing import provider, purchase_requests
from billing.models import Payment
from marketplace.api.changes.answers import (
    ChangeQuoteSerializer,
    ChangeSerializer,
    PendingChange,
    of_order,
)
from marketplace.api.views import ApiView, find
from marketplace.states import Scope
from scheduler.models import Change, ChangeQuote, ExtensionHold, Reservation
from scheduler.states import ChangeKind, PaymentMethod

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

    def paid_by_card(
        self, keep: Callable[[], Change | ExtensionHold], *, reservation_id: str
    ) -> HttpResponse:
        """Answer with what `keep` returns: a change, or what is kept until it is paid for."""
        ordered: list[str] = []

        def action() -> tuple[int, Any]:
            made = keep()
            ordered.append(made.pk)
            shown = PendingChange(made) if isinstance(made, ExtensionHold) else made
            return HTTPStatus.CREATED, ChangeSerializer(shown).data

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that it is kept; what fails here is tried again later."""
            for payment in Payment.objects.filter(extension=ordered[-1]):
                provider.drive_payment(payment_id=payment.pk, at=self.now)
            return HTTPStatus.CREATED, self.shown(reservation_id, ordered[-1])

        return self.once(key_required=True, action=action, then=ask_provider)

    def shown(
        self,
        reservation_id: str,
        order_id: str,
        *,
        kinds: Collection[ChangeKind] = tuple(ChangeKind),
    ) -> Any:  # noqa: ANN401 - plain values
        """Return how an order of the caller's stands, of some kinds of changes."""
        reservation = find(Reservation.objects.visible_to(self.organization), reservation_id)
        return of_order(
            holds=ExtensionHold.objects.filter(reservation=reservation, quote__kind__in=kinds),
            changes=reservation.changes.filter(kind__in=kinds),
            order_id=order_id,
        )

    def order(
        self,
        body: Mapping[str, Any],
        *,
        reservation_id: str,
        at_once: Callable[..., Change],
        by_card: Callable[..., Change | ExtensionHold],
    ) -> HttpResponse:
        """Buy what a quote adds: at once, or kept until its card has paid."""
        method, quote_id = body["payment_method"], body["quote_id"]
        if not self.is_repetition():
            self.ask(reservation_id, quote_id=quote_id, payment_method=method)
        order = {
            "organization": self.organization,
            "reservation_id": reservation_id,
            "quote_id": quote_id,
            "at": self.now,
            "actor": self.caller.actor,
        }
        if method != PaymentMethod.CARD:
            return self.changed(lambda: at_once(payment_method=method, **order))
        cards = {
            "with_saved_card": body["use_saved_card"],
            "saves_card": body["save_card"],
        }
        return self.paid_by_card(lambda: by_card(**cards, **order), reservation_id=reservation_id)

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
