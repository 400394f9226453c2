"""A container provisioner on a runtime that behaves like podman, with every limit in a test's hand."""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.node.provision.container import ContainerProvisioner, Machine, Options
from agents.protocol import DesiredState, Grant
from tests.fakes.podman import FakePodman

AT = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFqkZ0Jm3dYh0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0m tenant@example"
IMAGE = "registry.example/cuda@sha256:" + "a" * 64
GPUS = ["GPU-0000", "GPU-1111"]
NAME = "headroom-lease-1-3"
GRANT = Grant(
    lease_id="lease-1",
    lease_epoch=3,
    gpu_uuids=GPUS[:1],
    not_before=AT,
    not_after=AT + dt.timedelta(hours=1),
    desired_state=DesiredState.RUN,
    ssh_public_keys=[KEY],
)
MACHINE = Machine(
    cpu_count=64, memory_bytes=512 * 1024**3, open_files_max=1024, locked_bytes_max=-1
)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Bench:
    """A provisioner with its fake runtime, whose time passes when it sleeps."""

    def __init__(self, directory: Path, *, runtime: str = "podman") -> None:
        (directory / "runtime").mkdir()
        (directory / "cdi").mkdir()
        self.podman = FakePodman(directory=directory / "runtime", name=runtime)
        self.podman.change(images=[IMAGE])
        self.state = directory / "leases"
        self.cdi = directory / "cdi"
        self.name_devices(*GPUS)
        port = a_free_port()
        self.options = Options(
            runtime=str(self.podman.path),
            ssh_host="node-1.example",
            image=IMAGE,
            image_prefixes=("registry.example/team/",),
            ports=range(port, port + 1),
        )
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def name_devices(self, *names: str) -> None:
        devices = [{"name": name} for name in names]
        spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
        (self.cdi / "nvidia.json").write_text(json.dumps(spec))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        on_sleep, self.on_sleep = self.on_sleep, lambda: None
        on_sleep()
        # The fake's sshd needs a moment of real time to listen.
        subprocess.run(["sleep", "0.05"], check=True)

    def provisioner(self, *, seconds_max: float = 30.0, **options: Any) -> ContainerProvisioner:
        return ContainerProvisioner(
            options=replace(self.options, **options),
            directory=self.state,
            machine=MACHINE,
            cdi_directories=[self.cdi],
            monotonic=lambda: self.now,
            sleep=self.sleep,
            seconds_max=seconds_max,
        )

    def left(self) -> tuple[list[str], list[str], list[str]]:
        """Return what is left of all leases: containers, networks, directories."""
        state = self.podman.state
        kept = [path.name for path in self.state.glob("*")]
        return list(state["containers"]), state["networks"], kept


def option(call: list[str], name: str) -> list[str]:
    return [call[i + 1] for i, word in enumerate(call) if word == name]
