"""A program that behaves like podman towards the agent: it keeps containers, networks and images in a file,
writes down how it was called, and fails as a test tells it to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("program.py")


class FakePodman:
    """One runtime with its state in a directory."""

    def __init__(self, *, directory: Path, name: str = "podman") -> None:
        self.directory = directory
        self.path = directory / name
        self._state = directory / "state.json"
        self._state.write_text(json.dumps({"containers": {}, "networks": [], "images": []}))
        self.path.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} {directory} "$@"\n')
        self.path.chmod(0o755)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def change(self, **parts: Any) -> None:
        self._state.write_text(json.dumps({**self.state, **parts}))

    @property
    def calls(self) -> list[list[str]]:
        path = self.directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]

    def fail(self, verb: str, *, status: int, errors: str, times: int = 1) -> None:
        """Let the next calls of a verb fail in these words."""
        (self.directory / f"fail.{verb}").write_text(json.dumps([status, errors, times]))

    def hang(self, verb: str) -> None:
        """Let calls of a verb never end."""
        (self.directory / f"hang.{verb}").touch()

    def mute(self) -> None:
        """Start containers in which no sshd listens."""
        (self.directory / "mute").touch()

    def exit(self, name: str) -> None:
        """Let a container end by itself."""
        containers = self.state["containers"]
        os.kill(containers[name]["pid"], signal.SIGKILL)
        containers[name]["status"] = "exited"
        self.change(containers=containers)

    def close(self) -> None:
        """End what the containers run."""
        for container in self.state["containers"].values():
            if container["status"] == "running":
                os.kill(container["pid"], signal.SIGKILL)
