"""The one table from a refusal's code to HTTP, and the one shape of every error: RFC 9457.

Verbs raise `DomainError` subclasses and never mention HTTP. What only HTTP can get wrong (a body that is no
JSON, a method that does not exist) is refused by the subclasses that stand here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from rest_framework import exceptions, serializers
from rest_framework.response import Response

from agents.envelope import BodyTooLarge
from marketplace.core.errors import DomainError, NotFound

logger = logging.getLogger(__name__)

PROBLEM_CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:headroom:problem:"  # a name that no deployment's host name changes
RETRY_SOON_SECONDS = 1  # after a short outage of PostgreSQL: a restart takes a second or two
FIELD_ERRORS_MAX = 100  # a body of 64 KiB can hold thousands of wrong fields; nobody reads them all


class MalformedJson(DomainError):
    """The body is not JSON as RFC 8259 has it: NaN, a repeated name, or broken text."""

    code = "malformed_json"
    title = "The body is not valid JSON"


class UnsupportedMediaType(DomainError):
    code = "unsupported_media_type"
    title = "The body's media type is not taken"


class LengthRequired(DomainError):
    """The body came in chunks. Django reads none of those: it would look like a body without fields."""

    code = "length_required"
    title = "The body's length is missing"


class MethodNotAllowed(DomainError):
    code = "method_not_allowed"
    title = "The method does not exist here"


class ApiKeyRequired(DomainError):
    code = "api_key_required"
    title = "An API key is required"


class RateLimited(DomainError):
    """Too many calls in a short time; `extra` says when the next one is taken."""

    code = "rate_limited"
    title = "Too many requests"


class ServiceUnavailable(DomainError):
    """The database did not answer. Nothing was changed."""

    code = "service_unavailable"
    title = "The market cannot answer right now"


class InvalidRequest(DomainError):
    """One or more fields of the body or the query string do not fit; `errors` names each."""

    code = "invalid_request"
    title = "The request does not fit"

    def __init__(self, errors: Sequence[Mapping[str, str]]) -> None:
        super().__init__(
            "; ".join(f"{e['pointer'] or 'the body'}: {e['detail']}" for e in errors[:3])
        )
        self.errors = list(errors[:FIELD_ERRORS_MAX])


class BadRequest(DomainError):
    """Django refused the request before a view saw it: a wrong Host header, for example."""

    code = "bad_request"
    title = "The request cannot be read"


class UriTooLong(DomainError):
    """The web server's limit, met before Django; see `web_worker`."""

    code = "uri_too_long"
    title = "The address is too long"


class HeadersTooLarge(DomainError):
    """The web server's limit, met before Django; see `web_worker`."""

    code = "headers_too_large"
    title = "The headers are too large"


class InternalError(DomainError):
    """A fault of ours. What happened is in the log under the same request id, and nowhere else."""

    code = "internal_error"
    title = "The market made a mistake"


STATUS_BY_CODE: dict[str, int] = {
    # what HTTP can get wrong
    "bad_request": 400,
    "malformed_json": 400,
    "idempotency_key_required": 400,
    "idempotency_key_malformed": 400,
    "api_key_required": 401,
    "method_not_allowed": 405,
    "length_required": 411,
    "body_too_large": 413,
    "uri_too_long": 414,
    "headers_too_large": 431,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "idempotency_key_reused": 422,
    "idempotency_in_flight": 409,
    "rate_limited": 429,
    "too_many_exports": 429,
    "internal_error": 500,
    "service_unavailable": 503,
    # who may
    "invalid_api_key": 401,
    "scope_missing": 403,
    # every room
    "invalid_value": 422,
    "not_found": 404,
    "webhook_address_refused": 422,
    "too_many_webhook_endpoints": 409,
    "state_conflict": 409,
    "not_this_object": 409,
    # the catalogue
    "no_such_model": 422,
    "not_an_owner": 403,
    "organization_name_taken": 409,
    "listing_refused": 422,
    "listing_period_invalid": 422,
    "listing_mode_invalid": 422,
    "listing_durations_invalid": 422,
    "floor_rate_invalid": 422,
    "reclaim_notice_invalid": 422,
    "listing_turnaround_invalid": 422,
    "min_gpus_invalid": 422,
    "blackouts_invalid": 422,
    # agents
    "malformed_report": 400,
    "bad_signature": 401,
    "enrolment_token_invalid": 403,
    "enrolment_network_refused": 403,
    "node_revoked": 403,
    "simulated_hardware_refused": 403,
    "clock_skew": 409,
    "gpu_already_enrolled": 409,
    "node_already_enrolled": 409,
    "key_rotation_refused": 409,
    "report_replayed": 409,
    "policy_unchanged": 409,
    # the scheduler
    "off_grid": 422,
    "window_in_past": 422,
    "window_upside_down": 422,
    "beyond_horizon": 422,
    "window_too_short": 409,
    "window_too_long": 409,
    "too_few_gpus": 409,
    "not_enough_capacity": 409,
    "price_above_max": 409,
    "price_rule_invalid": 422,
    "price_not_replayable": 409,
    "four_eyes": 403,
    "capacity_taken": 409,
    "extension_too_early": 409,
    "extension_too_late": 409,
    "extension_refused": 409,
    "move_too_late": 409,
    "payment_held": 409,
    "not_reclaimable": 409,
    "reclaim_too_late": 409,
    "quote_used": 409,
    "quote_expired": 410,
    "limit_exceeded": 403,
    # money
    "payment_required": 402,
    "approval_required": 403,
    "approval_refused": 403,
    "budget_exceeded": 403,
    "project_frozen": 403,
    "tag_required": 422,
    "tag_value_not_allowed": 422,
    "budgets_changed": 412,
    "payment_method_unavailable": 501,
    "credit_not_granted": 403,
    "credit_limit_exceeded": 402,
    "invoice_overdue": 402,
    "no_saved_card": 409,
    "payment_plan_unavailable": 409,
    "balance_open": 409,
    "onboarding_unavailable": 503,
    "payout_account_needs_second_person": 403,
    "provider_away": 503,
    "webhook_refused": 400,
    "money_parked": 423,
    "nothing_owed": 422,
    "nothing_receivable": 422,
    "refund_refused": 422,
    "withdrawal_refused": 422,
    "invoice_refused": 422,
    "credit_exceeds_invoice": 409,
    "month_not_over": 409,
    "no_tax_rule": 422,
    "nothing_to_remit": 422,
    "remittance_reversed": 409,
    "four_eyes_needed": 403,
}


def status_of(code: str) -> int:
    """Return the HTTP status of a refusal; a code without a row is a fault of ours, and says 500."""
    return STATUS_BY_CODE.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def request_id_of(request: HttpRequest | None) -> str:
    """Return the id under which this request stands in the log."""
    return getattr(request, "request_id", "")


def problem_body(
    *,
    code: str,
    title: str,
    detail: str,
    status: int,
    request_id: str,
    errors: Sequence[Mapping[str, str]] = (),
    extra: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return the members of a problem document; `extra` never replaces one of the fixed members."""
    return {
        **(extra or {}),
        "type": TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": list(errors),
        "request_id": request_id,
    }


def body_of(refusal: DomainError, *, request: HttpRequest | None) -> dict[str, object]:
    """Return a refusal as a problem document."""
    errors: Sequence[Mapping[str, str]] = ()
    if isinstance(refusal, InvalidRequest):
        errors = refusal.errors
    elif refusal.pointer is not None:
        errors = [{"pointer": refusal.pointer, "code": refusal.code, "detail": refusal.detail}]
    return problem_body(
        code=refusal.code,
        title=refusal.title,
        detail=refusal.detail,
        status=status_of(refusal.code),
        request_id=request_id_of(request),
        errors=errors,
        extra=refusal.extra,
    )


def headers_of(refusal: DomainError) -> dict[str, str]:
    """Return the headers that belong to a refusal."""
    headers: dict[str, str] = {}
    if refusal.code == "invalid_api_key":
        headers["WWW-Authenticate"] = 'Bearer realm="headroom", error="invalid_token"'
    elif refusal.code == "api_key_required":
        headers["WWW-Authenticate"] = 'Bearer realm="headroom"'
    if "retry_after_seconds" in refusal.extra:
        headers["Retry-After"] = str(refusal.extra["retry_after_seconds"])
    if "allow" in refusal.extra:
        headers["Allow"] = str(refusal.extra["allow"])
    return headers


def problem_response(
    request: HttpRequest,
    *,
    code: str,
    detail: str,
    status: int | None = None,
    extra: Mapping[str, object] | None = None,
) -> HttpResponse:
    """Return a problem document from a view that is not one of Django REST framework."""
    number = status or status_of(code)
    body = problem_body(
        code=code,
        title=_title_of(code) or HTTPStatus(number).phrase,
        detail=detail,
        status=number,
        request_id=request_id_of(request),
        extra=extra,
    )
    return JsonResponse(body, status=number, content_type=PROBLEM_CONTENT_TYPE)


def refusal_response(request: HttpRequest, refusal: DomainError) -> HttpResponse:
    """Return a verb's refusal from a view that is not one of Django REST framework."""
    response = JsonResponse(
        body_of(refusal, request=request),
        status=status_of(refusal.code),
        content_type=PROBLEM_CONTENT_TYPE,
    )
    for name, value in headers_of(refusal).items():
        response[name] = value
    return response


def exception_handler(exception: Exception, context: Mapping[str, Any]) -> Response:
    """Turn whatever a view raised into a problem document. Internals go to the log, never into the answer."""
    request = context.get("request")
    refusal = as_refusal(exception)
    if status_of(refusal.code) >= HTTPStatus.INTERNAL_SERVER_ERROR and refusal is not exception:
        logger.error("request %s failed", request_id_of(request), exc_info=exception)
    return Response(
        body_of(refusal, request=request),
        status=status_of(refusal.code),
        headers=headers_of(refusal),
        content_type=PROBLEM_CONTENT_TYPE,
    )


def as_refusal(exception: Exception) -> DomainError:
    """Return the refusal that an exception stands for."""
    match exception:
        case DomainError():
            if exception.code in STATUS_BY_CODE:
                return exception
            return InternalError("this refusal has no place in the table of statuses")
        case serializers.ValidationError():
            return InvalidRequest(flatten(exception.detail))
        case exceptions.MethodNotAllowed():
            return MethodNotAllowed(str(exception.detail))
        case RequestDataTooBig():
            return BodyTooLarge("the body has more bytes than any call takes")
        case exceptions.UnsupportedMediaType():
            return UnsupportedMediaType("send the body as application/json")
        case exceptions.ParseError():
            return MalformedJson(str(exception.detail))
        case Http404() | exceptions.NotFound():
            return NotFound("there is no such object")
        case exceptions.NotAuthenticated():
            return ApiKeyRequired("send the header Authorization: Bearer hr_live_…")
        case PermissionDenied() | exceptions.PermissionDenied():
            return NotFound("there is no such object")
        case OperationalError() | InterfaceError():
            return ServiceUnavailable(
                "nothing was changed; try again", extra={"retry_after_seconds": RETRY_SOON_SECONDS}
            )
    return InternalError(
        "the fault is ours and was recorded; give the request_id when you ask about it"
    )


def flatten(detail: Any, *, pointer: str = "") -> list[dict[str, str]]:  # noqa: ANN401 - nested lists and dicts
    """Turn a serializer's nested errors into rows of pointer, code and detail."""
    if isinstance(detail, dict):
        rows: list[dict[str, str]] = []
        for name, value in detail.items():
            part = (
                ""
                if name == "non_field_errors"
                else "/" + str(name).replace("~", "~0").replace("/", "~1")
            )
            rows += flatten(value, pointer=pointer + part)
        return rows
    if isinstance(detail, list):
        nested = any(isinstance(item, dict | list) for item in detail)
        rows = []
        for index, item in enumerate(detail):
            if item:
                rows += flatten(item, pointer=f"{pointer}/{index}" if nested else pointer)
        return rows
    return [{"pointer": pointer, "code": getattr(detail, "code", "invalid"), "detail": str(detail)}]


def _error_view(refusal_type: type[DomainError], detail: str) -> Callable[..., HttpResponse]:
    def view(request: HttpRequest, *_args: object, **_kwargs: object) -> HttpResponse:
        return refusal_response(request, refusal_type(detail))

    return view


# What Django calls when no view answered, or one fell over: `marketplace.urls` names these.
bad_request = _error_view(BadRequest, "the request was refused before it was read")
not_found = _error_view(NotFound, "there is no such address")
server_error = _error_view(
    InternalError, "the fault is ours and was recorded; give the request_id when you ask about it"
)


def all_refusals() -> list[type[DomainError]]:
    """Return every kind of refusal that the modules imported so far define."""
    found: list[type[DomainError]] = []
    waiting: list[type[DomainError]] = [DomainError]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        found += subclasses
        waiting += subclasses
    return found


def _title_of(code: str) -> str | None:
    return next((refusal.title for refusal in all_refusals() if refusal.code == code), None)
