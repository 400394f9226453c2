"""The agent's settings: command line, then environment, then file, then defaults; checked before it runs.

Each setting is a field of `Settings`: from it come its flag, its variable, its key in the file, its check and
its line in `--help`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from agents.node import AGENT_VERSION
from agents.node.options import PATH, SWITCH, TEXT, Option, choice, number
from agents.node.provision.container.options import BadOption, Options, parse_options
from agents.node.sender import BadServerUrl, check_server_url
from agents.node.simulated import BadFleet, Fleet, parse_fleet

CONFIG_FILE_DEFAULT = Path("/etc/headroom-node.toml")
STATE_DIR_DEFAULT = Path("/var/lib/headroom-node")
CONFIG_BYTES_MAX = 64 * 1024  # two dozen settings with their comments take 4 KiB
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", flags=re.ASCII)
_MIB = 1024 * 1024


class BadSetting(ValueError):
    """A setting that cannot be used; the message names it and says what it should look like."""


def _host_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("must be a host name of letters, digits, dots and dashes")
    return text


def _fleet(text: str) -> Fleet:
    try:
        return parse_fleet(text=text)
    except BadFleet as error:
        raise ValueError(str(error)) from None


_FREE_AFTER = number(least=1, most=86400, unit="seconds")
_SPOOL_QUOTA = number(least=16, most=65536, unit="MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the agent was told. A field here is all that a new setting needs."""

    server_url: Annotated[
        str, Option("server", TEXT.named("URL"), "address of the market, https://...")
    ] = ""
    token: Annotated[
        str, Option("token", TEXT, "enrolment token, needed at the first start; better in a file")
    ] = field(default="", repr=False)
    token_file: Annotated[
        Path | None, Option("token_file", PATH, "file with the enrolment token, mode 0600")
    ] = None
    state_dir: Annotated[
        Path | None, Option("state_dir", PATH, "where the key and the spool live; keep it")
    ] = None
    name: Annotated[
        str, Option("name", TEXT.named("NAME").checked(_host_name), "name of this node (host name)")
    ] = ""
    fleet: Annotated[
        Fleet | None,
        Option(
            "simulate", TEXT.named("FLEET").checked(_fleet), "simulate GPUs: h100x8, a100x4:idle"
        ),
    ] = None
    hook: Annotated[
        Path | None, Option("hook", PATH, "the owner's program that hands GPUs over")
    ] = None
    scheduler_hook: Annotated[
        Path | None,
        Option(
            "scheduler_hook", PATH, "the owner's program that says which free GPUs are allocated"
        ),
    ] = None
    provisioner: Annotated[
        str,
        Option(
            "provisioner",
            choice("container", "hook"),
            "how GPUs are handed over; with --hook, by the hook",
        ),
    ] = ""
    runtime: Annotated[
        str, Option("runtime", TEXT, "podman or docker, by name or path (podman)")
    ] = ""
    runtime_flags: Annotated[
        str, Option("runtime_flags", TEXT.named("FLAGS"), "the runtime's own flags, before a verb")
    ] = ""
    run_flags: Annotated[
        str, Option("run_flags", TEXT.named("FLAGS"), "further flags of each tenant's run")
    ] = ""
    image: Annotated[
        str, Option("image", TEXT, "image of leases that name none; it must serve ssh")
    ] = ""
    image_prefixes: Annotated[
        str,
        Option("image_prefixes", TEXT.named("NAMES"), "images tenants may name begin with these"),
    ] = ""
    entry: Annotated[
        str, Option("entry", TEXT.named("COMMAND"), "what serves ssh in the image (its own sshd)")
    ] = ""
    ssh_host: Annotated[
        str, Option("ssh_host", TEXT.named("NAME"), "where tenants reach this machine (its name)")
    ] = ""
    port_range: Annotated[
        str, Option("port_range", TEXT.named("FIRST-LAST"), "ports for ssh (20000-29999)")
    ] = ""
    free_after_seconds: Annotated[
        float, Option("free_after", _FREE_AFTER, "quiet time before a GPU is free (600)")
    ] = 600.0
    spool_quota_mebibytes: Annotated[
        float, Option("spool_quota", _SPOOL_QUOTA, "room for what the market has not heard (1024)")
    ] = 1024.0
    allow_http: Annotated[
        bool, Option("allow_http", SWITCH, "allow plain http beyond this machine")
    ] = False

    once: Annotated[
        bool, Option("once", SWITCH, "look at the GPUs once, print, and end", is_action=True)
    ] = False
    as_json: Annotated[bool, Option("json", SWITCH, "with --once: print JSON", is_action=True)] = (
        False
    )
    check: Annotated[
        bool,
        Option(
            "check", SWITCH, "say in words what keeps this machine from serving", is_action=True
        ),
    ] = False
    rotate_key: Annotated[
        bool,
        Option(
            "rotate_key", SWITCH, "have the agent change its key at once, and end", is_action=True
        ),
    ] = False

    # What follows from the settings for containers, where GPUs are handed over as such.
    container: Options | None = None
    # What is not wrong, but should be otherwise.
    warnings: tuple[str, ...] = ()

    @property
    def spool_quota_bytes(self) -> int:
        """Return the quota of the spool."""
        return int(self.spool_quota_mebibytes * _MIB)


OPTIONS: Mapping[str, Option] = {
    name: next(extra for extra in hint.__metadata__ if isinstance(extra, Option))
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}


def parse_settings(
    *,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    default_file: Path = CONFIG_FILE_DEFAULT,
) -> Settings:
    """Read the settings.

    :raises BadSetting: when one is missing, unknown or of the wrong form.
    :raises SystemExit: for `--help`, `--version` and unknown flags, as argparse does.
    """
    given = _parser().parse_args(arguments)
    file = _config_file(given.config or environment.get("HEADROOM_CONFIG"), default_file)
    written = {} if file is None else _read_config(file)
    values: dict[str, Any] = {}
    for name, one in OPTIONS.items():
        flagged = getattr(given, one.name)
        varied = "" if one.is_action else environment.get(one.variable, "")
        if flagged not in (None, ""):
            values[name] = _parsed(one, flagged, one.flag)
        elif varied:
            values[name] = _parsed(one, varied, one.variable)
        elif one.name in written:
            assert file is not None, "what is written stands in a file"
            values[name] = _parsed(one, written[one.name], _place(file, one.name))
    warnings = []
    if file is not None and "token" in written and _is_readable_by_others(file):
        warnings.append(f"{file} holds the token and can be read by others: chmod 600 {file}")
    return _completed(Settings(**values), environment=environment, warnings=warnings)


def _completed(
    settings: Settings, *, environment: Mapping[str, str], warnings: list[str]
) -> Settings:
    """Check what concerns more than one setting, and fill in what follows from the machine."""
    looks_only = settings.once or settings.check or settings.rotate_key
    server_url, token, name = settings.server_url, settings.token, settings.name
    if not looks_only and not server_url:
        raise BadSetting(
            "--server or HEADROOM_SERVER is missing: the market's address, https://..."
        )
    if server_url:
        try:
            server_url = check_server_url(url=server_url, plain_http_allowed=settings.allow_http)
        except BadServerUrl as error:
            raise BadSetting(str(error)) from None
    if settings.fleet is not None and settings.hook is not None:
        raise BadSetting("--hook hands over real GPUs and cannot be used with --simulate")
    if settings.hook is not None and not settings.check and not os.access(settings.hook, os.X_OK):
        raise BadSetting(f"--hook {settings.hook}: no such program, or it may not be executed")
    scheduler_hook = settings.scheduler_hook
    if scheduler_hook is not None and not os.access(scheduler_hook, os.X_OK):
        raise BadSetting(
            f"--scheduler-hook {scheduler_hook}: no such program, or it may not be executed"
        )
    if settings.provisioner == "hook" and settings.hook is None:
        raise BadSetting("--provisioner hook needs --hook, the owner's program")
    if settings.token_file is not None and not token:
        token = _read_token(settings.token_file, warnings)
    if not name:
        try:
            name = _host_name(socket.gethostname() or "node")
        except ValueError as error:
            raise BadSetting(f"--name: this machine's host name {error}") from None
    state_dir = settings.state_dir
    if state_dir is None and not settings.once:
        state_dir = _default_state_dir(environment)
    return dataclasses.replace(
        settings,
        server_url=server_url,
        token=token,
        name=name,
        hook=settings.hook and settings.hook.resolve(),
        scheduler_hook=scheduler_hook and scheduler_hook.resolve(),
        container=_container(settings, name=name),
        state_dir=state_dir,
        warnings=tuple(warnings),
    )


def _container(settings: Settings, *, name: str) -> Options | None:
    """Return how containers are started, where GPUs are handed over as such."""
    if settings.provisioner != "container":
        return None
    if settings.hook is not None or settings.fleet is not None:
        raise BadSetting(
            "--provisioner container can be used neither with --hook nor with --simulate"
        )
    try:
        return parse_options(given=lambda option: str(getattr(settings, option)), name=name)
    except BadOption as error:
        raise BadSetting(str(error)) from None


def _parsed(one: Option, value: object, where: str) -> Any:  # noqa: ANN401 - of the setting's type
    try:
        return one.kind.parse(value)
    except ValueError as error:
        shown = "" if one.name == "token" else f" {value!r}"
        raise BadSetting(f"{where}{shown}: {error}") from None


def _config_file(named: str | None, default_file: Path) -> Path | None:
    if named:
        return Path(named)
    return default_file if default_file.exists() else None


def _read_config(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as opened:
            text = opened.read(CONFIG_BYTES_MAX + 1)
        if len(text) > CONFIG_BYTES_MAX:
            raise BadSetting(f"{file}: longer than {CONFIG_BYTES_MAX} bytes")
        written = tomllib.loads(text.decode())
    except OSError as error:
        raise BadSetting(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadSetting(f"{file}: {' '.join(str(error).split())}") from None
    known = [one.name for one in OPTIONS.values() if not one.is_action]
    for key in written:
        if key not in known:
            raise BadSetting(f"{_place(file, key)}: no such setting; there are {', '.join(known)}")
    return written


def _place(file: Path, key: str) -> str:
    """Return where a key stands: file, line and key."""
    start = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[]=.]""")
    lines = file.read_text(errors="replace").splitlines()
    number_of_line = next((n for n, line in enumerate(lines, start=1) if start.match(line)), None)
    return f"{file}: {key}" if number_of_line is None else f"{file}:{number_of_line}: {key}"


def _read_token(file: Path, warnings: list[str]) -> str:
    try:
        token = file.read_text().strip()
        if _is_readable_by_others(file):
            warnings.append(f"{file} can be read by others: chmod 600 {file}")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadSetting(f"--token-file {file}: cannot be read: {reason}") from None
    if not token or len(token.split()) != 1:
        raise BadSetting(f"--token-file {file}: must hold one token and nothing else")
    return token


def _is_readable_by_others(file: Path) -> bool:
    return bool(file.stat().st_mode & 0o077)


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return STATE_DIR_DEFAULT
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "headroom-node"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agents.node",
        description="Report this machine's GPUs to the market, and hand over, meter and take back what it "
        "leases. Every setting can be given as a flag, as HEADROOM_NAME in the environment, or as a key "
        "of the same name with underscores in a TOML file; the first of these counts.",
        epilog="`python -m agents.node install --help` tells how to make it a service.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"read settings from this TOML file ({CONFIG_FILE_DEFAULT}, if it exists; HEADROOM_CONFIG)",
    )
    add_options(parser, actions=True)
    parser.add_argument("--version", action="version", version=AGENT_VERSION)
    return parser


def add_options(parser: argparse.ArgumentParser, *, actions: bool = False) -> None:
    """Give a parser a flag for each setting, and for what to do now if `actions` is true."""
    for one in OPTIONS.values():
        if one.is_action and not actions:
            continue
        if one.kind is SWITCH:
            parser.add_argument(one.flag, action="store_true", default=None, help=one.help)
        else:
            parser.add_argument(one.flag, metavar=one.kind.metavar, help=one.help)
