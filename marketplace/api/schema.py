"""How the OpenAPI document comes about: one decorator per operation, and the parts that all share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers

from marketplace.api import errors, idempotency
from marketplace.api.fields import StrictSerializer

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_EVERY_CALL = (
    "bad_request",
    "invalid_request",
    "rate_limited",
    "internal_error",
    "service_unavailable",
    "invalid_api_key",
)
_WITH_KEY = ("api_key_required", "scope_missing")
_WITH_BODY = ("malformed_json", "length_required", "body_too_large", "unsupported_media_type")
_WITH_IDEMPOTENCY_KEY = (
    "idempotency_key_malformed",
    "idempotency_key_reused",
    "idempotency_in_flight",
)


class FieldErrorSerializer(serializers.Serializer[Any]):
    """One part of the request that does not fit."""

    pointer = serializers.CharField(
        help_text="RFC 6901 pointer into the body, or to a query parameter: `/gpus`"
    )
    code = serializers.CharField()
    detail = serializers.CharField()


class ProblemSerializer(serializers.Serializer[Any]):
    """An error as RFC 9457 has it. `code` is stable; some codes bring members of their own."""

    type = serializers.CharField(help_text="`urn:headroom:problem:` and the code")
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField()
    errors = FieldErrorSerializer(many=True)  # type: ignore[assignment] # RFC 9457 extensions are ours to name
    request_id = serializers.CharField(help_text="also in the header X-Request-Id")


def operation(
    *,
    summary: str,
    responses: Mapping[int, Any],
    refusals: Sequence[str] = (),
    request: type[serializers.BaseSerializer[Any]] | None = None,
    query: type[StrictSerializer] | None = None,
    public: bool = False,
    idempotency_key: str = "",
    files: Mapping[tuple[int, str], Any] | None = None,
    description: str = "",
    operation_id: str | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Describe one operation.

    `refusals` are the codes of the verb; those of every call are added. `idempotency_key` is `required`,
    `optional` or empty. `files` are answers in another form than JSON, by status and media type. Each
    problem response names the codes that it may carry.
    """
    codes = [*refusals, *_EVERY_CALL, *(() if public else _WITH_KEY)]
    parameters: list[Any] = [query] if query else []
    if request is not None:
        codes += _WITH_BODY
    if idempotency_key:
        codes += _WITH_IDEMPOTENCY_KEY
        if idempotency_key == "required":
            codes.append("idempotency_key_required")
        parameters.append(
            OpenApiParameter(
                name=idempotency.HEADER,
                type=OpenApiTypes.STR,
                location=OpenApiParameter.HEADER,
                required=idempotency_key == "required",
                description="Of your own making, 1 to 255 printable characters. The same key with the same "
                "body gets the first answer again, with `Idempotent-Replayed: true`, for 7 days.",
            )
        )
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(errors.status_of(code), []).append(code)
    problems = {
        (status, errors.PROBLEM_CONTENT_TYPE): OpenApiResponse(
            ProblemSerializer, description=", ".join(f"`{code}`" for code in sorted(set(names)))
        )
        for status, names in sorted(by_status.items())
    }
    return extend_schema(
        summary=summary,
        description=description or summary,
        operation_id=operation_id,
        request=request,
        responses={
            **{(status, "application/json"): body for status, body in responses.items()},
            **(files or {}),
            **problems,
        },
        parameters=parameters,
    )


def only_v1(endpoints: Sequence[Any]) -> list[Any]:
    """Keep the public contract: the agents' wire has its own, in `agents.protocol`."""
    return [endpoint for endpoint in endpoints if endpoint[0].startswith("/v1/")]


def close_requests(
    result: dict[str, Any],
    generator: SchemaGenerator,
    request: object,
    public: bool,  # noqa: FBT001 - the framework calls it so
) -> dict[str, Any]:
    """Say of every request body that a field that is not named is refused."""
    for name, component in result.get("components", {}).get("schemas", {}).items():
        if name.endswith("Request") and component.get("type") == "object":
            component["additionalProperties"] = False
    return result


def document() -> dict[str, Any]:
    """Return the OpenAPI document of /v1."""
    generator = SchemaGenerator()  # type: ignore[no-untyped-call] # drf-spectacular has no types
    schema: dict[str, Any] = generator.get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return schema
