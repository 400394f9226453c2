"""Carry signed requests to the market: the only file that imports `httpx`.

Nothing here raises for what a network or a server can do; every end of a request is one of a few outcomes.
The server's certificate is checked against certifi's list, or that of SSL_CERT_FILE.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import ipaddress
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from agents.node.clock import MarketClock
from agents.node.host import NodeKey
from agents.protocol import (
    ENROL_KEY_ID,
    ENROL_PATH,
    REPORT_PATH,
    EnrolReply,
    EnrolRequest,
    MalformedMessage,
    MessageT,
    ReportReply,
    content_digest,
    decode,
    encode,
    from_json,
    signature_base,
    signature_parameters,
)

CONNECT_SECONDS_MAX = 5.0
# The loop stands still meanwhile: a lease may end that much later, never longer.
ANSWER_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 1024 * 1024  # 256 grants with their keys
RETRY_AFTER_SECONDS_MAX = 3600.0
# Refusals of the moment: the same request may well be taken later.
_PASSING_STATUSES = frozenset({408, 425, 429})


class BadServerUrl(ValueError):
    """A server address that cannot be used; the message says how one looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The report is stored."""

    reply: ReportReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The market has this pair or a higher one; the answer says which."""

    reply: ReportReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """The market wants no more of this node."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The market answered, and nothing of the request is stored."""

    status: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """No usable answer; `arrived_perhaps` says that the request may be stored nevertheless."""

    detail: str
    arrived_perhaps: bool
    retry_after_seconds: float | None = None


ReportOutcome = Taken | Replayed | Revoked | Refused | Unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    body: bytes
    retry_after_seconds: float | None


def check_server_url(*, url: str, plain_http_allowed: bool) -> str:
    """Return the address without a trailing slash.

    :raises BadServerUrl: when it is no http(s) address, or plain http beyond this machine without leave.
    """
    example = "write it like https://market.example.com"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadServerUrl(f"{url!r} is no server address: {example}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise BadServerUrl(f"{url!r} is no server address: {example}")
    if parts.username is not None:
        raise BadServerUrl(f"a server address carries no user name: {example}")
    if parts.scheme == "http" and not plain_http_allowed and not is_loopback(host=host):
        raise BadServerUrl(
            f"{url!r} would send the token in the clear: use https://, or --allow-http inside a safe network"
        )
    return url.rstrip("/")


def is_loopback(*, host: str) -> bool:
    """Return whether a host name means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Sender:
    """The way from one node to its market, over one kept-alive connection."""

    def __init__(
        self, *, server_url: str, key: NodeKey, clock: MarketClock, agent_version: str
    ) -> None:
        self._server_url = server_url
        self._key = key
        self._clock = clock
        host = urlsplit(server_url).hostname or ""
        self._client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
            headers={"User-Agent": f"headroom-node/{agent_version}", "Accept": "application/json"},
            trust_env=not is_loopback(host=host),  # a proxy cannot reach this machine's loopback
            follow_redirects=False,  # a signature names its authority and path
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def enrol(self, *, request: EnrolRequest) -> EnrolReply | Refused | Unreachable:
        """Introduce this machine; the same key may ask again when an answer was lost."""
        answer = self._post(ENROL_PATH, key_id=ENROL_KEY_ID, body=encode(request))
        if isinstance(answer, Unreachable):
            return answer
        if answer.status in (200, 201):
            return _understood(EnrolReply, answer)
        return _refusal(answer)

    def report(self, *, node_id: str, body: bytes) -> ReportOutcome:
        """Send the bytes of one report; the signature is made anew at each try."""
        answer = self._post(REPORT_PATH, key_id=node_id, body=body)
        if isinstance(answer, Unreachable):
            return answer
        if answer.status in (200, 201, 202):
            reply = _understood(ReportReply, answer)
            return reply if isinstance(reply, Unreachable) else Taken(reply=reply)
        problem = _problem(answer)
        if answer.status == 409 and problem.get("code") == "report_replayed":
            try:
                return Replayed(reply=from_json(ReportReply, problem.get("reply")))
            except MalformedMessage as error:
                return Refused(
                    status=409, code="report_replayed", detail=f"without a pair: {error}"
                )
        if answer.status == 403 and problem.get("code") == "node_revoked":
            return Revoked(detail=str(problem.get("detail", ""))[:500])
        return _refusal(answer)

    def _post(self, path: str, *, key_id: str, body: bytes) -> _Answer | Unreachable:
        request = self._client.build_request("POST", self._server_url + path, content=body)
        digest = content_digest(body)
        parameters = signature_parameters(key_id=key_id, created_at=self._clock.now())
        base = signature_base(
            method="POST",
            authority=request.headers["Host"],
            path=request.url.raw_path.decode(),
            digest=digest,
            parameters=parameters,
        )
        signature = base64.b64encode(self._key.sign(message=base)).decode()
        request.headers.update(
            {
                "Content-Type": "application/json",
                "Content-Digest": digest,
                "Signature-Input": f"sig1={parameters}",
                "Signature": f"sig1=:{signature}:",
            }
        )
        try:
            response = self._client.send(request, stream=True)
            try:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > ANSWER_BYTES_MAX:
                        return Unreachable(detail="the answer is too long", arrived_perhaps=True)
            finally:
                response.close()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return Unreachable(detail=_words(error), arrived_perhaps=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Unreachable(detail=_words(error), arrived_perhaps=True)
        answer = _Answer(
            status=response.status_code,
            body=bytes(received),
            retry_after_seconds=_seconds(response.headers.get("Retry-After", "")),
        )
        if answer.status == 401 or _problem(answer).get("code") == "clock_skew":
            self._learn_time(response.headers.get("Date", ""))
        return answer

    def _learn_time(self, date: str) -> None:
        """Take the market's time from a refusal: a wrong clock makes every signature too old or too new."""
        try:
            market_now = email.utils.parsedate_to_datetime(date)
        except ValueError:
            return  # an answer without a date teaches nothing
        if market_now.tzinfo is not None:
            self._clock.learn(market_now=market_now.astimezone(dt.UTC))


def _understood(message_type: type[MessageT], answer: _Answer) -> MessageT | Unreachable:
    try:
        return decode(message_type, answer.body)
    except MalformedMessage as error:
        detail = f"the answer cannot be read: {error}"
        return Unreachable(detail=detail[:500], arrived_perhaps=True)


def _refusal(answer: _Answer) -> Refused | Unreachable:
    problem = _problem(answer)
    code = str(problem.get("code", f"http_{answer.status}"))[:100]
    detail = str(problem.get("detail") or problem.get("title") or "")[:500]
    if 400 <= answer.status < 500 and answer.status not in _PASSING_STATUSES:
        return Refused(status=answer.status, code=code, detail=detail)
    return Unreachable(
        detail=f"status {answer.status} {code}".strip(),
        arrived_perhaps=answer.status not in _PASSING_STATUSES,
        retry_after_seconds=answer.retry_after_seconds,
    )


def _problem(answer: _Answer) -> dict[str, object]:
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(text: str) -> float | None:
    """Read a Retry-After of whole seconds; one with a date is rare and then not followed."""
    if not text.isascii() or not text.isdigit():
        return None
    return min(float(text), RETRY_AFTER_SECONDS_MAX)


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]
