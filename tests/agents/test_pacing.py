"""The interval that is granted, and what follows from it."""

import datetime as dt
import statistics

import pytest

from agents import health, ingest, pacing
from agents.models import Grant, Node
from marketplace.core import ids
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("nodes", "seconds"),
    [(0, 15), (4_500, 15), (9_000, 30), (12_500, 41.67), (18_000, 60), (100_000, 60)],
)
def test_the_interval_grows_with_the_fleet_between_its_bounds(nodes: int, seconds: float) -> None:
    pacing.remember_count(nodes=nodes)
    assert pacing.base_interval_seconds(at=NOW) == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize(("setting", "expected"), [(2, 2), (1, 1), (300, 300)])
def test_the_setting_is_the_shortest_interval(settings, setting: int, expected: int) -> None:
    settings.AGENT_REPORT_INTERVAL_SECONDS = setting
    assert pacing.base_interval_seconds(at=NOW) == expected


def test_the_paces_of_nodes_lie_a_tenth_around_the_base_and_stay() -> None:
    pacing.remember_count(nodes=12_500)
    nodes = [ids.new_node_id() for _ in range(2_000)]
    granted = [pacing.granted_interval_seconds(node_id=node, at=NOW) for node in nodes]
    assert granted == [pacing.granted_interval_seconds(node_id=node, at=NOW) for node in nodes]
    assert min(granted) == 38
    assert max(granted) == 46
    assert statistics.mean(granted) == pytest.approx(41.67, abs=0.4)
    rate = sum(1 / seconds for seconds in granted) * 12_500 / len(nodes)
    assert rate == pytest.approx(pacing.REPORTS_PER_SECOND_AIMED, rel=0.02)


def test_nodes_count_for_a_day_so_that_an_outage_does_not_shorten_the_interval() -> None:
    day = dt.timedelta(hours=24)
    make.make_node(last_report_at=NOW - day)
    make.make_node(last_report_at=NOW - day + make.seconds(1))
    make.make_node(last_report_at=NOW, status="revoked")
    make.make_node(last_report_at=None)
    assert pacing._count_nodes(at=NOW) == 1


def test_nodes_are_counted_once_a_minute(django_assert_num_queries) -> None:
    pacing.remember_count(nodes=None)
    with django_assert_num_queries(1):
        for _ in range(3):
            pacing.base_interval_seconds(at=NOW)


def test_a_node_goes_stale_after_three_of_the_longest_intervals() -> None:
    pacing.remember_count(nodes=18_000)
    assert health.stale_seconds(at=NOW) == 3 * 66 + 10
    node = Node(last_report_at=NOW - make.seconds(208))
    assert health.liveness(node=node, at=NOW) is health.Liveness.FRESH
    assert health.liveness(node=node, at=NOW + make.seconds(1)) is health.Liveness.STALE


@pytest.mark.parametrize(
    ("not_before_seconds", "reported_state", "seconds_max"),
    [(120, "", 10), (0, "preparing", 10), (121, "", 17), (0, "active", 17)],
)
def test_a_node_that_is_to_start_a_lease_reports_every_ten_seconds(
    not_before_seconds: int, reported_state: str, seconds_max: int
) -> None:
    machine = make.make_machine()
    make.make_grant(node=machine.node)
    Grant.objects.update(
        not_before=NOW + make.seconds(not_before_seconds), reported_state=reported_state
    )
    reply = ingest.accept(node=machine.node, report=make.report(machine=machine), at=NOW)
    assert (reply.report_interval_seconds == 10) is (seconds_max == 10)
    assert reply.report_interval_seconds <= seconds_max
