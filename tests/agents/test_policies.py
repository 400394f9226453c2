"""Owners' rules: versions that only grow, checked strictly, and sent to the nodes that follow another one."""

from typing import Any

import pytest

from agents import ingest, inventory, policies, protocol
from agents.models import Policy
from agents.protocol import NodePolicy
from marketplace.core.errors import InvalidValue
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db


def publish(organization: Any, **document: Any) -> Policy:
    return policies.publish(organization=organization, document=document, actor="user:root", at=NOW)


class TestPublishing:
    def test_begins_with_the_defaults_and_counts_on(self) -> None:
        owner = make.make_owner()
        assert policies.current(organization=owner) == NodePolicy()
        publish(owner, idle={"free_after_seconds": 1200})
        row = publish(owner, idle={"free_after_seconds": 1800})
        now = policies.current(organization=owner)
        assert (row.version, now.version, now.idle.free_after_seconds) == (2, 2, 1800)
        assert (row.created_by, row.created_at) == ("user:root", NOW)

    def test_writes_the_whole_policy_down_so_that_later_defaults_do_not_change_it(self) -> None:
        row = publish(make.make_owner(), idle={"free_after_seconds": 1200})
        assert set(row.document) == {"idle", "health"}
        assert row.document["health"] == protocol.to_json(protocol.HealthPolicy())

    def test_of_one_owner_is_nothing_to_another(self) -> None:
        publish(make.make_owner(), idle={"free_after_seconds": 1200})
        assert policies.current(organization=make.make_owner()).version == 0

    @pytest.mark.parametrize(
        ("document", "pointer", "words"),
        [
            ({"idel": {}}, "/idel", "unknown field"),
            ({"idle": {"free_after_seconds": "600"}}, "/idle/free_after_seconds", "integer"),
            ({"idle": {"free_after_seconds": 5}}, "/idle/free_after_seconds", "between 120 and"),
            ({"health": {"xid_rules": {"79": 1}}}, "/health/xid_rules/79", "string"),
            ({"health": {"xid_rules": {"79": "no"}}}, "/health/xid_rules/79", "one of tenant"),
            ({"health": {"nvlink_inactive": "maybe"}}, "/health/nvlink_inactive", "one of ignore"),
            ({"version": 9}, "/version", "given by the market"),
            ([], "", "must be an object"),
        ],
    )
    def test_refuses_what_is_no_policy_and_says_where(
        self, document: Any, pointer: str, words: str
    ) -> None:
        with pytest.raises(InvalidValue) as refusal:
            policies.publish(organization=make.make_owner(), document=document, actor="a", at=NOW)
        assert refusal.value.pointer == pointer
        assert words in refusal.value.detail
        assert not Policy.objects.exists()

    def test_names_all_figures_that_are_out_of_bounds(self) -> None:
        with pytest.raises(InvalidValue) as refusal:
            publish(make.make_owner(), idle={"free_after_seconds": 5, "power_floor_percent": 1})
        assert "free_after_seconds" in refusal.value.detail
        assert "power_floor_percent" in refusal.value.detail


class TestFollowing:
    def answer(self, machine: make.Machine, **parts: Any) -> protocol.ReportReply:
        machine.node.refresh_from_db()
        report = make.report(machine=machine, sequence=machine.node.last_sequence + 1, **parts)
        return ingest.accept(node=machine.node, report=report, at=NOW)

    def test_a_node_hears_of_a_policy_until_it_follows_it(self) -> None:
        machine = make.make_machine()
        assert self.answer(machine).policy is None
        publish(machine.node.organization, idle={"free_after_seconds": 1200})
        sent = self.answer(machine).policy
        assert sent is not None
        assert (sent.version, sent.idle.free_after_seconds) == (1, 1200)
        assert self.answer(machine, policy_version=1).policy is None

    def test_a_node_that_follows_another_markets_policy_gets_the_defaults(self) -> None:
        machine = make.make_machine()
        assert self.answer(machine, policy_version=7).policy == NodePolicy()

    def test_a_node_of_the_first_protocol_hears_of_none(self) -> None:
        machine = make.make_machine()
        publish(machine.node.organization, idle={"free_after_seconds": 1200})
        assert self.answer(machine, protocol=1).policy is None

    def test_the_owners_word_goes_to_the_node(self) -> None:
        machine = make.make_machine()
        assert self.answer(machine).vouched_at is None
        inventory.drain(node=machine.node, at=NOW, actor="owner")
        later = NOW + make.seconds(60)
        inventory.resume(node=machine.node, at=later, actor="owner")
        assert self.answer(machine).vouched_at == later
