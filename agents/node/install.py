"""`install` and `uninstall`: make the agent a service of systemd, or of an image that will boot with it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import agents.node
from agents.node.config import (
    CONFIG_FILE_DEFAULT,
    OPTIONS,
    STATE_DIR_DEFAULT,
    add_options,
    parse_settings,
)
from agents.node.options import SWITCH

UNIT_FILE = Path("/etc/systemd/system/headroom-node.service")
ENVIRONMENT_FILE = Path("/etc/default/headroom-node")
MARK = "# Written by `python -m agents.node install`; `uninstall` removes it."
# A first read of sixteen GPUs without persistence takes a minute, a name server that does not answer half of
# one, an answer of the market ten seconds: whoever is silent for longer is stuck.
WATCHDOG_SECONDS = 300
RESTART_SECONDS = 10
SYSTEMCTL_SECONDS_MAX = 60.0

# What a process that this service starts would inherit. A container or a virtual machine must not, so these
# lines stand only where the agent starts nothing.
_SANDBOX = f"""
# The agent of this unit starts no tenant's programs, so that it needs no more than this.
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelModules=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=/dev/nvidiactl rw
DeviceAllow=/dev/nvidia-uvm rw
DeviceAllow=/dev/nvidia-uvm-tools rw
{chr(10).join(f"DeviceAllow=/dev/nvidia{minor} rw" for minor in range(16))}
DeviceAllow=/dev/kmsg r
"""
_NO_SANDBOX = """
# Without NoNewPrivileges, ProtectSystem and DevicePolicy: the agent starts what hands GPUs over, and a
# tenant's container would inherit them, with a view of the file system that the next start does not share.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be written where; a file that is already so stays untouched."""

    unit_path: Path
    unit: str
    config_path: Path
    config: str


def unit_text(*, python: str, code: Path, state_dir: Path, hands_over: bool) -> str:
    """Return the unit; `hands_over` says that the agent starts programs for tenants."""
    own_directory = state_dir == STATE_DIR_DEFAULT
    state = (
        f"StateDirectory={STATE_DIR_DEFAULT.name}\nStateDirectoryMode=0700"
        if own_directory
        else f"ReadWritePaths={_quoted(state_dir)}"
    )
    return f"""{MARK}
[Unit]
Description=Headroom node agent
Wants=network-online.target
After=network-online.target nvidia-persistenced.service
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={_quoted(python)} -m agents.node --config {CONFIG_FILE_DEFAULT}
WorkingDirectory={str(code).replace("%", "%%")}
EnvironmentFile=-{ENVIRONMENT_FILE}
{state}
UMask=0077
TimeoutStartSec={WATCHDOG_SECONDS}
WatchdogSec={WATCHDOG_SECONDS}
Restart=always
RestartSec={RESTART_SECONDS}
# The market refused this node: only a person can help.
RestartPreventExitStatus=3
# What serves a lease outlives the agent, which takes it up again.
KillMode=process
{(_NO_SANDBOX if hands_over else _SANDBOX).strip()}

[Install]
WantedBy=multi-user.target
"""


def config_text(*, given: Mapping[str, object]) -> str:
    """Return the file of settings: those that were given, and the others as comments."""
    lines = [
        "# Settings of the Headroom node agent (TOML). `python -m agents.node --help` explains them.",
        "# A flag or a variable HEADROOM_NAME counts more than a line here.",
    ]
    for one in OPTIONS.values():
        if one.is_action:
            continue
        lines += ["", f"# {one.help}"]
        if one.name in given:
            lines.append(f"{one.name} = {_toml(one.kind.parse(given[one.name]), given[one.name])}")
        else:
            example = "false" if one.kind is SWITCH else '""'
            lines.append(f"#{one.name} = {example}")
    return "\n".join(lines) + "\n"


def main(*, verb: str, arguments: Sequence[str]) -> int:
    """Install or uninstall; return the exit status.

    :raises BadSetting: when a setting for the file cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m agents.node {verb}",
        description="Make the agent a service of systemd: a unit and a file of settings, into which the "
        "settings given here are written. A file of settings that exists stays as it is."
        if verb == "install"
        else "Stop the service and remove its unit. Settings and state stay.",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be written")
    parser.add_argument(
        "--root", metavar="DIR", help="write below DIR, as for an image; start nothing"
    )
    if verb == "install":
        add_options(parser)
    chosen = parser.parse_args(arguments)
    root = Path(chosen.root or "/")
    if not chosen.dry_run and chosen.root is None and os.geteuid() != 0:
        sys.stderr.write(
            f"agents.node: {verb} writes below /etc: run it as root, or with --dry-run\n"
        )
        return 2
    try:
        if verb == "uninstall":
            return _uninstall(root, dry_run=chosen.dry_run, is_image=chosen.root is not None)
        plan = _plan(chosen, root)
        if chosen.dry_run:
            _print(plan)
            return 0
        return _install(plan, is_image=chosen.root is not None)
    except OSError as error:
        sys.stderr.write(f"agents.node: {verb} failed: {error}\n")
        return 2


def _plan(chosen: argparse.Namespace, root: Path) -> Plan:
    flags: list[str] = []
    given: dict[str, object] = {}
    for one in OPTIONS.values():
        value = getattr(chosen, one.name, None)
        if one.is_action or value is None:
            continue
        flags += [one.flag] if one.kind is SWITCH else [f"{one.flag}={value}"]
        given[one.name] = value
    # Checked as the agent will check them, but for what another machine has: `--check` tells that there.
    settings = parse_settings(
        arguments=[*flags, "--check"], environment={}, default_file=Path(os.devnull)
    )
    return Plan(
        unit_path=root / UNIT_FILE.relative_to("/"),
        unit=unit_text(
            python=sys.executable,
            code=Path(agents.node.__file__).parents[2],
            state_dir=settings.state_dir if "state_dir" in given and settings.state_dir
            else STATE_DIR_DEFAULT,
            hands_over=settings.hook is not None or settings.provisioner == "container",
        ),
        config_path=root / CONFIG_FILE_DEFAULT.relative_to("/"),
        config=config_text(given=given),
    )  # fmt: skip


def _print(plan: Plan) -> None:
    for path, text in ((plan.unit_path, plan.unit), (plan.config_path, plan.config)):
        sys.stdout.write(f"# --- {path}\n{text}\n")


def _install(plan: Plan, *, is_image: bool) -> int:
    if plan.unit_path.exists() and plan.unit_path.read_text() == plan.unit:
        sys.stdout.write(f"{plan.unit_path} is as it should be\n")
    else:
        _write(plan.unit_path, plan.unit, mode=0o644)
    if plan.config_path.exists():
        sys.stdout.write(f"{plan.config_path} exists and stays as it is\n")
    else:
        _write(plan.config_path, plan.config, mode=0o600)
    if is_image:
        sys.stdout.write(f"enable it in the image: systemctl --root=DIR enable {UNIT_FILE.name}\n")
        return 0
    if not _systemctl("daemon-reload"):
        return 2
    sys.stdout.write(
        f"next: edit {plan.config_path}, try `python -m agents.node --check`,"
        f" then `systemctl enable --now {UNIT_FILE.name}`\n"
    )
    return 0


def _uninstall(root: Path, *, dry_run: bool, is_image: bool) -> int:
    unit = root / UNIT_FILE.relative_to("/")
    if not unit.exists():
        sys.stdout.write(f"{unit} is not there\n")
        return 0
    if not unit.read_text().startswith(MARK):
        sys.stderr.write(f"agents.node: {unit} is not ours and stays\n")
        return 2
    if dry_run:
        sys.stdout.write(f"would stop the service and remove {unit}\n")
        return 0
    if not is_image and not _systemctl("disable", "--now", UNIT_FILE.name):
        return 2
    unit.unlink()
    if not is_image:
        _systemctl("daemon-reload")
    sys.stdout.write(
        f"removed {unit}; {CONFIG_FILE_DEFAULT} and {STATE_DIR_DEFAULT} stay: the key and what the market"
        " has not heard are in there\n"
    )
    return 0


def _systemctl(*arguments: str) -> bool:
    program = shutil.which("systemctl")
    if program is None:
        sys.stderr.write("agents.node: systemctl is not here; is this a machine with systemd?\n")
        return False
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            [program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=SYSTEMCTL_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"agents.node: systemctl {' '.join(arguments)} does not come back\n")
        return False
    if done.returncode:
        sys.stderr.write(f"agents.node: systemctl {' '.join(arguments)}: {done.stderr.strip()}\n")
    return done.returncode == 0


def _write(path: Path, text: str, *, mode: int) -> None:
    """Write a file that is either whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    sys.stdout.write(f"wrote {path}\n")


def _quoted(value: object) -> str:
    """Return a word of a unit file: specifiers escaped, and quoted where it has spaces."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _toml(value: object, given: object) -> str:
    """Return a value as TOML writes it: a switch, a number, or the text that was given."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    escaped = str(given).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
