"""Two processes, one node: real transactions, and a twin that shows what happens without the guard."""

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from agents import enrolment, ingest
from agents.models import EnrolmentToken, Gpu, MeterReading, Node
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db(transaction=True)
WAIT_SECONDS = 20


def race(*runners: Callable[[], object]) -> list[object]:
    """Run all at once, each with a connection of its own; return what they returned or raised."""
    start = threading.Barrier(len(runners))
    outcomes: list[object] = [None] * len(runners)

    def run(number: int) -> None:
        try:
            start.wait(timeout=WAIT_SECONDS)
            outcomes[number] = runners[number]()
        except Exception as error:  # noqa: BLE001 - the test looks at whatever came
            outcomes[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(runners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=WAIT_SECONDS)
    return outcomes


class TestTwoEqualReports:
    def test_one_is_accepted_and_the_other_refused(self) -> None:
        machine = make.make_machine()
        grant = make.make_grant(node=machine.node)
        report = make.report(
            machine=machine,
            meters=[make.meter(grant=grant)],
            readings=[make.reading(gpu_uuid=machine.gpu_uuids[0])],
        )

        def accept() -> object:
            return ingest.accept(node=Node.objects.get(pk=machine.node_id), report=report, at=NOW)

        outcomes = race(*[accept] * 4)
        replayed = [o for o in outcomes if isinstance(o, ingest.ReportReplayed)]
        accepted = [o for o in outcomes if getattr(o, "accepted", False)]
        assert (len(accepted), len(replayed)) == (1, 3), outcomes
        assert MeterReading.objects.count() == 1

    def test_both_are_accepted_when_the_pair_is_only_looked_at(self) -> None:
        """The control twin: read, compare in Python, write, as a first draft would do."""
        machine = make.make_machine()
        both_have_looked = threading.Barrier(2)

        def accept() -> bool:
            node = Node.objects.get(pk=machine.node_id)
            is_newer = (node.last_epoch, node.last_sequence) < (1, 1)
            both_have_looked.wait(timeout=WAIT_SECONDS)
            if is_newer:
                Node.objects.filter(pk=node.pk).update(last_epoch=1, last_sequence=1)
            return is_newer

        assert race(accept, accept) == [True, True]


class TestTwoEnrolments:
    def test_with_the_last_use_of_a_token_make_one_node(self) -> None:
        make.make_gpu_model()
        _, secret = make.make_token(nodes_max=1)
        requests = [make.enrol_request(token=secret, key=make.new_key()) for _ in range(3)]
        outcomes = race(
            *[lambda r=request: enrolment.enrol(request=r, at=NOW) for request in requests]
        )
        refused = [o for o in outcomes if isinstance(o, enrolment.EnrolmentTokenInvalid)]
        assert len(refused) == 2, outcomes
        assert (Node.objects.count(), EnrolmentToken.objects.get().nodes_enrolled) == (1, 1)

    def test_of_the_same_gpus_in_two_orders_make_one_node_and_no_deadlock(self) -> None:
        make.make_gpu_model()
        gpus = make.identities(8)
        requests = []
        for order in (gpus, gpus[::-1]):
            _, secret = make.make_token()
            requests.append(make.enrol_request(token=secret, key=make.new_key(), gpus=order))
        outcomes = race(
            *[lambda r=request: enrolment.enrol(request=r, at=NOW) for request in requests]
        )
        assert sum(isinstance(o, Node) for o in outcomes) == 1, outcomes
        assert sum(isinstance(o, enrolment.GpuAlreadyEnrolled) for o in outcomes) == 1, outcomes
        assert (Node.objects.count(), Gpu.objects.count()) == (1, 8)

    def test_of_one_machine_with_two_tokens_make_one_node(self) -> None:
        make.make_gpu_model()
        owner = make.make_owner()
        key, gpus = make.new_key(), make.identities(2)
        requests = [
            make.enrol_request(
                token=make.make_token(organization=owner)[1],
                key=key,
                gpus=gpus,
                machine_id="machine-1",
            )
            for _ in range(2)
        ]
        outcomes = race(
            *[lambda r=request: enrolment.enrol(request=r, at=NOW) for request in requests]
        )
        assert all(isinstance(o, Node | enrolment.NodeAlreadyEnrolled) for o in outcomes), outcomes
        assert Node.objects.count() == 1
