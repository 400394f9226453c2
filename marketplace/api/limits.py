"""`GET /v1/limits`: what a tenant may book, and how much of it is left."""

from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.fields import SecondsAsDurationField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope
from scheduler import quotas


class LimitsSerializer(serializers.Serializer[Any]):
    """Null is no limit. The quota looks forward: it frees up as time passes."""

    gpu_seconds = serializers.IntegerField(
        source="limits.gpu_seconds", allow_null=True, help_text="booked and not yet over"
    )
    gpu_seconds_booked = serializers.IntegerField()
    gpu_seconds_left = serializers.IntegerField(allow_null=True)
    max_duration = SecondsAsDurationField(
        source="limits.duration_seconds", allow_null=True, help_text="of one reservation"
    )
    horizon_days = serializers.IntegerField(
        source="limits.horizon_days", help_text="how far ahead a window may end"
    )


class LimitsView(ApiView):
    scopes: ClassVar = {"GET": Scope.RESERVATIONS_READ}

    @operation(
        summary="What you may book, and how much of it is left",
        responses={200: LimitsSerializer},
        operation_id="get_limits",
    )
    def get(self, request: Request) -> Response:
        standing = quotas.standing_of(organization=self.organization, at=self.now)
        return Response(LimitsSerializer(standing).data)
