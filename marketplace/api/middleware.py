"""What stands around every request: its id, the mark of simulation, and the count."""

import secrets
import time
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse

from marketplace.api import errors, metrics, simulation

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID_BYTES = 12


class RequestFrame:
    """Give each request an id of our own making, and each answer the headers that all answers carry.

    A client's own X-Request-Id is not taken over: whoever reads the log must be able to trust the ids in it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = f"req_{secrets.token_hex(_REQUEST_ID_BYTES)}"
        request.request_id = request_id  # type: ignore[attr-defined] # ours, read by errors.request_id_of
        started_at = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            response = self._answer(request)
        response[REQUEST_ID_HEADER] = request_id
        if simulated := simulation.header_value():
            response[simulation.HEADER] = simulated
        match = request.resolver_match
        metrics.observe_request(
            method=request.method or "",
            route=match.route if match else "",
            status=response.status_code,
            seconds=time.perf_counter() - started_at,
        )
        return response

    def _answer(self, request: HttpRequest) -> HttpResponse:
        if "HTTP_TRANSFER_ENCODING" in request.META:
            return errors.refusal_response(
                request, errors.LengthRequired("send the body in one piece, with Content-Length")
            )
        return self._get_response(request)
