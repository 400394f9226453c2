"""The agents' face: POST /agent/v1/enrol, /reports and /keys. Nodes sign; there is no bearer key here."""

from collections.abc import Callable
from functools import wraps

from django.core.exceptions import DisallowedHost
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.request import UnreadablePostError
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from agents import enrolment, envelope, ingest, protocol, rotation
from marketplace.api import throttling
from marketplace.api.errors import as_refusal, problem_response, refusal_response
from marketplace.core.errors import DomainError


def _signed_call(
    verb: Callable[[envelope.SignedRequest], bytes],
) -> Callable[[HttpRequest], HttpResponse]:
    """Make a view of a verb that takes a signed request and returns the bytes of a message."""

    @csrf_exempt
    @wraps(verb)
    def view(request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            response = problem_response(
                request, code="method_not_allowed", detail="only POST exists here"
            )
            response["Allow"] = "POST"
            return response
        try:
            body = verb(_read(request))
        except (DomainError, OperationalError, InterfaceError) as error:
            return refusal_response(request, as_refusal(error))
        return HttpResponse(body, content_type="application/json")

    return view


def _read(request: HttpRequest) -> envelope.SignedRequest:
    """Read a request as it was signed, never more of its body than a report may have.

    :raises BodyTooLarge: when it says that it is larger, or is.
    :raises MalformedReport: when it has a query, which is not signed, or breaks off.
    """
    limit = protocol.REPORT_BODY_BYTES_MAX
    too_large = envelope.BodyTooLarge(f"a report has at most {limit} bytes")
    if _content_length(request) > limit:
        raise too_large
    if request.META.get("QUERY_STRING"):
        raise envelope.MalformedReport("takes no query string")
    try:
        body = request.read(limit + 1)
        authority = request.get_host()
    except UnreadablePostError:
        raise envelope.MalformedReport("the body broke off") from None
    except DisallowedHost:
        raise envelope.BadSignature("Host is not this market's") from None
    if len(body) > limit:
        raise too_large
    return envelope.SignedRequest(
        method=request.method or "",
        authority=authority,
        path=request.path,
        body=body,
        content_encoding=request.headers.get("Content-Encoding", ""),
        content_digest=request.headers.get("Content-Digest", ""),
        signature_input=request.headers.get("Signature-Input", ""),
        signature=request.headers.get("Signature", ""),
        client_address=throttling.client_address_of(request),
    )


def _content_length(request: HttpRequest) -> int:
    text = request.META.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


@_signed_call
def enrol(signed: envelope.SignedRequest) -> bytes:
    """Make a machine a node, with a token of its owner."""
    at = timezone.now()
    request = envelope.decode(message_type=protocol.EnrolRequest, signed=signed)
    enrolment.verify_request(request=request, signed=signed, at=at)
    node = enrolment.enrol(request=request, at=at, client_address=signed.client_address)
    return protocol.encode(enrolment.reply(node=node, at=at), protocol=request.protocol)


@_signed_call
def report(signed: envelope.SignedRequest) -> bytes:
    """Take what a node has to say and answer what it is to do."""
    at = timezone.now()
    standing = ingest.authenticate(signed=signed, at=at)
    message = envelope.decode(message_type=protocol.Report, signed=signed)
    reply = ingest.accept(node=standing.node, report=message, at=at, standing=standing)
    return protocol.encode(reply, protocol=message.protocol)


@_signed_call
def rotate_key(signed: envelope.SignedRequest) -> bytes:
    """Give a node the new key that it brings."""
    at = timezone.now()
    request = envelope.decode(message_type=protocol.RotateKeyRequest, signed=signed)
    node = rotation.rotate(request=request, signed=signed, at=at)
    return protocol.encode(rotation.reply(node=node, at=at), protocol=request.protocol)


urlpatterns = [
    path(protocol.ENROL_PATH.removeprefix("/"), enrol, name="agent-enrol"),
    path(protocol.REPORT_PATH.removeprefix("/"), report, name="agent-reports"),
    path(protocol.ROTATE_KEY_PATH.removeprefix("/"), rotate_key, name="agent-keys"),
]
