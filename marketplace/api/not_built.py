"""The calls of the contract that this market does not answer yet: 501, with a sentence why."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from django.urls import URLPattern, path
from rest_framework.request import Request

from marketplace.api.fields import StrictSerializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import DomainError
from marketplace.states import Scope


class CallNotImplemented(DomainError):
    """The contract names the call; this market does not have it yet."""

    code = "not_implemented"
    title = "Not built yet"


class _AnyQuery(StrictSerializer):
    """Take any query string: what it will mean is decided when the call is built."""

    def to_internal_value(self, data: Any) -> dict[str, object]:  # noqa: ANN401 - not looked at
        return {}


_CANCELLATION = "leaving early needs the ladder of fees, and it is not set"
_EXTENSIONS = "a later end on the same GPUs cannot be bought yet"
_PAYMENTS = "no payment provider is connected; an operator records deposits"
_BUDGETS = "hard caps per organization and project are not kept yet"
_EVENTS = "events are not sent or kept yet; poll the objects"
_STATEMENTS = "there are bills of reservations, and none of months yet"
_RECLAIM = "leases of the reclaimable tier cannot be called back yet"

_CALLS: tuple[tuple[str, Mapping[str, Scope], str], ...] = (
    ("reservations/<str:reservation_id>/cancellation-quote", {"POST": Scope.RESERVATIONS_WRITE}, _CANCELLATION),
    ("reservations/<str:reservation_id>/cancellation", {"POST": Scope.RESERVATIONS_WRITE}, _CANCELLATION),
    ("reservations/<str:reservation_id>/extension-quote", {"POST": Scope.RESERVATIONS_WRITE}, _EXTENSIONS),
    ("reservations/<str:reservation_id>/extensions", {"POST": Scope.RESERVATIONS_WRITE}, _EXTENSIONS),
    ("bills/<str:month>", {"GET": Scope.BILLING_READ}, _STATEMENTS),
    ("exports/focus", {"GET": Scope.BILLING_READ}, _STATEMENTS),
    ("wallet/top-ups", {"POST": Scope.BILLING_WRITE}, _PAYMENTS),
    ("budgets", {"GET": Scope.BILLING_READ, "PUT": Scope.BILLING_WRITE}, _BUDGETS),
    ("webhook-endpoints", {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}, _EVENTS),
    ("webhook-endpoints/<str:endpoint_id>", {"GET": Scope.BILLING_READ, "DELETE": Scope.BILLING_WRITE}, _EVENTS),
    ("events", {"GET": Scope.BILLING_READ}, _EVENTS),
    ("leases/<str:lease_id>/reclaim", {"POST": Scope.OWNER_WRITE}, _RECLAIM),
)


def _view(address: str, scopes: Mapping[str, Scope], why: str) -> type[ApiView]:
    """Return a view that refuses each of its methods, with the reason in the OpenAPI document as well."""

    def refuse(self: ApiView, request: Request, **_parts: str) -> NoReturn:
        raise CallNotImplemented(f"{why}.")

    name = "".join(part.title() for part in address.replace("/", "-").split("-") if "<" not in part)
    noun = "_".join(part for part in address.replace("/", "-").split("-") if "<" not in part)
    one = "one_" if address.endswith(">") else ""
    methods = {
        method.lower(): operation(
            summary=f"Not built yet: {why}",
            responses={},
            refusals=("not_implemented",),
            operation_id=f"{method.lower()}_{one}{noun}",
        )(_renamed(refuse, method.lower()))
        for method in scopes
    }
    queries = dict.fromkeys(scopes, _AnyQuery)
    return type(f"{name}View", (ApiView,), {"__module__": __name__, "__doc__": why, "scopes": scopes, "queries": queries, **methods})


def _renamed(function: Any, name: str) -> Any:  # noqa: ANN401 - a method under another name
    """Return a copy: the decorator marks the function itself, and each method needs its own mark."""

    def method(self: ApiView, request: Request, **parts: str) -> NoReturn:
        function(self, request, **parts)
        raise AssertionError("it always refuses")

    method.__name__ = name
    return method


class _Reasons:
    calls: ClassVar = _CALLS


urlpatterns: list[URLPattern] = [
    path(address, _view(address, scopes, why).as_view()) for address, scopes, why in _CALLS
]
