"""The whole agent against a market on loopback: enrolment, leases, and everything that can break between."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import replace

import pytest

from agents.node.loop import EnrolmentRefused
from agents.node.provision import NoProvisioner, Presence, ProvisionFailed
from agents.node.reader import ReaderHung, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import (
    DesiredState,
    Grant,
    Health,
    IdleState,
    LeaseState,
    MeterReading,
    Receipt,
    ReceiptKind,
    Report,
)
from tests.agents.node.rig import START, FakeClock, Rig
from tests.fakes.market import Answer, FakeMarket, problem

MINUTE = dt.timedelta(minutes=1)


def gpus(market: FakeMarket) -> list[str]:
    return [gpu.uuid for gpu in market.enrolments[0].gpus]


def grant(
    market: FakeMarket, *, minutes: float = 3, start: float = 0.5, epoch: int = 1, count: int = 2
) -> Grant:
    first = START.replace(microsecond=0) + MINUTE * start
    return Grant(
        lease_id="lease-1",
        lease_epoch=epoch,
        gpu_uuids=gpus(market)[:count],
        not_before=first,
        not_after=first + MINUTE * minutes,
        desired_state=DesiredState.RUN,
    )


def enrolled(rig: Rig) -> None:
    rig.live(seconds=6)
    assert rig.market.enrolments


def by_kind(market: FakeMarket) -> dict[ReceiptKind, Receipt]:
    counts = Counter(r.kind for r in market.receipts)
    assert all(count == 1 for count in counts.values()), "a receipt was given twice"
    return {r.kind: r for r in market.receipts}


def assert_meters_fill_the_lease(market: FakeMarket) -> None:
    """Meters of each GPU touch each other and span exactly the time between the two receipts."""
    receipts = by_kind(market)
    handover, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
    for gpu_uuid in handover.gpu_uuids:
        rows = sorted(
            (m for m in market.meters.values() if m.gpu_uuid == gpu_uuid), key=lambda m: m.starts_at
        )
        bounds = [handover.at, *(row.ends_at for row in rows)]
        assert [row.starts_at for row in rows] == bounds[:-1]
        assert bounds[-1] == returned.at
        assert sum(row.up_seconds for row in rows) == (returned.at - handover.at).total_seconds()
        assert all((row.ends_at - row.starts_at).total_seconds() <= 60 for row in rows)


def last_states(market: FakeMarket) -> dict[tuple[str, int], tuple[LeaseState, str]]:
    return {
        (status.lease_id, status.lease_epoch): (status.state, status.detail)
        for report in market.reports
        for status in report.leases
    }


class TestEnrolment:
    def test_brings_key_machine_and_gpus_once(self, rig: Rig, market: FakeMarket) -> None:
        rig.live(seconds=30)
        (request,) = market.enrolments
        assert request.simulated
        assert (request.hostname, request.machine_id, len(request.gpus)) == ("n1", "m1", 2)
        assert market.reports[0].inventory == request.gpus
        assert all(report.inventory is None for report in market.reports[1:])

    def test_is_not_repeated_after_a_restart(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        rig.token = ""
        rig.restart()
        rig.live(seconds=10)
        assert len(market.enrolments) == 1
        assert [r.epoch for r in market.reports] == sorted(r.epoch for r in market.reports)
        assert market.reports[-1].epoch == 2

    def test_waits_for_a_market_that_is_down(self, rig: Rig, market: FakeMarket) -> None:
        market.down()
        rig.live(seconds=120)
        market.up()
        rig.live(seconds=60)
        assert len(market.enrolments) == 1
        assert market.reports

    def test_ends_when_the_token_is_refused(self, rig: Rig) -> None:
        rig.token = "wrong"
        with pytest.raises(EnrolmentRefused, match="token_invalid No such token"):
            rig.live(seconds=5)

    def test_ends_when_there_is_no_token(self, rig: Rig, market: FakeMarket) -> None:
        rig.token = ""
        with pytest.raises(EnrolmentRefused, match="HEADROOM_TOKEN"):
            rig.live(seconds=5)
        assert market.request_count == 0

    def test_asks_again_when_the_answer_was_lost(self, rig: Rig, market: FakeMarket) -> None:
        market.lose_answers = 1
        rig.live(seconds=60)
        assert len(market.enrolments) == 2
        assert market.enrolments[0] == market.enrolments[1]


class TestReporting:
    def test_keeps_the_interval_that_the_market_grants(self, rig: Rig, market: FakeMarket) -> None:
        market.interval_seconds = 20
        rig.live(seconds=201)
        assert 10 <= len(market.reports) <= 12

    def test_says_free_after_a_quiet_while(self, rig: Rig, market: FakeMarket) -> None:
        rig.live(seconds=40)
        assert market.reports[0].readings[0].idle_state is IdleState.UNKNOWN
        reading = market.reports[-1].readings[-1]
        assert reading.idle_state is IdleState.FREE
        assert reading.idle_since == START
        assert reading.health is Health.HEALTHY

    def test_gives_the_inventory_again_when_asked(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.want_inventory = True
        rig.live(seconds=10)
        assert market.reports[-1].inventory == market.enrolments[0].gpus

    def test_keeps_at_most_four_looks_while_the_market_is_down(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.down()
        rig.live(seconds=600)
        market.up()
        rig.live(seconds=60)
        assert max(len(report.readings) for report in market.reports) == 4 * 2

    def test_backs_off_while_the_market_fails(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        before = market.request_count
        market.instead = lambda _: (503, b"", {})
        rig.live(seconds=600)
        assert 30 <= market.request_count - before <= 150

    def test_waits_as_long_as_the_market_says(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.instead = lambda _: (503, b"", {"Retry-After": "300"})
        rig.live(seconds=20)
        before = market.request_count
        rig.live(seconds=250)
        assert market.request_count == before

    def test_takes_a_lost_answer_for_what_it_is(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.lose_answers = 1
        rig.live(seconds=30)
        pairs = [(r.epoch, r.sequence) for r in market.reports]
        assert pairs == [(1, number) for number in range(1, len(pairs) + 1)]

    def test_goes_above_a_pair_that_it_has_never_sent(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.last = (7, 3)
        rig.live(seconds=30)
        assert (market.reports[-1].epoch, market.reports[-1].sequence) >= (8, 1)
        rig.restart()
        rig.live(seconds=10)
        assert market.reports[-1].epoch == 9

    @pytest.mark.parametrize(
        "answer",
        [
            (200, b"<html>", {}),
            (200, b"[]", {}),
            (200, b'{"accepted": "yes"}', {}),
            (200, b"[" * 100_000, {}),
            (204, b"", {}),
            (302, b"", {"Location": "https://elsewhere.invalid/"}),
            (400, b"\xff\xfe", {}),
            (409, b'{"code": "report_replayed"}', {}),
            (418, b"{}", {}),
            (500, b"x" * (2 * 1024 * 1024), {}),
        ],
    )
    def test_outlives_a_bad_answer(self, rig: Rig, market: FakeMarket, answer: Answer) -> None:
        enrolled(rig)
        market.instead = lambda _: answer
        rig.live(seconds=60)
        market.instead = lambda _: None
        count = len(market.reports)
        rig.live(seconds=60)
        assert len(market.reports) > count

    def test_signs_with_the_markets_time_when_its_own_clock_is_wrong(
        self, rig: Rig, market: FakeMarket, clock: FakeClock
    ) -> None:
        enrolled(rig)
        clock.at += dt.timedelta(
            hours=5
        )  # somebody set the market's clock, or this machine's was wrong
        market.instead = lambda report: (
            problem(401, "signature_expired")
            if report is not None and abs(report.sent_at - market.now()) > 2 * MINUTE
            else None
        )
        rig.live(seconds=60)
        assert abs(market.reports[-1].sent_at - market.now()) < MINUTE


class TestLease:
    def test_is_handed_over_metered_and_returned(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=300)
        receipts = by_kind(market)
        given, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
        assert given.at == market.grants[0].not_before
        assert returned.at == market.grants[0].not_after
        assert given.simulated
        assert returned.clean
        assert given.access is not None
        assert given.access.host.endswith(".simulated.invalid")
        assert_meters_fill_the_lease(market)
        meters = list(market.meters.values())
        assert all(m.simulated for m in meters)
        assert all(0.7 <= (m.busy_seconds or 0) / m.up_seconds <= 0.85 for m in meters)
        for index in range(2):
            gained = (returned.energy_millijoules[index] or 0) - (
                given.energy_millijoules[index] or 0
            )
            uuid = given.gpu_uuids[index]
            assert gained == sum(m.energy_millijoules or 0 for m in meters if m.gpu_uuid == uuid)
        assert last_states(market) == {("lease-1", 1): (LeaseState.ENDED, "")}

    def test_tells_each_change_at_once(
        self, rig: Rig, market: FakeMarket, clock: FakeClock
    ) -> None:
        market.interval_seconds = 60
        enrolled(rig)
        market.grants = [grant(market, start=2)]
        rig.live(seconds=400)
        told = {
            status.state: report.sent_at
            for report in reversed(market.reports)
            for status in report.leases
        }
        assert told[LeaseState.ACTIVE] - market.grants[0].not_before < dt.timedelta(seconds=2)
        assert told[LeaseState.ENDED] - market.grants[0].not_after < dt.timedelta(seconds=2)

    def test_begins_no_sooner_than_its_time(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=10)]
        rig.live(seconds=500)
        assert market.receipts == []
        assert last_states(market) == {("lease-1", 1): (LeaseState.PREPARING, "")}

    def test_ends_when_the_market_says_stop(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.grants = [replace(market.grants[0], desired_state=DesiredState.STOP)]
        rig.live(seconds=30)
        assert by_kind(market)[ReceiptKind.RETURN].at < START + 2 * MINUTE
        assert_meters_fill_the_lease(market)

    def test_ends_when_its_grant_is_no_longer_listed(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.grants = []
        rig.live(seconds=30)
        assert_meters_fill_the_lease(market)

    def test_is_not_ended_by_an_answer_that_lists_nothing_because_it_was_a_replay(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=90)
        market.lose_answers = 1
        rig.live(seconds=30)
        assert ReceiptKind.RETURN not in by_kind(market)

    def test_stopped_before_its_start_is_never_handed_over(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=5)]
        rig.live(seconds=20)
        market.grants = [replace(market.grants[0], desired_state=DesiredState.STOP)]
        rig.live(seconds=600)
        assert market.receipts == []
        assert last_states(market)["lease-1", 1] == (LeaseState.ENDED, "it was never handed over")

    def test_whose_term_passed_before_it_was_heard_of_is_never_started(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, start=-10, minutes=5)]
        rig.live(seconds=30)
        assert market.receipts == []
        assert last_states(market)["lease-1", 1][0] is LeaseState.ENDED

    def test_may_be_prolonged_while_it_runs(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        later = market.grants[0].not_after + MINUTE
        market.grants = [replace(market.grants[0], not_after=later)]
        rig.live(seconds=300)
        assert by_kind(market)[ReceiptKind.RETURN].at == later
        assert_meters_fill_the_lease(market)

    def test_of_a_higher_epoch_takes_over_from_the_lower_one(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        first = grant(market, minutes=30)
        market.grants = [first]
        rig.live(seconds=90)
        market.grants = [first, grant(market, minutes=30, epoch=2)]
        rig.live(seconds=60)
        kinds = [(r.lease_epoch, r.kind) for r in market.receipts]
        assert kinds == [
            (1, ReceiptKind.HANDOVER),
            (1, ReceiptKind.RETURN),
            (2, ReceiptKind.HANDOVER),
        ]
        assert market.receipts[2].at >= market.receipts[1].at

    def test_that_ended_does_not_start_again_while_it_is_still_listed(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=60)
        stopped = replace(market.grants[0], desired_state=DesiredState.STOP)
        running, market.grants = market.grants, [stopped]
        rig.live(seconds=30)
        market.grants = running
        rig.live(seconds=60)
        rig.restart()
        rig.live(seconds=60)
        assert len(by_kind(market)) == 2

    def test_follows_the_one_before_on_the_same_gpus_at_the_same_instant(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        first = grant(market)
        second = replace(
            first,
            lease_id="lease-0",
            not_before=first.not_after,
            not_after=first.not_after + 2 * MINUTE,
        )
        market.grants = [first, second]
        rig.live(seconds=240)
        at = {(r.lease_id, r.kind): r.at for r in market.receipts}
        assert at["lease-1", ReceiptKind.RETURN] == first.not_after
        assert at["lease-0", ReceiptKind.HANDOVER] == first.not_after

    def test_on_a_gpu_that_is_not_here_fails(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        market.grants = [replace(grant(market), gpu_uuids=["GPU-elsewhere"])]
        rig.live(seconds=60)
        state, detail = last_states(market)["lease-1", 1]
        assert state is LeaseState.FAILED
        assert "GPU-elsewhere" in detail
        assert market.receipts == []

    def test_of_a_node_without_a_provisioner_fails(self, rig: Rig, market: FakeMarket) -> None:
        rig.provisioner = NoProvisioner()
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        assert last_states(market)["lease-1", 1] == (
            LeaseState.FAILED,
            "no provisioner configured",
        )

    def test_that_cannot_be_stopped_is_returned_unclean(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]

        def fail(*_: object, **__: object) -> None:
            raise ProvisionFailed("it does not go away")

        monkeypatch.setattr("agents.node.provision.simulated.SimulatedProvisioner.stop", fail)
        rig.live(seconds=300)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert not returned.clean
        assert returned.detail == "it does not go away"
        assert returned.at == market.grants[0].not_after

    def test_waits_for_gpus_until_the_one_before_is_gone_from_them(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first lease survives every order to end; the owner looks at it before the third begins."""
        stop = "agents.node.provision.simulated.SimulatedProvisioner.stop"
        enrolled(rig)
        first = grant(market, minutes=2)
        later = [
            replace(
                first,
                lease_id=f"lease-{number}",
                not_before=first.not_after + number * MINUTE,
                not_after=first.not_after + (number + 1) * MINUTE,
            )
            for number in (2, 4)
        ]
        market.grants = [first, *later]

        def fail(*_: object, **__: object) -> None:
            raise ProvisionFailed("it does not go away")

        with monkeypatch.context() as broken:
            broken.setattr(stop, fail)
            rig.live(seconds=320)
        assert last_states(market)["lease-2", 1] == (LeaseState.FAILED, "it does not go away")

        rig.restart()
        rig.live(seconds=200)
        receipts = {(r.lease_id, r.kind) for r in market.receipts}
        assert ("lease-2", ReceiptKind.HANDOVER) not in receipts
        assert ("lease-4", ReceiptKind.HANDOVER) in receipts


class TestOutages:
    def test_a_lease_ends_at_its_time_while_the_market_is_down(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        market.down()
        rig.live(seconds=600)
        market.up()
        rig.live(seconds=60)
        assert by_kind(market)[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)

    def test_nothing_is_counted_twice_when_every_other_answer_is_lost(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        for _ in range(30):
            market.lose_answers = 1
            rig.live(seconds=10)
        rig.live(seconds=30)
        assert_meters_fill_the_lease(market)

    @pytest.mark.parametrize("seconds", [5, 40, 100, 170, 185])
    def test_a_killed_agent_goes_on_where_it_was(
        self, rig: Rig, market: FakeMarket, seconds: int
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=seconds)
        rig.kill()
        rig.clock.pass_time(7)
        rig.live(seconds=300)
        receipts = by_kind(market)
        assert receipts[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)

    def test_a_reboot_ends_a_lease_when_the_agent_last_saw_it(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=30)]
        rig.live(seconds=120)
        killed_at = rig.clock.at
        rig.kill()
        rig.boot_id = "boot-2"
        monkeypatch.setattr(
            "agents.node.provision.simulated.SimulatedProvisioner.inspect",
            lambda *_, **__: Presence.ABSENT,
        )
        rig.clock.pass_time(3600)
        rig.live(seconds=60)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert dt.timedelta(0) <= killed_at - returned.at <= dt.timedelta(seconds=6)
        assert returned.detail == "it ended while the agent was not running"
        assert_meters_fill_the_lease(market)

    def test_an_end_that_nobody_can_attest_counts_from_the_last_sign_of_life(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=120)
        killed_at = rig.clock.at
        rig.kill()

        def fail(*_: object, **__: object) -> Presence:
            raise ProvisionFailed("cannot tell")

        monkeypatch.setattr("agents.node.provision.simulated.SimulatedProvisioner.inspect", fail)
        rig.clock.pass_time(3600)
        rig.live(seconds=60)
        assert by_kind(market)[ReceiptKind.RETURN].at <= killed_at
        assert_meters_fill_the_lease(market)

    def test_time_that_nobody_watched_is_delivered_with_unknown_load(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=20)]
        rig.live(seconds=120)
        rig.kill()
        rig.clock.pass_time(300)
        rig.live(seconds=1200)
        assert_meters_fill_the_lease(market)
        blind = [m for m in market.meters.values() if m.busy_seconds is None]
        assert 290 * 2 <= sum(m.up_seconds for m in blind) <= 320 * 2

    def test_a_revoked_node_ends_its_lease_in_time_and_keeps_quiet(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=60)
        before = market.request_count
        market.instead = lambda _: problem(403, "node_revoked", detail="by its owner")
        rig.live(seconds=600)
        assert market.request_count - before <= 4
        market.instead = lambda _: None
        rig.live(seconds=400)
        assert by_kind(market)[ReceiptKind.RETURN].at == market.grants[0].not_after

    def test_a_reading_that_the_market_refuses_for_good_does_not_stop_the_others(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]

        def is_bad(meter: MeterReading) -> bool:
            return meter.sequence == 5

        def refuse(report: Report | None) -> Answer | None:
            bad = report is not None and any(is_bad(m) for m in report.meters)
            return problem(422, "malformed", detail="/meters") if bad else None

        market.instead = refuse
        rig.live(seconds=900)
        sequences = {sequence for _, sequence in market.meters}
        assert sequences == set(range(1, max(sequences) + 1)) - {5}
        assert len(by_kind(market)) == 2


class TestGpus:
    def test_a_reader_that_hangs_is_reported_and_starts_no_lease(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)

        def hang(*_: object, **__: object) -> None:
            raise ReaderHung("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(SimulatedReader, "read", hang)
            market.grants = [grant(market, minutes=10)]
            rig.live(seconds=120)
            assert market.receipts == []
            hung = market.reports[-1]
            assert hung.reader_hung_since is not None
            assert hung.readings == []
        rig.live(seconds=60)
        recovered = market.reports[-1]
        assert recovered.reader_hung_since is None
        assert ReceiptKind.HANDOVER in by_kind(market)

    def test_a_hang_in_the_middle_of_a_lease_is_delivered_with_unknown_load(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=90)

        def hang(*_: object, **__: object) -> None:
            raise ReaderHung("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(SimulatedReader, "read", hang)
            rig.live(seconds=30)
        rig.live(seconds=200)
        assert_meters_fill_the_lease(market)
        assert any(m.busy_seconds is None for m in market.meters.values())

    def test_a_lost_gpu_is_not_delivered_and_says_so(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=90)
        whole = SimulatedReader.read

        def lose_one(self: SimulatedReader, *, at: dt.datetime) -> list[object]:
            first, second = whole(self, at=at)
            return [first, lost_sample(gpu_uuid=second.gpu_uuid, measured_at=at)]

        monkeypatch.setattr(SimulatedReader, "read", lose_one)
        rig.live(seconds=200)
        healths = {r.gpu_uuid: r.health for r in market.reports[-1].readings}
        alive, dead = gpus(market)
        assert healths == {alive: Health.HEALTHY, dead: Health.LOST}
        up = Counter[str]()
        for meter in market.meters.values():
            up[meter.gpu_uuid] += meter.up_seconds
        assert up[alive] == 180
        assert up[dead] < 80

    def test_the_fleet_of_a_simulated_node_is_the_same_after_a_restart(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        rig.restart()
        rig.live(seconds=10)
        inventories = [r.inventory for r in market.reports if r.inventory is not None]
        assert len(inventories) == 2
        assert inventories[0] == inventories[1]

    def test_an_idle_gpu_counts_from_anew_after_a_lease(self, rig: Rig, market: FakeMarket) -> None:
        rig.reader = None
        enrolled(rig)
        market.grants = [grant(market, count=1)]
        rig.live(seconds=240)
        leased, other = gpus(market)
        states = {r.gpu_uuid: r for r in market.reports[-1].readings}
        assert states[other].idle_since == START
        since = states[leased].idle_since
        assert since is not None
        assert since >= market.grants[0].not_after


def test_a_fleet_spec_is_used_as_given() -> None:
    assert parse_fleet(text="a100x4").count == 4
