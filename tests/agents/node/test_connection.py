"""One connection to the market: what a network, a proxy or a server can do to it, and nothing hangs."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from agents.node import connection as module
from agents.node.connection import Connection, NoAnswer, NotSent
from tests.agents.node.servers import OK, Server, certificate, read_request, saying, tls_of


def connection(url: str, *, seconds: float = 5.0) -> Connection:
    return Connection(
        server_url=url,
        user_agent="test",
        connect_seconds_max=seconds,
        answer_seconds_max=seconds,
    )


def to(server: Server, *, seconds: float = 5.0) -> Connection:
    return connection(f"http://127.0.0.1:{server.port}", seconds=seconds)


class TestAnswers:
    def test_come_over_one_kept_connection(self) -> None:
        with Server(saying(OK)) as server:
            one = to(server)
            for _ in range(3):
                answer = one.request(method="POST", path="/x", body=b"hello")
                assert (answer.status, answer.body) == (200, b"{}")
                assert 0 < answer.round_trip_seconds < 5
            one.close()
            assert server.connections == 1

    def test_come_over_another_connection_when_the_server_closed_the_first(self) -> None:
        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(OK)

        with Server(speak) as server:
            one = to(server)
            for count in (1, 2, 3):
                assert one.request(method="POST", path="/x").body == b"{}"
                assert one._connection is not None
                assert one._connection.sock is not None
                assert one._connection.sock.recv(1, socket.MSG_PEEK) == b"", "closed by the server"
                assert server.connections == count

    @pytest.mark.parametrize(
        ("answer", "body"),
        [
            (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", b"to the end"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                b"abcde",
            ),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"{}"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
            (
                b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid\r\nContent-Length: 0\r\n\r\n",
                b"",
            ),
        ],
    )
    def test_are_read_in_every_form(self, answer: bytes, body: bytes) -> None:
        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(answer)

        with Server(speak) as server:
            assert to(server).request(method="POST", path="/x").body == body

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            b"\x00\xff" * 5000,
        ],
    )
    def test_that_are_none_are_told_as_such(self, answer: bytes) -> None:
        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(answer)

        with Server(speak) as server, pytest.raises(NoAnswer) as told:
            to(server).request(method="POST", path="/x")
        assert "\n" not in str(told.value)

    def test_that_do_not_end_are_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 100_000)

        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x" * 65536)

        with Server(speak) as server, pytest.raises(NoAnswer, match="too long"):
            to(server).request(method="POST", path="/x")

    @pytest.mark.parametrize(
        "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"HTTP/1.1 "]
    )
    def test_that_trickle_end_at_one_deadline(self, head: bytes) -> None:
        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(head)
            while not server.done.wait(0.05):
                connection.sendall(b"x")

        with Server(speak) as server:
            began = time.monotonic()
            with pytest.raises(NoAnswer):
                to(server, seconds=0.3).request(method="POST", path="/x")
            assert time.monotonic() - began < 2, "each byte began the wait anew"


class TestReaching:
    def test_says_that_nothing_was_sent_to_a_closed_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(NotSent, match="refused"):
            connection(f"http://127.0.0.1:{port}").request(method="POST", path="/x")

    def test_names_the_host_as_it_is_signed(self) -> None:
        assert connection("https://m.example").authority == "m.example"
        assert connection("https://m.example:443").authority == "m.example"
        assert connection("https://m.example:8443").authority == "m.example:8443"
        assert connection("http://[::1]:80").authority == "[::1]"
        assert connection("https://m.example/below/").target(path="/x") == "/below/x"


class TestTls:
    @pytest.fixture
    def pem(self, tmp_path: Path) -> Path:
        return certificate(directory=tmp_path, name="127.0.0.1")

    def test_refuses_a_certificate_that_nobody_vouches_for(self, pem: Path) -> None:
        with Server(saying(OK), tls=tls_of(pem)) as server:
            one = connection(f"https://127.0.0.1:{server.port}")
            with pytest.raises(NotSent, match="certificate is not accepted: self-signed"):
                one.request(method="POST", path="/x")

    def test_takes_the_certificates_of_ssl_cert_file(
        self, pem: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with Server(saying(OK), tls=tls_of(pem)) as server:
            one = connection(f"https://127.0.0.1:{server.port}")
            assert one.request(method="POST", path="/x").status == 200
            assert one.certificate_expires is not None
            assert one.certificate_expires.endswith("GMT")

    def test_refuses_the_certificate_of_another_host(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pem = certificate(directory=tmp_path, name="other.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with Server(saying(OK), tls=tls_of(pem)) as server:
            one = connection(f"https://127.0.0.1:{server.port}")
            with pytest.raises(NotSent, match=r"certificate is not accepted: .*mismatch"):
                one.request(method="POST", path="/x")

    def test_says_that_the_server_speaks_no_tls(self) -> None:
        with Server(saying(OK)) as server:
            one = connection(f"https://127.0.0.1:{server.port}", seconds=1)
            with pytest.raises(NotSent):
                one.request(method="POST", path="/x")

    def test_gives_up_a_handshake_that_does_not_end(self) -> None:
        def keep_quiet(_: socket.socket) -> None:
            server.done.wait()

        with Server(keep_quiet) as server:
            one = connection(f"https://127.0.0.1:{server.port}", seconds=0.2)
            with pytest.raises(NotSent, match="timed out"):
                one.request(method="POST", path="/x")


class TestProxy:
    @pytest.fixture(autouse=True)
    def no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    def test_is_asked_to_connect_and_sees_nothing_of_https(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pem = certificate(directory=tmp_path, name="market.example")
        seen: list[tuple[str, dict[str, str]]] = []

        def speak(connection: socket.socket) -> None:
            # The proxy and, behind the tunnel, the market.
            first, headers, _ = read_request(connection)
            seen.append((first, headers))
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            inner = tls_of(pem).wrap_socket(connection, server_side=True)
            first, headers, _ = read_request(inner)
            seen.append((first, headers))
            inner.sendall(OK)
            inner.close()

        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with Server(speak) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:s%20x@127.0.0.1:{proxy.port}")
            answer = connection("https://market.example").request(
                method="POST", path="/x", body=b"b"
            )
        assert answer.status == 200
        assert seen[0][0].startswith("CONNECT market.example:443 ")
        assert seen[0][1]["proxy-authorization"] == "Basic dXNlcjpzIHg="
        assert seen[1][0] == "POST /x HTTP/1.1"
        assert seen[1][1]["host"] == "market.example"
        assert "proxy-authorization" not in seen[1][1]

    def test_is_given_the_whole_address_for_plain_http(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []

        def speak(connection: socket.socket) -> None:
            seen.append(read_request(connection)[0])
            connection.sendall(OK)

        with Server(speak) as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            connection("http://market.example:81").request(method="POST", path="/x")
        assert seen == ["POST http://market.example:81/x HTTP/1.1"]

    def test_that_refuses_or_trickles_lets_nothing_through(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Server(saying(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            with pytest.raises(NotSent, match="407"):
                connection("https://market.example").request(method="POST", path="/x")

        def trickle(connection: socket.socket) -> None:
            while not slow.done.wait(0.05):
                connection.sendall(b"x")

        with Server(trickle) as slow:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{slow.port}")
            with pytest.raises(NotSent):
                connection("https://market.example", seconds=0.3).request(method="POST", path="/x")

    def test_is_passed_by_for_this_machine_and_for_what_no_proxy_names(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
        with Server(saying(OK)) as server:
            assert to(server).request(method="POST", path="/x").status == 200
        monkeypatch.setenv("no_proxy", "market.example")
        found = module._proxy_for(scheme="https", host="market.example", authority="market.example")
        assert found is None
        other = module._proxy_for(scheme="https", host="m2.example", authority="m2.example")
        assert other is not None
        assert (other.host, other.port) == ("127.0.0.1", 9)

    def test_of_a_kind_that_cannot_be_used_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
        with pytest.raises(NotSent, match="http:// address"):
            connection("https://market.example").request(method="POST", path="/x")
