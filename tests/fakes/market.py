"""A market on loopback that speaks `agents.protocol`: takes reports as the real one must, and misbehaves on
request. It checks every signature with the `cryptography` package, so that the agent's own is not its judge.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agents.protocol import (
    ENROL_KEY_ID,
    ENROL_PATH,
    REPORT_BODY_BYTES_MAX,
    ROTATE_KEY_PATH,
    EnrolReply,
    EnrolRequest,
    Grant,
    MeterReading,
    Receipt,
    Report,
    ReportReply,
    RotateKeyReply,
    RotateKeyRequest,
    content_digest,
    decode,
    encode,
    parse_signature,
    signature_base,
    to_json,
)

Answer = tuple[int, bytes, dict[str, str]]


class FakeMarket:
    """What the market knows of one node, and the faults that a test asked for."""

    def __init__(self, *, now: Callable[[], dt.datetime]) -> None:
        self.now = now
        self.token = "token-1"
        self.interval_seconds = 5
        self.grants: list[Grant] = []
        self.want_inventory = False
        self.public_key: Ed25519PublicKey | None = None
        self.former_keys: list[Ed25519PublicKey] = []
        self.rotate_key = False
        self.enrolments: list[EnrolRequest] = []
        self.reports: list[Report] = []
        self.meters: dict[tuple[int, int], MeterReading] = {}
        self.receipts: list[Receipt] = []
        self.last = (0, 0)
        self.request_count = 0
        # Faults: the answer to give instead, or what happens to a good one.
        self.instead: Callable[[Report | None], Answer | None] = lambda _report: None
        self.instead_of_rotation: Callable[[], Answer | None] = lambda: None
        self.lose_answers = 0
        self.errors: list[str] = []
        self._server: HTTPServer | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()
        assert not self.errors, self.errors

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        market = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = market.answer(
                    self.path, body, {k.lower(): v for k, v in self.headers.items()}
                )
                if market.lose_answers > 0:
                    market.lose_answers -= 1
                    self.close_connection = True
                    return
                status, content, headers = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                # Tests come and go quickly: no connection of theirs is kept.
                self.send_header("Connection", "close")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = True

            def date_time_string(self, timestamp: float | None = None) -> str:
                return email.utils.format_datetime(market.now(), usegmt=True)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._server = HTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def answer(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        self.request_count += 1
        try:
            if path == ENROL_PATH:
                return self._enrol(body, headers)
            if path == ROTATE_KEY_PATH:
                return self._rotate(body, headers)
            return self._report(body, headers)
        except Exception as error:  # a test must see what broke on the server's thread
            self.errors.append(repr(error))
            raise

    def _enrol(self, body: bytes, headers: dict[str, str]) -> Answer:
        instead = self.instead(None)
        if instead is not None:
            return instead
        request = decode(EnrolRequest, unpacked(body, headers))
        if request.token != self.token:
            return problem(403, "token_invalid", detail="No such token.")
        raw = base64.urlsafe_b64decode(request.public_key + "=")
        self.public_key = Ed25519PublicKey.from_public_bytes(raw)
        assert self._check(ENROL_PATH, body, headers, key_id=ENROL_KEY_ID)
        self.enrolments.append(request)
        reply = EnrolReply(
            node_id="node-1", report_interval_seconds=self.interval_seconds, now=self.now()
        )
        return 201, encode(reply), {}

    def _report(self, body: bytes, headers: dict[str, str]) -> Answer:
        sent, body = body, unpacked(body, headers)
        assert len(body) <= REPORT_BODY_BYTES_MAX
        report = decode(Report, body)
        if not self._check("/agent/v1/reports", sent, headers, key_id="node-1"):
            return problem(401, "bad_signature")
        instead = self.instead(report)
        if instead is not None:
            return instead
        pair = (report.epoch, report.sequence)
        if pair <= self.last:
            return problem(409, "report_replayed", reply=to_json(self._reply(accepted=False)))
        self.last = pair
        self.reports.append(report)
        for meter in report.meters:
            key = (meter.epoch, meter.sequence)
            assert self.meters.get(key, meter) == meter, "one name, two readings"
            self.meters[key] = meter
        for receipt in report.receipts:
            self._check_receipt(receipt)
            if receipt not in self.receipts:
                self.receipts.append(receipt)
        return 200, encode(self._reply(accepted=True)), {}

    def _reply(self, *, accepted: bool) -> ReportReply:
        return ReportReply(
            accepted=accepted,
            last_epoch=self.last[0],
            last_sequence=self.last[1],
            now=self.now(),
            report_interval_seconds=self.interval_seconds,
            want_inventory=self.want_inventory,
            grants=self.grants if accepted else [],
            rotate_key=self.rotate_key,
        )

    def _rotate(self, body: bytes, headers: dict[str, str]) -> Answer:
        """Know the node by its new key; what the old one has signed stays signed."""
        instead = self.instead_of_rotation()
        if instead is not None:
            return instead
        request = decode(RotateKeyRequest, body)
        if not self._check(ROTATE_KEY_PATH, body, headers, key_id="node-1"):
            return problem(401, "bad_signature")
        raw = base64.urlsafe_b64decode(request.public_key + "=")
        candidate = Ed25519PublicKey.from_public_bytes(raw)
        candidate.verify(base64.b64decode(request.proof), request.proven_bytes())
        assert self.public_key is not None
        self.former_keys.append(self.public_key)
        self.public_key = candidate
        self.rotate_key = False
        reply = RotateKeyReply(node_id="node-1", public_key=request.public_key, now=self.now())
        return 200, encode(reply), {}

    def _check_receipt(self, receipt: Receipt) -> None:
        assert self.public_key is not None
        for key in [self.public_key, *self.former_keys]:
            try:
                key.verify(base64.b64decode(receipt.signature), receipt.signed_bytes())
            except InvalidSignature:
                continue
            return
        raise AssertionError("the signature of the receipt is wrong")

    def _check(self, path: str, body: bytes, headers: dict[str, str], *, key_id: str) -> bool:
        """Say whether the key of the node has signed; anything else that is wrong is a mistake."""
        parsed = parse_signature(
            signature_input=headers["signature-input"], signature=headers["signature"]
        )
        assert parsed.key_id == key_id
        assert headers["content-digest"] == content_digest(body)
        assert headers["content-type"] == "application/json"
        base = signature_base(
            method="POST",
            authority=headers["host"],
            path=path,
            digest=headers["content-digest"],
            parameters=parsed.parameters,
        )
        assert self.public_key is not None
        try:
            self.public_key.verify(parsed.signature, base)
        except InvalidSignature:
            assert self.former_keys, "the signature of the request is wrong"
            return False
        return True


def unpacked(body: bytes, headers: dict[str, str]) -> bytes:
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


def problem(status: int, code: str, **members: Any) -> Answer:
    body = json.dumps({"type": "about:blank", "status": status, "code": code, **members}).encode()
    return status, body, {"Content-Type": "application/problem+json"}
