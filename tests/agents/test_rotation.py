"""A node's new key: taken once, answered twice, and never from a stranger."""

import base64
import datetime as dt
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents import envelope, ingest, inventory, protocol, rotation
from agents.models import Alarm, Node, Receipt
from agents.states import AlarmKind
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


def a_request(machine: Machine, *, new: Ed25519PrivateKey, **changes: Any) -> Any:
    """Return a request for a new key, with the right proof unless another is given."""
    values = {
        "protocol": 2,
        "node_id": machine.node_id,
        "public_key": make.public_key_of(new),
        **{name: value for name, value in changes.items() if name != "proof"},
    }
    bare = protocol.RotateKeyRequest(**values)
    proof = base64.b64encode(new.sign(bare.proven_bytes())).decode()
    return protocol.RotateKeyRequest(**values, proof=changes.get("proof", proof))


def seal(machine: Machine, request: Any, *, key: Any = None, at: dt.datetime = NOW) -> Any:
    return make.sign(
        key=key or machine.key,
        key_id=machine.node_id,
        path=protocol.ROTATE_KEY_PATH,
        body=protocol.encode(request),
        at=at,
    )


def rotate(machine: Machine, *, new: Ed25519PrivateKey, key: Any = None, **changes: Any) -> Node:
    request = a_request(machine, new=new, **changes)
    return rotation.rotate(request=request, signed=seal(machine, request, key=key), at=NOW)


class TestRotate:
    def test_replaces_the_key_and_keeps_all_else(self, machine: Machine) -> None:
        Node.objects.update(last_epoch=4, last_sequence=9, boot_id="b")
        new = make.new_key()
        node = rotate(machine, new=new)
        assert node.public_key == make.public_key_of(new)
        assert node.previous_public_key == make.public_key_of(machine.key)
        assert (node.key_since, node.enrolments) == (NOW, 1)
        assert (node.last_epoch, node.last_sequence, node.boot_id) == (4, 9, "b")

    def test_answers_a_repeated_request_alike(self, machine: Machine) -> None:
        new = make.new_key()
        first = rotate(machine, new=new)
        again = rotate(machine, new=new)
        assert rotation.reply(node=first, at=NOW) == rotation.reply(node=again, at=NOW)
        assert Node.objects.get().previous_public_key == make.public_key_of(machine.key)

    def test_the_old_key_brings_no_other_key_afterwards(self, machine: Machine) -> None:
        rotate(machine, new=make.new_key())
        before = Node.objects.values().get()
        with pytest.raises(envelope.BadSignature):
            rotate(machine, new=make.new_key())
        assert Node.objects.values().get() == before

    def test_the_old_key_reports_no_more_and_the_new_one_does(self, machine: Machine) -> None:
        new = make.new_key()
        rotate(machine, new=new)
        sealing: dict[str, Any] = {
            "key_id": machine.node_id,
            "path": protocol.REPORT_PATH,
            "body": b"{}",
        }
        ingest.authenticate(signed=make.sign(key=new, **sealing), at=NOW)
        with pytest.raises(envelope.BadSignature):
            ingest.authenticate(signed=make.sign(key=machine.key, **sealing), at=NOW)

    @pytest.mark.parametrize("proof", ["", "nonsense", "\u00e9", "A" * 86 + "=="])
    def test_refuses_a_key_that_its_bearer_does_not_hold(
        self, machine: Machine, proof: str
    ) -> None:
        with pytest.raises(envelope.BadSignature, match="proof"):
            rotate(machine, new=make.new_key(), proof=proof)
        assert Node.objects.get().previous_public_key == ""

    def test_refuses_a_proof_for_another_node(self, machine: Machine) -> None:
        other, new = make.make_machine(), make.new_key()
        request = a_request(other, new=new)
        moved = protocol.RotateKeyRequest(
            protocol=2,
            node_id=machine.node_id,
            public_key=request.public_key,
            proof=request.proof,
        )
        with pytest.raises(envelope.BadSignature, match="proof"):
            rotation.rotate(request=moved, signed=seal(machine, moved), at=NOW)

    def test_refuses_a_request_that_a_stranger_signed(self, machine: Machine) -> None:
        with pytest.raises(envelope.BadSignature):
            rotate(machine, new=make.new_key(), key=make.new_key())

    def test_refuses_a_request_in_the_name_of_another_node(self, machine: Machine) -> None:
        with pytest.raises(envelope.MalformedReport):
            rotate(machine, new=make.new_key(), node_id=make.make_machine().node_id)

    def test_refuses_the_key_of_another_machine(self, machine: Machine) -> None:
        other = make.make_machine()
        with pytest.raises(rotation.KeyRotationRefused, match="another machine"):
            rotate(machine, new=other.key)

    def test_refuses_the_present_key(self, machine: Machine) -> None:
        with pytest.raises(rotation.KeyRotationRefused, match="present"):
            rotate(machine, new=machine.key)

    def test_refuses_a_revoked_node(self, machine: Machine) -> None:
        inventory.revoke(node=machine.node, at=NOW, actor="owner")
        with pytest.raises(inventory.NodeRevoked):
            rotate(machine, new=make.new_key())
        assert Node.objects.get().public_key == make.public_key_of(machine.key)

    def test_refuses_a_key_that_two_machines_seem_to_have(self, machine: Machine) -> None:
        Alarm.objects.create(
            node=machine.node, kind=AlarmKind.NODE_CLONED, detail="two", raised_at=NOW
        )
        with pytest.raises(rotation.KeyRotationRefused, match="two machines"):
            rotate(machine, new=make.new_key())

    def test_of_two_requests_that_read_the_same_key_one_wins(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def is_cloned(*, node: Node) -> bool:
            Node.objects.filter(pk=node.pk).update(public_key=make.public_key_of(make.new_key()))
            return False

        monkeypatch.setattr("agents.alarms.is_cloned", is_cloned)
        with pytest.raises(envelope.BadSignature, match="a moment ago"):
            rotate(machine, new=make.new_key())


class TestWhatTheOldKeySigned:
    def test_a_receipt_that_waited_in_the_spool_is_taken(self, machine: Machine) -> None:
        grant = make.make_grant(node=machine.node)
        waiting = make.receipt(grant=grant, key=machine.key)
        node = rotate(machine, new=make.new_key())
        ingest.accept(node=node, report=make.report(machine=machine, receipts=[waiting]), at=NOW)
        assert Receipt.objects.get().signature == waiting.signature

    def test_a_receipt_by_the_key_before_the_previous_one_is_not(self, machine: Machine) -> None:
        grant = make.make_grant(node=machine.node)
        waiting = make.receipt(grant=grant, key=machine.key)
        second = make.new_key()
        rotate(machine, new=second)
        node = rotate(machine, new=make.new_key(), key=second)
        ingest.accept(node=node, report=make.report(machine=machine, receipts=[waiting]), at=NOW)
        assert not Receipt.objects.exists()


@pytest.mark.parametrize(("age_days", "asked"), [(0, False), (90, False), (91, True)])
def test_a_node_is_asked_for_a_new_key_after_ninety_days(age_days: int, *, asked: bool) -> None:
    machine = make.make_machine()
    later = NOW + dt.timedelta(days=age_days)
    reply = ingest.accept(node=machine.node, report=make.report(machine=machine), at=later)
    assert reply.rotate_key is asked


@pytest.mark.urls("marketplace.api.agent")
class TestOverHttp:
    def post(self, machine: Machine, request: Any, **changes: Any) -> Any:
        with time_machine.travel(NOW, tick=False):
            return make.post(seal(machine, request, **changes))

    def test_answers_with_the_key_that_counts_from_now_on(self, machine: Machine) -> None:
        new = make.new_key()
        request = a_request(machine, new=new)
        for _ in range(2):
            response = self.post(machine, request)
            assert response.status_code == 200
            reply = protocol.decode(protocol.RotateKeyReply, response.content)
            assert (reply.node_id, reply.public_key) == (
                machine.node_id,
                make.public_key_of(new),
            )

    def test_refusals_have_their_codes(self, machine: Machine) -> None:
        request = a_request(machine, new=make.new_key())
        forged = self.post(machine, request, key=make.new_key())
        assert (forged.status_code, forged.json()["code"]) == (401, "bad_signature")
        late = self.post(machine, request, at=NOW - make.seconds(300))
        assert (late.status_code, late.json()["code"]) == (409, "clock_skew")
        same = self.post(machine, a_request(machine, new=machine.key))
        assert (same.status_code, same.json()["code"]) == (409, "key_rotation_refused")
