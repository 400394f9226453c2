"""One call of an address that somebody else named: to public addresses only, once, and not for long.

The address is resolved once, every answer of the resolver is checked, and the connection goes to one that was
checked: a name that points elsewhere a moment later leads nowhere. Redirects are not followed. One deadline
holds for the whole call, however slowly the other side speaks.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import structlog
from django.conf import settings

from marketplace.core.errors import DomainError

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS = 10
REASON_SECONDS = (
    1  # for the body of a refusal, which often comes after its head: it tells people why
)
ANSWER_BYTES_MAX = 16 * 1024  # of status line and headers; more is no answer to a callback
PREFIX_LENGTH_MAX = 300  # of the body: enough to recognise an error page
_HTTPS_PORT, _HTTP_PORT = 443, 80
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
# Addresses of IPv6 that stand for others of IPv4, private ones too.
_TRANSLATED = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48")]


class WebhookAddressRefused(DomainError):
    """Nobody here calls this address; the detail says why."""

    code = "webhook_address_refused"
    title = "This address is not called"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: a status of HTTP, or None and why there is none."""

    status: int | None
    text: str

    @property
    def is_taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def check(url: str) -> SplitResult:
    """Return the parts of an address that may be called.

    :raises WebhookAddressRefused: when its form alone rules it out; where it leads is checked at each call.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise WebhookAddressRefused("is no address", pointer="/url") from None
    if not parts.hostname or not re.fullmatch(r"[\x21-\x7e]+", url) or port == 0:
        raise WebhookAddressRefused("is no address", pointer="/url")
    if parts.username or parts.password or parts.fragment:
        raise WebhookAddressRefused("must hold no user name, password or fragment", pointer="/url")
    if parts.scheme != "https" and not (parts.scheme == "http" and settings.WEBHOOKS_TO_LOOPBACK):
        raise WebhookAddressRefused("must begin with https://", pointer="/url")
    return parts


def call(*, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Post a body to an address, once; never raises for what the other side does."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        parts = check(url)
        with _connected(parts, deadline=deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(_request(parts, headers=headers, body=body))
            return _answer(connection, deadline=deadline)
    except WebhookAddressRefused as refusal:
        return Answer(status=None, text=refusal.detail)
    except TimeoutError:
        return Answer(status=None, text=f"no answer within {TIMEOUT_SECONDS} s")
    except (OSError, UnicodeError) as error:
        return Answer(status=None, text=f"{type(error).__name__}: {error}"[:PREFIX_LENGTH_MAX])


def _connected(parts: SplitResult, *, deadline: float) -> socket.socket:
    host = str(parts.hostname)
    port = parts.port or (_HTTPS_PORT if parts.scheme == "https" else _HTTP_PORT)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        _check_address(str(address[0]), is_plain=parts.scheme == "http")
    family, kind, protocol, _, address = found[0]
    raw = socket.socket(family, kind, protocol)
    try:
        raw.settimeout(_left(deadline))
        raw.connect(address)
        if parts.scheme == "http":
            return raw
        raw.settimeout(_left(deadline))
        return ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise


def _check_address(text: str, *, is_plain: bool) -> None:
    """Refuse what is not public; without TLS only this machine is called, where nothing is real.

    :raises WebhookAddressRefused: then.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if (
            any(address in network for network in _TRANSLATED)
            or address.sixtofour
            or address.teredo
        ):
            raise WebhookAddressRefused(f"{text} is not a public address")
        address = address.ipv4_mapped or address
    if settings.WEBHOOKS_TO_LOOPBACK and address.is_loopback:
        return
    if is_plain or not address.is_global or address.is_multicast:
        raise WebhookAddressRefused(f"{text} is not a public address")


def _request(parts: SplitResult, *, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def _answer(connection: socket.socket, *, deadline: float) -> Answer:
    received = b""
    while b"\r\n\r\n" not in received:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(ANSWER_BYTES_MAX)
        received += chunk
        if not chunk or len(received) > ANSWER_BYTES_MAX:
            break
    head, _, rest = received.partition(b"\r\n\r\n")
    found = _STATUS_LINE.match(head + b"\r")
    if found is None:
        return Answer(status=None, text="the answer is no HTTP")
    status = int(found[1])
    if not Answer(status=status, text="").is_taken:
        rest = _reason(connection, rest, deadline=min(deadline, time.monotonic() + REASON_SECONDS))
    text = "".join(c for c in rest[:PREFIX_LENGTH_MAX].decode("latin-1") if c.isprintable())
    return Answer(status=status, text=text)


def _reason(connection: socket.socket, received: bytes, *, deadline: float) -> bytes:
    """Return how the body of a refusal begins, as far as it comes in time: its status is known already."""
    try:
        while len(received) < PREFIX_LENGTH_MAX:
            connection.settimeout(_left(deadline))
            chunk = connection.recv(PREFIX_LENGTH_MAX)
            if not chunk:
                break
            received += chunk
    except OSError as error:
        log.info("webhook_reason_incomplete", why=type(error).__name__)
    return received


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
