"""The agent killed at every write, rebooted, blind or cut off: the bill stays what was delivered."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agents.node import residue
from agents.node.checks import Finding
from agents.node.child import ChildReader
from agents.node.spool import Spool
from agents.protocol import LeaseState, ReceiptKind
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import (
    assert_meters_fill_the_lease,
    by_kind,
    enrolled,
    grant,
    last_states,
)
from tests.fakes import nvml
from tests.fakes.market import FakeMarket

DOWN_SECONDS = 3
STORY_SECONDS = 150  # half a minute before, a minute of lease, and time to tell of it


class Killed(BaseException):
    """The process is gone; nothing of ours may catch it."""


class Killer:
    """Ends the agent at one write of what a bill rests on, just before or just after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at: int | None = None
        self.after = False
        commit: Callable[..., None] = Spool.commit

        def counted(spool: Spool, **parts: Any) -> None:
            if not any(parts.get(name) for name in ("leases", "meters", "receipts")):
                commit(spool, **parts)
                return
            self.count += 1
            if self.count == self.at and not self.after:
                raise Killed
            commit(spool, **parts)
            if self.count == self.at:
                raise Killed

        monkeypatch.setattr(Spool, "commit", counted)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


def live_through(rig: Rig, killer: Killer, *, on_death: Callable[[], None]) -> dt.datetime | None:
    """Live through a lease; return when the agent was killed, if it was."""
    end = rig.clock.boottime + STORY_SECONDS
    died_at = None
    while rig.clock.boottime < end:
        try:
            rig.live(seconds=end - rig.clock.boottime)
        except Killed:
            assert died_at is None, "it is killed once"
            died_at = rig.clock.at
            rig.kill()
            on_death()
            rig.clock.pass_time(DOWN_SECONDS)
    return died_at


# A lease of a minute on two GPUs makes some twenty such writes.
WRITES = range(1, 24)


class TestKilled:
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("write", WRITES)
    def test_at_any_write_it_bills_what_was_delivered(
        self, rig: Rig, market: FakeMarket, killer: Killer, write: int, *, after: bool
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=1)]
        killer.at, killer.after = killer.count + write, after
        live_through(rig, killer, on_death=lambda: None)
        receipts = by_kind(market)
        late = receipts[ReceiptKind.HANDOVER].at - market.grants[0].not_before
        assert dt.timedelta(0) <= late <= dt.timedelta(seconds=DOWN_SECONDS + 2)
        assert receipts[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)
        assert last_states(market)["lease-1", 1] == (LeaseState.ENDED, "")

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("write", WRITES)
    def test_with_the_machine_it_bills_what_it_saw(
        self, rig: Rig, market: FakeMarket, killer: Killer, write: int, *, after: bool
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=1)]
        killer.at, killer.after = killer.count + write, after

        def reboot() -> None:
            rig.boot_id = "boot-2"
            with sqlite3.connect(rig.directory / "spool.sqlite3") as connection:
                connection.execute("DELETE FROM tenancy")  # no container survives it

        died_at = live_through(rig, killer, on_death=reboot)
        receipts = by_kind(market)
        given, returned = receipts[ReceiptKind.HANDOVER].at, receipts[ReceiptKind.RETURN].at
        assert_meters_fill_the_lease(market)
        end = market.grants[0].not_after
        if died_at is None or died_at < given or (returned == end and died_at >= end):
            assert returned == end  # nobody had the GPUs when it died
        else:
            assert given <= returned <= died_at
            assert died_at - returned <= dt.timedelta(seconds=16)  # one look earlier

    def test_counts_every_write_of_the_story(
        self, rig: Rig, market: FakeMarket, killer: Killer
    ) -> None:
        """The two tests above would pass for writes that never come."""
        enrolled(rig)
        market.grants = [grant(market, minutes=1)]
        before = killer.count
        live_through(rig, killer, on_death=lambda: None)
        assert killer.count - before <= WRITES[-1]

    def test_with_its_disk_gives_no_second_receipt_for_what_it_does_not_know(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        """A lost epoch is a new enrolment; the lease begins anew and the market keeps the first word."""
        enrolled(rig)
        market.grants = [grant(market, minutes=3)]
        rig.live(seconds=60)
        first = by_kind(market)[ReceiptKind.HANDOVER]
        rig.kill()
        (rig.directory / "spool.sqlite3").unlink()
        for name in ("spool.sqlite3-wal", "spool.sqlite3-shm"):
            (rig.directory / name).unlink(missing_ok=True)
        # A new enrolment counts from zero.
        market.last, earlier, market.meters = (0, 0), market.meters, {}
        rig.live(seconds=250)
        handovers = [r for r in market.receipts if r.kind is ReceiptKind.HANDOVER]
        assert handovers[0] == first
        (returned,) = [r for r in market.receipts if r.kind is ReceiptKind.RETURN]
        assert returned.at == market.grants[0].not_after
        delivered = sum(m.up_seconds for m in [*earlier.values(), *market.meters.values()])
        assert delivered <= 2 * (returned.at - first.at).total_seconds()


class TestCutOff:
    @pytest.mark.parametrize("since", range(0, 110, 10))
    @pytest.mark.parametrize("seconds", [15, 70])
    def test_at_any_time_it_bills_what_was_delivered(
        self, rig: Rig, market: FakeMarket, since: int, seconds: int
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=1)]
        rig.live(seconds=1 + since)
        market.down()
        rig.live(seconds=seconds)
        market.up()
        rig.live(seconds=STORY_SECONDS + 60)
        receipts = by_kind(market)
        if not receipts:
            # It heard of the lease when its time had passed.
            assert last_states(market)["lease-1", 1][0] is LeaseState.ENDED
            assert market.meters == {}
            return
        assert receipts[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert_meters_fill_the_lease(market)


class TestBlind:
    @pytest.fixture
    def child(
        self, rig: Rig, journal: nvml.Journal, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[ChildReader]:
        monkeypatch.setattr(residue, "check", lambda **_: Finding(name="residue", passed=None))
        reader = ChildReader(boottime_seconds=rig.clock.boottime_seconds)
        rig.reader = reader
        yield reader
        reader.close()

    @pytest.mark.parametrize("seconds", [10, 25, 40, 80, 84, 90])
    def test_its_child_may_be_killed_at_any_time(
        self, rig: Rig, market: FakeMarket, child: ChildReader, seconds: int
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market, minutes=1)]
        rig.live(seconds=seconds)
        assert child._process is not None
        os.kill(child._process.pid, signal.SIGKILL)
        rig.live(seconds=STORY_SECONDS)
        receipts = by_kind(market)
        assert receipts[ReceiptKind.RETURN].at == market.grants[0].not_after
        assert receipts[ReceiptKind.RETURN].clean
        assert_meters_fill_the_lease(market)
