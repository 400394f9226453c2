"""Who may become a node, and what a token is good for."""

import datetime as dt
from typing import Any

import pytest

from agents import enrolment, ingest, inventory, protocol
from agents.models import SLOTS_PER_NODE, EnrolmentToken, Gpu, Node, NodeTransition
from marketplace.core.errors import InvalidValue
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db


class TestCreateToken:
    def test_keeps_only_a_hash_of_the_secret(self) -> None:
        token, secret = make.make_token()
        assert secret.startswith(enrolment.TOKEN_PREFIX)
        values = [str(value) for value in EnrolmentToken.objects.values_list().get()]
        assert not any(secret in value for value in values)
        assert token.nodes_enrolled == 0

    def test_makes_a_new_secret_each_time(self) -> None:
        owner = make.make_owner()
        secrets = {make.make_token(organization=owner)[1] for _ in range(3)}
        assert len(secrets) == 3

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"region": ""}, "/region"),
            ({"region": "r" * 61}, "/region"),
            ({"fabric": "f" * 101}, "/fabric"),
            ({"nodes_max": 0}, "/nodes_max"),
            ({"nodes_max": enrolment.TOKEN_NODES_MAX + 1}, "/nodes_max"),
            ({"expires_at": NOW}, "/expires_at"),
            ({"expires_at": NOW + dt.timedelta(days=32)}, "/expires_at"),
            ({"labels": {"x": "y" * 101}}, "/labels"),
            ({"labels": {str(number): "" for number in range(51)}}, "/labels"),
            ({"labels": {"x": 1}}, "/labels"),
            ({"allowed_networks": ["10.0.0.0/8", "10.0.0.1/8"]}, "/allowed_networks/1"),
            ({"allowed_networks": ["here"]}, "/allowed_networks/0"),
            ({"allowed_networks": ["10.0.0.0/8"] * 33}, "/allowed_networks"),
        ],
    )
    def test_refuses_values_out_of_bounds(self, changes: dict[str, Any], pointer: str) -> None:
        with pytest.raises(InvalidValue) as refusal:
            make.make_token(**changes)
        assert refusal.value.pointer == pointer

    def test_refuses_an_organization_without_machines(self) -> None:
        tenant = make.make_owner(is_owner=False, is_tenant=True)
        with pytest.raises(InvalidValue):
            make.make_token(organization=tenant)


class TestEnrol:
    def test_gives_the_node_the_place_of_its_token(self) -> None:
        node = make.make_machine().node
        token = EnrolmentToken.objects.get()
        assert (node.region, node.fabric, node.labels) == ("eu-north", "ib-1", {"rack": "a1"})
        assert (node.organization, token.nodes_enrolled) == (token.organization, 1)
        move = NodeTransition.objects.get(node=node)
        assert (move.from_status, move.to_status, move.actor) == ("", "active", token.pk)

    def test_gives_each_node_a_block_of_slots_of_its_own(self) -> None:
        nodes = [make.make_machine(gpus=3).node for _ in range(3)]
        assert len({node.slot_base for node in nodes}) == 3
        for node in nodes:
            slots = list(Gpu.objects.filter(node=node).values_list("slot", flat=True))
            assert node.slot_base % SLOTS_PER_NODE == 0
            assert slots == [node.slot_base, node.slot_base + 1, node.slot_base + 2]

    def test_refuses_a_token_that_is_used_up(self) -> None:
        _, secret = make.make_token(nodes_max=1)
        enrolment.enrol(request=make.enrol_request(token=secret, key=make.new_key()), at=NOW)
        with pytest.raises(enrolment.EnrolmentTokenInvalid, match="used up"):
            enrolment.enrol(request=make.enrol_request(token=secret, key=make.new_key()), at=NOW)
        assert Node.objects.count() == 1

    def test_refuses_an_expired_token(self) -> None:
        _, secret = make.make_token(expires_at=NOW + make.seconds(60))
        request = make.enrol_request(token=secret, key=make.new_key())
        with pytest.raises(enrolment.EnrolmentTokenInvalid, match="expired"):
            enrolment.enrol(request=request, at=NOW + make.seconds(60))
        assert not Node.objects.exists()

    def test_refuses_a_revoked_token(self) -> None:
        token, secret = make.make_token()
        enrolment.revoke_token(token=token, at=NOW)
        enrolment.revoke_token(token=token, at=NOW + make.seconds(9))
        assert token.revoked_at == NOW
        with pytest.raises(enrolment.EnrolmentTokenInvalid, match="revoked"):
            enrolment.enrol(request=make.enrol_request(token=secret, key=make.new_key()), at=NOW)

    def test_refuses_simulated_hardware_where_it_is_not_sold(self, settings: Any) -> None:
        settings.ALLOW_SIMULATED_HARDWARE = False
        token, secret = make.make_token()
        request = make.enrol_request(token=secret, key=make.new_key(), simulated=True)
        with pytest.raises(enrolment.SimulatedHardwareRefused):
            enrolment.enrol(request=request, at=NOW)
        token.refresh_from_db()
        assert (token.nodes_enrolled, Node.objects.count()) == (0, 0)

    def test_refuses_a_gpu_of_another_node_and_stores_nothing(self) -> None:
        machine = make.make_machine()
        token, secret = make.make_token()
        gpus = [make.identity(), make.identity(uuid=machine.gpu_uuids[0], index=1)]
        request = make.enrol_request(token=secret, key=make.new_key(), gpus=gpus)
        with pytest.raises(enrolment.GpuAlreadyEnrolled, match=machine.gpu_uuids[0]):
            enrolment.enrol(request=request, at=NOW)
        token.refresh_from_db()
        assert (token.nodes_enrolled, Node.objects.count()) == (0, 1)
        assert set(Gpu.objects.values_list("uuid", flat=True)) == set(machine.gpu_uuids)
        assert not Gpu.objects.exclude(health=protocol.Health.HEALTHY).exists()

    def test_refuses_the_key_of_another_machine(self) -> None:
        machine = make.make_machine()
        _, secret = make.make_token()
        with pytest.raises(enrolment.NodeAlreadyEnrolled):
            enrolment.enrol(request=make.enrol_request(token=secret, key=machine.key), at=NOW)

    def test_lets_two_owners_have_machines_of_one_machine_id(self) -> None:
        first = make.make_machine(machine_id="cloned-image")
        second = make.make_machine(machine_id="cloned-image")
        assert first.node_id != second.node_id


class TestNetworks:
    def enrol(self, networks: list[str], address: str | None) -> Node:
        _, secret = make.make_token(allowed_networks=networks)
        request = make.enrol_request(token=secret, key=make.new_key())
        return enrolment.enrol(request=request, at=NOW, client_address=address)

    @pytest.mark.parametrize(
        ("networks", "address"),
        [
            ([], None),
            (["203.0.113.0/24"], "203.0.113.255"),
            (["203.0.113.7"], "203.0.113.7"),
            (["203.0.113.0/24"], "::ffff:203.0.113.9"),
            (["10.0.0.0/8", "2001:db8::/32"], "2001:db8::1"),
        ],
    )
    def test_a_machine_inside_of_them_enrols(
        self, networks: list[str], address: str | None
    ) -> None:
        assert self.enrol(networks, address).pk

    @pytest.mark.parametrize("address", ["203.0.114.0", "2001:db8::1", "", None, "unix:"])
    def test_a_machine_outside_of_them_is_refused_and_uses_nothing_up(
        self, address: str | None
    ) -> None:
        with pytest.raises(enrolment.EnrolmentNetworkRefused):
            self.enrol(["203.0.113.0/24"], address)
        assert EnrolmentToken.objects.get().nodes_enrolled == 0
        assert not Node.objects.exists()

    def test_are_kept_as_they_are_written_in_full_each_once(self) -> None:
        token, _ = make.make_token(allowed_networks=["10.1.2.3", "10.1.2.3/32", "2001:DB8::/32"])
        assert token.allowed_networks == ["10.1.2.3/32", "2001:db8::/32"]


class TestEnrolAgain:
    def setup_method(self) -> None:
        self.key, self.new_key = make.new_key(), make.new_key()
        self.gpus = make.identities(2)

    def enrol(self, *, at: dt.datetime = NOW, **changes: Any) -> Node:
        values: dict[str, Any] = {
            "token": self.secret,
            "key": self.key,
            "gpus": self.gpus,
            "machine_id": "machine-1",
            "simulated": False,
            **changes,
        }
        return enrolment.enrol(request=make.enrol_request(**values), at=at)

    def start(self, **changes: Any) -> Node:
        self.token, self.secret = make.make_token(expires_at=NOW + dt.timedelta(days=30), **changes)
        node = self.enrol()
        Node.objects.filter(pk=node.pk).update(
            last_epoch=4, last_sequence=9, last_report_at=NOW, boot_id="boot-9"
        )
        return node

    def uses(self) -> int:
        self.token.refresh_from_db()
        return self.token.nodes_enrolled

    def test_answers_a_repeated_request_with_the_same_node(self) -> None:
        node = self.start(nodes_max=1)
        again = self.enrol(at=NOW + make.seconds(5))
        assert (again.pk, self.uses()) == (node.pk, 1)
        assert (again.last_epoch, again.last_sequence, again.enrolments) == (4, 9, 1)

    def test_refuses_a_new_key_while_the_old_one_reports(self) -> None:
        self.start()
        with pytest.raises(enrolment.NodeAlreadyEnrolled, match="drain"):
            self.enrol(key=self.new_key, at=NOW + dt.timedelta(hours=23))
        assert self.uses() == 1
        assert Node.objects.get().public_key == make.public_key_of(self.key)

    def test_takes_a_new_key_after_a_day_of_silence(self) -> None:
        node = self.start()
        again = self.enrol(key=self.new_key, at=NOW + dt.timedelta(hours=24))
        again.refresh_from_db()
        assert again.pk == node.pk
        assert again.public_key == make.public_key_of(self.new_key)
        assert (again.last_epoch, again.last_sequence, again.boot_id) == (0, 0, "")
        assert (again.enrolments, self.uses()) == (2, 2)

    def test_takes_a_new_key_at_once_when_the_owner_drained_the_node(self) -> None:
        node = self.start()
        inventory.drain(node=node, at=NOW, actor="owner")
        again = self.enrol(key=self.new_key, at=NOW + make.seconds(5))
        assert (again.pk, again.status) == (node.pk, "draining")

    def test_takes_a_new_key_of_a_simulated_machine_at_once(self) -> None:
        self.token, self.secret = make.make_token()
        node = self.enrol(simulated=True)
        Node.objects.filter(pk=node.pk).update(last_report_at=NOW)
        again = self.enrol(simulated=True, key=self.new_key)
        assert again.pk == node.pk

    def test_keeps_gpus_and_slots_and_place(self) -> None:
        node = self.start()
        slots = dict(Gpu.objects.values_list("uuid", "slot"))
        elsewhere, self.secret = make.make_token(
            organization=node.organization, region="us-east", expires_at=NOW + dt.timedelta(days=9)
        )
        again = self.enrol(key=self.new_key, at=NOW + dt.timedelta(days=2))
        assert dict(Gpu.objects.values_list("uuid", "slot")) == slots
        assert (again.region, elsewhere.region) == ("eu-north", "us-east")

    def test_refuses_a_machine_that_turns_simulated(self) -> None:
        self.start()
        with pytest.raises(enrolment.SimulatedHardwareRefused):
            self.enrol(simulated=True, at=NOW + dt.timedelta(days=2))

    def test_refuses_a_revoked_machine(self) -> None:
        node = self.start()
        inventory.revoke(node=node, at=NOW, actor="owner")
        with pytest.raises(inventory.NodeRevoked):
            self.enrol(key=self.new_key, at=NOW + dt.timedelta(days=2))
        assert self.uses() == 1

    def test_stores_readings_that_count_from_the_start_again(self) -> None:
        node = self.start()
        grant = make.make_grant(node=node)
        old = make.Machine(key=self.key, node=node, gpu_uuids=())
        first = make.meter(grant=grant, sequence=1)
        ingest.accept(node=node, report=make.report(machine=old, epoch=5, meters=[first]), at=NOW)
        later = NOW + dt.timedelta(days=2)
        again = make.Machine(
            key=self.new_key, node=self.enrol(key=self.new_key, at=later), gpu_uuids=()
        )
        second = make.meter(
            grant=grant, sequence=1, starts_at=later - make.seconds(60), ends_at=later
        )
        report = make.report(machine=again, meters=[second])
        ingest.accept(node=again.node, report=report, at=later)
        assert node.meter_readings.count() == 2
