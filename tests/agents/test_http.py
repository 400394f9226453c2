"""The wire as nodes meet it: every wrong request gets a 4xx with a stable code and stores nothing."""

import base64
import dataclasses
import datetime as dt
import gzip
import json
from typing import Any

import pytest
import time_machine
from django.db import OperationalError

from agents import ingest, inventory, pacing, protocol
from agents.models import EnrolmentToken, Gpu, MeterReading, Node, Reading, Receipt
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = [pytest.mark.django_db, pytest.mark.urls("marketplace.api.agent")]


@pytest.fixture(autouse=True)
def _clock_stands() -> Any:
    with time_machine.travel(NOW, tick=False):
        yield


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


def seal(machine: Machine, body: bytes, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "key": machine.key,
        "key_id": machine.node_id,
        "path": protocol.REPORT_PATH,
        "body": body,
        **changes,
    }
    return make.sign(**values)


def full_report(machine: Machine, **changes: Any) -> protocol.Report:
    grant = make.make_grant(node=machine.node)
    return make.report(
        machine=machine,
        readings=[make.reading(gpu_uuid=machine.gpu_uuids[0])],
        meters=[make.meter(grant=grant)],
        receipts=[make.receipt(grant=grant, key=machine.key)],
        **changes,
    )


def assert_refused(response: Any, *, status: int, code: str) -> dict[str, Any]:
    """Check the shape of a refusal, and that nothing of the report was stored."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert not MeterReading.objects.exists()
    assert not Receipt.objects.exists()
    assert not Reading.objects.exists()
    assert not Node.objects.filter(last_report_at__isnull=False).exists()
    return problem


class TestReports:
    def test_stores_what_a_node_says_and_answers_with_its_grants(self, machine: Machine) -> None:
        report = full_report(machine)
        response = make.post(seal(machine, protocol.encode(report)))
        assert response.status_code == 200
        reply = protocol.decode(protocol.ReportReply, response.content)
        assert (reply.accepted, reply.last_epoch, reply.last_sequence) == (True, 1, 1)
        assert [g.lease_id for g in reply.grants] == [report.meters[0].lease_id]
        assert (
            MeterReading.objects.count() == Receipt.objects.count() == Reading.objects.count() == 1
        )

    def test_takes_a_gzip_body_whose_digest_is_that_of_the_gzip(self, machine: Machine) -> None:
        body = gzip.compress(protocol.encode(full_report(machine)))
        response = make.post(seal(machine, body, content_encoding="gzip"))
        assert response.status_code == 200
        assert MeterReading.objects.count() == 1

    def test_refuses_a_signature_by_another_key(self, machine: Machine) -> None:
        forged = seal(machine, protocol.encode(full_report(machine)), key=make.new_key())
        assert_refused(make.post(forged), status=401, code="bad_signature")

    def test_refuses_an_altered_body(self, machine: Machine) -> None:
        signed = seal(machine, protocol.encode(full_report(machine)))
        body = signed.body.replace(b'"spool_depth":0', b'"spool_depth":1')
        assert body != signed.body
        altered = dataclasses.replace(signed, body=body)
        assert_refused(make.post(altered), status=401, code="bad_signature")

    def test_refuses_an_altered_body_with_a_matching_digest(self, machine: Machine) -> None:
        signed = seal(machine, protocol.encode(full_report(machine)))
        body = signed.body.replace(b'"spool_depth":0', b'"spool_depth":1')
        altered = dataclasses.replace(
            signed, body=body, content_digest=protocol.content_digest(body)
        )
        assert_refused(make.post(altered), status=401, code="bad_signature")

    def test_refuses_a_request_that_was_signed_for_another_market(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine))
        signed = seal(machine, body, authority="market.example.com")
        assert_refused(make.post(signed), status=401, code="bad_signature")

    def test_refuses_a_host_that_is_not_ours(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine))
        response = make.post(seal(machine, body, authority="evil.test"), host="evil.test")
        assert response.status_code == 400 or response.json()["code"] == "bad_signature"
        assert not MeterReading.objects.exists()

    def test_refuses_a_request_that_was_signed_for_another_path(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine))
        signed = seal(machine, body, path=protocol.ENROL_PATH)
        moved = dataclasses.replace(signed, path=protocol.REPORT_PATH)
        assert_refused(make.post(moved), status=401, code="bad_signature")

    def test_refuses_an_unknown_node(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine))
        signed = seal(machine, body, key_id="nde_00000000000000000000000000")
        assert_refused(make.post(signed), status=401, code="bad_signature")

    @pytest.mark.parametrize("header", ["content_digest", "signature_input", "signature"])
    @pytest.mark.parametrize("value", ["", "nonsense", "sig1=::", "\u00e9" * 200])
    def test_refuses_headers_that_say_nothing(
        self, machine: Machine, header: str, value: str
    ) -> None:
        signed = seal(machine, protocol.encode(full_report(machine)))
        response = make.post(dataclasses.replace(signed, **{header: value}))
        assert_refused(response, status=401, code="bad_signature")

    def test_refuses_a_creation_time_beyond_all_calendars(self, machine: Machine) -> None:
        signed = seal(machine, protocol.encode(full_report(machine)))
        created = f"created={int(NOW.timestamp())}"
        far = signed.signature_input.replace(created, "created=999999999999")
        response = make.post(dataclasses.replace(signed, signature_input=far))
        assert_refused(response, status=401, code="bad_signature")

    @pytest.mark.parametrize("skew_seconds", [-121, 121, -86_400])
    def test_refuses_a_wrong_clock_and_tells_the_time(
        self, machine: Machine, skew_seconds: int
    ) -> None:
        body = protocol.encode(full_report(machine))
        signed = seal(machine, body, at=NOW + make.seconds(skew_seconds))
        problem = assert_refused(make.post(signed), status=409, code="clock_skew")
        assert problem["now"] == protocol.to_json(NOW)

    @pytest.mark.parametrize("skew_seconds", [-120, 120])
    def test_takes_a_clock_that_is_two_minutes_off(
        self, machine: Machine, skew_seconds: int
    ) -> None:
        body = protocol.encode(make.report(machine=machine))
        response = make.post(seal(machine, body, at=NOW + make.seconds(skew_seconds)))
        assert response.status_code == 200

    def test_refuses_a_revoked_node(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine))
        inventory.revoke(node=machine.node, at=NOW, actor="owner")
        assert_refused(make.post(seal(machine, body)), status=403, code="node_revoked")

    def test_refuses_a_replay_and_names_the_last_report(self, machine: Machine) -> None:
        signed = seal(machine, protocol.encode(full_report(machine)))
        assert make.post(signed).status_code == 200
        response = make.post(signed)
        assert response.status_code == 409
        assert response.json()["code"] == "report_replayed"
        reply = protocol.from_json(protocol.ReportReply, response.json()["reply"])
        assert (reply.accepted, reply.last_epoch, reply.last_sequence) == (False, 1, 1)
        assert len(reply.grants) == 1
        assert MeterReading.objects.count() == Receipt.objects.count() == 1

    def test_refuses_a_body_that_says_it_is_too_large(self, machine: Machine) -> None:
        body = b" " * (protocol.REPORT_BODY_BYTES_MAX + 1)
        assert_refused(make.post(seal(machine, body)), status=413, code="body_too_large")

    def test_refuses_a_small_gzip_that_unpacks_to_too_much(self, machine: Machine) -> None:
        body = gzip.compress(b" " * (protocol.REPORT_BODY_BYTES_MAX * 40))
        assert len(body) < protocol.REPORT_BODY_BYTES_MAX
        response = make.post(seal(machine, body, content_encoding="gzip"))
        assert_refused(response, status=413, code="body_too_large")

    @pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"{}" * 1000, mtime=0)[:-12]])
    def test_refuses_a_broken_gzip(self, machine: Machine, body: bytes) -> None:
        response = make.post(seal(machine, body, content_encoding="gzip"))
        assert_refused(response, status=400, code="malformed_report")

    def test_refuses_an_encoding_that_it_does_not_speak(self, machine: Machine) -> None:
        response = make.post(seal(machine, b"{}", content_encoding="br"))
        assert_refused(response, status=400, code="malformed_report")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"protocol": ' + b"9" * 6_000 + b"}",
            json.dumps({"protocol": 1}).encode("utf-16"),
        ],
    )
    def test_refuses_a_body_that_is_no_report(self, machine: Machine, body: bytes) -> None:
        assert_refused(make.post(seal(machine, body)), status=400, code="malformed_report")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"spool_depth":0', '"spool_depth":NaN'),
            ('"spool_depth":0', '"spool_depth":Infinity'),
            ('"spool_depth":0', '"spool_depth":1e400'),
            ('"spool_depth":0', '"spool_depth":"0"'),
            ('"spool_depth":0', '"spool_depth":-1'),
            ('"spool_depth":0', '"spool_depth":9223372036854775808'),
            ('"spool_depth":0', '"spool_depth":true'),
            ('"spool_depth":0', '"spool_depth":0,"extra":1'),
            ('"up_seconds":60', '"up_seconds":60.0'),
            ('"boot_id":"boot-1"', '"boot_id":""'),
            ('"boot_id":"boot-1"', '"boot_id":"\\ud800"'),
            ('"boot_id":"boot-1"', '"boot_id":"\\u0000"'),
            ('"boot_id":"boot-1"', f'"boot_id":"{"x" * 101}"'),
            ('"agent_version":"0.1.0"', f'"agent_version":"{"1" * 41}"'),
            ('"epoch":1,"events"', '"epoch":null,"events"'),
            ('"protocol":2', '"protocol":3'),
            ('"idle_state":"offerable"', '"idle_state":"asleep"'),
            ('"node_id":"nde_', '"node_id":"xxx_'),
            ('"sent_at":"2026', '"sent_at":"20260'),
            ('"sent_at":"2026-11', '"sent_at":"2026-13'),
        ],
    )
    def test_refuses_a_report_with_a_wrong_part_whole(
        self, machine: Machine, old: str, new: str
    ) -> None:
        text = protocol.encode(full_report(machine)).decode()
        assert old in text
        body = text.replace(old, new).encode()
        problem = assert_refused(
            make.post(seal(machine, body)), status=400, code="malformed_report"
        )
        assert problem["errors"][0]["detail"]

    def test_refuses_more_meter_readings_than_a_report_may_have(self, machine: Machine) -> None:
        grant = make.make_grant(node=machine.node)
        meters = [make.meter(grant=grant) for _ in range(protocol.REPORT_METERS_MAX + 1)]
        body = protocol.encode(make.report(machine=machine, meters=meters))
        assert_refused(make.post(seal(machine, body)), status=400, code="malformed_report")

    def test_refuses_a_node_that_turns_from_simulated_to_real(self, machine: Machine) -> None:
        body = protocol.encode(full_report(machine, simulated=False))
        assert_refused(
            make.post(seal(machine, body)), status=403, code="simulated_hardware_refused"
        )

    def test_refuses_simulated_hardware_where_it_is_not_sold(
        self, machine: Machine, settings: Any
    ) -> None:
        body = protocol.encode(full_report(machine))
        settings.ALLOW_SIMULATED_HARDWARE = False
        assert_refused(
            make.post(seal(machine, body)), status=403, code="simulated_hardware_refused"
        )

    def test_refuses_other_methods_and_a_query(self, machine: Machine, client: Any) -> None:
        response = client.get(protocol.REPORT_PATH)
        assert_refused(response, status=405, code="method_not_allowed")
        assert response["Allow"] == "POST"
        signed = seal(machine, protocol.encode(full_report(machine)))
        assert_refused(make.post(signed, query="?a=1"), status=400, code="malformed_report")

    def test_asks_to_come_back_when_the_database_is_away(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(**_: object) -> None:
            raise OperationalError("the server closed the connection")

        monkeypatch.setattr(ingest, "accept", fail)
        response = make.post(seal(machine, protocol.encode(full_report(machine))))
        assert_refused(response, status=503, code="service_unavailable")


class TestEnrol:
    def enrol(self, **changes: Any) -> Any:
        make.make_gpu_model()
        _, secret = make.make_token()
        key = make.new_key()
        values = {"token": secret, "key": key, **changes.pop("request", {})}
        request = make.enrol_request(**values)
        sealing: dict[str, Any] = {
            "key": key,
            "key_id": protocol.ENROL_KEY_ID,
            "path": protocol.ENROL_PATH,
            "body": protocol.encode(request),
            **changes,
        }
        return make.post(make.sign(**sealing))

    def test_answers_with_the_node_and_the_interval(self) -> None:
        response = self.enrol()
        assert response.status_code == 200
        reply = protocol.decode(protocol.EnrolReply, response.content)
        assert Node.objects.get().pk == reply.node_id
        assert reply.report_interval_seconds == pacing.granted_interval_seconds(
            node_id=reply.node_id, at=NOW
        )
        assert reply.now == NOW
        assert Gpu.objects.count() == 2

    @pytest.mark.parametrize(
        ("changes", "status", "code"),
        [
            ({"key": make.new_key()}, 401, "bad_signature"),
            ({"key_id": "nde_1"}, 401, "bad_signature"),
            ({"at": NOW - make.seconds(300)}, 409, "clock_skew"),
            ({"request": {"token": "hr_enrol_guessed"}}, 403, "enrolment_token_invalid"),
            ({"request": {"public_key": "short"}}, 400, "malformed_report"),
            ({"request": {"public_key": "\u00e9" * 43}}, 400, "malformed_report"),
            ({"request": {"machine_id": ""}}, 400, "malformed_report"),
            ({"request": {"hostname": "h" * 256}}, 400, "malformed_report"),
            ({"request": {"protocol": 7}}, 400, "malformed_report"),
            ({"request": {"gpus": [make.identity(uuid="GPU-1")] * 2}}, 400, "malformed_report"),
            ({"request": {"gpus": make.identities(17)}}, 400, "malformed_report"),
            ({"request": {"gpus": [make.identity(product_name="")]}}, 400, "malformed_report"),
            ({"request": {"gpus": [make.identity(serial="s" * 101)]}}, 400, "malformed_report"),
            ({"body": b"{}"}, 400, "malformed_report"),
            ({"body": b" " * (protocol.REPORT_BODY_BYTES_MAX + 1)}, 413, "body_too_large"),
        ],
    )
    def test_refuses_what_is_wrong_and_uses_no_token_up(
        self, changes: dict[str, Any], status: int, code: str
    ) -> None:
        response = self.enrol(**changes)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert not Node.objects.exists()
        assert not Gpu.objects.exists()
        assert EnrolmentToken.objects.get().nodes_enrolled == 0

    @pytest.mark.parametrize(
        ("proxies", "forwarded_for", "status"),
        [
            (0, "203.0.113.7", 403),
            (1, "203.0.113.7", 200),
            (1, "203.0.113.7, 198.51.100.1", 403),
            (2, "198.51.100.9, 203.0.113.7, 10.0.0.1", 200),
        ],
    )
    def test_knows_a_client_s_network_by_what_our_own_proxies_say(
        self, settings: Any, proxies: int, forwarded_for: str, status: int
    ) -> None:
        settings.TRUSTED_PROXIES = proxies
        make.make_gpu_model()
        _, secret = make.make_token(allowed_networks=["203.0.113.0/24"])
        key = make.new_key()
        request = make.enrol_request(token=secret, key=key)
        signed = make.sign(
            key=key,
            key_id=protocol.ENROL_KEY_ID,
            path=protocol.ENROL_PATH,
            body=protocol.encode(request),
        )
        response = make.post(signed, forwarded_for=forwarded_for)
        assert response.status_code == status, response.content
        if status == 403:
            assert response.json()["code"] == "enrolment_network_refused"

    def test_refuses_a_key_that_is_no_point_of_the_curve(self) -> None:
        no_point = base64.urlsafe_b64encode(b"\x02" + b"\x00" * 31).decode()
        response = self.enrol(request={"public_key": no_point})
        assert response.status_code in {400, 401}
        assert not Node.objects.exists()


def test_a_day_of_clock_error_is_never_a_server_error(machine: Machine) -> None:
    for instant in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"):
        far = dt.datetime.fromisoformat(instant.replace("Z", "+00:00"))
        grant = make.make_grant(node=machine.node, lease_id=f"lse_{instant[:4]}")
        machine.node.refresh_from_db()
        report = make.report(
            machine=machine,
            sequence=machine.node.last_sequence + 1,
            sent_at=far,
            reader_hung_since=far,
            readings=[
                make.reading(gpu_uuid=machine.gpu_uuids[0], measured_at=far, idle_since=far),
                make.reading(gpu_uuid=machine.gpu_uuids[0], idle_since=far),
            ],
            meters=[make.meter(grant=grant, starts_at=far, ends_at=far)],
            receipts=[make.receipt(grant=grant, key=machine.key, at=far)],
        )
        assert make.post(seal(machine, protocol.encode(report))).status_code == 200
    assert not MeterReading.objects.exists()
    assert {receipt.at for receipt in Receipt.objects.all()} == {NOW}
    assert Reading.objects.count() == 1
