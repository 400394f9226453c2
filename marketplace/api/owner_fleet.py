"""`/v1/enrolment-tokens` and `/v1/nodes`: the owner's machines, and who is on them.

An owner sees leases by their id and window; the tenant's name is never shown.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from agents import alarms, enrolment, health, inventory, labelling
from agents.models import Alarm, Node
from agents.states import AlarmKind, NodeStatus
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    PageQuery,
    StrictSerializer,
    TagsField,
    TextField,
    WholeNumberField,
)
from marketplace.api.owner_gpus import GpuSerializer, gpus_of
from marketplace.api.owner_listings import NoFields
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView, find
from marketplace.core.text import LABELS_MAX
from marketplace.states import Scope
from scheduler import drains, onoffer
from scheduler.drains import Sold
from scheduler.models import Lease
from scheduler.onoffer import OPEN_LEASES
from scheduler.states import LeaseStatus


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A rack of sixteen machines",
            value={
                "labels": {"rack": "r17"},
                "region": "us-east",
                "fabric": "us-east-ib1",
                "max_nodes": 16,
                "expires_at": "2026-11-30T00:00:00Z",
            },
            request_only=True,
        )
    ]
)
class EnrolmentTokenWishSerializer(StrictSerializer):
    """What the machines that enrol with the token will be."""

    labels = TagsField(tags_max=LABELS_MAX, required=False, default=dict)
    region = TextField(max_length=60)
    fabric = TextField(
        max_length=100,
        required=False,
        allow_null=True,
        default=None,
        help_text="the interconnect inside which blocks of several nodes are placed",
    )
    max_nodes = WholeNumberField(min_value=1, max_value=enrolment.TOKEN_NODES_MAX)
    expires_at = InstantField()
    allowed_networks = serializers.ListField(
        child=TextField(max_length=50),
        max_length=enrolment.TOKEN_NETWORKS_MAX,
        required=False,
        default=list,
        help_text="CIDR blocks from which the token may be used; empty: from anywhere",
    )


class EnrolmentTokenSerializer(serializers.Serializer[Any]):
    """A token with its secret, which is shown this once."""

    id = serializers.CharField()
    token = serializers.CharField(help_text="give it to the agents; it is shown this once")
    region = serializers.CharField()
    fabric = serializers.CharField(allow_null=True)
    labels = TagsField(tags_max=LABELS_MAX)
    max_nodes = serializers.IntegerField(source="nodes_max")
    allowed_networks = serializers.ListField(child=serializers.CharField())
    expires_at = InstantField()
    created_at = InstantField()


class EnrolmentTokensView(ApiView):
    scopes: ClassVar = {"POST": Scope.OWNER_WRITE}

    @operation(
        summary="Make a token with which machines enrol",
        description="Answers are never kept, because this one holds a secret: a repeated call makes "
        "another token.",
        request=EnrolmentTokenWishSerializer,
        responses={201: EnrolmentTokenSerializer},
        refusals=("invalid_value",),
        operation_id="create_enrolment_token",
    )
    def post(self, request: Request) -> Response:
        body = self.body(EnrolmentTokenWishSerializer)
        token, secret = enrolment.create_token(
            organization=self.organization,
            region=body["region"],
            fabric=body["fabric"] or "",
            labels=body["labels"],
            nodes_max=body["max_nodes"],
            expires_at=body["expires_at"],
            allowed_networks=body["allowed_networks"],
            at=self.now,
        )
        names = (
            "id",
            "region",
            "labels",
            "nodes_max",
            "allowed_networks",
            "expires_at",
            "created_at",
        )
        answer = {name: getattr(token, name) for name in names}
        answer |= {"token": secret, "fabric": token.fabric or None}
        return Response(EnrolmentTokenSerializer(answer).data, status=HTTPStatus.CREATED)


class NodeLeaseSerializer(serializers.Serializer[Lease]):
    """An open lease of a node. Whose it is, is the tenant's business."""

    id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices)
    gpu_uuids = serializers.ListField(child=serializers.CharField())
    starts_at = InstantField()
    ends_at = InstantField()


class NodeAlarmSerializer(serializers.Serializer[Alarm]):
    """Something that staff must settle before the node, or one of its GPUs, is sold again."""

    kind = ChoiceField(choices=AlarmKind.choices)
    gpu_uuid = serializers.CharField(allow_null=True, help_text="null: the whole node")
    detail = serializers.CharField()
    raised_at = InstantField()


class HostSerializer(serializers.Serializer[Any]):
    """The machine around the GPUs, as its agent last described it; null where it could not tell."""

    driver_version = serializers.CharField(allow_null=True)
    nvml_version = serializers.CharField(allow_null=True)
    cuda_driver_version = serializers.CharField(allow_null=True)
    kernel_version = serializers.CharField(allow_null=True)
    confidential_computing = serializers.CharField(allow_null=True)
    scrubs_memory_on_free = serializers.BooleanField(
        allow_null=True, help_text="false: the owner has switched the driver's scrubbing off"
    )
    provisioner = serializers.CharField(help_text="how GPUs are handed over")
    provisioner_version = serializers.CharField(allow_blank=True)


class NodeSerializer(serializers.Serializer[Any]):
    """One machine, its GPUs and its open leases."""

    id = serializers.CharField()
    hostname = serializers.CharField()
    region = serializers.CharField()
    fabric = serializers.CharField(allow_null=True)
    labels = TagsField(tags_max=LABELS_MAX)
    status = ChoiceField(choices=NodeStatus.choices)
    liveness = serializers.ChoiceField(choices=[value.value for value in health.Liveness])
    last_report_at = InstantField(allow_null=True)
    agent_version = serializers.CharField()
    enrolled_at = InstantField()
    simulated = serializers.BooleanField(help_text="its GPUs do not exist")
    host = HostSerializer(allow_null=True, help_text="null: its agent does not tell")
    warnings = serializers.ListField(
        child=serializers.CharField(), help_text="what the node cannot do now, in words"
    )
    alarms = NodeAlarmSerializer(many=True, help_text="open ones")
    gpus = GpuSerializer(many=True)
    leases = NodeLeaseSerializer(many=True)


class NodeWindowSerializer(serializers.Serializer[Sold]):
    """A window that is sold on some of a machine's GPUs and has not begun."""

    starts_at = InstantField(source="window.starts_at")
    ends_at = InstantField(source="window.ends_at")
    gpus = serializers.IntegerField()


class DrainedNodeSerializer(NodeSerializer):
    """A machine that is not sold any more, and what it still has to serve."""

    free_at = InstantField(
        allow_null=True, help_text="when the last promise on it ends; null: nothing is promised"
    )
    moved = NodeWindowSerializer(many=True, help_text="what other machines serve instead")
    kept = NodeWindowSerializer(
        many=True, help_text="what no other machine can serve, or not yet: this one honours it"
    )


class NodesQuery(PageQuery):
    """Which nodes."""

    status = ChoiceField(choices=NodeStatus.choices, required=False)
    region = TextField(max_length=60, required=False)


class LabelsSerializer(StrictSerializer):
    """What of a node its owner may change."""

    labels = TagsField(tags_max=LABELS_MAX)


def nodes_as_answer(
    nodes: Iterable[Node],
    *,
    at: Any,  # noqa: ANN401 - an instant
    shape: type[NodeSerializer] = NodeSerializer,
    extra: Mapping[str, object] | None = None,
) -> list[Any]:
    """Return nodes as the contract shows them, in eight queries however many they are."""
    rows = list(nodes)
    gpus, leases = defaultdict(list), defaultdict(list)
    found = list(gpus_of(rows, at=at).order_by("slot"))
    for gpu in found:
        gpus[gpu.node_id].append(gpu)
    for lease in Lease.objects.filter(node__in=rows, status__in=OPEN_LEASES).order_by(
        "starts_at", "id"
    ):
        leases[lease.node_id].append(lease)
    open_alarms = defaultdict(list)
    for alarm in alarms.open_alarms().filter(node__in=rows):
        open_alarms[alarm.node_id].append(
            {
                **{name: getattr(alarm, name) for name in ("kind", "detail", "raised_at")},
                "gpu_uuid": alarm.gpu_uuid or None,
            }
        )
    names = ("id", "hostname", "region", "labels", "status", "last_report_at", "agent_version")
    answers = [
        {
            **{
                name: getattr(node, name)
                for name in (*names, "enrolled_at", "simulated", "warnings")
            },
            "host": node.host or None,
            "alarms": open_alarms[node.pk],
            "fabric": node.fabric or None,
            "liveness": health.liveness(node=node, at=at).value,
            "gpus": gpus[node.pk],
            "leases": leases[node.pk],
        }
        for node in rows
    ]
    context = {"offers": onoffer.read(gpus=found, at=at)}
    return [shape(answer | dict(extra or {}), context=context).data for answer in answers]


class NodesView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ}
    queries: ClassVar = {"GET": NodesQuery}

    @operation(
        summary="List the owner's machines",
        responses={200: page_serializer(NodeSerializer, name="NodePage")},
        query=NodesQuery,
        operation_id="list_nodes",
    )
    def get(self, request: Request) -> Response:
        rows = Node.objects.visible_to(self.organization)
        for name in ("status", "region"):
            if name in self.query:
                rows = rows.filter(**{name: self.query[name]})
        page = page_of(rows, query=self.query)
        data = nodes_as_answer(page.data, at=self.now)
        return Response({"data": data, "next_cursor": page.next_cursor})


class NodeView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ, "PATCH": Scope.OWNER_WRITE}

    @operation(
        summary="A machine",
        responses={200: NodeSerializer},
        refusals=("not_found",),
        operation_id="get_node",
    )
    def get(self, request: Request, node_id: str) -> Response:
        node = find(Node.objects.visible_to(self.organization), node_id)
        return Response(nodes_as_answer([node], at=self.now)[0])

    @operation(
        summary="Replace a machine's labels",
        request=LabelsSerializer,
        responses={200: NodeSerializer},
        refusals=("not_found", "invalid_value"),
        operation_id="label_node",
    )
    def patch(self, request: Request, node_id: str) -> Response:
        node = find(Node.objects.visible_to(self.organization), node_id)
        labels = self.body(LabelsSerializer)["labels"]
        node = labelling.set_labels(node=node, labels=labels, at=self.now, actor=self.caller.actor)
        return Response(nodes_as_answer([node], at=self.now)[0])


class _NodeMoveView(ApiView):
    """One arrow of a node."""

    scopes: ClassVar = {"POST": Scope.OWNER_WRITE}
    verb: ClassVar[Callable[..., None]]

    def move(self, node_id: str) -> HttpResponse:
        self.body(NoFields)

        def act() -> tuple[int, Any]:
            node = find(Node.objects.visible_to(self.organization), node_id)
            type(self).verb(node=node, at=self.now, actor=self.caller.actor)
            return HTTPStatus.OK, nodes_as_answer([node], at=self.now)[0]

        return self.once(key_required=False, action=act)


class DrainView(ApiView):
    scopes: ClassVar = {"POST": Scope.OWNER_WRITE}

    @operation(
        summary="Stop selling a machine's GPUs",
        description="What it serves goes on to its end: `leases` says what and until when. What is sold and "
        "has not begun moves to other machines of the same promise (`moved`), and is honoured where there "
        "are none (`kept`).",
        request=NoFields,
        responses={200: DrainedNodeSerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="drain_node",
    )
    def post(self, request: Request, node_id: str) -> HttpResponse:
        self.body(NoFields)

        def act() -> tuple[int, Any]:
            node = find(Node.objects.visible_to(self.organization), node_id)
            found = drains.drain(node=node, at=self.now, actor=self.caller.actor)
            extra = {name: getattr(found, name) for name in ("free_at", "moved", "kept")}
            (answer,) = nodes_as_answer(
                [node], at=self.now, shape=DrainedNodeSerializer, extra=extra
            )
            return HTTPStatus.OK, answer

        return self.once(key_required=False, action=act)


class ResumeView(_NodeMoveView):
    verb = staticmethod(inventory.resume)

    @operation(
        summary="Sell a drained machine's GPUs again",
        description="The owner vouches for them: what the market had quarantined is released.",
        request=NoFields,
        responses={200: NodeSerializer},
        refusals=("not_found", "state_conflict"),
        idempotency_key="optional",
        operation_id="resume_node",
    )
    def post(self, request: Request, node_id: str) -> HttpResponse:
        return self.move(node_id)
