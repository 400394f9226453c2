"""When an idle GPU may be offered: withdrawn at once, back after a while that grows with the day."""

import datetime as dt
from dataclasses import replace

import pytest

from agents import idleness, ingest, protocol
from agents.idleness import Hysteresis
from agents.models import Gpu
from agents.protocol import IdleState
from marketplace.core.windows import Window
from tests.agents import factories as make
from tests.agents.factories import NOW, Machine

NEVER = Hysteresis()
OFFERABLE, BUSY, UNKNOWN = IdleState.OFFERABLE, IdleState.BUSY, IdleState.UNKNOWN
MINUTE = dt.timedelta(minutes=1)


def moved(hysteresis: Hysteresis, *states: tuple[dt.datetime, IdleState]) -> Hysteresis:
    """Let a GPU that is offerable take one state after the other."""
    before = OFFERABLE
    for at, now in states:
        hysteresis = idleness.move(
            hysteresis=hysteresis, before=before, now=now, leased=False, at=at
        )
        before = now
    return hysteresis


class TestMove:
    def test_makes_the_first_return_of_a_day_wait_a_quarter_of_an_hour(self) -> None:
        after = moved(NEVER, (NOW, BUSY), (NOW + 60 * MINUTE, OFFERABLE))
        assert after == Hysteresis(
            withdrawals=1, withdrawn_on=NOW.date(), offered_again_at=NOW + 75 * MINUTE
        )

    @pytest.mark.parametrize(("times", "minutes"), [(2, 30), (5, 75), (16, 240), (30, 240)])
    def test_makes_each_further_one_wait_longer_up_to_four_hours(
        self, times: int, minutes: int
    ) -> None:
        after, at = NEVER, NOW
        for _ in range(times):
            after = moved(after, (at, BUSY), (at + MINUTE, OFFERABLE))
            at += 2 * MINUTE
        returned_at = at - MINUTE
        assert after.withdrawals == times
        assert after.offered_again_at == returned_at + minutes * MINUTE

    def test_counts_from_one_on_a_new_day_in_utc(self) -> None:
        late = dt.datetime(2026, 11, 23, 23, 50, tzinfo=dt.UTC)
        evening = moved(NEVER, (late - 60 * MINUTE, BUSY), (late - 30 * MINUTE, OFFERABLE))
        evening = moved(evening, (late, BUSY))
        assert evening.withdrawals == 2
        night = moved(evening, (late + 5 * MINUTE, OFFERABLE), (late + 20 * MINUTE, BUSY))
        assert (night.withdrawals, night.withdrawn_on) == (1, dt.date(2026, 11, 24))

    def test_judges_a_withdrawal_before_midnight_by_its_own_day(self) -> None:
        late = dt.datetime(2026, 11, 23, 23, 50, tzinfo=dt.UTC)
        after = moved(NEVER, (late, BUSY), (late + 20 * MINUTE, OFFERABLE))
        assert after.offered_again_at == late + 35 * MINUTE

    def test_takes_a_lease_of_ours_for_no_withdrawal(self) -> None:
        after = idleness.move(hysteresis=NEVER, before=OFFERABLE, now=BUSY, leased=True, at=NOW)
        assert after == NEVER
        back = idleness.move(
            hysteresis=after, before=BUSY, now=OFFERABLE, leased=False, at=NOW + MINUTE
        )
        assert back.offered_again_at is None

    def test_takes_an_agent_that_starts_again_for_no_withdrawal(self) -> None:
        assert moved(NEVER, (NOW, UNKNOWN), (NOW + 10 * MINUTE, OFFERABLE)) == NEVER

    def test_forgets_a_withdrawal_at_no_restart_of_the_agent(self) -> None:
        after = moved(NEVER, (NOW, BUSY), (NOW + MINUTE, UNKNOWN), (NOW + 9 * MINUTE, OFFERABLE))
        assert after.offered_again_at == NOW + 24 * MINUTE

    def test_makes_a_restart_or_a_lease_after_the_return_wait_no_second_time(self) -> None:
        back = moved(NEVER, (NOW, BUSY), (NOW + MINUTE, OFFERABLE))
        assert moved(back, (NOW + 60 * MINUTE, UNKNOWN), (NOW + 70 * MINUTE, OFFERABLE)) == back

    @pytest.mark.parametrize("state", [IdleState.PARKED, IdleState.FREE])
    def test_counts_whatever_else_the_owner_does_with_it(self, state: IdleState) -> None:
        assert moved(NEVER, (NOW, state)).withdrawals == 1


class TestOfferedIdleSeconds:
    @pytest.mark.parametrize(
        ("changes", "seconds"),
        [
            ({}, 600),
            ({"idle_state": "free"}, -1),
            ({"idle_state": "busy"}, -1),
            ({"idle_since": None}, -1),
            ({"offered_again_at": NOW}, 600),
            ({"offered_again_at": NOW + make.seconds(1)}, -1),
        ],
    )
    def test_are_those_of_a_gpu_that_may_be_offered(
        self, changes: dict[str, object], seconds: int
    ) -> None:
        values: dict[str, object] = {
            "idle_state": "offerable",
            "idle_since": NOW - make.seconds(600),
            "offered_again_at": None,
        }
        found = idleness.offered_idle_seconds(**{**values, **changes}, at=NOW)  # type: ignore[arg-type]
        assert found == seconds


@pytest.mark.django_db
class TestIngest:
    def accept(
        self,
        machine: Machine,
        state: IdleState,
        *,
        sequence: int,
        at: dt.datetime,
        version: int = 2,
    ) -> Gpu:
        idle_since = None if state is BUSY else at - 20 * MINUTE
        reading = make.reading(
            gpu_uuid=machine.gpu_uuids[0], measured_at=at, idle_state=state, idle_since=idle_since
        )
        report = make.report(machine=machine, sequence=sequence, readings=[reading])
        machine.node.refresh_from_db()
        ingest.accept(node=machine.node, report=replace(report, protocol=version), at=at)
        return Gpu.objects.get(uuid=machine.gpu_uuids[0])

    def test_counts_a_withdrawal_and_sets_the_time_of_the_return(self) -> None:
        machine = make.make_machine()
        self.accept(machine, OFFERABLE, sequence=1, at=NOW)
        gpu = self.accept(machine, BUSY, sequence=2, at=NOW + MINUTE)
        assert (gpu.idle_state, gpu.withdrawals, gpu.withdrawn_on) == ("busy", 1, NOW.date())
        gpu = self.accept(machine, OFFERABLE, sequence=3, at=NOW + 30 * MINUTE)
        assert gpu.offered_again_at == NOW + 45 * MINUTE

    def test_counts_none_while_a_lease_has_the_gpu(self) -> None:
        machine = make.make_machine()
        self.accept(machine, OFFERABLE, sequence=1, at=NOW)
        make.make_grant(node=machine.node, gpu_uuids=list(machine.gpu_uuids))
        gpu = self.accept(machine, BUSY, sequence=2, at=NOW + MINUTE)
        assert (gpu.idle_state, gpu.withdrawals) == ("busy", 0)

    def test_counts_one_while_a_lease_is_only_promised(self) -> None:
        machine = make.make_machine()
        self.accept(machine, OFFERABLE, sequence=1, at=NOW)
        make.make_grant(
            node=machine.node,
            gpu_uuids=list(machine.gpu_uuids),
            window=Window(NOW + 60 * MINUTE, NOW + 120 * MINUTE),
        )
        gpu = self.accept(machine, BUSY, sequence=2, at=NOW + MINUTE)
        assert gpu.withdrawals == 1

    def test_takes_free_of_the_first_protocol_for_offerable(self) -> None:
        machine = make.make_machine()
        gpu = self.accept(machine, IdleState.FREE, sequence=1, at=NOW, version=1)
        assert gpu.idle_state == "offerable"

    def test_takes_free_of_the_second_protocol_as_it_is(self) -> None:
        machine = make.make_machine()
        gpu = self.accept(machine, IdleState.FREE, sequence=1, at=NOW)
        assert gpu.idle_state == "free"

    def test_keeps_the_agents_words(self) -> None:
        machine = make.make_machine()
        reading = make.reading(
            gpu_uuid=machine.gpu_uuids[0], idle_state=BUSY, idle_reason="1 process holds 40.0 GiB"
        )
        report = make.report(machine=machine, readings=[reading])
        ingest.accept(node=machine.node, report=report, at=NOW)
        gpu = Gpu.objects.get(uuid=machine.gpu_uuids[0])
        assert gpu.idle_reason == "1 process holds 40.0 GiB"


def test_a_report_of_the_second_protocol_stays_what_it_is() -> None:
    report = protocol.Report(
        protocol=2,
        node_id="nde_1",
        epoch=1,
        sequence=1,
        boot_id="b",
        sent_at=NOW,
        agent_version="1",
        simulated=True,
        readings=[make.reading(gpu_uuid="GPU-0", idle_state=IdleState.FREE)],
    )
    assert idleness.as_of_today(report=report) is report
