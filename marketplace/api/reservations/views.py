"""The calls of `/v1/reservations`."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from billing import budgets, checkout, provider, purchase_requests, tag_policy
from marketplace.api.pagination import page_of
from marketplace.api.payment_plans import DEPOSIT
from marketplace.api.reservations.answers import (
    ReservationPage,
    ReservationSerializer,
    just_bought,
    shown,
)
from marketplace.api.reservations.wishes import (
    PurchaseSerializer,
    ReservationChanges,
    ReservationsQuery,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.states import Scope
from scheduler.details import DetailChanges, ReservationDetails
from scheduler.models import Reservation
from scheduler.states import PaymentMethod


class ReservationsView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ, "POST": Scope.RESERVATIONS_WRITE}
    queries: ClassVar = {"GET": ReservationsQuery}

    @operation(
        summary="Reservations, newest first",
        responses={200: ReservationPage},
        query=ReservationsQuery,
        operation_id="list_reservations",
    )
    def get(self, request: Request) -> Response:
        wanted = _filtered(Reservation.objects.visible_to(self.organization), query=self.query)
        return Response(ReservationPage(page_of(shown(wanted), query=self.query)).data)

    @operation(
        summary="Reserve what a quote promises",
        description="All or nothing: either the capacity is reserved and paid, or nothing has happened.",
        request=PurchaseSerializer,
        responses={201: ReservationSerializer},
        refusals=(
            "not_found",
            "quote_used",
            "quote_expired",
            "capacity_taken",
            "approval_required",
            "approval_refused",
            "budget_exceeded",
            "project_frozen",
            "tag_required",
            "tag_value_not_allowed",
            "payment_required",
            "payment_method_unavailable",
            "credit_not_granted",
            "credit_limit_exceeded",
            "invoice_overdue",
            "money_parked",
            "no_saved_card",
            "payment_plan_unavailable",
            "limit_exceeded",
            "state_conflict",
            "invalid_value",
        ),
        idempotency_key="required",
        operation_id="create_reservation",
    )
    def post(self, request: Request) -> HttpResponse:
        body = dict(self.body(PurchaseSerializer))
        quote_id, payment_method = body.pop("quote_id"), body.pop("payment_method")
        cards = {
            "with_saved_card": body.pop("use_saved_card"),
            "saves_card": body.pop("save_card"),
            "in_two_parts": body.pop("payment_plan") == DEPOSIT,
        }
        details = ReservationDetails(**body)
        if not self.is_repetition():
            # Before anybody is asked to approve what would be refused anyway.
            tag_policy.require(organization=self.organization, tags=details.tags)
            # Before the key is used: what another person has approved may be ordered again with the same one.
            purchase_requests.ask_for_quote(
                organization=self.organization,
                quote_id=quote_id,
                project=details.project,
                payment_method=payment_method,
                at=self.now,
                actor=self.caller.actor,
            )
        waits = payment_method not in {PaymentMethod.WALLET, PaymentMethod.INVOICE}
        bought: list[Reservation] = []

        def buy() -> tuple[int, Any]:
            reservation = checkout.purchase(
                organization=self.organization,
                quote_id=quote_id,
                payment_method=payment_method,
                details=details,
                at=self.now,
                actor=self.caller.actor,
                **cards,
            )
            bought.append(reservation)
            if payment_method != PaymentMethod.WALLET:
                return HTTPStatus.CREATED, self._rendered(reservation)
            return HTTPStatus.CREATED, ReservationSerializer(just_bought(reservation)).data

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that the reservation is kept; what fails here is tried again later."""
            payment = bought[-1].provider_payments.first()
            if payment is not None:
                provider.drive_payment(payment_id=payment.pk, at=self.now)
            return HTTPStatus.CREATED, self._rendered(bought[-1])

        return self.once(key_required=True, action=buy, then=ask_provider if waits else None)

    def _rendered(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values to render
        known = shown(Reservation.objects.visible_to(self.organization))
        return ReservationSerializer(known.get(pk=reservation.pk)).data


class ReservationView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ, "PATCH": Scope.RESERVATIONS_WRITE}

    @operation(
        summary="One reservation",
        responses={200: ReservationSerializer},
        refusals=("not_found",),
        operation_id="get_reservation",
    )
    def get(self, request: Request, reservation_id: str) -> Response:
        return self._answer(reservation_id)

    @operation(
        summary="Change name, project, tags, SSH keys or warnings",
        request=ReservationChanges,
        responses={200: ReservationSerializer},
        refusals=(
            "not_found",
            "state_conflict",
            "invalid_value",
            "budget_exceeded",
            "project_frozen",
            "tag_required",
            "tag_value_not_allowed",
        ),
        operation_id="update_reservation",
    )
    def patch(self, request: Request, reservation_id: str) -> Response:
        reservation = find(Reservation.objects.visible_to(self.organization), reservation_id)
        changes = DetailChanges(**self.body(ReservationChanges))
        budgets.change_details(
            reservation=reservation, changes=changes, at=self.now, actor=self.caller.actor
        )
        return self._answer(reservation_id)

    def _answer(self, reservation_id: str) -> Response:
        visible = Reservation.objects.visible_to(self.organization)
        return Response(ReservationSerializer(find(shown(visible), reservation_id)).data)


def _filtered(
    queryset: QuerySet[Reservation],
    *,
    query: Any,  # noqa: ANN401 - validated by `ReservationsQuery`
) -> QuerySet[Reservation]:
    lookups: Sequence[tuple[str, str]] = (
        ("status", "status"),
        ("project", "project"),
        ("starts_after", "starts_at__gte"),
        ("ends_before", "ends_at__lte"),
    )
    wanted = {lookup: query[name] for name, lookup in lookups if query[name] is not None}
    if query["tag"] is not None:
        name, colon, value = query["tag"].partition(":")
        wanted["tags__contains" if colon else "tags__has_key"] = {name: value} if colon else name
    return queryset.filter(**wanted)
