"""What an answer says of a reservation, and what is fetched with it for that."""

from typing import Any

from django.db.models import Prefetch, QuerySet, prefetch_related_objects
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing import purchases, tax
from billing.models import CreditSale, Payment
from billing.provider_states import PRICE_PURPOSES
from marketplace.api.changes.answers import ChangeSerializer, PendingChange
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    RateField,
    SecondsAsDurationField,
    TagsField,
)
from marketplace.api.leases import LeaseMoveSerializer
from marketplace.api.pagination import page_serializer
from marketplace.api.reservations.payment import PaymentSerializer
from marketplace.core.limits import TAGS_MAX
from marketplace.core.money import Money
from marketplace.states import Tier
from scheduler.models import (
    Allocation,
    Change,
    ExtensionHold,
    Lease,
    LeaseTransition,
    Relocation,
    Repacking,
    Reservation,
    ReservationTransition,
)
from scheduler.states import (
    ChangeKind,
    LeaseStatus,
    RelocationReason,
    RepackingReason,
    ReservationReason,
    ReservationStatus,
    Spread,
)


class PlacementSerializer(serializers.Serializer[Allocation]):
    """A node on which the reservation stands at the moment; until it starts, another may take its place."""

    id = serializers.CharField(source="node_id")
    region = serializers.CharField(source="node.region")
    fabric = serializers.SerializerMethodField()
    gpus = serializers.SerializerMethodField()

    def get_fabric(self, allocation: Allocation) -> str | None:
        return allocation.node.fabric or None

    def get_gpus(self, allocation: Allocation) -> int:
        return int(allocation.slots.upper - allocation.slots.lower)


class LeaseSummarySerializer(serializers.Serializer[Lease]):
    """A lease of this reservation; `GET /v1/leases/{id}` says more."""

    id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices)
    node_id = serializers.CharField()
    gpus = serializers.SerializerMethodField()
    replaces = serializers.CharField(
        source="replaces_id", allow_null=True, help_text="the lease in whose place it came"
    )
    history = LeaseMoveSerializer(many=True, source="shown_transitions")

    def get_gpus(self, lease: Lease) -> int:
        return len(lease.gpu_uuids)


class RelocationSerializer(serializers.Serializer[Any]):
    """A move to other machines before the start, and why."""

    from_node_ids = serializers.ListField(child=serializers.CharField())
    gpus = serializers.IntegerField()
    reason = ChoiceField(choices=[*RelocationReason.choices, *RepackingReason.choices])
    at = InstantField()


class ReservationMoveSerializer(serializers.Serializer[ReservationTransition]):
    """One move of a reservation, whose doing it was, and why."""

    from_status = serializers.SerializerMethodField()
    to_status = ChoiceField(choices=ReservationStatus.choices)
    reason = ChoiceField(choices=ReservationReason.choices)
    actor = serializers.CharField(
        help_text="a key's id or a user's name of the tenant, or the part of the market that did it"
    )
    at = InstantField()

    @extend_schema_field(ChoiceField(choices=ReservationStatus.choices, allow_null=True))
    def get_from_status(self, move: ReservationTransition) -> str | None:
        return move.from_status or None


class ReservationSerializer(serializers.Serializer[Reservation]):
    """The promise: N GPUs of a model for a window, at a locked rate."""

    id = serializers.CharField()
    status = ChoiceField(choices=ReservationStatus.choices)
    quote_id = serializers.CharField()
    name = serializers.CharField()
    project = serializers.CharField()
    tags = TagsField(tags_max=TAGS_MAX)
    gpu_model = serializers.CharField(source="gpu_model_id")
    gpus = serializers.IntegerField()
    region = serializers.CharField()
    tier = ChoiceField(choices=Tier.choices)
    spread = ChoiceField(choices=Spread.choices)
    starts_at = InstantField()
    ends_at = InstantField()
    reclaim_notice = SecondsAsDurationField(
        source="reclaim_notice_seconds", help_text="PT0S for the firm tier"
    )
    rate = RateField(help_text="per GPU-hour, locked")
    total = MoneyField(minor="total_minor", help_text="of what is bought now, without tax")
    tax = serializers.SerializerMethodField(
        help_text="on the total, by the terms of when it was bought"
    )
    total_with_tax = serializers.SerializerMethodField(help_text="what is charged")
    payment = PaymentSerializer(source="*")
    ssh_public_keys = serializers.ListField(child=serializers.CharField())
    image = serializers.CharField()
    warn_before = serializers.ListField(
        child=SecondsAsDurationField(),
        source="warn_before_seconds",
        help_text="how long before the end it is told of",
    )
    nodes = PlacementSerializer(many=True, source="shown_allocations")
    leases = LeaseSummarySerializer(many=True, source="shown_leases")
    extensions = serializers.SerializerMethodField(help_text="later ends that were bought")
    changes = serializers.SerializerMethodField(
        help_text="every change of what is bought, in its order"
    )
    pending_extension = serializers.SerializerMethodField(
        help_text="added hours that are kept until they are paid for"
    )
    pending_change = serializers.SerializerMethodField(
        help_text="added hours, or another window, that are kept until they are paid for"
    )
    history = ReservationMoveSerializer(many=True, source="shown_transitions")
    relocations = serializers.SerializerMethodField()
    created_at = InstantField()
    simulated = serializers.BooleanField(help_text="on GPUs that do not exist")

    @extend_schema_field(MoneySerializer)
    def get_tax(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values
        amount_minor = tax.tax_minor(
            net_minor=reservation.total_minor, terms=tax.terms_of(reservation=reservation)
        )
        return MoneySerializer(Money(amount_minor, reservation.currency)).data

    @extend_schema_field(MoneySerializer)
    def get_total_with_tax(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values
        amount_minor = purchases.price_with_tax(reservation=reservation)
        return MoneySerializer(Money(amount_minor, reservation.currency)).data

    @extend_schema_field(ChangeSerializer(many=True))
    def get_extensions(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values
        made = [c for c in _changes_of(reservation) if c.kind == ChangeKind.EXTENSION]
        return ChangeSerializer(made, many=True).data

    @extend_schema_field(ChangeSerializer(many=True))
    def get_changes(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values
        return ChangeSerializer(_changes_of(reservation), many=True).data

    @extend_schema_field(ChangeSerializer(allow_null=True))
    def get_pending_extension(self, reservation: Reservation) -> object:
        pending = _pending_of(reservation)
        is_extension = pending is not None and pending.kind == ChangeKind.EXTENSION
        return ChangeSerializer(pending).data if is_extension else None

    @extend_schema_field(ChangeSerializer(allow_null=True))
    def get_pending_change(self, reservation: Reservation) -> object:
        pending = _pending_of(reservation)
        return ChangeSerializer(pending).data if pending is not None else None

    @extend_schema_field(RelocationSerializer(many=True))
    def get_relocations(self, reservation: Any) -> Any:  # noqa: ANN401 - prefetched rows in, JSON out
        moves = [
            {
                "from_node_ids": [row.from_node_id],
                "gpus": row.gpus,
                "reason": row.reason,
                "at": row.at,
            }
            for row in reservation.shown_relocations
        ] + [
            {
                "from_node_ids": sorted({row["node_id"] for row in move.from_places}),
                "gpus": sum(row["slot_upper"] - row["slot_lower"] for row in move.from_places),
                "reason": move.reason,
                "at": move.at,
            }
            for move in reservation.shown_repackings
        ]
        moves.sort(key=lambda move: move["at"])
        return RelocationSerializer(moves, many=True).data


ReservationPage = page_serializer(ReservationSerializer, name="ReservationPage")


def _changes_of(reservation: Reservation) -> list[Change]:
    shown: list[Change] = vars(reservation)["shown_changes"]
    return shown


def _pending_of(reservation: Reservation) -> PendingChange | None:
    held: list[ExtensionHold] = vars(reservation)["shown_holds"]
    return PendingChange(held[0]) if held else None


def _prefetches() -> list["Prefetch[str]"]:
    """Return what an answer shows beside a reservation, under the names by which it does."""
    return [
        Prefetch(
            "allocations",
            queryset=Allocation.objects.filter(live=True).select_related("node").order_by("slots"),
            to_attr="shown_allocations",
        ),
        Prefetch(
            "leases",
            queryset=Lease.objects.order_by("id").prefetch_related(
                Prefetch(
                    "transitions",
                    queryset=LeaseTransition.objects.order_by("id"),
                    to_attr="shown_transitions",
                )
            ),
            to_attr="shown_leases",
        ),
        Prefetch(
            "relocations",
            queryset=Relocation.objects.order_by("id"),
            to_attr="shown_relocations",
        ),
        Prefetch(
            "repackings",
            queryset=Repacking.objects.order_by("id"),
            to_attr="shown_repackings",
        ),
        Prefetch(
            "transitions",
            queryset=ReservationTransition.objects.order_by("id"),
            to_attr="shown_transitions",
        ),
        Prefetch(
            "changes",
            queryset=Change.objects.select_related("credit_sale").order_by("at"),
            to_attr="shown_changes",
        ),
        Prefetch(
            "credit_sales",
            queryset=CreditSale.objects.filter(change=None).select_related("invoice").with_open(),
            to_attr="shown_sales",
        ),
        Prefetch(
            "extension_holds",
            queryset=ExtensionHold.objects.open()
            .select_related("quote")
            .prefetch_related("payments"),
            to_attr="shown_holds",
        ),
        Prefetch(
            "provider_payments",
            queryset=Payment.objects.filter(purpose__in=PRICE_PURPOSES).order_by("-id"),
            to_attr="shown_payments",
        ),
    ]


def shown(queryset: QuerySet[Reservation]) -> QuerySet[Reservation]:
    """Fetch with each reservation what its answer shows."""
    related = queryset.select_related("tax_terms", "deposit")
    return related.prefetch_related(*_prefetches())


def just_bought(reservation: Reservation) -> Reservation:
    """Add to a reservation, made and paid from the wallet in this transaction, what its answer shows.

    It has places and moves; nothing else can belong to it yet.
    """
    there = ("shown_allocations", "shown_transitions")
    prefetches = {str(prefetch.to_attr): prefetch for prefetch in _prefetches()}
    prefetch_related_objects([reservation], *(prefetches.pop(name) for name in there))
    vars(reservation).update({name: [] for name in prefetches})
    Reservation.deposit.related.set_cached_value(reservation, None)
    return reservation
