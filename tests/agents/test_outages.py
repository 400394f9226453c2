"""Outages: the times in which a GPU was quarantined or lost, the same in whatever order they were told."""

import datetime as dt
import itertools
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import ingest, outages, protocol
from agents.models import Gpu, GpuEvent, Outage
from agents.protocol import Cause, Health
from marketplace.core.windows import Window
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

pytestmark = pytest.mark.django_db

HEALTHY, SUSPECT, QUARANTINED, LOST = (
    Health.HEALTHY,
    Health.SUSPECT,
    Health.QUARANTINED,
    Health.LOST,
)
Row = tuple[float, float | None, str, str]


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


def accept(machine: Machine, at: dt.datetime = NOW, **parts: Any) -> protocol.ReportReply:
    machine.node.refresh_from_db()
    parts.setdefault("sequence", machine.node.last_sequence + 1)
    parts.setdefault("epoch", max(machine.node.last_epoch, 1))
    return ingest.accept(node=machine.node, report=make.report(machine=machine, **parts), at=at)


def told(machine: Machine, second: float, health: Health, **changes: Any) -> protocol.GpuEvent:
    at = NOW + make.seconds(second)
    return make.event(gpu_uuid=machine.gpu_uuids[0], at=at, health=health, **changes)


def seen(machine: Machine, second: float, health: Health) -> protocol.Reading:
    at = NOW + make.seconds(second)
    return make.reading(gpu_uuid=machine.gpu_uuids[0], measured_at=at, health=health)


def rows() -> list[Row]:
    return [
        (
            (outage.starts_at - NOW).total_seconds(),
            None if outage.ends_at is None else (outage.ends_at - NOW).total_seconds(),
            outage.health,
            outage.cause,
        )
        for outage in Outage.objects.order_by("starts_at")
    ]


class TestEvents:
    @pytest.mark.parametrize("grave", [QUARANTINED, LOST])
    @pytest.mark.parametrize("mended", [HEALTHY, SUSPECT])
    def test_open_an_outage_and_close_it(
        self, machine: Machine, grave: Health, mended: Health
    ) -> None:
        accept(machine, events=[told(machine, 0, grave)])
        assert rows() == [(0, None, grave, "hardware")]
        accept(machine, events=[told(machine, 60, mended)])
        assert rows() == [(0, 60, grave, "hardware")]

    def test_that_change_an_outage_begin_another_one_without_a_gap(self, machine: Machine) -> None:
        events = [told(machine, 0, LOST, cause=Cause.UNKNOWN), told(machine, 5, QUARANTINED)]
        accept(machine, events=events)
        assert rows() == [(0, 5, "lost", "unknown"), (5, None, "quarantined", "hardware")]

    def test_that_come_late_divide_what_was_known(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 0, LOST), told(machine, 90, LOST)])
        accept(machine, events=[told(machine, 30, HEALTHY)])
        assert rows() == [(0, 30, "lost", "hardware"), (90, None, "lost", "hardware")]

    def test_that_say_suspect_are_no_outage(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 0, SUSPECT)])
        assert rows() == []

    def test_of_one_gpu_leave_the_others_alone(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 0, LOST)])
        assert Outage.objects.get().gpu.uuid == machine.gpu_uuids[0]

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_make_the_same_outages_in_any_order_and_however_often(
        self, machine: Machine, data: st.DataObject
    ) -> None:
        states = data.draw(
            st.lists(
                st.tuples(st.integers(0, 8), st.sampled_from(Health), st.sampled_from(Cause)),
                min_size=1,
                max_size=8,
            )
        )
        events = [
            told(machine, second, health, cause=cause, sequence=number)
            for number, (second, health, cause) in enumerate(states, start=1)
        ]
        shuffled = data.draw(st.permutations(events))
        again = data.draw(st.lists(st.sampled_from(events), max_size=5))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=3)))

        def outcome(batches: list[list[protocol.GpuEvent]]) -> list[Row]:
            savepoint = transaction.savepoint()
            for batch in batches:
                accept(machine, events=batch)
            found = rows()
            transaction.savepoint_rollback(savepoint)
            return found

        whole = [*shuffled, *again]
        bounds = [0, *cuts, len(whole)]
        batches = [whole[a:b] for a, b in itertools.pairwise(bounds)]
        found = outcome(batches)
        in_order = sorted(events, key=lambda e: (e.at, e.sequence))
        assert found == outcome([in_order])
        assert found == _expected(in_order, cause_of=_stored_cause)


def _stored_cause(event: protocol.GpuEvent) -> Cause:
    # No lease had the GPU, so nothing is put down to a tenant.
    return Cause.UNKNOWN if event.cause is Cause.TENANT else event.cause


def _expected(events: list[protocol.GpuEvent], *, cause_of: Any) -> list[Row]:
    """Say it again, second by second and without a database."""
    found: list[Row] = []
    for position, event in enumerate(events):
        later = events[position + 1] if position + 1 < len(events) else None
        if event.health not in (QUARANTINED, LOST) or (later is not None and later.at == event.at):
            continue
        assert event.health is not None
        ends = None if later is None else (later.at - NOW).total_seconds()
        found.append(((event.at - NOW).total_seconds(), ends, event.health, cause_of(event)))
    return found


class TestReadings:
    def test_open_and_close_an_outage_where_no_event_came(self, machine: Machine) -> None:
        accept(machine, protocol=1, readings=[seen(machine, 0, LOST)])
        assert rows() == [(0, None, "lost", "unknown")]
        accept(machine, protocol=1, readings=[seen(machine, 15, LOST)])
        accept(machine, protocol=1, readings=[seen(machine, 30, HEALTHY)])
        assert rows() == [(0, 30, "lost", "unknown")]
        accept(machine, protocol=1, readings=[seen(machine, 45, QUARANTINED)])
        assert rows()[1:] == [(45, None, "quarantined", "unknown")]

    def test_that_are_healthy_ask_nothing(
        self, machine: Machine, django_assert_num_queries: Any
    ) -> None:
        gpu = Gpu.objects.get(uuid=machine.gpu_uuids[0])
        with django_assert_num_queries(0):
            outages.follow_reading(gpu=gpu, reading=seen(machine, 0, HEALTHY))

    def test_add_nothing_to_an_event_of_the_same_report(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 0, LOST)], readings=[seen(machine, 0, LOST)])
        assert rows() == [(0, None, "lost", "hardware")]

    def test_give_way_to_an_event_that_comes_after_them(self, machine: Machine) -> None:
        accept(machine, readings=[seen(machine, 10, LOST)])
        accept(machine, events=[told(machine, 5, LOST)])
        assert rows() == [(5, None, "lost", "hardware")]

    def test_end_where_the_first_event_of_a_new_agent_begins(self, machine: Machine) -> None:
        accept(machine, protocol=1, readings=[seen(machine, 0, LOST)])
        accept(machine, events=[told(machine, 60, LOST)])
        assert rows() == [(0, 60, "lost", "unknown"), (60, None, "lost", "hardware")]

    def test_close_what_an_agent_that_lost_its_disk_had_opened(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 0, LOST)], readings=[seen(machine, 0, LOST)])
        accept(machine, readings=[seen(machine, 60, HEALTHY)])
        assert rows() == [(0, 60, "lost", "hardware")]
        accept(machine, events=[told(machine, 45, HEALTHY)])
        assert rows() == [(0, 45, "lost", "hardware")]

    def test_that_are_older_than_an_event_change_nothing(self, machine: Machine) -> None:
        accept(machine, events=[told(machine, 30, HEALTHY)], readings=[seen(machine, 20, LOST)])
        assert rows() == []

    def test_name_the_lease_that_has_the_gpu(self, machine: Machine) -> None:
        grant = make.make_grant(node=machine.node)
        active = protocol.LeaseStatus(
            lease_id=grant.lease_id, lease_epoch=1, state=protocol.LeaseState.ACTIVE
        )
        accept(machine, protocol=1, leases=[active], readings=[seen(machine, 0, LOST)])
        assert Outage.objects.get().lease_id == grant.lease_id


class TestAsking:
    @pytest.fixture
    def uuid(self, machine: Machine) -> str:
        """Two outages: from second 0 to 10, and from second 20 on."""
        grant = make.make_grant(node=machine.node)
        named = {"lease_id": grant.lease_id, "lease_epoch": 1}
        events = [
            told(machine, 0, LOST, cause=Cause.TENANT, **named),
            told(machine, 10, HEALTHY),
            told(machine, 20, QUARANTINED),
        ]
        accept(machine, events=events)
        return machine.gpu_uuids[0]

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            ((-20, 0), []),
            ((-20, 1), [(0, 1)]),
            ((5, 15), [(5, 10)]),
            ((10, 20), []),
            ((0, 100), [(0, 10), (20, 100)]),
            ((30, 40), [(30, 40)]),
        ],
    )
    def test_clips_outages_to_the_window(
        self, uuid: str, asked: tuple[int, int], found: list[tuple[int, int]]
    ) -> None:
        window = Window(*(NOW + make.seconds(second) for second in asked))
        parts = outages.between(gpu_uuid=uuid, window=window)
        assert [
            tuple((i - NOW).total_seconds() for i in (p.window.starts_at, p.window.ends_at))
            for p in parts
        ] == found

    def test_finds_what_lasts_and_what_began_under_a_lease(self, uuid: str) -> None:
        (lasting,) = outages.open_for(gpu_uuids=[uuid])
        assert lasting.health == "quarantined"
        (old,) = outages.of_lease(lease_id=GpuEvent.objects.exclude(lease_id="")[0].lease_id)
        assert (old.health, old.cause) == ("lost", "tenant")
