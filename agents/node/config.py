"""The agent's settings: command line first, then environment, then defaults; checked before anything runs."""

from __future__ import annotations

import argparse
import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agents.node import AGENT_VERSION
from agents.node.provision.container.options import BadOption, Options, parse_options
from agents.node.sender import BadServerUrl, check_server_url
from agents.node.simulated import BadFleet, Fleet, parse_fleet

FREE_AFTER_SECONDS_DEFAULT = 600.0
FREE_AFTER_SECONDS_RANGE = (1.0, 86400.0)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", flags=re.ASCII)


class BadSetting(ValueError):
    """A setting that cannot be used; the message names it and says what it should look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the agent was told."""

    name: str
    fleet: Fleet | None
    hook: Path | None
    container: Options | None
    free_after_seconds: float
    once: bool
    as_json: bool
    server_url: str = ""
    token: str = field(default="", repr=False)
    state_dir: Path | None = None


def parse_settings(*, arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    :raises BadSetting: when one is missing or of the wrong form.
    :raises SystemExit: for `--help`, `--version` and unknown flags, as argparse does.
    """
    given = _parser().parse_args(arguments)

    def setting(name: str) -> str:
        value: str | None = getattr(given, name)
        return environment.get(f"HEADROOM_{name.upper()}", "") if value is None else value

    name = setting("name") or socket.gethostname() or "node"
    if not _NAME.fullmatch(name):
        raise BadSetting(f"--name {name!r}: a host name of letters, digits, dots and dashes")
    simulate, hook = setting("simulate"), setting("hook")
    once = bool(given.once)
    plain_http = bool(given.allow_http) or environment.get("HEADROOM_ALLOW_HTTP") == "1"
    if not once and not setting("server"):
        raise BadSetting(
            "--server or HEADROOM_SERVER is missing: the market's address, https://..."
        )
    try:
        fleet = parse_fleet(text=simulate) if simulate else None
        server_url = "" if once else check_server_url(
            url=setting("server"), plain_http_allowed=plain_http
        )  # fmt: skip
    except (BadFleet, BadServerUrl) as error:
        raise BadSetting(str(error)) from None
    if fleet is not None and hook:
        raise BadSetting("--hook hands over real GPUs and cannot be used with --simulate")
    if hook and not os.access(hook, os.X_OK):
        raise BadSetting(f"--hook {hook}: no such program, or it may not be executed")
    wanted = setting("provisioner") or ("hook" if hook else "")
    if wanted not in ("", "container", "hook"):
        raise BadSetting(f"--provisioner {wanted!r}: container or hook")
    if wanted == "hook" and not hook:
        raise BadSetting("--provisioner hook needs --hook, the owner's program")
    if wanted == "container" and (hook or fleet is not None):
        raise BadSetting("--provisioner container can be used neither with --hook nor --simulate")
    try:
        container = parse_options(given=setting, name=name) if wanted == "container" else None
    except BadOption as error:
        raise BadSetting(str(error)) from None
    state_dir = setting("state_dir")
    return Settings(
        name=name,
        fleet=fleet,
        hook=Path(hook).resolve() if hook else None,
        container=container,
        free_after_seconds=_free_after(setting("free_after")),
        once=once,
        as_json=bool(given.json),
        server_url=server_url,
        token=setting("token"),
        state_dir=Path(state_dir)
        if state_dir
        else None
        if once
        else _default_state_dir(environment),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agents.node",
        description="Report this machine's GPUs to the market, and hand over, meter and take back what it "
        "leases. Each option can also be given as HEADROOM_NAME in the environment; keep the token there.",
    )
    parser.add_argument("--server", help="address of the market, https://...")
    parser.add_argument("--token", help="enrolment token; needed at the first start only")
    parser.add_argument("--state-dir", help="where the key and the spool live; keep it")
    parser.add_argument("--name", help="name of this node (default: host name)")
    parser.add_argument(
        "--simulate", metavar="FLEET", help="simulate GPUs, such as h100x8 or a100x4:idle"
    )
    parser.add_argument(
        "--hook", metavar="PROGRAM", help="the owner's program that hands GPUs over"
    )
    parser.add_argument(
        "--provisioner", help="how GPUs are handed over: container, or hook (default with --hook)"
    )
    parser.add_argument("--runtime", help="podman or docker, by name or path (podman)")
    parser.add_argument(
        "--runtime-flags", metavar="FLAGS", help="the runtime's own flags, before every verb"
    )
    parser.add_argument("--run-flags", metavar="FLAGS", help="further flags of each tenant's run")
    parser.add_argument("--image", help="image of leases that name none; it must serve ssh")
    parser.add_argument(
        "--image-prefixes", metavar="NAMES", help="images that tenants may name, begin with these"
    )
    parser.add_argument(
        "--entry", metavar="COMMAND", help="what serves ssh in the image (its own sshd)"
    )
    parser.add_argument("--ssh-host", help="address at which tenants reach this machine (name)")
    parser.add_argument("--port-range", metavar="FIRST-LAST", help="ports for ssh (20000-29999)")
    parser.add_argument(
        "--free-after", metavar="SECONDS", help="quiet time before a GPU is free (600)"
    )
    parser.add_argument(
        "--allow-http", action="store_true", help="allow plain http beyond this machine"
    )
    parser.add_argument("--once", action="store_true", help="look at the GPUs once, print, and end")
    parser.add_argument("--json", action="store_true", help="with --once: print JSON")
    parser.add_argument("--version", action="version", version=AGENT_VERSION)
    return parser


def _free_after(text: str) -> float:
    least, most = FREE_AFTER_SECONDS_RANGE
    try:
        seconds = float(text or FREE_AFTER_SECONDS_DEFAULT)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise BadSetting(f"--free-after {text!r}: a number of seconds from {least:g} to {most:g}")
    return seconds


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/headroom-node")
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "headroom-node"
