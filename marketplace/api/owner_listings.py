"""`/v1/listings`: the owner's standing wishes."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import listings
from marketplace.api.fields import StrictSerializer
from marketplace.api.owner_wishes import (
    ListingChangesSerializer,
    ListingSerializer,
    ListingsQuery,
    ListingWishSerializer,
    as_answer,
    as_answers,
    as_changes,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.listings import ListingFields
from marketplace.models import Listing
from marketplace.states import Scope

REFUSALS = (
    "listing_refused",
    "floor_rate_invalid",
    "listing_period_invalid",
    "reclaim_notice_invalid",
    "listing_durations_invalid",
    "min_gpus_invalid",
    "listing_turnaround_invalid",
    "blackouts_invalid",
    "listing_mode_invalid",
    "no_such_model",
    "invalid_value",
)


class ListingsView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ, "POST": Scope.OWNER_WRITE}
    queries: ClassVar = {"GET": ListingsQuery}

    @operation(
        summary="List the owner's listings",
        responses={200: page_serializer(ListingSerializer, name="ListingPage")},
        query=ListingsQuery,
        operation_id="list_listings",
    )
    def get(self, request: Request) -> Response:
        rows = Listing.objects.visible_to(self.organization)
        if "status" in self.query:
            rows = rows.filter(status=self.query["status"])
        if "gpu_model" in self.query:
            rows = rows.filter(gpu_model_id=self.query["gpu_model"])
        page = page_of(rows, query=self.query)
        return Response(
            {"data": as_answers(page.data, at=self.now), "next_cursor": page.next_cursor}
        )

    @operation(
        summary="Create a listing, as a draft",
        description="The listing begins as a draft; nothing is on offer before it is published.",
        request=ListingWishSerializer,
        responses={201: ListingSerializer},
        refusals=("not_an_owner", *REFUSALS),
        idempotency_key="optional",
        operation_id="create_listing",
    )
    def post(self, request: Request) -> HttpResponse:
        body = {"starts_at": None, **self.body(ListingWishSerializer)}
        fields = ListingFields(**as_changes(body, now=self.now))

        def create() -> tuple[int, Any]:
            listing = listings.create(
                organization=self.organization,
                fields=fields,
                at=self.now,
                actor=self.caller.actor,
            )
            return HTTPStatus.CREATED, as_answer(listing, at=self.now)

        return self.once(key_required=False, action=create)


class ListingView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ, "PATCH": Scope.OWNER_WRITE}

    @operation(
        summary="A listing",
        responses={200: ListingSerializer},
        refusals=("not_found",),
        operation_id="get_listing",
    )
    def get(self, request: Request, listing_id: str) -> Response:
        listing = find(Listing.objects.visible_to(self.organization), listing_id)
        return Response(as_answer(listing, at=self.now))

    @operation(
        summary="Change parts of a wish",
        description="A change never touches what is already sold: `sold_until` says how long that binds the "
        "machines, `sold_in_blackouts` what of it lies in a blackout and will be honoured.",
        request=ListingChangesSerializer,
        responses={200: ListingSerializer},
        refusals=("not_found", "state_conflict", *REFUSALS),
        operation_id="change_listing",
    )
    def patch(self, request: Request, listing_id: str) -> Response:
        listing = find(Listing.objects.visible_to(self.organization), listing_id)
        changes = as_changes(self.body(ListingChangesSerializer), now=self.now)
        changed = listings.update(
            listing=listing, changes=changes, at=self.now, actor=self.caller.actor
        )
        return Response(as_answer(changed, at=self.now))


class NoFields(StrictSerializer):
    """A body without members; it may be left out."""


class _MoveView(ApiView):
    """One arrow of a listing."""

    scopes: ClassVar = {"POST": Scope.OWNER_WRITE}
    verb: ClassVar[Callable[..., Listing]]

    def move(self, listing_id: str) -> HttpResponse:
        self.body(NoFields)

        def act() -> tuple[int, Any]:
            listing = find(Listing.objects.visible_to(self.organization), listing_id)
            moved = type(self).verb(listing=listing, at=self.now, actor=self.caller.actor)
            return HTTPStatus.OK, as_answer(moved, at=self.now)

        return self.once(key_required=False, action=act)


class PublishView(_MoveView):
    verb = staticmethod(listings.publish)

    @operation(
        summary="Put a listing on offer",
        request=NoFields,
        responses={200: ListingSerializer},
        refusals=("not_found", "state_conflict", "listing_period_invalid"),
        idempotency_key="optional",
        operation_id="publish_listing",
    )
    def post(self, request: Request, listing_id: str) -> HttpResponse:
        return self.move(listing_id)


class PauseView(_MoveView):
    verb = staticmethod(listings.pause)

    @operation(
        summary="Take a listing off offer for a while",
        request=NoFields,
        responses={200: ListingSerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="pause_listing",
    )
    def post(self, request: Request, listing_id: str) -> HttpResponse:
        return self.move(listing_id)


class RetireView(_MoveView):
    verb = staticmethod(listings.retire)

    @operation(
        summary="Take a listing off offer for good",
        request=NoFields,
        responses={200: ListingSerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="retire_listing",
    )
    def post(self, request: Request, listing_id: str) -> HttpResponse:
        return self.move(listing_id)
