"""What the owner may set about containers, checked before the agent runs."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PORTS_DEFAULT = range(20_000, 30_000)  # below the ports that Linux draws for outgoing connections
PORT_MAX = 65_535
# An owner's flags must not undo what keeps tenants apart (shared IPC led to Xid 119 on the whole machine).
FLAGS_REFUSED = frozenset({
    "--privileged", "--ipc=host", "--pid=host", "--uts=host", "--userns=host", "--cgroupns=host",
    "--network=host", "--net=host", "--cap-add", "--security-opt", "--name", "--rm", "--restart",
})  # fmt: skip


class BadOption(ValueError):
    """An option that cannot be used; the message names it and says what it should look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the owner has set. `runtime_flags` stand before the verb, `run_flags` end the options of `run`."""

    runtime: str
    ssh_host: str
    image: str = ""
    image_prefixes: tuple[str, ...] = ()
    runtime_flags: tuple[str, ...] = ()
    run_flags: tuple[str, ...] = ()
    entry: tuple[str, ...] = ()
    ports: range = PORTS_DEFAULT

    @property
    def kind(self) -> str:
        """Return `podman` or `docker`, whatever path the program has."""
        return "docker" if Path(self.runtime).name.startswith("docker") else "podman"


def parse_options(*, given: Callable[[str], str], name: str) -> Options:
    """Read the options; `given` returns the text of one by its name, `name` is the machine's.

    :raises BadOption: when one cannot be used.
    """
    runtime = given("runtime") or "podman"
    if not Path(runtime).name.startswith(("podman", "docker")):
        raise BadOption(f"--runtime {runtime!r}: podman or docker, by name or path")
    if shutil.which(runtime) is None:
        raise BadOption(f"--runtime {runtime!r}: no such program")
    run_flags = _words("--run-flags", given("run_flags"))
    for flag, follower in itertools.zip_longest(run_flags, run_flags[1:], fillvalue=""):
        bare = flag.partition("=")[0]
        if {flag, bare, f"{flag}={follower}"} & FLAGS_REFUSED:
            raise BadOption(f"--run-flags: {flag} would undo what keeps tenants apart")
    prefixes = tuple(p for p in re.split(r"[,\s]+", given("image_prefixes")) if p)
    return Options(
        runtime=runtime,
        ssh_host=given("ssh_host") or name,
        image=given("image"),
        image_prefixes=prefixes,
        runtime_flags=_words("--runtime-flags", given("runtime_flags")),
        run_flags=run_flags,
        entry=_words("--entry", given("entry")),
        ports=_ports(given("port_range")),
    )


def _words(name: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadOption(f"{name}: {error}") from None


def _ports(text: str) -> range:
    if not text:
        return PORTS_DEFAULT
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text, flags=re.ASCII)
    if match is None or not 1024 <= int(match[1]) <= int(match[2]) <= PORT_MAX:
        raise BadOption(f"--port-range {text!r}: FIRST-LAST, from 1024 to {PORT_MAX}")
    return range(int(match[1]), int(match[2]) + 1)
