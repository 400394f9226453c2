"""`python -m agents.node`: look once, or run until told to end.

Exit status: 0 ended as asked, 2 a setting, the state directory or the driver does not allow to run,
3 the market refused to enrol this node.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Sequence

from agents.node import AGENT_VERSION, host
from agents.node.child import ChildReader
from agents.node.clock import MarketClock, SystemClock
from agents.node.config import BadSetting, Settings, parse_settings
from agents.node.health import judge
from agents.node.host import StateUnusable
from agents.node.idle import Thresholds
from agents.node.jobs import InlineJobs, ThreadJobs
from agents.node.keys import KeyRing
from agents.node.loop import Agent, EnrolmentRefused, Machine
from agents.node.provision import NoProvisioner, Provisioner
from agents.node.provision.hook import HookProvisioner
from agents.node.provision.simulated import SimulatedProvisioner
from agents.node.reader import Reader, ReaderHung, ReaderUnavailable
from agents.node.sender import Sender
from agents.node.simulated import SimulatedReader
from agents.node.spool import Spool
from agents.protocol import to_json

EXIT_CANNOT_RUN, EXIT_REFUSED = 2, 3

logger = logging.getLogger("agents.node")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent and return its exit status."""
    try:
        settings = parse_settings(
            arguments=sys.argv[1:] if arguments is None else arguments, environment=os.environ
        )
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {settings.name} %(message)s"
        )
        return _once(settings) if settings.once else _run(settings)
    except (BadSetting, StateUnusable, ReaderUnavailable) as error:
        _complain(error)
        return EXIT_CANNOT_RUN
    except sqlite3.Error as error:
        _complain(f"the spool cannot be written: {error}")
        return EXIT_CANNOT_RUN
    except EnrolmentRefused as error:
        _complain(error)
        return EXIT_REFUSED


def _once(settings: Settings) -> int:
    """Print what is seen: identity, one sample and the health of each GPU, and how long the calls took."""
    clock = MarketClock(clock=SystemClock())
    child: ChildReader | None = None
    reader: Reader
    if settings.fleet is not None:
        machine_id = host.machine_id() or "unknown"
        if settings.state_dir is not None:
            host.open_state(directory=settings.state_dir)
            machine_id = host.simulated_machine_id(directory=settings.state_dir)
        reader = SimulatedReader(
            fleet=settings.fleet,
            node_name=settings.name,
            machine_id=machine_id,
            tenancies=lambda _: [],
        )
    else:
        reader = child = ChildReader(boottime_seconds=clock.boottime_seconds, now=clock.now)
    try:
        identities = {identity.uuid: identity for identity in reader.identify()}
        samples = reader.read(at=clock.now(), with_processes=list(identities))
        milliseconds = child.call_milliseconds() if child else {}
    finally:
        reader.close()
    gpus = []
    for sample in samples:
        state, reason = judge(sample=sample)
        gpus.append(
            {
                "identity": to_json(identities[sample.gpu_uuid]),
                "sample": to_json(sample),
                "health": state.value,
                "health_reason": reason,
            }
        )
    if settings.as_json:
        seen = {
            "agent_version": AGENT_VERSION,
            "name": settings.name,
            "simulated": reader.simulated,
            "gpus": gpus,
            "call_milliseconds": milliseconds,
        }
        sys.stdout.write(json.dumps(seen, indent=2, sort_keys=True) + "\n")
        return 0
    marked = " (simulated)" if reader.simulated else ""
    sys.stdout.write(f"{settings.name}: {len(samples)} GPUs{marked}\n")
    for sample in samples:
        identity = identities[sample.gpu_uuid]
        state, reason = judge(sample=sample)
        sys.stdout.write(
            f"  {identity.index} {identity.product_name} {identity.uuid} {state}{reason and ': '}{reason};"
            f" load {_or_unread(sample.utilization_percent)} %,"
            f" processes {_or_unread(sample.process_count)},"
            f" power {_or_unread(sample.power_draw_milliwatts)} mW\n"
        )
    return 0


def _complain(what: object) -> None:
    sys.stderr.write(f"agents.node: {what}\n")


def _or_unread(value: int | None) -> str:
    return "unread" if value is None else str(value)


def _run(settings: Settings) -> int:
    system_clock = SystemClock()
    clock = MarketClock(clock=system_clock)
    directory = settings.state_dir
    assert directory is not None, "a state directory is always set when the agent runs on"
    ends: list[int] = []

    def end(number: int, _frame: object) -> None:
        ends.append(number)
        system_clock.wake()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    lock = host.open_state(directory=directory)
    key = KeyRing(directory=directory)
    spool = Spool(path=directory / "spool.sqlite3", quota_bytes=settings.spool_quota_bytes)
    machine_id = host.machine_id()
    provisioner: Provisioner
    reader: Reader
    if settings.fleet is not None:
        machine_id = host.simulated_machine_id(directory=directory)
        simulated = SimulatedProvisioner(spool=spool, node_name=settings.name, now=clock.now)
        provisioner = simulated
        reader = SimulatedReader(
            fleet=settings.fleet,
            node_name=settings.name,
            machine_id=machine_id,
            tenancies=simulated.tenancies,
        )
        logger.warning("SIMULATED: these GPUs are scripted, and every report says so")
    else:
        reader = ChildReader(boottime_seconds=clock.boottime_seconds, now=clock.now)
        provisioner = HookProvisioner(program=settings.hook) if settings.hook else NoProvisioner()
    sender = Sender(
        server_url=settings.server_url, key=key, clock=clock, agent_version=AGENT_VERSION
    )
    try:
        _log_gpus(reader)
        agent = Agent(
            reader=reader,
            spool=spool,
            sender=sender,
            provisioner=provisioner,
            jobs=ThreadJobs(wake=system_clock.wake) if provisioner.blocking else InlineJobs(),
            clock=clock,
            key=key,
            machine=Machine(
                hostname=settings.name,
                machine_id=machine_id or f"key-{key.public_key}",
                boot_id=host.boot_id(),
            ),
            token=settings.token,
            thresholds=Thresholds(free_after_seconds=settings.free_after_seconds),
            dice=random.Random(),  # noqa: S311 - spreads retries, hides nothing
        )
        while not ends:
            system_clock.wait(seconds=agent.step())
        logger.info("ends on signal %d; leases go on and are taken up at the next start", ends[0])
        return 0
    finally:
        sender.close()
        reader.close()
        spool.close()
        lock.close()


def _log_gpus(reader: Reader) -> None:
    """Say what is here; a hung driver is no reason to end, a missing one is."""
    try:
        gpus = reader.identify()
    except ReaderHung as error:
        logger.warning("the GPUs cannot be read yet: %s", error)
        return
    names = ", ".join(sorted({gpu.product_name for gpu in gpus}))
    logger.info("%d GPUs: %s", len(gpus), names or "none")


if __name__ == "__main__":
    sys.exit(main())
