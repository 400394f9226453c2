"""The wire: what goes in comes out, and what does not fit is refused with its place."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import protocol
from agents.protocol import (
    BadSignature,
    DesiredState,
    EnrolRequest,
    GpuIdentity,
    Grant,
    Health,
    IdleState,
    LeaseState,
    LeaseStatus,
    MalformedMessage,
    MeterReading,
    Reading,
    Receipt,
    ReceiptKind,
    Report,
    ReportReply,
)

AT = dt.datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=dt.UTC)
GPU = GpuIdentity(uuid="GPU-0", index=0, product_name="NVIDIA H100", memory_total_bytes=80 << 30)
READING = Reading(
    gpu_uuid="GPU-0",
    measured_at=AT,
    health=Health.HEALTHY,
    idle_state=IdleState.FREE,
    idle_since=AT,
    unread={"energy_millijoules": "not_supported"},
)
METER = MeterReading(
    epoch=1,
    sequence=2,
    lease_id="lse_1",
    lease_epoch=1,
    gpu_uuid="GPU-0",
    starts_at=AT,
    ends_at=AT + dt.timedelta(seconds=60),
    up_seconds=60,
    busy_seconds=None,
)
RECEIPT = Receipt(
    kind=ReceiptKind.RETURN,
    lease_id="lse_1",
    lease_epoch=1,
    node_id="nod_1",
    gpu_uuids=["GPU-0"],
    at=AT,
    energy_millijoules=[None],
    signature="c2ln",
)
GRANT = Grant(
    lease_id="lse_1",
    lease_epoch=1,
    gpu_uuids=["GPU-0"],
    not_before=AT,
    not_after=AT,
    desired_state=DesiredState.STOP,
    ssh_public_keys=["k" * 2000],
)
REPORT = Report(
    protocol=1,
    node_id="nod_1",
    epoch=1,
    sequence=1,
    boot_id="b",
    sent_at=AT,
    agent_version="0",
    simulated=True,
    inventory=[GPU],
    readings=[READING],
    leases=[LeaseStatus(lease_id="lse_1", lease_epoch=1, state=LeaseState.ACTIVE)],
    meters=[METER],
    receipts=[RECEIPT],
)
REPLY = ReportReply(
    accepted=True,
    last_epoch=1,
    last_sequence=1,
    now=AT,
    report_interval_seconds=5,
    grants=[GRANT],
)
ENROL = EnrolRequest(
    protocol=1,
    token="t",
    public_key="k",
    hostname="h",
    machine_id="m",
    agent_version="0",
    simulated=False,
    gpus=[GPU],
)


class TestDecode:
    @pytest.mark.parametrize("message", [REPORT, REPLY, ENROL, RECEIPT, READING, METER, GRANT])
    def test_gives_back_what_was_encoded(self, message: object) -> None:
        assert protocol.decode(type(message), protocol.encode(message)) == message

    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"surprise": 1}, "/surprise"),
            ({"epoch": "1"}, "/epoch"),
            ({"epoch": True}, "/epoch"),
            ({"epoch": 1.0}, "/epoch"),
            ({"epoch": -1}, "/epoch"),
            ({"epoch": 2**63}, "/epoch"),
            ({"epoch": None}, "/epoch"),
            ({"simulated": 1}, "/simulated"),
            ({"node_id": "x" * 501}, "/node_id"),
            ({"node_id": "a\x00b"}, "/node_id"),
            ({"sent_at": "2026-11-23T12:00:00"}, "/sent_at"),
            ({"sent_at": "2026-11-23T12:00:00+00:00"}, "/sent_at"),
            ({"sent_at": "2026-13-23T12:00:00Z"}, "/sent_at"),
            ({"sent_at": 5}, "/sent_at"),
            ({"readings": {}}, "/readings"),
            ({"readings": [None]}, "/readings/0"),
            ({"leases": [{"lease_id": "l", "lease_epoch": 1, "state": "odd"}]}, "/leases/0/state"),
            ({"leases": [{"lease_id": "l", "state": "active"}]}, "/leases/0/lease_epoch"),
            ({"inventory": [protocol.to_json(GPU)] * 17}, "/inventory"),
            ({"meters": [protocol.to_json(METER)] * 201}, "/meters"),
            ({"receipts": [protocol.to_json(RECEIPT)] * 33}, "/receipts"),
        ],
    )
    def test_names_the_place_that_does_not_fit(self, change: dict[str, Any], pointer: str) -> None:
        body = json.dumps({**protocol.to_json(REPORT), **change}).encode()
        with pytest.raises(MalformedMessage) as refusal:
            protocol.decode(Report, body)
        assert refusal.value.pointer == pointer

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"\xff",
            b"[]",
            b"null",
            b'{"epoch": NaN}',
            b'{"epoch": Infinity}',
            b"[" * 100_000,
        ],
    )
    def test_refuses_what_is_no_message(self, body: bytes) -> None:
        with pytest.raises(MalformedMessage):
            protocol.decode(Report, body)

    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(sorted(protocol.to_json(REPORT))), inner)
            ),
            max_leaves=20,
        )
    )
    def test_refuses_anything_else_in_one_way_only(self, value: object) -> None:
        with pytest.raises(MalformedMessage):
            protocol.decode(Report, json.dumps(value).encode())

    def test_takes_a_full_report_below_the_limit_of_a_body(self) -> None:
        full = protocol.to_json(REPORT)
        full["meters"] = full["meters"] * protocol.REPORT_METERS_MAX
        full["receipts"] = full["receipts"] * protocol.REPORT_RECEIPTS_MAX
        full["readings"] = full["readings"] * protocol.REPORT_READINGS_MAX
        body = protocol.canonical_json(full)
        assert len(body) < protocol.REPORT_BODY_BYTES_MAX
        assert len(protocol.decode(Report, body).meters) == protocol.REPORT_METERS_MAX


class TestSignature:
    def test_input_is_read_as_it_was_written(self) -> None:
        parameters = protocol.signature_parameters(key_id="nod_1", created_at=AT)
        parsed = protocol.parse_signature(
            signature_input=f"sig1={parameters}", signature=f"sig1=:{'A' * 86}==:"
        )
        assert parsed.key_id == "nod_1"
        assert parsed.created_at == AT.replace(microsecond=0)
        assert parsed.parameters == parameters
        assert len(parsed.signature) == 64

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("sig1=", "sig2="),
            ('"@path" ', ""),
            ("ed25519", "hmac-sha256"),
            ("nod_1", "a b"),
            ("nod_1", ""),
            ("created=", "created=-"),
            (";alg", ";expires=1;alg"),
        ],
    )
    def test_of_another_form_is_refused(self, old: str, new: str) -> None:
        value = "sig1=" + protocol.signature_parameters(key_id="nod_1", created_at=AT)
        with pytest.raises(BadSignature):
            protocol.parse_signature(
                signature_input=value.replace(old, new), signature=f"sig1=:{'A' * 86}==:"
            )

    @pytest.mark.parametrize("signature", ["", "sig1=:AAAA:", "sig1=:" + "!" * 86 + "==:"])
    def test_that_is_no_ed25519_value_is_refused(self, signature: str) -> None:
        value = "sig1=" + protocol.signature_parameters(key_id="nod_1", created_at=AT)
        with pytest.raises(BadSignature):
            protocol.parse_signature(signature_input=value, signature=signature)

    def test_base_covers_method_authority_path_and_digest(self) -> None:
        base = protocol.signature_base(
            method="post", authority="Market:8000", path="/x", digest="d", parameters="p"
        )
        assert base.decode().splitlines() == [
            '"@method": POST',
            '"@authority": market:8000',
            '"@path": /x',
            '"content-digest": d',
            '"@signature-params": p',
        ]

    def test_digest_is_that_of_rfc_9530(self) -> None:
        # The example of RFC 9530 appendix B.1: {"hello": "world"} and a line feed.
        assert (
            protocol.content_digest(b'{"hello": "world"}\n')
            == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
        )


class TestReceipt:
    def test_signs_everything_but_its_signature(self) -> None:
        other = protocol.from_json(Receipt, {**protocol.to_json(RECEIPT), "signature": "eA=="})
        assert other.signed_bytes() == RECEIPT.signed_bytes()
        changed = protocol.from_json(Receipt, {**protocol.to_json(RECEIPT), "clean": False})
        assert changed.signed_bytes() != RECEIPT.signed_bytes()
