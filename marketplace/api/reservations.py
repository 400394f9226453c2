"""`/v1/reservations`: buy what a quote promises, look after it, and see what became of it."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from django.db.models import Prefetch, QuerySet, prefetch_related_objects
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import (
    budgets,
    checkout,
    payments,
    provider,
    purchase_requests,
    purchases,
    tag_policy,
    tax,
)
from billing.models import CreditSale
from marketplace.api.changes import ChangeSerializer
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PageQuery,
    RateField,
    SecondsAsDurationField,
    StrictListField,
    StrictSerializer,
    SwitchField,
    TagsField,
    TextField,
)
from marketplace.api.leases import LeaseMoveSerializer
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.payments import (
    BankTransferSerializer,
    FailureSerializer,
    bank_transfer_of,
    failure_of,
    open_payment_of,
)
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.limits import NAME_LENGTH_MAX, SSH_KEY_LENGTH_MAX, SSH_KEYS_MAX, TAGS_MAX
from marketplace.core.money import Money
from marketplace.states import Scope, Tier
from scheduler.details import (
    IMAGE_LENGTH_MAX,
    WARNING_SECONDS_DEFAULT,
    WARNINGS_MAX,
    DetailChanges,
    ReservationDetails,
)
from scheduler.models import (
    Allocation,
    Change,
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
    PaymentMethod,
    RelocationReason,
    RepackingReason,
    ReservationReason,
    ReservationStatus,
    Spread,
)

_PAYMENT_STATUSES = ("pending", "paid", "owed", "failed", "expired")
_UNPAID = {
    ReservationStatus.PAYMENT_PENDING: "pending",
    ReservationStatus.PAYMENT_FAILED: "failed",
    ReservationStatus.EXPIRED: "expired",
}
# Text of one line: what an OpenSSH public key, and the file that they are written to, consists of.
SSH_KEY_FORM = r"[a-z0-9@.-]{3,60} [A-Za-z0-9+/=]{16,16000}( [^\x00-\x1f\x7f]{0,300})?"


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "From the wallet",
            value={
                "quote_id": "qte_01kc2h9n3v8r5w7x0y2z4a6b8c",
                "payment_method": "wallet",
                "name": "night run",
                "project": "llm-7",
                "tags": {"team": "nlp"},
                "ssh_public_keys": [
                    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAexampleexampleexample you@host"
                ],
            },
            request_only=True,
        )
    ]
)
class PurchaseSerializer(StrictSerializer):
    """Which quote to buy, how to pay, and what to call it."""

    quote_id = TextField(max_length=32)
    payment_method = ChoiceField(choices=PaymentMethod.choices)
    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )
    name = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    tags = TagsField(tags_max=TAGS_MAX, required=False, default=dict)
    ssh_public_keys = StrictListField(
        child=TextField(max_length=SSH_KEY_LENGTH_MAX, form=SSH_KEY_FORM),
        max_length=SSH_KEYS_MAX,
        required=False,
        default=list,
    )
    image = TextField(max_length=IMAGE_LENGTH_MAX, required=False, default="", allow_blank=True)
    warn_before = StrictListField(
        child=SecondsAsDurationField(),
        max_length=WARNINGS_MAX,
        required=False,
        default=lambda: [WARNING_SECONDS_DEFAULT],
        source="warn_before_seconds",
        help_text="how long before the end to tell of it; default: half an hour, empty: not at all",
    )


class ReservationChanges(StrictSerializer):
    """What may be changed later; what is not named stays."""

    name = TextField(max_length=NAME_LENGTH_MAX, required=False, allow_blank=True)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, allow_blank=True)
    tags = TagsField(tags_max=TAGS_MAX, required=False)
    ssh_public_keys = StrictListField(
        child=TextField(max_length=SSH_KEY_LENGTH_MAX, form=SSH_KEY_FORM),
        max_length=SSH_KEYS_MAX,
        required=False,
    )
    warn_before = StrictListField(
        child=SecondsAsDurationField(),
        max_length=WARNINGS_MAX,
        required=False,
        source="warn_before_seconds",
    )


class ReservationsQuery(PageQuery):
    """Which reservations."""

    status = ChoiceField(choices=ReservationStatus.choices, required=False, default=None)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default=None)
    starts_after = InstantField(
        required=False, default=None, help_text="starts_at is this or later"
    )
    ends_before = InstantField(required=False, default=None, help_text="ends_at is this or earlier")
    tag = TextField(
        required=False, default=None, max_length=400, help_text="`name`, or `name:value`"
    )


class OwedInvoiceSerializer(serializers.Serializer[CreditSale]):
    """The invoice by which a reservation is owed."""

    id = serializers.CharField(source="invoice_id")
    number = serializers.CharField(source="invoice.number", help_text="as it is printed")
    due_at = InstantField(help_text="to be paid by then")
    open = MoneyField(minor="open_minor", help_text="not paid yet")


class PaymentSerializer(serializers.Serializer[Reservation]):
    """How far the payment has come."""

    method = ChoiceField(choices=PaymentMethod.choices, source="payment_method")
    status = serializers.SerializerMethodField(help_text="owed: bought on account, not paid yet")
    due_at = InstantField(source="payment_due_at", help_text="an unpaid reservation ends here")
    client_secret = serializers.SerializerMethodField(help_text="for card payments")
    checkout_url = serializers.SerializerMethodField(help_text="a page on which it can be paid")
    bank_transfer = serializers.SerializerMethodField(help_text="where to send the money")
    failure = serializers.SerializerMethodField(help_text="why the last attempt did not work")
    invoice = serializers.SerializerMethodField(help_text="of what was bought on account")

    @extend_schema_field(ChoiceField(choices=[(s, s) for s in _PAYMENT_STATUSES]))
    def get_status(self, reservation: Reservation) -> str:
        sale = _sale_of(reservation)
        is_owed = sale is not None and vars(sale)["open_minor"] > 0
        return _UNPAID.get(ReservationStatus(reservation.status), "owed" if is_owed else "paid")

    def get_client_secret(self, reservation: Reservation) -> str | None:
        payment = open_payment_of(reservation)
        return (payment.client_secret or None) if payment else None

    def get_checkout_url(self, reservation: Reservation) -> str | None:
        payment = open_payment_of(reservation)
        return payments.page_url(payment=payment) if payment else None

    @extend_schema_field(BankTransferSerializer(allow_null=True))
    def get_bank_transfer(self, reservation: Reservation) -> object:
        payment = open_payment_of(reservation)
        return bank_transfer_of(payment) if payment else None

    @extend_schema_field(FailureSerializer(allow_null=True))
    def get_failure(self, reservation: Reservation) -> object:
        payment = getattr(reservation, "provider_payment", None)
        return failure_of(payment) if payment else None

    @extend_schema_field(OwedInvoiceSerializer(allow_null=True))
    def get_invoice(self, reservation: Reservation) -> object:
        sale = _sale_of(reservation)
        return OwedInvoiceSerializer(sale).data if sale else None


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


def _sale_of(reservation: Reservation) -> CreditSale | None:
    shown: list[CreditSale] = vars(reservation)["shown_sales"]
    return shown[0] if shown else None


def _changes_of(reservation: Reservation) -> list[Change]:
    shown: list[Change] = vars(reservation)["shown_changes"]
    return shown


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
    ]


def _shown(queryset: QuerySet[Reservation]) -> QuerySet[Reservation]:
    """Fetch with each reservation what its answer shows."""
    related = queryset.select_related("provider_payment", "tax_terms")
    return related.prefetch_related(*_prefetches())


def _just_bought(reservation: Reservation) -> Reservation:
    """Add to a reservation, made and paid from the wallet in this transaction, what its answer shows.

    It has places and moves; nothing else can belong to it yet.
    """
    there = ("shown_allocations", "shown_transitions")
    prefetches = {str(prefetch.to_attr): prefetch for prefetch in _prefetches()}
    prefetch_related_objects([reservation], *(prefetches.pop(name) for name in there))
    vars(reservation).update({name: [] for name in prefetches})
    Reservation.provider_payment.related.set_cached_value(reservation, None)
    return reservation


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
        return Response(ReservationPage(page_of(_shown(wanted), query=self.query)).data)

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
        }
        details = ReservationDetails(**body)
        # Before anybody is asked to approve what would be refused anyway.
        tag_policy.require(organization=self.organization, tags=details.tags)
        # Before the key is used: what another person has approved may be ordered again with the same one.
        purchase_requests.ask_for_quote(
            organization=self.organization,
            quote_id=quote_id,
            project=details.project,
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
            return HTTPStatus.CREATED, ReservationSerializer(_just_bought(reservation)).data

        def ask_provider() -> tuple[int, Any]:
            """Ask for the payment now that the reservation is kept; what fails here is tried again later."""
            payment = getattr(bought[-1], "provider_payment", None)
            if payment is not None:
                provider.drive_payment(payment_id=payment.pk, at=self.now)
            return HTTPStatus.CREATED, self._rendered(bought[-1])

        return self.once(key_required=True, action=buy, then=ask_provider if waits else None)

    def _rendered(self, reservation: Reservation) -> Any:  # noqa: ANN401 - plain values to render
        shown = _shown(Reservation.objects.visible_to(self.organization)).get(pk=reservation.pk)
        return ReservationSerializer(shown).data


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
        return Response(ReservationSerializer(find(_shown(visible), reservation_id)).data)


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
