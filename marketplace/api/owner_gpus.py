"""`/v1/gpus`: the owner's devices, what they do, and why each is or is not on offer."""

from typing import Any, ClassVar

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from agents.models import Gpu, Node
from agents.protocol import Health, IdleState
from marketplace.api.fields import ChoiceField, InstantField, PageQuery, SwitchField, TextField
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope
from scheduler import onoffer

_SWITCH_FILTERS = ("idle", "listed", "leased", "on_offer")


class OfferReasonSerializer(serializers.Serializer[Any]):
    """One thing that stands against a GPU."""

    code = serializers.ChoiceField(choices=[code.value for code in onoffer.Code])
    detail = serializers.CharField(help_text="in words, for people")


class OfferSerializer(serializers.Serializer[Any]):
    """Whether a GPU is on offer just now, and if not, everything that stands against it."""

    on_offer = serializers.BooleanField(
        help_text="a window that begins now could be sold on it; blackouts and shortest durations of "
        "its listings still apply to each request"
    )
    reasons = OfferReasonSerializer(many=True, help_text="empty when it is on offer")


class GpuSerializer(serializers.Serializer[Any]):
    """One device."""

    id = serializers.CharField()
    node_id = serializers.CharField()
    uuid = serializers.CharField(help_text="as NVML names the device")
    gpu_model = serializers.CharField(
        source="gpu_model_id", allow_null=True, help_text="null: not in the catalogue, never sold"
    )
    product_name = serializers.CharField(help_text="as NVML spells it")
    memory_total_bytes = serializers.IntegerField()
    present = serializers.BooleanField(help_text="in the node's last inventory")
    health = serializers.ChoiceField(choices=[value.value for value in Health])
    health_reason = serializers.CharField()
    quarantined = serializers.CharField(
        source="quarantined_by_market",
        help_text="why the market withdrew it, or empty; the owner's resume clears it",
    )
    idle_state = serializers.ChoiceField(choices=[value.value for value in IdleState])
    idle_since = InstantField(allow_null=True)
    idle_reason = serializers.CharField(help_text="the agent's words for its idle state")
    measured_at = InstantField(allow_null=True)
    listed = serializers.BooleanField(help_text="a published listing selects it now")
    leased = serializers.BooleanField(help_text="an open lease holds it")
    offer = serializers.SerializerMethodField()
    simulated = serializers.BooleanField(source="node.simulated")

    @extend_schema_field(OfferSerializer)
    def get_offer(self, gpu: Gpu) -> Any:  # noqa: ANN401 - what a serializer gives
        return OfferSerializer(self.context["offers"][gpu.pk]).data


class GpusQuery(PageQuery):
    """Which GPUs."""

    gpu_model = TextField(max_length=60, required=False)
    node_id = TextField(max_length=32, required=False)
    health = ChoiceField(choices=[(value.value, value.value) for value in Health], required=False)
    idle = SwitchField(from_text=True, required=False)
    listed = SwitchField(from_text=True, required=False)
    leased = SwitchField(from_text=True, required=False)
    on_offer = SwitchField(from_text=True, required=False)


def gpus_of(nodes: QuerySet[Node] | list[Node], *, at: Any) -> QuerySet[Gpu]:  # noqa: ANN401 - an instant
    """Return the GPUs of some nodes, each with what `onoffer` says of it at `at`."""
    gpus = Gpu.objects.filter(node__in=nodes).select_related("node")
    return onoffer.annotated(gpus=gpus, at=at)


class GpusView(ApiView):
    scopes: ClassVar = {"GET": Scope.OWNER_READ}
    queries: ClassVar = {"GET": GpusQuery}

    @operation(
        summary="List the owner's GPUs",
        responses={200: page_serializer(GpuSerializer, name="GpuPage")},
        query=GpusQuery,
        operation_id="list_gpus",
    )
    def get(self, request: Request) -> Response:
        rows = gpus_of(Node.objects.visible_to(self.organization), at=self.now)
        columns = {"gpu_model": "gpu_model_id", "node_id": "node_id", "health": "health"}
        columns |= {name: name for name in _SWITCH_FILTERS}
        for word, column in columns.items():
            if word in self.query:
                rows = rows.filter(**{column: self.query[word]})
        page = page_of(rows, query=self.query)
        context = {"offers": onoffer.read(gpus=page.data, at=self.now)}
        data = GpuSerializer(page.data, many=True, context=context).data
        return Response({"data": data, "next_cursor": page.next_cursor})
