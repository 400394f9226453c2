"""Carry signed requests to the market.

Nothing here raises for what a network or a server can do; every end of a request is one of a few outcomes.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import gzip
import json
import logging
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

from agents.node.clock import MarketClock
from agents.node.connection import Answer, Connection, NoAnswer, NotSent, is_loopback
from agents.protocol import (
    ENROL_KEY_ID,
    ENROL_PATH,
    PROTOCOL_VERSION,
    REPORT_PATH,
    ROTATE_KEY_PATH,
    EnrolReply,
    EnrolRequest,
    MalformedMessage,
    MessageT,
    ReportReply,
    RotateKeyReply,
    RotateKeyRequest,
    content_digest,
    decode,
    encode,
    from_json,
    signature_base,
    signature_parameters,
)

logger = logging.getLogger(__name__)

PACKED_BYTES_MIN = 1024  # a smaller body gains nothing by gzip
RETRY_AFTER_SECONDS_MAX = 3600.0
# The second to which the `Date` header of an answer is cut off.
DATE_RESOLUTION_SECONDS = 1.0
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


class Signer(Protocol):
    """Who signs for this node."""

    @property
    def public_key(self) -> str:
        """Return the public key as base64url without padding."""
        ...

    def sign(self, *, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        ...


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


class Sender:
    """The way from one node to its market, over one kept-alive connection."""

    def __init__(
        self, *, server_url: str, key: Signer, clock: MarketClock, agent_version: str
    ) -> None:
        self._key = key
        self._clock = clock
        self._connection = Connection(
            server_url=server_url, user_agent=f"headroom-node/{agent_version}"
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def enrol(self, *, request: EnrolRequest) -> EnrolReply | Refused | Unreachable:
        """Introduce this machine; the same key may ask again when an answer was lost."""
        answer = self._post(ENROL_PATH, key_id=ENROL_KEY_ID, body=encode(request))
        if isinstance(answer, Unreachable):
            return answer
        if answer.status in (200, 201):
            reply = _understood(EnrolReply, answer)
            if isinstance(reply, EnrolReply):
                self._learn(reply.now, answer)
            return reply
        return _refusal(answer)

    def rotate(self, *, node_id: str, candidate: Signer) -> RotateKeyReply | Refused | Unreachable:
        """Ask the market to know this node by another key; the key of today signs, the new one proves."""
        request = RotateKeyRequest(
            protocol=PROTOCOL_VERSION, node_id=node_id, public_key=candidate.public_key
        )
        proof = base64.b64encode(candidate.sign(message=request.proven_bytes())).decode()
        body = encode(replace(request, proof=proof))
        answer = self._post(ROTATE_KEY_PATH, key_id=node_id, body=body)
        if isinstance(answer, Unreachable):
            return answer
        if answer.status in (200, 201):
            return _understood(RotateKeyReply, answer)
        return _refusal(answer)

    def report(self, *, node_id: str, body: bytes) -> ReportOutcome:
        """Send the bytes of one report; the signature is made anew at each try."""
        answer = self._post(REPORT_PATH, key_id=node_id, body=body)
        if isinstance(answer, Unreachable):
            return answer
        if answer.status in (200, 201, 202):
            reply = _understood(ReportReply, answer)
            if isinstance(reply, Unreachable):
                return reply
            self._learn(reply.now, answer)
            return Taken(reply=reply)
        problem = _problem(answer)
        if answer.status == 409 and problem.get("code") == "report_replayed":
            try:
                last = from_json(ReportReply, problem.get("reply"))
            except MalformedMessage as error:
                return Refused(
                    status=409, code="report_replayed", detail=f"without a pair: {error}"
                )
            self._learn(last.now, answer)
            return Replayed(reply=last)
        if answer.status == 403 and problem.get("code") == "node_revoked":
            return Revoked(detail=str(problem.get("detail", ""))[:500])
        return _refusal(answer)

    def _post(self, path: str, *, key_id: str, body: bytes) -> Answer | Unreachable:
        """Send a signed body; a long one goes packed, and the signature covers what goes over the wire."""
        headers = {"Content-Type": "application/json"}
        if len(body) > PACKED_BYTES_MIN:
            body = gzip.compress(body, mtime=0)  # equal reports have equal bytes
            headers["Content-Encoding"] = "gzip"
        digest = content_digest(body)
        parameters = signature_parameters(key_id=key_id, created_at=self._clock.now())
        base = signature_base(
            method="POST",
            authority=self._connection.authority,
            path=self._connection.target(path=path),
            digest=digest,
            parameters=parameters,
        )
        signature = base64.b64encode(self._key.sign(message=base)).decode()
        headers["Content-Digest"] = digest
        headers["Signature-Input"] = f"sig1={parameters}"
        headers["Signature"] = f"sig1=:{signature}:"
        try:
            answer = self._connection.request(method="POST", path=path, headers=headers, body=body)
        except NotSent as error:
            return Unreachable(detail=str(error), arrived_perhaps=False)
        except NoAnswer as error:
            return Unreachable(detail=str(error), arrived_perhaps=True)
        if answer.status == 401 or _problem(answer).get("code") == "clock_skew":
            # A wrong clock makes every signature too old or too new.
            date = http_date(text=answer.headers.get("date", ""))
            if date is not None:
                self._learn(date, answer, resolution_seconds=DATE_RESOLUTION_SECONDS)
        return answer

    def _learn(
        self, market_now: dt.datetime, answer: Answer, *, resolution_seconds: float = 0.0
    ) -> None:
        moved = self._clock.learn(
            market_now=market_now,
            round_trip_seconds=answer.round_trip_seconds,
            resolution_seconds=resolution_seconds,
        )
        if moved is not None:
            logger.warning(
                "the clock of this machine is %.0f s off the market's", moved.total_seconds()
            )


def http_date(*, text: str) -> dt.datetime | None:
    """Read a `Date` header; `None` when there is none, or it names no zone."""
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return None if date.tzinfo is None else date.astimezone(dt.UTC)


def _understood(message_type: type[MessageT], answer: Answer) -> MessageT | Unreachable:
    try:
        return decode(message_type, answer.body)
    except MalformedMessage as error:
        detail = f"the answer cannot be read: {error}"
        return Unreachable(detail=detail[:500], arrived_perhaps=True)


def _refusal(answer: Answer) -> Refused | Unreachable:
    problem = _problem(answer)
    code = str(problem.get("code", f"http_{answer.status}"))[:100]
    detail = str(problem.get("detail") or problem.get("title") or "")[:500]
    if 400 <= answer.status < 500 and answer.status not in _PASSING_STATUSES:
        return Refused(status=answer.status, code=code, detail=detail)
    return Unreachable(
        detail=f"status {answer.status} {code}".strip(),
        arrived_perhaps=answer.status not in _PASSING_STATUSES,
        retry_after_seconds=_retry_after(answer),
    )


def _problem(answer: Answer) -> dict[str, object]:
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after(answer: Answer) -> float | None:
    """Read how long to wait: whole seconds, or an instant that counts from the answer's own date."""
    text = answer.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_SECONDS_MAX)
    at, now = http_date(text=text), http_date(text=answer.headers.get("date", ""))
    if at is None or now is None:
        return None
    return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_SECONDS_MAX)
