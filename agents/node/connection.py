"""One HTTP/1.1 connection to one server, on the standard library, with a limit on everything.

A larger client costs the agent five to ten MiB of memory and half of its start, and limits only each single
read: a server that sends one byte every few seconds would hold the loop for ever. Here one deadline covers
the whole answer. Certificates are checked against the system's store, or SSL_CERT_FILE and SSL_CERT_DIR.
Proxies come from the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY); https goes through them by
CONNECT, so that a proxy sees neither token nor report.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import os
import select
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

CONNECT_SECONDS_MAX = 5.0
# The loop stands still meanwhile: a lease may end that much later, never longer.
ANSWER_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 1024 * 1024  # 256 grants with their keys
_DEFAULT_PORTS = {"http": 80, "https": 443}


class NotSent(Exception):
    """There was no connection: nothing of the request reached the server. The message is one line."""


class NoAnswer(Exception):
    """The request may have arrived, but no usable answer came back. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `round_trip_seconds` counts from the first byte sent to the last one received."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    round_trip_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxy:
    host: str
    port: int
    authorization: str | None


class Connection:
    """A connection that is opened when it is needed and kept while the server keeps it."""

    def __init__(
        self,
        *,
        server_url: str,
        user_agent: str,
        connect_seconds_max: float = CONNECT_SECONDS_MAX,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
    ) -> None:
        parts = urlsplit(server_url)
        self._scheme = parts.scheme
        self._host = parts.hostname or ""
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._base_path = parts.path.rstrip("/")
        self._user_agent = user_agent
        self._connect_seconds_max = connect_seconds_max
        self._answer_seconds_max = answer_seconds_max
        self._connection: http.client.HTTPConnection | None = None
        self._context: ssl.SSLContext | None = None
        self._proxy: _Proxy | None = None
        # The end of the certificate's life, as OpenSSL writes it; `None` without TLS.
        self.certificate_expires: str | None = None

    @property
    def authority(self) -> str:
        """Return what the `Host` header says, and a signature covers."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return host if self._port == _DEFAULT_PORTS[self._scheme] else f"{host}:{self._port}"

    def target(self, *, path: str) -> str:
        """Return the path on the server, below that of the server's address."""
        return self._base_path + path

    def request(
        self,
        *,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send one request and return its answer; redirects are answers like others.

        :raises NotSent: when the server could not be reached, or is not who it says.
        :raises NoAnswer: when the answer is late, too long, or none.
        """
        connection = self._opened()
        target = self.target(path=path)
        if self._proxy is not None and self._scheme == "http":
            target = f"http://{self.authority}{target}"
            if self._proxy.authorization is not None:
                headers = {"Proxy-Authorization": self._proxy.authorization, **(headers or {})}
        began = time.monotonic()  # a socket is waited for in real time, whatever clock is injected
        connection.response_class = partial(
            _BoundedResponse, deadline=began + self._answer_seconds_max
        )  # type: ignore[assignment]
        try:
            assert connection.sock is not None, "it was opened above"
            connection.sock.settimeout(self._answer_seconds_max)
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", self.authority)
            connection.putheader("User-Agent", self._user_agent)
            connection.putheader("Accept", "application/json")
            connection.putheader("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES_MAX + 1)
            if len(content) > ANSWER_BYTES_MAX:
                raise NoAnswer("the answer is too long")
            if not response.isclosed():
                response.read()  # the end of a chunked answer
        except NoAnswer:
            self.close()
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise NoAnswer(_words(error)) from None
        return Answer(
            status=response.status,
            body=content,
            headers={name.lower(): value for name, value in response.getheaders()},
            round_trip_seconds=time.monotonic() - began,
        )

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> http.client.HTTPConnection:
        if self._connection is not None and _is_stale(self._connection):
            self.close()
        if self._connection is None:
            try:
                self._connection = self._connect()
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise NotSent(_words(error)) from None
        return self._connection

    def _connect(self) -> http.client.HTTPConnection:
        """Open the way to the server.

        :raises OSError: when that is not possible; ssl.SSLError is one.
        """
        self._proxy = proxy = _proxy_for(
            scheme=self._scheme, host=self._host, authority=self.authority
        )
        host, port = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        timeout = self._connect_seconds_max
        connection: http.client.HTTPConnection
        if self._scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                host, port, timeout=timeout, context=self._context
            )
            if proxy is not None:
                secret = proxy.authorization
                more = {} if secret is None else {"Proxy-Authorization": secret}
                connection.set_tunnel(self._host, self._port, headers=more)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.response_class = partial(_BoundedResponse, deadline=time.monotonic() + timeout)  # type: ignore[assignment]
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        if isinstance(connection.sock, ssl.SSLSocket):
            certificate = connection.sock.getpeercert() or {}
            self.certificate_expires = str(certificate.get("notAfter", "")) or None
        return connection


class _BoundedResponse(http.client.HTTPResponse):
    """A response whose every read ends at one deadline."""

    def __init__(self, sock: socket.socket, *more: Any, deadline: float, **named: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *more, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_BoundedReader(sock=sock, deadline=deadline))


class _BoundedReader(io.RawIOBase):
    """The bytes of a socket until a deadline."""

    def __init__(self, *, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until it is closed
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 - whatever holds bytes
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def is_loopback(*, host: str) -> bool:
    """Return whether a host name means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_stale(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server has closed a kept connection: it then is readable without a request."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


def _proxy_for(*, scheme: str, host: str, authority: str) -> _Proxy | None:
    """Return the proxy that the environment names for a server.

    :raises OSError: when it names one that cannot be used.
    """
    if is_loopback(host=host):  # a proxy cannot reach this machine's loopback
        return None
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import (  # costs a MiB, and few machines sit behind a proxy
        getproxies,
        proxy_bypass,
    )

    proxies = getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    if not url or proxy_bypass(authority, proxies):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise OSError(f"the proxy for {scheme} must be an http:// address")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return _Proxy(host=parts.hostname, port=parts.port or 80, authorization=authorization)


def _words(error: Exception) -> str:
    """Return one line for an error; OpenSSL's reason stands before its place in OpenSSL's source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"[:500]
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:500]
