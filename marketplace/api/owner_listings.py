"""`/v1/listings`: the owner's standing wishes."""

import datetime as dt
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import listings
from marketplace.api.fields import (
    ChoiceField,
    DurationField,
    InstantField,
    PageQuery,
    RateField,
    StartField,
    StrictListField,
    StrictSerializer,
    TagsField,
    TextField,
    WholeNumberField,
)
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.limits import GPUS_PER_REQUEST_MAX
from marketplace.core.text import LABELS_MAX
from marketplace.core.windows import Window, format_duration
from marketplace.listings import (
    BLACKOUTS_MAX,
    FABRIC_LENGTH_MAX,
    REGION_LENGTH_MAX,
    ListingChanges,
    ListingFields,
)
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus, Scope, Tier

REFUSALS = (
    "listing_refused",
    "floor_rate_invalid",
    "listing_period_invalid",
    "reclaim_notice_invalid",
    "listing_durations_invalid",
    "min_gpus_invalid",
    "blackouts_invalid",
    "listing_mode_invalid",
    "no_such_model",
    "invalid_value",
)
_ZERO = dt.timedelta(0)
# Where the contract's word differs from the verb's: contract → verb. None means "no bound" there.
_DURATIONS = {
    "reclaim_notice": "reclaim_notice",
    "min_duration": "duration_min",
    "max_duration": "duration_max",
}


class SelectorChangesSerializer(StrictSerializer):
    """Which GPUs; null or empty matches everything."""

    gpu_model = TextField(max_length=60, required=False)
    region = TextField(max_length=REGION_LENGTH_MAX, required=False, allow_null=True)
    fabric = TextField(max_length=FABRIC_LENGTH_MAX, required=False, allow_null=True)
    labels = TagsField(tags_max=LABELS_MAX, required=False)


class SelectorWishSerializer(SelectorChangesSerializer):
    """Which GPUs; null or empty matches everything."""

    gpu_model = TextField(max_length=60, help_text="an id of the catalogue: h100-sxm-80gb")


class WhenIdleSerializer(StrictSerializer):
    """On offer only while the agents see the GPU idle."""

    idle_for = DurationField(help_text="quiet at least this long")
    rolling = DurationField(help_text="on offer from now at most this far ahead")


class _WhenIdleMemberSerializer(StrictSerializer):
    when_idle = WhenIdleSerializer()


@extend_schema_field(
    {
        "oneOf": [
            {"type": "string", "const": "always"},
            {
                "type": "object",
                "properties": {
                    "when_idle": {
                        "type": "object",
                        "properties": {
                            "idle_for": {"type": "string"},
                            "rolling": {"type": "string"},
                        },
                        "required": ["idle_for", "rolling"],
                    }
                },
                "required": ["when_idle"],
            },
        ],
        "examples": ["always", {"when_idle": {"idle_for": "PT30M", "rolling": "PT24H"}}],
    }
)
class ModeField(serializers.Field[Any, Any, Any, Any]):
    """`"always"`, or `{"when_idle": {"idle_for": …, "rolling": …}}`."""

    default_error_messages = {
        # The framework formats it: the braces stand doubled.
        "wrong_form": 'must be "always" or {{"when_idle": {{"idle_for": …, "rolling": …}}}}',
        "null": "must not be null",
    }

    def to_internal_value(self, data: Any) -> ListingChanges:  # noqa: ANN401 - parsed JSON
        if data == ListingMode.ALWAYS.value:
            return {"mode": ListingMode.ALWAYS, "idle_for": _ZERO, "rolling": _ZERO}
        if not isinstance(data, Mapping):
            self.fail("wrong_form")
        body = _WhenIdleMemberSerializer(data=data)
        body.is_valid(raise_exception=True)
        idle = body.validated_data["when_idle"]
        return {
            "mode": ListingMode.WHEN_IDLE,
            "idle_for": idle["idle_for"],
            "rolling": idle["rolling"],
        }

    def to_representation(self, value: Listing) -> Any:  # noqa: ANN401 - a string or an object
        if value.mode == ListingMode.ALWAYS:
            return value.mode
        idle_for = dt.timedelta(seconds=value.idle_for_seconds)
        rolling = dt.timedelta(seconds=value.rolling_seconds)
        return {
            "when_idle": {
                "idle_for": format_duration(idle_for),
                "rolling": format_duration(rolling),
            }
        }


class BlackoutWishSerializer(StrictSerializer):
    """A window in which the GPUs are never on offer; half-open."""

    starts_at = InstantField()
    ends_at = InstantField()

    def validate(self, attrs: Mapping[str, Any]) -> Window:
        if attrs["starts_at"] >= attrs["ends_at"]:
            raise serializers.ValidationError(
                {
                    "ends_at": [
                        serializers.ErrorDetail("must be after starts_at", code="out_of_range")
                    ]
                }
            )
        return Window(attrs["starts_at"], attrs["ends_at"])


class ListingChangesSerializer(StrictSerializer):
    """Parts of a wish; what is left out stays as it is."""

    name = TextField(required=False)
    selector = SelectorChangesSerializer(required=False)
    starts_at = StartField(required=False)
    ends_at = InstantField(required=False, allow_null=True)
    floor_rate = RateField(
        required=False, help_text="per GPU-hour; what the owner receives at least, fee excluded"
    )
    tier = ChoiceField(choices=Tier.choices, required=False)
    reclaim_notice = DurationField(
        required=False, allow_null=True, help_text="for the reclaimable tier, and only for it"
    )
    min_duration = DurationField(required=False, allow_null=True)
    max_duration = DurationField(required=False, allow_null=True)
    min_gpus = WholeNumberField(required=False, min_value=1, max_value=GPUS_PER_REQUEST_MAX)
    blackouts = StrictListField(
        required=False, child=BlackoutWishSerializer(), max_length=BLACKOUTS_MAX
    )
    mode = ModeField(required=False)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Eight-GPU blocks, firm",
            value={
                "name": "H100s in us-east",
                "selector": {"gpu_model": "h100-sxm-80gb", "region": "us-east"},
                "starts_at": "now",
                "floor_rate": "2.000000",
                "min_gpus": 8,
                "mode": "always",
            },
            request_only=True,
        )
    ]
)
class ListingWishSerializer(ListingChangesSerializer):
    """A whole wish."""

    name = TextField()
    selector = SelectorWishSerializer()
    floor_rate = RateField(help_text="per GPU-hour; what the owner receives at least, fee excluded")


class SelectorSerializer(serializers.Serializer[Any]):
    """Which GPUs; null matches everything."""

    gpu_model = serializers.CharField()
    region = serializers.CharField(allow_null=True)
    fabric = serializers.CharField(allow_null=True)
    labels = TagsField(tags_max=LABELS_MAX)


class BlackoutSerializer(serializers.Serializer[Any]):
    """A window in which the GPUs are never on offer; half-open."""

    starts_at = InstantField()
    ends_at = InstantField()


class ListingSerializer(serializers.Serializer[Any]):
    """The owner's standing wish."""

    id = serializers.CharField()
    name = serializers.CharField()
    status = ChoiceField(choices=ListingStatus.choices)
    selector = SelectorSerializer()
    starts_at = InstantField()
    ends_at = InstantField(allow_null=True)
    floor_rate = RateField(help_text="per GPU-hour; what the owner receives at least, fee excluded")
    currency = serializers.CharField()
    tier = ChoiceField(choices=Tier.choices)
    reclaim_notice = DurationField(allow_null=True)
    min_duration = DurationField(allow_null=True)
    max_duration = DurationField(allow_null=True)
    min_gpus = serializers.IntegerField()
    blackouts = BlackoutSerializer(many=True)
    mode = ModeField()
    created_at = InstantField()
    updated_at = InstantField()


class ListingsQuery(PageQuery):
    """Which listings."""

    status = ChoiceField(choices=ListingStatus.choices, required=False)
    gpu_model = TextField(max_length=60, required=False)


def as_answer(listing: Listing) -> Any:  # noqa: ANN401 - JSON
    """Return a listing as the contract shows it."""
    wish = listings.fields_of(listing=listing)
    return ListingSerializer(
        {
            "id": listing.id,
            "name": wish.name,
            "status": listing.status,
            "selector": {
                "gpu_model": wish.gpu_model,
                "region": wish.region or None,
                "fabric": wish.fabric or None,
                "labels": wish.labels,
            },
            "starts_at": wish.starts_at,
            "ends_at": wish.ends_at,
            "floor_rate": wish.floor_rate,
            "currency": listing.currency,
            "tier": wish.tier,
            "reclaim_notice": wish.reclaim_notice or None,
            "min_duration": wish.duration_min or None,
            "max_duration": wish.duration_max,
            "min_gpus": wish.gpus_min,
            "blackouts": wish.blackouts,
            "mode": listing,
            "created_at": listing.created_at,
            "updated_at": listing.updated_at,
        }
    ).data


def as_changes(body: Mapping[str, Any], *, now: dt.datetime) -> ListingChanges:
    """Return the parts that a body names, in the verb's words."""
    changes: dict[str, Any] = {
        name: body[name] for name in ("name", "floor_rate", "ends_at") if name in body
    }
    if "starts_at" in body:
        changes["starts_at"] = body["starts_at"] or now
    if "tier" in body:
        changes["tier"] = Tier(body["tier"])
    for word, field in _DURATIONS.items():
        if word in body:
            nothing = None if field == "duration_max" else _ZERO
            changes[field] = nothing if body[word] is None else body[word]
    if "min_gpus" in body:
        changes["gpus_min"] = body["min_gpus"]
    if "blackouts" in body:
        changes["blackouts"] = tuple(body["blackouts"])
    for name, value in body.get("selector", {}).items():
        changes[name] = "" if value is None else value
    changes |= body.get("mode", {})
    known: ListingChanges = changes  # type: ignore[assignment] # the keys are the TypedDict's, by construction
    return known


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
            {"data": [as_answer(row) for row in page.data], "next_cursor": page.next_cursor}
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
            return HTTPStatus.CREATED, as_answer(listing)

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
        return Response(as_answer(find(Listing.objects.visible_to(self.organization), listing_id)))

    @operation(
        summary="Change parts of a wish",
        description="A change never touches what is already sold.",
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
        return Response(as_answer(changed))


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
            return HTTPStatus.OK, as_answer(moved)

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
