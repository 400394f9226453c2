"""The frame of every view of /v1: who calls, may they, what they ask, and one effect per key."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from django.db.models import Model, QuerySet
from django.http import HttpResponse
from django.utils import timezone
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from marketplace import organizations
from marketplace.api import idempotency, throttling
from marketplace.api.authentication import Caller
from marketplace.api.errors import ApiKeyRequired, MethodNotAllowed, RateLimited
from marketplace.api.fields import ID_FORM, NoParameters, StrictSerializer
from marketplace.core.errors import NotFound
from marketplace.models import Organization
from marketplace.states import Scope

ModelT = TypeVar("ModelT", bound=Model)
KEYED_CALLS_PER_MINUTE = 6_000  # per key: 100 a second, as the nearest peers allow


class JsonAlways(BaseContentNegotiation):
    """Answer in JSON whatever the Accept header wishes: there is no other form."""

    def select_parser(self, request: Request, parsers: list[BaseParser]) -> BaseParser | None:  # type: ignore[override] # the stub's list is of classes
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == media_type), None)

    def select_renderer(  # type: ignore[override] # the stub's list is of classes
        self, request: Request, renderers: list[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], str(renderers[0].media_type)


class ApiView(APIView):
    """A resource of /v1.

    `scopes` names, for each method, the scope that it asks for; None lets a call without a key in as well.
    `queries` names the serializer of the query string; a method without one takes no parameter.
    """

    scopes: ClassVar[Mapping[str, Scope | None]] = {}
    queries: ClassVar[Mapping[str, type[StrictSerializer]]] = {}
    content_negotiation_class = JsonAlways

    now: dt.datetime
    query: Mapping[str, Any]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the framework's signature
        """Check, in this order: method, key, rate, scope, query string.

        :raises MethodNotAllowed: and the other refusals of their names.
        """
        self.now = timezone.now()
        method = "GET" if request.method == "HEAD" else str(request.method)
        if method not in self.scopes:
            self.http_method_not_allowed(request)
        super().initial(request, *args, **kwargs)
        self._take_token()
        self._check_scope(self.scopes[method])
        self.query = _validated(self.queries.get(method, NoParameters), request.query_params)

    def http_method_not_allowed(  # type: ignore[override] # the framework passes its own request
        self,
        request: Request,
        *args: Any,  # noqa: ANN401 - the framework's signature
        **kwargs: Any,  # noqa: ANN401 - the framework's signature
    ) -> NoReturn:
        allowed = ", ".join(self.allowed_methods)
        raise MethodNotAllowed(f"this address takes {allowed}", extra={"allow": allowed})

    @property
    def allowed_methods(self) -> list[str]:
        """Return what the Allow header of every answer says."""
        return sorted(self.scopes)

    @property
    def caller(self) -> Caller:
        """Return who calls.

        :raises ApiKeyRequired: when nobody said.
        """
        user: object = self.request.user
        if not isinstance(user, Caller):
            raise ApiKeyRequired("send the header Authorization: Bearer hr_live_…")
        return user

    @property
    def organization(self) -> Organization:
        return self.caller.organization

    def body(self, serializer_type: type[StrictSerializer]) -> Mapping[str, Any]:
        """Return the body's fields.

        :raises InvalidRequest: when one does not fit.
        """
        return _validated(serializer_type, self.request.data)

    def once(
        self,
        *,
        key_required: bool,
        action: Callable[[], idempotency.Answer],
        then: Callable[[], idempotency.Answer] | None = None,
    ) -> HttpResponse:
        """Run `action` once per Idempotency-Key of this organization, then `then`; see `idempotency`."""
        request = self.request
        return idempotency.once(
            request=request._request,  # noqa: SLF001 - the framework offers no other way to it
            organization=self.organization,
            key=idempotency.key_of(request._request, required=key_required),  # noqa: SLF001
            request_sha256=idempotency.fingerprint(
                method=str(request.method), path=request.path, body=request.data
            ),
            action=action,
            then=then,
        )

    def is_repetition(self) -> bool:
        """Say whether the call's Idempotency-Key has its answer already: `once` gives it, or refuses."""
        request = self.request._request  # noqa: SLF001 - the framework offers no other way to it
        key = idempotency.key_of(request, required=False)
        return key is not None and idempotency.is_answered(organization=self.organization, key=key)

    def _check_scope(self, scope: Scope | None) -> None:
        if scope is None:
            return
        organizations.require_scope(api_key=self.caller.api_key, scope=scope)

    def _take_token(self) -> None:
        user: object = self.request.user
        if isinstance(user, Caller):
            name, per_minute = f"key:{user.api_key.pk}", KEYED_CALLS_PER_MINUTE
        else:
            address = throttling.client_address_of(self.request)
            name, per_minute = f"address:{address}", throttling.keyless_calls_per_minute()
        wait = throttling.buckets.seconds_to_wait(name=name, per_minute=per_minute)
        if wait:
            raise RateLimited(
                f"at most {per_minute} calls a minute; try again in {wait} s",
                extra={"retry_after_seconds": wait},
            )


def find(queryset: QuerySet[ModelT], object_id: str) -> ModelT:
    """Return the object of a queryset that is already narrowed to what the caller may see.

    :raises NotFound: when there is none: an id of somebody else's and one of nobody's look the same.
    """
    found = queryset.filter(pk=object_id).first() if ID_FORM.fullmatch(object_id) else None
    if found is None:
        raise NotFound("there is no such object")
    return found


def _validated(serializer_type: type[StrictSerializer], data: object) -> Mapping[str, Any]:
    serializer = serializer_type(data=data)
    serializer.is_valid(raise_exception=True)
    validated: Mapping[str, Any] = serializer.validated_data
    return validated
