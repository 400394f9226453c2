"""What gunicorn refuses before Django sees it: problem documents, and no word of the request in the log."""

import http.client
import json
import logging
import socket
from email.message import Message
from urllib.parse import urlsplit

import pytest
from gunicorn.http import errors as http_errors

from marketplace.api.web_worker import ProblemWorker
from tests.live import web_server

SECRET = "hr_live_secret"


def answer_to(exc: Exception) -> tuple[int, Message, dict[str, object]]:
    """Return status, headers and body of what the worker writes to a client for an exception."""
    worker = object.__new__(ProblemWorker)
    worker.log = logging.getLogger("tests.web_worker")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker.handle_error(None, ours, ("203.0.113.9", 1), exc)
        response = http.client.HTTPResponse(theirs)
        response.begin()
        return response.status, response.headers, json.loads(response.read())


class TestHandleError:
    @pytest.mark.parametrize(
        ("exc", "status", "code"),
        [
            (http_errors.LimitRequestLine(9000, 4094), 414, "uri_too_long"),
            (http_errors.LimitRequestHeaders("limit"), 431, "headers_too_large"),
            (http_errors.UnsupportedTransferCoding("br"), 411, "length_required"),
            (http_errors.InvalidHeader(f"Authorization: {SECRET}"), 400, "bad_request"),
            (http_errors.InvalidRequestLine(f"GET /{SECRET}"), 400, "bad_request"),
            (http_errors.InvalidResponseHeader("X"), 500, "internal_error"),
            (RuntimeError(SECRET), 500, "internal_error"),
        ],
    )
    def test_answers_a_problem_document(self, exc: Exception, status: int, code: str) -> None:
        got, headers, body = answer_to(exc)
        assert (got, body["status"], body["code"]) == (status, status, code)
        assert body["type"] == f"urn:headroom:problem:{code}"
        assert headers["Content-Type"] == "application/problem+json"
        assert headers["Headroom-Simulated"] == "hardware, payments"
        assert headers["X-Request-Id"] == body["request_id"]
        assert SECRET not in json.dumps(body)

    def test_records_the_kind_of_a_clients_fault_and_none_of_its_words(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("DEBUG", logger="tests.web_worker"):
            answer_to(http_errors.InvalidHeader(f"Authorization: {SECRET}"))
        assert "203.0.113.9: InvalidHeader" in caplog.text
        assert SECRET not in caplog.text

    def test_outlives_a_client_that_has_gone(self) -> None:
        worker = object.__new__(ProblemWorker)
        worker.log = logging.getLogger("tests.web_worker")
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            worker.handle_error(None, ours, None, http_errors.LimitRequestLine(9000, 4094))


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_served_market_refuses_what_is_too_long_in_our_shape() -> None:
    with web_server() as base_url:
        for path, headers, status, code in (
            ("/v1/market?" + "a" * 9000, {}, 414, "uri_too_long"),
            ("/v1/quotes", {"Idempotency-Key": "a" * 10_000}, 431, "headers_too_large"),
        ):
            connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=30)
            connection.request("POST", path, headers=headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            connection.close()
            assert (response.status, body["code"]) == (status, code)
            assert response.headers["Content-Type"] == "application/problem+json"
