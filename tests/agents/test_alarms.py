"""One GPU at two nodes, one key in two machines: nothing of it is sold until it is settled."""

import datetime as dt
from typing import Any

import pytest

from agents import alarms, enrolment, ingest, inventory, protocol
from agents.alarms import CLAIM_SECONDS
from agents.models import Alarm, Gpu, Node
from marketplace.core.errors import InvalidValue
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db
MINUTE = dt.timedelta(minutes=1)


def report(machine: Machine, *, at: dt.datetime = NOW, **parts: Any) -> protocol.ReportReply:
    node = Node.objects.get(pk=machine.node_id)
    parts.setdefault("sequence", node.last_sequence + 1)
    parts.setdefault("epoch", max(1, node.last_epoch))
    return ingest.accept(node=node, report=make.report(machine=machine, **parts), at=at)


def identities(*machines: Machine) -> list[protocol.GpuIdentity]:
    uuids = [uuid for machine in machines for uuid in machine.gpu_uuids]
    return [make.identity(uuid=uuid, index=index) for index, uuid in enumerate(uuids)]


def sellable() -> set[str]:
    return set(inventory.sellable_gpus(at=NOW).values_list("uuid", flat=True))


def open_at() -> set[tuple[str, str]]:
    return set(alarms.open_alarms().values_list("node_id", "gpu_uuid"))


class TwoMachines:
    """Two live machines, of which one claims the other's only GPU, too."""

    @pytest.fixture(autouse=True)
    def _two_machines(self) -> None:
        self.rightful, self.rival = make.make_machine(gpus=1), make.make_machine(gpus=1)
        (self.uuid,) = self.rightful.gpu_uuids
        (self.other_uuid,) = self.rival.gpu_uuids
        report(self.rightful)

    def claim(self, *, at: dt.datetime = NOW, **parts: Any) -> None:
        report(self.rival, at=at, inventory=identities(self.rival, self.rightful), **parts)

    def both(self) -> set[tuple[str, str]]:
        return {(self.rightful.node_id, self.uuid), (self.rival.node_id, self.uuid)}


class TestAGpuClaimedTwice(TwoMachines):
    def test_is_withdrawn_at_both_and_the_other_gpus_are_not(self) -> None:
        assert sellable() == {self.uuid}
        self.claim()
        assert open_at() == self.both()
        assert sellable() == {self.other_uuid}

    def test_raises_one_alarm_however_often_it_is_claimed(self) -> None:
        self.claim()
        self.claim()
        assert Alarm.objects.count() == 2

    def test_tells_neither_owner_who_the_other_is(self) -> None:
        self.claim()
        for alarm in Alarm.objects.all():
            for machine in (self.rightful, self.rival):
                assert machine.node_id not in alarm.detail
                assert machine.node.organization.name not in alarm.detail

    def test_is_free_again_when_the_rival_no_longer_names_it(self) -> None:
        self.claim()
        report(self.rival, inventory=identities(self.rival))
        assert open_at() == set()
        assert set(Alarm.objects.values_list("settled_by", flat=True)) == {"market"}
        assert sellable() == {self.uuid, self.other_uuid}

    def test_stays_withdrawn_while_a_second_rival_names_it(self) -> None:
        second = make.make_machine(gpus=1)
        self.claim()
        report(second, inventory=identities(second, self.rightful))
        report(self.rival, inventory=identities(self.rival))
        assert open_at() == {(self.rightful.node_id, self.uuid), (second.node_id, self.uuid)}

    def test_is_free_again_ten_minutes_after_the_rival_fell_silent(self) -> None:
        self.claim()
        silence = dt.timedelta(seconds=CLAIM_SECONDS)
        report(self.rightful, at=NOW + silence)
        assert alarms.review(at=NOW + silence) == 0
        assert alarms.review(at=NOW + silence + make.seconds(1)) == 1
        assert open_at() == set()

    def test_is_withdrawn_again_when_the_silent_rival_returns(self) -> None:
        self.claim()
        alarms.review(at=NOW + 11 * MINUTE)
        report(self.rightful, at=NOW + 12 * MINUTE)
        assert report(self.rival, at=NOW + 12 * MINUTE).want_inventory
        self.claim(at=NOW + 12 * MINUTE)
        assert open_at() == self.both()

    def test_is_free_again_when_the_rival_is_revoked(self) -> None:
        self.claim()
        inventory.revoke(node=self.rival.node, at=NOW, actor="staff")
        alarms.review(at=NOW)
        assert open_at() == set()

    def test_of_a_silent_node_is_withdrawn_there_once_it_is_back(self) -> None:
        Node.objects.filter(pk=self.rightful.node_id).update(last_report_at=NOW - 11 * MINUTE)
        self.claim()
        assert open_at() == {(self.rival.node_id, self.uuid)}
        report(self.rightful)
        alarms.review(at=NOW)
        assert open_at() == self.both()

    def test_review_leaves_alone_what_both_still_claim(self) -> None:
        self.claim()
        assert alarms.review(at=NOW) == alarms.review(at=NOW) == 0
        assert open_at() == self.both()


class TestSettling(TwoMachines):
    def settle(self, machine: Machine) -> None:
        alarm = Alarm.objects.get(node=self.rightful.node, settled_at__isnull=True)
        alarms.settle(alarm=alarm, rightful_node=machine.node, at=NOW, actor="user:staff")

    def test_for_the_first_node_ends_both_and_ignores_later_claims(self) -> None:
        self.claim()
        self.settle(self.rightful)
        before = alarms.IGNORED_CLAIMS._value.get()
        self.claim()
        assert open_at() == set()
        assert sellable() == {self.uuid, self.other_uuid}
        assert alarms.IGNORED_CLAIMS._value.get() == before + 1

    def test_holds_against_every_node_of_the_rival_s_owner_and_no_other(self) -> None:
        self.claim()
        self.settle(self.rightful)
        sibling = make.make_machine(gpus=1, organization=self.rival.node.organization)
        report(sibling, inventory=identities(sibling, self.rightful))
        assert open_at() == set()
        stranger = make.make_machine(gpus=1)
        report(stranger, inventory=identities(stranger, self.rightful))
        assert open_at() == {(self.rightful.node_id, self.uuid), (stranger.node_id, self.uuid)}

    def test_for_the_rival_moves_the_gpu_to_it(self) -> None:
        self.claim()
        slot = Gpu.objects.get(uuid=self.uuid).slot
        self.settle(self.rival)
        assert report(self.rival).want_inventory
        self.claim()
        assert Gpu.objects.get(uuid=self.uuid).node_id == self.rival.node_id
        given_up = Gpu.objects.get(slot=slot)
        assert (given_up.node_id, given_up.present) == (self.rightful.node_id, False)
        report(self.rightful, inventory=identities(self.rightful))
        assert open_at() == set()
        assert sellable() == {self.uuid, self.other_uuid}

    def test_for_the_rival_waits_for_the_lease_on_the_gpu(self) -> None:
        make.make_grant(node=self.rightful.node)
        self.claim()
        with pytest.raises(alarms.AlarmConflict, match="serves a lease"):
            self.settle(self.rival)
        assert open_at() == self.both()

    def test_for_a_node_that_does_not_claim_it_is_refused(self) -> None:
        self.claim()
        with pytest.raises(InvalidValue):
            self.settle(make.make_machine())

    def test_twice_is_refused(self) -> None:
        self.claim()
        alarm = Alarm.objects.get(node=self.rightful.node)
        self.settle(self.rightful)
        with pytest.raises(alarms.AlarmConflict):
            alarms.settle(alarm=alarm, rightful_node=self.rightful.node, at=NOW, actor="a")


class TestAClonedNode:
    @pytest.fixture(autouse=True)
    def _machine(self) -> None:
        self.machine = make.make_machine(gpus=1)
        report(self.machine, boot_id="boot-1")

    def is_cloned(self) -> bool:
        return alarms.is_cloned(node=self.machine.node)

    def late(self, *, epoch: int, at: dt.datetime = NOW, sequence: int = 1) -> None:
        with pytest.raises(ingest.ReportReplayed):
            report(self.machine, at=at, epoch=epoch, sequence=sequence)

    def test_shows_by_a_boot_id_that_comes_back(self) -> None:
        report(self.machine, boot_id="boot-2", epoch=2)
        assert sellable()
        report(self.machine, boot_id="boot-1", epoch=3)
        assert open_at() == {(self.machine.node_id, "")}
        assert not sellable()

    def test_is_not_seen_in_reboots_and_restarts(self) -> None:
        for epoch in range(2, 12):
            report(self.machine, epoch=epoch, boot_id=f"boot-{epoch // 2}")
        assert not self.is_cloned()

    def test_shows_by_a_race_for_the_higher_epoch(self) -> None:
        # Two agents with one key and one boot id: each refused one raises its epoch above the other's.
        for epoch in range(2, 8, 2):
            report(self.machine, epoch=epoch + 1)
            assert not self.is_cloned()
            self.late(epoch=epoch)
        assert open_at() == {(self.machine.node_id, "")}

    def test_is_not_seen_in_an_agent_that_lost_its_disk(self) -> None:
        report(self.machine, epoch=9)
        self.late(epoch=1)
        for number in range(1, 9):
            report(self.machine, epoch=10, sequence=number)
        assert not self.is_cloned()

    def test_is_not_seen_in_one_report_that_somebody_repeats(self) -> None:
        report(self.machine, epoch=9)
        for number in range(9):
            self.late(epoch=3, sequence=1 + number)
        self.late(epoch=2)
        assert not self.is_cloned()

    def test_is_not_seen_in_late_epochs_that_lie_far_apart(self) -> None:
        report(self.machine, epoch=99)
        for number in range(6):
            self.late(epoch=2 + number, at=NOW + number * 6 * MINUTE)
        assert not self.is_cloned()

    def test_ends_by_staff_s_word(self) -> None:
        self.test_shows_by_a_boot_id_that_comes_back()
        alarms.settle(
            alarm=Alarm.objects.get(), rightful_node=self.machine.node, at=NOW, actor="user:staff"
        )
        assert sellable()
        report(self.machine, boot_id="boot-1")
        assert not self.is_cloned()

    def test_ends_with_a_key_that_the_clone_does_not_have(self) -> None:
        self.test_shows_by_a_boot_id_that_comes_back()
        node = Node.objects.get(pk=self.machine.node_id)
        _, secret = make.make_token(organization=node.organization)
        request = make.enrol_request(
            token=secret,
            key=make.new_key(),
            machine_id=node.machine_id,
            gpus=identities(self.machine),
        )
        enrolment.enrol(request=request, at=NOW)
        assert not self.is_cloned()
