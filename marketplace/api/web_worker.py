"""The gunicorn worker of the market: what HTTP itself refuses is answered like every other refusal.

A request line or header that is too long, or no HTTP at all, never reaches Django, and gunicorn would answer
with a page of HTML. `--worker-class marketplace.api.web_worker.ProblemWorker` puts this worker in its place.
"""

import json
import secrets
from http import HTTPStatus
from socket import socket
from typing import Any

from gunicorn import util
from gunicorn.http import errors as http_errors
from gunicorn.workers.gthread import ThreadWorker

from marketplace.api import simulation

# What the application did wrong, and not the client, although gunicorn counts it among its parse errors.
_FAULTS_OF_OURS = (
    http_errors.InvalidResponseHeader,
    http_errors.InvalidResponseHeaderName,
    http_errors.ConfigurationProblem,
)


class ProblemWorker(ThreadWorker):  # type: ignore[misc] # gunicorn ships no types
    """A worker with threads whose own refusals are RFC 9457."""

    def handle_error(self, _req: Any, client: socket, addr: Any, exc: Exception) -> None:  # noqa: ANN401
        """Record what could not be served and answer it.

        Of a client's fault only the kind is recorded: gunicorn's own words quote the request, keys included.
        """
        # Loaded here: gunicorn names this class before Django is set up.
        from marketplace.api import errors

        request_id = f"req_{secrets.token_hex(12)}"
        refusal = _refusal_of(exc)
        if isinstance(refusal, errors.InternalError):
            self.log.error("request %s failed unseen by a view", request_id, exc_info=exc)
        else:
            peer = addr[0] if addr else "a local socket"
            self.log.warning("request %s from %s: %s", request_id, peer, type(exc).__name__)
        status = errors.status_of(refusal.code)
        body = errors.problem_body(
            code=refusal.code,
            title=refusal.title,
            detail=refusal.detail,
            status=status,
            request_id=request_id,
        )
        try:
            util.write_nonblock(client, _answer(body, status=status, request_id=request_id))
        except OSError:
            self.log.debug("the answer to request %s could not be sent", request_id)


def _refusal_of(exc: Exception) -> Any:  # noqa: ANN401 - a DomainError, loaded late as above
    from marketplace.api import errors

    if isinstance(exc, http_errors.LimitRequestLine):
        return errors.UriTooLong("the request line has more bytes than any call takes")
    if isinstance(exc, http_errors.LimitRequestHeaders):
        return errors.HeadersTooLarge(
            "a header has more bytes than any call takes, or they are too many"
        )
    if isinstance(exc, http_errors.UnsupportedTransferCoding):
        return errors.LengthRequired("send the body in one piece, with Content-Length")
    if isinstance(exc, http_errors.ParseException) and not isinstance(exc, _FAULTS_OF_OURS):
        return errors.BadRequest("the request is not HTTP as this server reads it")
    return errors.InternalError(
        "the fault is ours and was recorded; give the request_id when you ask about it"
    )


def _answer(body: dict[str, object], *, status: int, request_id: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(content)}",
        f"X-Request-Id: {request_id}",
    ]
    if simulated := simulation.header_value():
        lines.append(f"{simulation.HEADER}: {simulated}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
