"""A later end: a quote, then the deed, at once or when its payment is there."""

from typing import ClassVar

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from billing import added_hours
from billing import changes as money
from marketplace.api.changes.answers import (
    ChangeQuoteSerializer,
    ChangeSerializer,
)
from marketplace.api.changes.frame import (
    ADDING_REFUSALS,
    CHANGE_REFUSALS,
    QUOTE_REFUSALS,
    ChangeFrame,
)
from marketplace.api.changes.wishes import ExtensionOrderSerializer, ExtensionWishSerializer
from marketplace.api.schema import operation
from marketplace.states import Scope
from scheduler import extensions
from scheduler.states import ChangeKind


class ExtensionQuoteView(ChangeFrame):
    @operation(
        summary="Ask what a later end on the same GPUs costs",
        description="The price of what is added is locked for ten minutes; the GPUs are not held. The answer "
        "says how far the reservation could be extended, and what ends it there. A refusal says the same: "
        "`reason` and `longest_ends_at`, null where it cannot be extended at all.",
        request=ExtensionWishSerializer,
        responses={201: ChangeQuoteSerializer},
        refusals=(
            *QUOTE_REFUSALS,
            "off_grid",
            "window_upside_down",
            "beyond_horizon",
            "extension_too_early",
            "extension_too_late",
            "extension_refused",
            "payment_held",
            "price_above_max",
            "balance_open",
        ),
        idempotency_key="optional",
        operation_id="create_extension_quote",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        body = self.body(ExtensionWishSerializer)
        return self.quoted(
            lambda: extensions.quote(
                organization=self.organization, reservation_id=reservation_id, at=self.now, **body
            )
        )


class ExtensionsView(ChangeFrame):
    @operation(
        summary="Buy a later end on the terms of a quote",
        description="All its GPUs, or nothing happens. From the wallet and on account it is made at once. "
        "By card the added hours are kept while `status` is `payment_pending`: for 15 minutes, and not "
        "beyond 35 minutes before the end. The old end stands if the payment fails; the event "
        "`reservation.extension_dropped` says why. Money that comes later takes the hours again at the "
        "promised price, or goes back in full.",
        request=ExtensionOrderSerializer,
        responses={201: ChangeSerializer},
        refusals=(
            *CHANGE_REFUSALS,
            *ADDING_REFUSALS,
            "extension_refused",
            "extension_too_late",
            "no_saved_card",
        ),
        idempotency_key="required",
        operation_id="extend_reservation",
    )
    def post(self, request: Request, reservation_id: str) -> HttpResponse:
        return self.order(
            self.body(ExtensionOrderSerializer),
            reservation_id=reservation_id,
            at_once=money.extend,
            by_card=added_hours.extend,
        )


class ExtensionView(ChangeFrame):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}

    @operation(
        summary="How far an extension has come",
        description="Until it is made, `payment` says how to pay for it.",
        responses={200: ChangeSerializer},
        refusals=("not_found",),
        operation_id="get_extension",
    )
    def get(self, request: Request, reservation_id: str, extension_id: str) -> Response:
        return Response(self.shown(reservation_id, extension_id, kinds=[ChangeKind.EXTENSION]))
