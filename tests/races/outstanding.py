"""Calls over HTTP that are all outstanding at one instant, each on a socket of its own.

A thread that starts its call when a barrier opens may start it after the first answers have come. So every
call is sent but for its last byte, and when all of them stand like this, that byte follows: no server can
have answered one before it has all of them.
"""

import http.client
import json
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

ANSWER_LIMIT_SECONDS = 240  # a server of one process, on a machine that does other things as well
REPETITIONS_MAX = 1_000  # of a call whose first one is still at work
IN_FLIGHT = "idempotency_in_flight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A POST of an organization: `secret` is its API key, `key` the Idempotency-Key."""

    path: str
    secret: str
    key: str
    body: object

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.secret}",
            "Idempotency-Key": self.key,
            "Content-Type": "application/json",
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    content: bytes
    is_replayed: bool

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """Return a problem's code, or an empty text where there is none."""
        return str(self.json["code"]) if self.status >= 400 else ""


def at_once(calls: Sequence[Call], *, base_url: str) -> list[Answer]:
    """Have all calls outstanding at one instant; return what each heard, in their order."""
    return _run(calls, base_url=base_url, insists=False)


def insisting(calls: Sequence[Call], *, base_url: str) -> list[Answer]:
    """Have all calls outstanding at one instant, and repeat those that hear that the first one still runs."""
    return _run(calls, base_url=base_url, insists=True)


def one(call: Call, *, base_url: str) -> Answer:
    """Make a single call."""
    (answer,) = at_once([call], base_url=base_url)
    return answer


def _run(calls: Sequence[Call], *, base_url: str, insists: bool) -> list[Answer]:
    address = urllib.parse.urlsplit(base_url)
    all_sent = threading.Barrier(len(calls), timeout=ANSWER_LIMIT_SECONDS)

    def client(call: Call) -> Answer:
        server = http.client.HTTPConnection(
            str(address.hostname), address.port, timeout=ANSWER_LIMIT_SECONDS
        )
        try:
            body = json.dumps(call.body).encode()
            server.putrequest("POST", call.path)
            for name, value in call.headers.items():
                server.putheader(name, value)
            server.putheader("Content-Length", str(len(body)))
            server.endheaders(body[:-1])
            all_sent.wait()
            server.send(body[-1:])
            answer = _answer(server)
            for _ in range(REPETITIONS_MAX if insists else 0):
                if answer.code != IN_FLIGHT:
                    break
                server.request("POST", call.path, body=body, headers=call.headers)
                answer = _answer(server)
            return answer
        except BaseException:
            all_sent.abort()  # nobody is to wait for who will not come
            raise
        finally:
            server.close()

    with ThreadPoolExecutor(max_workers=len(calls)) as threads:
        return list(threads.map(client, calls))


def _answer(server: http.client.HTTPConnection) -> Answer:
    response = server.getresponse()
    return Answer(
        status=response.status,
        content=response.read(),
        is_replayed=response.headers.get("Idempotent-Replayed") == "true",
    )
