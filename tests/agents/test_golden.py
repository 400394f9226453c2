"""Messages of the first protocol, byte for byte as its agents sent and read them: they are taken for ever.

`golden/protocol-1/` was written by the last release that spoke the first protocol alone, and never changes.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents import ingest, inventory, protocol
from agents.models import EnrolmentToken, Gpu, Grant, MeterReading, Node, Policy, Reading, Receipt
from marketplace.core.windows import Window
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = [pytest.mark.django_db, pytest.mark.urls("marketplace.api.agent")]
FILES = Path(__file__).parent / "golden" / "protocol-1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # signed the receipts in the files
HALF_AN_HOUR = make.seconds(1800)


def golden(name: str) -> bytes:
    return (FILES / f"{name}.json").read_bytes()


def parsed(name: str) -> Any:
    return json.loads(golden(name))


def shape(value: Any) -> Any:
    """Return the names of all fields: what a strict reader knows."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    return None


@pytest.fixture
def machine() -> Machine:
    """Return the machine that the files speak of, with the grant that it serves."""
    report = parsed("report")
    make.make_gpu_model()
    node = Node.objects.create(
        id=report["node_id"],
        organization=make.make_owner(),
        hostname="gpu-01",
        machine_id="golden",
        region="eu-north",
        simulated=True,
        public_key=base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode(),
        agent_version="0.1.0",
        slot_base=inventory.next_slot_base(),
        enrolled_at=NOW,
        key_since=NOW,
    )
    identities = [protocol.from_json(protocol.GpuIdentity, gpu) for gpu in report["inventory"]]
    inventory.apply(node=node, gpus=identities, at=NOW)
    (sent,) = parsed("report_reply")["grants"]
    make.make_grant(
        node=node,
        lease_id=sent["lease_id"],
        window=Window(NOW - HALF_AN_HOUR, NOW + HALF_AN_HOUR),
        at=NOW - HALF_AN_HOUR,
    )
    return Machine(key=KEY, node=node, gpu_uuids=tuple(gpu.uuid for gpu in identities))


def post(machine: Machine, body: bytes, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "key": machine.key,
        "key_id": machine.node_id,
        "path": protocol.REPORT_PATH,
        **changes,
    }
    with time_machine.travel(NOW, tick=False):
        return make.post(make.sign(body=body, **values))


class TestTheFirstProtocol:
    def test_a_report_is_taken_whole(self, machine: Machine) -> None:
        response = post(machine, golden("report"))
        assert response.status_code == 200, response.content
        node = Node.objects.get()
        assert (node.last_epoch, node.last_sequence, node.protocol_version) == (3, 7, 1)
        assert set(Gpu.objects.values_list("health", "idle_state")) == {
            ("healthy", "busy"),
            ("suspect", "offerable"),
        }
        assert Reading.objects.count() == 2
        assert MeterReading.objects.count() == 2
        assert set(MeterReading.objects.values_list("attached_seconds", flat=True)) == {None}
        assert Grant.objects.get().reported_state == "active"

    def test_its_receipts_verify_and_are_kept_as_they_were_signed(self, machine: Machine) -> None:
        post(machine, golden("report"))
        stored = {receipt.kind: receipt.document for receipt in Receipt.objects.all()}
        assert stored == {receipt["kind"]: receipt for receipt in parsed("report")["receipts"]}

    def test_an_answer_has_the_fields_that_its_readers_know_and_no_other(
        self, machine: Machine
    ) -> None:
        Policy.objects.create(
            organization=machine.node.organization,
            version=1,
            document={},
            created_at=NOW,
            created_by="owner",
        )
        Node.objects.update(vouched_at=NOW, key_since=NOW - make.seconds(100 * 86_400))
        answer = post(machine, golden("report")).json()
        expected = parsed("report_reply")
        assert shape(answer) == shape(expected)
        interval = answer["report_interval_seconds"]
        assert answer == expected | {"report_interval_seconds": interval}
        assert 13 <= interval <= 17

    def test_a_refused_repetition_has_them_too(self, machine: Machine) -> None:
        post(machine, golden("report"))
        refusal = post(machine, golden("report"))
        assert refusal.status_code == 409
        assert shape(refusal.json()["reply"]) == shape(parsed("report_reply"))

    def test_a_machine_enrols_and_reads_the_answer(self) -> None:
        make.make_gpu_model()
        token, _ = make.make_token()
        secret = parsed("enrol_request")["token"]
        EnrolmentToken.objects.filter(pk=token.pk).update(
            secret_sha256=hashlib.sha256(secret.encode()).hexdigest()
        )
        with time_machine.travel(NOW, tick=False):
            response = make.post(
                make.sign(
                    key=KEY,
                    key_id=protocol.ENROL_KEY_ID,
                    path=protocol.ENROL_PATH,
                    body=golden("enrol_request"),
                )
            )
        assert response.status_code == 200, response.content
        assert shape(response.json()) == shape(parsed("enrol_reply"))
        assert Node.objects.get().protocol_version == 1

    @pytest.mark.parametrize(
        ("name", "message_type"),
        [
            ("enrol_request", protocol.EnrolRequest),
            ("enrol_reply", protocol.EnrolReply),
            ("report", protocol.Report),
            ("report_reply", protocol.ReportReply),
        ],
    )
    def test_every_message_is_read_and_written_byte_for_byte(
        self, name: str, message_type: type[Any]
    ) -> None:
        message = protocol.decode(message_type, golden(name))
        assert protocol.encode(message, protocol=1) == golden(name)


class TestTheSecondProtocol:
    def test_an_answer_has_its_fields(self, machine: Machine) -> None:
        body = protocol.encode(make.report(machine=machine))
        answer = post(machine, body).json()
        assert answer.keys() - parsed("report_reply").keys() == {
            "policy",
            "vouched_at",
            "rotate_key",
        }
        assert protocol.from_json(protocol.ReportReply, answer).accepted

    def test_a_node_goes_from_the_first_to_the_second_and_back(self, machine: Machine) -> None:
        for sequence, version in enumerate((1, 2, 1, 2), start=1):
            report = make.report(machine=machine, sequence=sequence, protocol=version)
            response = post(machine, protocol.encode(report, protocol=version))
            assert response.status_code == 200
            assert ("policy" in response.json()) is (version == 2)
            assert Node.objects.get().protocol_version == version

    def test_a_third_one_is_refused_by_name(self, machine: Machine) -> None:
        response = post(machine, protocol.encode(make.report(machine=machine, protocol=3)))
        assert response.status_code == 400
        assert "only 1 and 2" in response.json()["detail"]

    def test_the_owner_s_policy_comes_until_the_node_follows_it(self, machine: Machine) -> None:
        Policy.objects.create(
            organization=machine.node.organization,
            version=3,
            document={"idle": {"free_after_seconds": 60}},
            created_at=NOW,
            created_by="owner",
        )
        for sequence, (follows, expected) in enumerate(((0, 3), (3, None), (2, 3)), start=1):
            report = make.report(machine=machine, sequence=sequence, policy_version=follows)
            reply = ingest.accept(node=Node.objects.get(), report=report, at=NOW)
            assert (reply.policy.version if reply.policy else None) == expected
        assert reply.policy is not None
        assert reply.policy.idle.free_after_seconds == 60
