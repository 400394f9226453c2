"""The market's wishes to nodes, and what came of them."""

from typing import Any

import pytest

from agents import grants, ingest, protocol
from agents.models import Grant, Node
from marketplace.core.errors import InvalidValue, NotFound
from marketplace.core.windows import Window
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db
LEASE = "lse_1"


def sent_to(node: Node) -> list[protocol.Grant]:
    """Return what the node's next answer lists."""
    standing = ingest.standing_of(node_id=node.pk)
    assert standing is not None
    return grants.as_messages(rows=standing.grants.values())


class TestIssue:
    def test_twice_gives_the_first_grant(self) -> None:
        node = make.make_node()
        first = make.make_grant(node=node, lease_id=LEASE)
        again = make.make_grant(node=node, lease_id=LEASE)
        assert (first.pk, Grant.objects.count()) == (again.pk, 1)

    @pytest.mark.parametrize("changed", ["window", "gpu_uuids"])
    def test_refuses_the_same_lease_and_epoch_with_another_content(self, changed: str) -> None:
        node = make.make_node(gpus=2)
        first = make.make_grant(node=node, lease_id=LEASE)
        changes: dict[str, Any] = {
            "window": Window(NOW, NOW + make.seconds(60)),
            "gpu_uuids": first.gpu_uuids[:1],
        }
        with pytest.raises(grants.GrantConflict):
            make.make_grant(node=node, lease_id=LEASE, **{changed: changes[changed]})

    def test_refuses_a_gpu_of_another_node(self) -> None:
        machine = make.make_machine()
        with pytest.raises(InvalidValue):
            make.make_grant(node=make.make_node(), gpu_uuids=list(machine.gpu_uuids))
        assert not Grant.objects.exists()

    def test_refuses_no_gpu(self) -> None:
        with pytest.raises(InvalidValue):
            make.make_grant(node=make.make_node(gpus=0))

    def test_of_a_higher_epoch_stops_the_lower_one(self) -> None:
        old = make.make_grant(node=make.make_node(), lease_id=LEASE)
        new = make.make_grant(node=make.make_node(), lease_id=LEASE, lease_epoch=2)
        old.refresh_from_db()
        assert (old.desired_state, new.desired_state) == ("stop", "run")


class TestChangeEnd:
    def test_reaches_the_node_with_its_next_answer(self) -> None:
        node = make.make_node()
        grant = make.make_grant(node=node, lease_id=LEASE)
        later = grant.not_after + make.seconds(3600)
        for _ in range(2):
            grants.change_end(lease_id=LEASE, lease_epoch=1, not_after=later, at=NOW)
        (sent,) = sent_to(node)
        assert (sent.not_after, sent.desired_state) == (later, protocol.DesiredState.RUN)

    def test_refuses_what_is_not_there_stopped_or_closed(self) -> None:
        later = NOW + make.seconds(3600)
        with pytest.raises(NotFound):
            grants.change_end(lease_id=LEASE, lease_epoch=1, not_after=later, at=NOW)
        grant = make.make_grant(node=make.make_node(), lease_id=LEASE)
        grants.stop(lease_id=LEASE, lease_epoch=1, at=NOW)
        with pytest.raises(NotFound):
            grants.change_end(lease_id=LEASE, lease_epoch=1, not_after=later, at=NOW)
        grants.close(lease_id=LEASE, lease_epoch=1, at=NOW)
        with pytest.raises(NotFound):
            grants.change_end(lease_id=LEASE, lease_epoch=1, not_after=later, at=NOW)
        assert Grant.objects.get(pk=grant.pk).not_after == grant.not_after


class TestStopAndClose:
    def test_a_stopped_grant_is_sent_until_it_is_closed(self) -> None:
        node = make.make_node()
        make.make_grant(node=node, lease_id=LEASE)
        for _ in range(2):
            grants.stop(lease_id=LEASE, lease_epoch=1, at=NOW)
        (sent,) = sent_to(node)
        assert sent.desired_state is protocol.DesiredState.STOP
        for seconds in (0, 9):
            grants.close(lease_id=LEASE, lease_epoch=1, at=NOW + make.seconds(seconds))
        assert sent_to(node) == []
        assert Grant.objects.get().closed_at == NOW

    @pytest.mark.parametrize("verb", [grants.stop, grants.close])
    def test_refuse_a_grant_that_does_not_exist(self, verb: Any) -> None:
        with pytest.raises(NotFound):
            verb(lease_id=LEASE, lease_epoch=1, at=NOW)


class TestOpenFor:
    def test_gives_the_wish_as_it_goes_over_the_wire(self) -> None:
        node = make.make_node()
        grant = make.make_grant(node=node, lease_id=LEASE)
        make.make_grant(node=make.make_node())
        (sent,) = sent_to(node)
        assert protocol.from_json(protocol.Grant, protocol.to_json(sent)) == sent
        assert (sent.lease_id, sent.gpu_uuids) == (LEASE, grant.gpu_uuids)
        assert (sent.not_before, sent.not_after) == (grant.not_before, grant.not_after)


class TestEvidence:
    def test_finds_receipts_by_lease_and_kind(self) -> None:
        machine = make.make_machine()
        grant = make.make_grant(node=machine.node, lease_id=LEASE)
        assert (
            grants.receipt(lease_id=LEASE, lease_epoch=1, kind=protocol.ReceiptKind.HANDOVER)
            is None
        )
        report = make.report(machine=machine, receipts=[make.receipt(grant=grant, key=machine.key)])
        ingest.accept(node=machine.node, report=report, at=NOW)
        found = grants.receipt(lease_id=LEASE, lease_epoch=1, kind=protocol.ReceiptKind.HANDOVER)
        assert grants.receipts_for(lease_ids=[LEASE, "lse_2"]) == {
            (LEASE, 1, protocol.ReceiptKind.HANDOVER): found
        }

    def test_tells_which_leases_failed_by_their_highest_epoch(self) -> None:
        for lease_id, epoch, state in (
            ("lse_a", 1, "failed"),
            ("lse_b", 1, "failed"),
            ("lse_b", 2, "active"),
            ("lse_c", 1, "ended"),
        ):
            make.make_grant(node=make.make_node(), lease_id=lease_id, lease_epoch=epoch)
            Grant.objects.filter(lease_id=lease_id, lease_epoch=epoch).update(
                reported_state=state, reported_detail="no image"
            )
        assert grants.failed(lease_ids=["lse_a", "lse_b", "lse_c"]) == {"lse_a": "no image"}
