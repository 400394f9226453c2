"""`python -m agents.node`: look once, check this machine, install the service, or run until told to end.

Exit status: 0 ended as asked, 1 `--check` found something wrong, 2 a setting, the state directory or the
driver does not allow to run, 3 the market refused to enrol this node.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence

from agents.node import AGENT_VERSION, assembly, host, keys, notify
from agents.node.clock import MarketClock, SystemClock
from agents.node.config import BadSetting, Settings, parse_settings
from agents.node.cure import cure
from agents.node.host import StateUnusable
from agents.node.jobs import InlineJobs, ThreadJobs
from agents.node.keys import KeyRing
from agents.node.loop import Agent, EnrolmentRefused, Machine
from agents.node.notify import Notifier
from agents.node.offering import SchedulerHook
from agents.node.provision import Provisioner
from agents.node.provision.simulated import SimulatedProvisioner
from agents.node.reader import Reader, ReaderHung, ReaderUnavailable
from agents.node.sender import Sender
from agents.node.simulated import Tenancy
from agents.node.spool import Spool
from agents.protocol import IdlePolicy

EXIT_WRONG, EXIT_CANNOT_RUN, EXIT_REFUSED = 1, 2, 3
INSTALLING_VERBS = ("install", "uninstall")

logger = logging.getLogger("agents.node")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # What an agent that runs on never does is imported where it is done: its memory counts on each node.
    try:
        if arguments and arguments[0] in INSTALLING_VERBS:
            from agents.node import install

            return install.main(verb=arguments[0], arguments=arguments[1:])
        settings = parse_settings(arguments=arguments, environment=os.environ)
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {settings.name} %(message)s"
        )
        if settings.once:
            from agents.node import look

            seen = look.look(settings=settings)
            sys.stdout.write(look.as_json(seen) if settings.as_json else look.as_text(seen))
            return 0
        if settings.check:
            from agents.node import doctor

            findings = doctor.examine(settings=settings)
            sys.stdout.write(doctor.as_text(findings))
            return 0 if doctor.is_fine(findings) else EXIT_WRONG
        if settings.rotate_key:
            return _wish_key(settings)
        return _run(settings)
    except (BadSetting, StateUnusable, ReaderUnavailable) as error:
        _complain(error)
        return EXIT_CANNOT_RUN
    except sqlite3.Error as error:
        _complain(f"the spool cannot be written: {error}")
        return EXIT_CANNOT_RUN
    except EnrolmentRefused as error:
        _complain(error)
        return EXIT_REFUSED


def _complain(what: object) -> None:
    sys.stderr.write(f"agents.node: {what}\n")


def _wish_key(settings: Settings) -> int:
    assert settings.state_dir is not None, "a state directory is always set but for --once"
    keys.wish_change(directory=settings.state_dir)
    sys.stdout.write(f"the agent of {settings.state_dir} changes its key with its next report\n")
    return 0


def _run(settings: Settings) -> int:
    system_clock = SystemClock()
    clock = MarketClock(clock=system_clock)
    directory = settings.state_dir
    assert directory is not None, "a state directory is always set when the agent runs on"
    for warning in settings.warnings:
        logger.warning("%s", warning)
    ends: list[int] = []
    notifier = Notifier(environment=os.environ)

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
    tenancies: Callable[[str], list[Tenancy]] = assembly.no_tenancies
    if settings.fleet is not None:
        machine_id = host.simulated_machine_id(directory=directory)
        simulated = SimulatedProvisioner(spool=spool, node_name=settings.name, now=clock.now)
        provisioner, tenancies = simulated, simulated.tenancies
        logger.warning("SIMULATED: these GPUs are scripted, and every report says so")
    else:
        provisioner = assembly.provisioner_for(settings=settings, directory=directory)
    reader = assembly.reader_for(
        settings=settings, clock=clock, machine_id=machine_id or "unknown", tenancies=tenancies
    )
    sender = Sender(
        server_url=settings.server_url, key=key, clock=clock, agent_version=AGENT_VERSION
    )
    program = settings.scheduler_hook
    scheduler = None if program is None else SchedulerHook(program=program)
    beside = provisioner.blocking or scheduler is not None or not reader.simulated
    try:
        _log_gpus(reader)
        agent = Agent(
            reader=reader,
            spool=spool,
            sender=sender,
            provisioner=provisioner,
            jobs=ThreadJobs(wake=system_clock.wake) if beside else InlineJobs(),
            clock=clock,
            key=key,
            machine=Machine(
                hostname=settings.name,
                machine_id=machine_id or f"key-{key.public_key}",
                boot_id=host.boot_id(),
            ),
            token=settings.token,
            idle_policy=IdlePolicy(free_after_seconds=round(settings.free_after_seconds)),
            dice=random.Random(),  # noqa: S311 - spreads retries, hides nothing
            scheduler=scheduler,
            cure=None if reader.simulated else lambda uuid: cure(gpu_uuid=uuid),
        )
        notifier.tell(notify.READY)
        while not ends:
            pause = agent.step()
            notifier.tell(notify.ALIVE)
            system_clock.wait(seconds=pause)
        notifier.tell(notify.STOPPING)
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
