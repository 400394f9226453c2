"""What `/v1/listings` takes and shows: a wish, and the words in which a body changes it."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

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
from marketplace.core.limits import GPUS_PER_REQUEST_MAX
from marketplace.core.text import LABELS_MAX
from marketplace.core.windows import Window, format_duration
from marketplace.listings import BLACKOUTS_MAX, FABRIC_LENGTH_MAX, REGION_LENGTH_MAX, ListingChanges
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus, Tier
from scheduler.sold import Sales, SoldWindow, sales_of

_ZERO = dt.timedelta(0)
# Where the contract's word differs from the verb's: contract → verb. None means "no bound" there.
_DURATIONS = {
    "reclaim_notice": "reclaim_notice",
    "min_duration": "duration_min",
    "max_duration": "duration_max",
    "turnaround": "turnaround",
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
    turnaround = DurationField(
        required=False,
        allow_null=True,
        help_text="after a tenant's window nobody else has the GPUs for this long; at most PT24H",
    )
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


class SoldWindowSerializer(serializers.Serializer[SoldWindow]):
    """A window that is sold on some GPUs of a machine; whose it is, is the tenant's business."""

    node_id = serializers.CharField()
    gpus = serializers.IntegerField()
    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    lease_id = serializers.CharField(allow_null=True, help_text="null: it has not begun")


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
    turnaround = DurationField(allow_null=True)
    blackouts = BlackoutSerializer(many=True)
    mode = ModeField()
    sold_until = InstantField(
        allow_null=True,
        help_text="the machines are bound until then by what is sold; null: nothing is",
    )
    sold_in_blackouts = SoldWindowSerializer(
        many=True, help_text="what is sold all the same and will be honoured, the earliest first"
    )
    sold_in_blackouts_total = serializers.IntegerField()
    created_at = InstantField()
    updated_at = InstantField()


class ListingsQuery(PageQuery):
    """Which listings."""

    status = ChoiceField(choices=ListingStatus.choices, required=False)
    gpu_model = TextField(max_length=60, required=False)


def as_answer(listing: Listing, *, at: dt.datetime) -> Any:  # noqa: ANN401 - JSON
    """Return a listing as the contract shows it."""
    return as_answers([listing], at=at)[0]


def as_answers(rows: Sequence[Listing], *, at: dt.datetime) -> list[Any]:
    """Return listings as the contract shows them, with what is sold under them at `at`."""
    sales = sales_of(rows=rows, at=at)
    return [_as_answer(row, sales=sales[row.pk]) for row in rows]


def _as_answer(listing: Listing, *, sales: Sales) -> Any:  # noqa: ANN401 - JSON
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
            "turnaround": wish.turnaround or None,
            "blackouts": wish.blackouts,
            "mode": listing,
            "sold_until": sales.until,
            "sold_in_blackouts": sales.in_blackouts,
            "sold_in_blackouts_total": sales.in_blackouts_total,
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
