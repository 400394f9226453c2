"""Leave, and take another window: a quote, then the deed."""

from typing import ClassVar

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from billing import added_hours
from billing import changes as money
from marketplace.api.changes.answers import ChangeQuoteSerializer, ChangeSerializer
from marketplace.api.changes.frame import (
    ADDING_REFUSALS,
    CHANGE_REFUSALS,
    QUOTE_REFUSALS,
    ChangeFrame,
)
from marketplace.api.changes.wishes import (
    ByQuoteSerializer,
    PaidByQuoteSerializer,
    WindowWishSerializer,
)
from marketplace.api.owner_listings import NoFields
from marketplace.api.schema import operation
from marketplace.states import Scope
from scheduler import cancellations, rebookings


class CancellationQuoteView(ChangeFrame):
    @operation(
        summary="Ask what comes back if you leave now",
        description="The terms are promised for 15 minutes. The fee depends on the time until the start; "
        "nothing is asked before the payment, or where the promise is not kept in full. Once the "
        "reservation has begun the amounts are those of leaving at this second.",
        request=NoFields,
        responses={201: ChangeQuoteSerializer},
        refusals=QUOTE_REFUSALS,
        idempotency_key="optional",
        operation_id="create_cancellation_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        self.body(NoFields)
        return self.quoted(
            lambda: cancellations.quote(
                organization=self.organization, reservation_id=reservation_id, at=self.now
            )
        )


class CancellationView(ChangeFrame):
    @operation(
        summary="Leave on the terms of a quote",
        description="Before the start the GPUs are on sale again at once. After it the leases end now, and "
        "the GPUs are on sale again when they have come back.",
        request=ByQuoteSerializer,
        responses={201: ChangeSerializer},
        refusals=CHANGE_REFUSALS,
        idempotency_key="required",
        operation_id="cancel_reservation",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        quote_id = self.body(ByQuoteSerializer)["quote_id"]
        return self.changed(
            lambda: money.cancel(
                organization=self.organization,
                reservation_id=reservation_id,
                quote_id=quote_id,
                at=self.now,
                actor=self.caller.actor,
            )
        )


class ChangeQuoteView(ChangeFrame):
    @operation(
        summary="Ask what another window costs, before the reservation begins",
        description="Hours that are kept keep their price; hours that are added cost what they cost today, "
        "locked for ten minutes. The difference is charged, or goes back less the ladder's fee. The GPUs are "
        "not held.",
        request=WindowWishSerializer,
        responses={201: ChangeQuoteSerializer},
        refusals=(
            *QUOTE_REFUSALS,
            "invalid_value",
            "off_grid",
            "window_upside_down",
            "window_in_past",
            "beyond_horizon",
            "move_too_late",
            "payment_held",
            "window_too_short",
            "not_enough_capacity",
            "price_above_max",
            "balance_open",
        ),
        idempotency_key="optional",
        operation_id="create_change_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        wish = rebookings.WindowWish(**self.body(WindowWishSerializer))
        return self.quoted(
            lambda: rebookings.quote(
                organization=self.organization,
                reservation_id=reservation_id,
                wish=wish,
                at=self.now,
            )
        )


class ChangesView(ChangeFrame):
    @operation(
        summary="Take the window of a quote",
        description="All GPUs of the reservation in the new window, or the old one stands. From the wallet "
        "and on account it is made at once. By card the new window is kept, beside the old one, while "
        "`status` is `payment_pending`: for 15 minutes, and not beyond 5 minutes before the first of the two "
        "starts. Where both overlap that takes other GPUs, and is refused with `capacity_taken` where there "
        "are none. The old window stands if the payment fails; the event `reservation.extension_dropped` "
        "says why. Money that comes later takes the new window at the promised price, or goes back in full.",
        request=PaidByQuoteSerializer,
        responses={201: ChangeSerializer},
        refusals=(*CHANGE_REFUSALS, *ADDING_REFUSALS, "move_too_late", "no_saved_card"),
        idempotency_key="required",
        operation_id="change_reservation_window",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        return self.order(
            self.body(PaidByQuoteSerializer),
            reservation_id=reservation_id,
            at_once=money.rebook,
            by_card=added_hours.rebook,
        )


class ChangeView(ChangeFrame):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}

    @operation(
        summary="How far a change has come",
        description="Until it is made, `payment` says how to pay for it.",
        responses={200: ChangeSerializer},
        refusals=("not_found",),
        operation_id="get_change",
    )
    def get(self, request: Request, reservation_id: str, change_id: str) -> Response:
        return Response(self.shown(reservation_id, change_id))
