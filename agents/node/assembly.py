"""Build the parts of an agent as its settings say: the reader and the way GPUs are handed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agents.node.child import ChildReader
from agents.node.clock import MarketClock
from agents.node.config import Settings
from agents.node.provision import NoProvisioner, Provisioner
from agents.node.provision.hook import HookProvisioner
from agents.node.reader import Reader
from agents.node.simulated import SimulatedReader, Tenancy


def no_tenancies(_gpu_uuid: str) -> list[Tenancy]:
    """Return the leases of a simulated GPU that nobody has leased."""
    return []


def reader_for(
    *,
    settings: Settings,
    clock: MarketClock,
    machine_id: str,
    tenancies: Callable[[str], list[Tenancy]] = no_tenancies,
) -> Reader:
    """Return the source of GPUs; nothing is read yet."""
    if settings.fleet is None:
        return ChildReader(boottime_seconds=clock.boottime_seconds, now=clock.now)
    return SimulatedReader(
        fleet=settings.fleet,
        node_name=settings.name,
        machine_id=machine_id,
        tenancies=tenancies,
    )


def provisioner_for(*, settings: Settings, directory: Path) -> Provisioner:
    """Return how real GPUs are handed over; `directory` is that of the agent's state."""
    if settings.hook is not None:
        return HookProvisioner(program=settings.hook)
    options = settings.container()
    if options is None:
        return NoProvisioner()
    from agents.node.provision import container  # an owner's hook needs nothing of it

    return container.ContainerProvisioner(
        options=options, directory=directory / "leases", machine=container.measure()
    )
