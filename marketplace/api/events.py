"""`GET /v1/events`: what the organization was told, newest first."""

from typing import ClassVar

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import events
from marketplace.api.fields import ChoiceField, InstantField, PageQuery, TextField
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core import ids
from marketplace.models import Event
from marketplace.states import EventKind, Scope


class EventQuery(PageQuery):
    """Which events to list."""

    kind = ChoiceField(choices=EventKind.choices, required=False, default=None)
    object_id = TextField(
        required=False,
        default=None,
        max_length=ids.ID_LENGTH_MAX,
        help_text="the reservation, lease or payment that it is about",
    )


class EventSerializer(serializers.Serializer[Event]):
    """One occasion; it was told once and never changes."""

    id = serializers.CharField()
    kind = ChoiceField(choices=EventKind.choices)
    object_id = serializers.CharField(help_text="what it is about")
    at = InstantField()
    data = serializers.DictField(  # type: ignore[assignment]  # shadows a name of the base class
        help_text="what there is to know; depends on the kind"
    )


EventPage = page_serializer(EventSerializer, name="EventPage")


class EventsView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": EventQuery}

    @operation(
        summary="What the organization was told in the last 30 days, newest first",
        responses={200: EventPage},
        query=EventQuery,
        operation_id="list_events",
    )
    def get(self, request: Request) -> Response:
        found = events.shown(
            organization=self.organization,
            kind=self.query["kind"],
            object_id=self.query["object_id"],
            at=timezone.now(),
        )
        return Response(EventPage(page_of(found, query=self.query)).data)


class EventView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="One event",
        responses={200: EventSerializer},
        refusals=("not_found",),
        operation_id="get_event",
    )
    def get(self, request: Request, event_id: str) -> Response:
        return Response(
            EventSerializer(
                events.get(organization=self.organization, event_id=event_id, at=timezone.now())
            ).data
        )
