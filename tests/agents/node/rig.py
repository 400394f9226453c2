"""An agent in the test's own process, stepped by hand; killing it forgets all but its state directory."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path

from agents.node import host
from agents.node.clock import MarketClock
from agents.node.idlebook import Cure
from agents.node.jobs import InlineJobs, Jobs
from agents.node.keys import KeyRing
from agents.node.loop import Agent, Machine
from agents.node.offering import OwnersScheduler
from agents.node.provision import Provisioner
from agents.node.provision.simulated import SimulatedProvisioner
from agents.node.reader import Reader
from agents.node.sender import Sender
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.node.spool import Spool
from agents.protocol import IdlePolicy
from tests.fakes.market import FakeMarket

START = dt.datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=dt.UTC)


class FakeClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.at = START
        self.boottime = 1000.0

    def wall(self) -> dt.datetime:
        return self.at

    def boottime_seconds(self) -> float:
        return self.boottime

    def wait(self, *, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.at += dt.timedelta(seconds=seconds)
        self.boottime += seconds


class Rig:
    """One node and how to run, kill and start it again."""

    def __init__(self, *, directory: Path, clock: FakeClock, market: FakeMarket) -> None:
        self.directory = directory / "state"
        self.clock = clock
        self.market = market
        self.boot_id = "boot-1"
        self.token = market.token
        self.reader: Reader | None = None  # a test may set its own
        self.provisioner: Provisioner | None = None
        self.scheduler: OwnersScheduler | None = None
        self.cure: Cure | None = None
        self.jobs: Jobs = InlineJobs()
        self.agent: Agent | None = None
        self.spool: Spool | None = None
        self.sender: Sender | None = None

    def start(self) -> Agent:
        assert self.agent is None, "it runs already"
        lock = host.open_state(directory=self.directory)
        lock.close()
        clock = MarketClock(clock=self.clock)
        key = KeyRing(directory=self.directory)
        self.spool = Spool(path=self.directory / "spool.sqlite3")
        simulated = SimulatedProvisioner(spool=self.spool, node_name="n1", now=clock.now)
        reader = self.reader or SimulatedReader(
            fleet=parse_fleet(text="h100x2:idle"),
            node_name="n1",
            machine_id="m1",
            tenancies=simulated.tenancies,
        )
        self.sender = Sender(server_url=self.market.url, key=key, clock=clock, agent_version="test")
        self.agent = Agent(
            reader=reader,
            spool=self.spool,
            sender=self.sender,
            provisioner=self.provisioner or simulated,
            jobs=self.jobs,
            clock=clock,
            key=key,
            machine=Machine(hostname="n1", machine_id="m1", boot_id=self.boot_id),
            token=self.token,
            idle_policy=IdlePolicy(free_after_seconds=20),
            dice=random.Random(7),
            scheduler=self.scheduler,
            cure=self.cure,
        )
        return self.agent

    def kill(self) -> None:
        """End it as SIGKILL would: nothing is told to anybody."""
        if self.spool is not None:
            self.spool.close()
        if self.sender is not None:
            self.sender.close()
        self.agent = self.spool = self.sender = None

    def restart(self) -> Agent:
        self.kill()
        return self.start()

    def live(self, *, seconds: float) -> None:
        """Let the agent live for so many seconds: step, let the time pass that it asked for, step."""
        agent = self.agent or self.start()
        end = self.clock.boottime + seconds
        for _ in range(10_000):
            pause = max(agent.step(), 0.05)
            if self.clock.boottime + pause >= end:
                self.clock.pass_time(end - self.clock.boottime)
                return
            self.clock.pass_time(pause)
        raise AssertionError("the agent does not come to rest")
