"""The calls of the contract that this market does not answer yet: 501, with a sentence why."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

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


_EVENTS = "events are kept and not sent yet; list them at /v1/events"

_CALLS: tuple[tuple[str, Mapping[str, Scope], str], ...] = (
    ("webhook-endpoints", {"GET": Scope.BILLING_READ, "POST": Scope.BILLING_WRITE}, _EVENTS),
    (
        "webhook-endpoints/<str:endpoint_id>",
        {"GET": Scope.BILLING_READ, "DELETE": Scope.BILLING_WRITE},
        _EVENTS,
    ),
)


def _view(address: str, scopes: Mapping[str, Scope], why: str) -> type[ApiView]:
    """Return a view that refuses each of its methods; the OpenAPI document gives the reason as well."""
    words = [part for part in address.replace("/", "-").split("-") if "<" not in part]
    noun = "_".join(words) if not address.endswith(">") else "_".join([*words, "object"])
    members: dict[str, object] = {
        "__module__": __name__,
        "__doc__": why,
        "scopes": scopes,
        "queries": dict.fromkeys(scopes, _AnyQuery),
    }
    for method in scopes:
        describe = operation(
            summary=f"Not built yet: {why}",
            responses={},
            refusals=("not_implemented",),
            operation_id=f"{method.lower()}_{noun}",
        )
        members[method.lower()] = describe(_refusing(method=method.lower(), why=why))
    return type("".join(word.title() for word in [*words, "View"]), (ApiView,), members)


def _refusing(*, method: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: ApiView, request: Request, **_parts: str) -> NoReturn:
        raise CallNotImplemented(f"{why}.")

    refuse.__name__ = method
    return refuse


urlpatterns: list[URLPattern] = [
    path(address, _view(address, scopes, why).as_view()) for address, scopes, why in _CALLS
]
