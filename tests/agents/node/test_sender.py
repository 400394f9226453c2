"""How a request looks on the wire, and what is learnt from its answer."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from agents import envelope
from agents.node.clock import MarketClock
from agents.node.keys import KeyRing
from agents.node.sender import PACKED_BYTES_MIN, Sender, Taken, Unreachable
from agents.node.spool import LeaseRecord
from agents.protocol import (
    PROTOCOL_VERSION,
    REPORT_BODY_BYTES_MAX,
    GpuCounters,
    LeaseState,
    Receipt,
    ReceiptEvidence,
    Report,
    ReportReply,
    encode,
)
from tests.agents.node.rig import START, FakeClock, Rig
from tests.agents.node.scenes import enrolled
from tests.agents.node.servers import Server, read_request
from tests.agents.node.test_state import GRANT, METER, RECEIPT
from tests.fakes.market import FakeMarket

REPLY = encode(
    ReportReply(accepted=True, last_epoch=1, last_sequence=1, now=START, report_interval_seconds=15)
)


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def sender_to(server: Server, directory: Path, *, clock: MarketClock | None = None) -> Sender:
    return Sender(
        server_url=f"http://127.0.0.1:{server.port}",
        key=KeyRing(directory=directory),
        clock=clock or MarketClock(clock=FakeClock()),
        agent_version="1",
    )


class TestBodies:
    @pytest.mark.parametrize("length", [PACKED_BYTES_MIN, PACKED_BYTES_MIN + 1, 100_000])
    def test_are_packed_when_long_and_signed_as_they_go(self, tmp_path: Path, length: int) -> None:
        seen: list[tuple[str, dict[str, str], bytes]] = []

        def speak(connection: socket.socket) -> None:
            seen.append(read_request(connection))
            connection.sendall(http(REPLY))

        body = b'"' + b"x" * (length - 2) + b'"'
        with Server(speak) as server:
            sender = sender_to(server, tmp_path)
            assert isinstance(sender.report(node_id="n", body=body), Taken)
        first, headers, sent = seen[0]
        assert first == "POST /agent/v1/reports HTTP/1.1"
        assert headers.get("content-encoding") == (None if length == PACKED_BYTES_MIN else "gzip")
        assert (gzip.decompress(sent) if "content-encoding" in headers else sent) == body
        # The market's own code is the judge.
        signed = envelope.SignedRequest(
            method="POST",
            authority=headers["host"],
            path="/agent/v1/reports",
            body=sent,
            content_encoding=headers.get("content-encoding", ""),
            content_digest=headers["content-digest"],
            signature_input=headers["signature-input"],
            signature=headers["signature"],
        )
        claim = envelope.read_signature(signed=signed)
        public_key = envelope.normalize_public_key(KeyRing(directory=tmp_path).public_key)
        envelope.verify(signed=signed, claim=claim, public_key=public_key, at=START)

    def test_of_one_report_are_the_same_bytes_at_each_try(self, tmp_path: Path) -> None:
        seen: list[bytes] = []

        def speak(connection: socket.socket) -> None:
            seen.append(read_request(connection)[2])

        with Server(speak) as server:
            sender = sender_to(server, tmp_path)
            for _ in range(2):
                outcome = sender.report(node_id="n", body=b"y" * 5000)
                assert isinstance(outcome, Unreachable)
                assert outcome.arrived_perhaps
        assert seen[0] == seen[1]

    def test_never_grow_beyond_what_the_market_takes(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        assert rig.spool is not None
        assert rig.agent is not None
        counters = [GpuCounters(gpu_uuid=f"GPU-{n}", unread={"a": "x" * 500}) for n in range(16)]
        evidence = ReceiptEvidence(boot_id="b", boottime_seconds=1, counters=counters)
        receipts: list[Receipt] = [
            rig.agent._book.receipt(record=_record(n), kind=RECEIPT.kind, at=START, energies=[None])
            for n in range(40)
        ]
        receipts = [replace(r, evidence=evidence, signature="") for r in receipts]
        signed = [replace(r, signature=_sign(rig, r)) for r in receipts]
        whole = Report(
            protocol=PROTOCOL_VERSION, node_id="n", epoch=1, sequence=1, boot_id="b", sent_at=START,
            agent_version="1", simulated=True, receipts=signed[:32],
        )  # fmt: skip
        assert len(encode(whole)) > REPORT_BODY_BYTES_MAX, "one report cannot hold them"
        rig.spool.commit(
            receipts=signed, meters=[replace(METER, sequence=n) for n in range(1, 400)]
        )
        rig.live(seconds=120)
        assert len(market.receipts) == 40
        assert len(market.meters) >= 399
        assert rig.spool.depth() == 0


def _record(number: int) -> LeaseRecord:
    changed = replace(GRANT, lease_id=f"lease-{number}")
    return LeaseRecord(grant=changed, state=LeaseState.ENDED, changed_at=START)


def _sign(rig: Rig, receipt: Receipt) -> str:
    key = KeyRing(directory=rig.directory)
    return base64.b64encode(key.sign(message=receipt.signed_bytes())).decode()


class TestAnswers:
    def test_set_the_clock_with_half_of_their_round_trip(self, tmp_path: Path) -> None:
        clock = MarketClock(clock=FakeClock())
        ahead = encode(
            ReportReply(
                accepted=True,
                last_epoch=1,
                last_sequence=1,
                now=START + dt.timedelta(minutes=5),
                report_interval_seconds=15,
            )
        )

        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(http(ahead))

        with Server(speak) as server:
            sender_to(server, tmp_path, clock=clock).report(node_id="n", body=b"{}")
        assert (
            dt.timedelta(0)
            <= clock.now() - START - dt.timedelta(minutes=5)
            < dt.timedelta(seconds=1)
        )

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            (("Retry-After: 7",), 7.0),
            (("Retry-After: 99999999",), 3600.0),
            (
                (
                    "Retry-After: Mon, 23 Nov 2026 12:01:00 GMT",
                    "Date: Mon, 23 Nov 2026 12:00:00 GMT",
                ),
                60.0,
            ),
            (
                (
                    "Retry-After: Mon, 23 Nov 2026 11:00:00 GMT",
                    "Date: Mon, 23 Nov 2026 12:00:00 GMT",
                ),
                0.0,
            ),
            (("Retry-After: soon",), None),
            (("Retry-After: -5",), None),
            ((), None),
        ],
    )
    def test_say_how_long_to_wait(
        self, tmp_path: Path, headers: tuple[str, ...], seconds: float | None
    ) -> None:
        def speak(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(http(b"", *headers, status="503 Down"))

        with Server(speak) as server:
            outcome = sender_to(server, tmp_path).report(node_id="n", body=b"{}")
        assert isinstance(outcome, Unreachable)
        assert outcome.retry_after_seconds == seconds
