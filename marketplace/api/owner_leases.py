"""`/v1/leases/{id}/reclaim`: the owner takes a reclaimable lease back after its notice."""

from http import HTTPStatus
from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.request import Request

from marketplace.api.fields import ChoiceField, InstantField, MoneyField
from marketplace.api.owner_listings import NoFields
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.states import Scope
from scheduler import reclaims
from scheduler.models import Reclaim
from scheduler.states import LeaseStatus


class ReclaimSerializer(serializers.Serializer[Reclaim]):
    """The notice that runs, and what the owner owes for the time that it takes away."""

    lease_id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices, source="lease.status")
    notice_at = InstantField()
    due_at = InstantField(help_text="the lease ends then, whether or not anybody calls again")
    promised_until = InstantField(help_text="when it would have ended")
    remaining = MoneyField(
        minor="remaining_minor", help_text="the tenant's price of the time that is taken away"
    )
    compensation = MoneyField(
        minor="compensation_minor", help_text="what the owner owes the tenant for it"
    )


class ReclaimView(ApiView):
    scopes: ClassVar = {"POST": Scope.OWNER_WRITE}

    @operation(
        summary="Take a reclaimable lease back after its notice",
        description="The clock runs at once and the tenant is told. At `due_at` the market ends the lease; "
        "before that only the tenant can. The rest of its price is refunded, and the owner owes the "
        "compensation.",
        request=NoFields,
        responses={201: ReclaimSerializer},
        refusals=("not_found", "not_reclaimable", "reclaim_too_late", "state_conflict"),
        idempotency_key="required",
        operation_id="reclaim_lease",
    )
    def post(self, request: Request, lease_id: str) -> HttpResponse:
        self.body(NoFields)

        def act() -> tuple[int, Any]:
            made = reclaims.reclaim(
                owner=self.organization, lease_id=lease_id, at=self.now, actor=self.caller.actor
            )
            return HTTPStatus.CREATED, ReclaimSerializer(made).data

        return self.once(key_required=True, action=act)
