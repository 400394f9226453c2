"""`--check`: say in words what keeps this machine from serving leases, and what to do about it."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.node import AGENT_VERSION, assembly, checks, host
from agents.node.clock import MarketClock, SystemClock
from agents.node.config import Settings
from agents.node.connection import Connection, NoAnswer, NotSent
from agents.node.health import judge
from agents.node.host import StateUnusable
from agents.node.kernel_log import KERNEL_LOG, pci_place
from agents.node.provision import Capabilities
from agents.node.reader import LOST, NOT_SUPPORTED, Reader, ReaderUnavailable
from agents.node.sender import http_date
from agents.protocol import (
    REPORT_PATH,
    SIGNATURE_SKEW_SECONDS_MAX,
    CheckResult,
    GpuIdentity,
    HealthPolicy,
)

# Half of what a signature may be off by: the rest is for the way.
CLOCK_SECONDS_MAX = SIGNATURE_SKEW_SECONDS_MAX / 2

PCI_DEVICES = Path("/sys/bus/pci/devices")
# VGA and 3D controllers; the rest of NVIDIA's devices are audio, USB and switches.
DISPLAY_CLASSES = frozenset({"0x0300", "0x0302"})

# What a person can do about a check that comes before each lease.
_ADVICE = {
    "present": "restart the machine; if it happens again, have the card replaced",
    "health": "see the kernel's log for Xids; restart, and have a card that repeats them replaced",
    "processes": "nothing, if this is the owner's work; such a GPU is not handed over",
    "memory": "nothing, if this is the owner's work; such a GPU is not handed over",
    "recovery_action": "`nvidia-smi --gpu-reset`, or restart the machine",
    "row_remap_pending": "`nvidia-smi --gpu-reset` when nobody uses the GPU",
    "row_remap_failed": "have the card replaced",
    "ecc_mode": "`nvidia-smi --gpu-reset`, so that the new mode holds",
    "mig_mode": "`nvidia-smi -mig 0` on the cards that shall be sold as a whole",
    "power_limit": "`nvidia-smi -pl WATTS` with the default that `nvidia-smi -q -d POWER` names",
    "compute_mode": "`nvidia-smi -c DEFAULT`",
    "persistence": "enable the service nvidia-persistenced: each start takes seconds without it",
    "nvlink": "see `nvidia-smi nvlink --status` and the service nvidia-fabricmanager",
    "fabric": "see the services nvidia-fabricmanager and nvidia-imex",
    "pcie_width": "reseat the card; see `nvidia-smi -q -d PCIE`",
    "scrub_on_free": "take RMDisableScrubOnFree out of the options of the module nvidia, and restart",
    "provisioner": "set --provisioner or --hook, and `nvidia-ctk cdi generate --device-name-strategy"
    " uuid --output /etc/cdi/nvidia.yaml`; until then leases of this node fail",
    "disk": "make room below the state directory: tenants' containers need it",
}
_IN_USE = frozenset({"processes", "memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result, and what a person can do about it when it did not pass."""

    result: CheckResult
    advice: str = ""


def examine(
    *,
    settings: Settings,
    kernel_log: Path = KERNEL_LOG,
    pci_devices: Path = PCI_DEVICES,
    now: Callable[[], dt.datetime] | None = None,
) -> list[Finding]:
    """Make every check that this machine allows; nothing is changed and no lease is touched.

    `now` is this machine's time of day.
    """
    now = now or SystemClock().wall
    clock = MarketClock(clock=SystemClock())
    reader = assembly.reader_for(
        settings=settings, clock=clock, machine_id=host.machine_id() or "unknown"
    )
    directory = settings.state_dir
    assert directory is not None, "a state directory is always set but for --once"
    findings, capabilities = [], Capabilities(kind="simulated")
    if settings.fleet is None:
        findings.append(_kernel_log(kernel_log))
        if settings.hook is not None and not os.access(settings.hook, os.X_OK):
            advice = f"chmod +x {settings.hook}, or correct the path"
            findings.append(_failed("hook", f"{settings.hook} cannot be executed", advice))
        capabilities = assembly.provisioner_for(settings=settings, directory=directory).probe()
    try:
        findings += _gpus(
            reader, capabilities, directory=directory, pci_devices=pci_devices, at=now()
        )
    finally:
        reader.close()
    findings += _state(directory, settings)
    findings += _market(settings, now)
    findings += [
        _failed("configuration", warning, "follow the command in this line")
        for warning in settings.warnings
    ]
    return findings


def as_text(findings: list[Finding]) -> str:
    """Return a line for each finding, and one more for what to do."""
    lines = []
    for finding in findings:
        result = finding.result
        word = {True: "ok   ", False: "WRONG", None: "  ?  "}[result.passed]
        lines.append(f"{word} {result.name}{result.detail and ': '}{result.detail}")
        if result.passed is not True and finding.advice:
            lines.append(f"      -> {finding.advice}")
    wrong = sum(finding.result.passed is False for finding in findings)
    lines.append(
        f"{wrong} of {len(findings)} checks found something wrong" if wrong else "all fine"
    )
    return "\n".join(lines) + "\n"


def is_fine(findings: list[Finding]) -> bool:
    """Return whether nothing is wrong; what could not be checked is not wrong."""
    return all(finding.result.passed is not False for finding in findings)


def _passed(name: str, detail: str) -> Finding:
    return Finding(result=CheckResult(name=name, passed=True, detail=detail))


def _failed(name: str, detail: str, advice: str) -> Finding:
    return Finding(result=CheckResult(name=name, passed=False, detail=detail), advice=advice)


def _unknown(name: str, detail: str, advice: str = "") -> Finding:
    return Finding(result=CheckResult(name=name, passed=None, detail=detail), advice=advice)


# --- the GPUs -------------------------------------------------------------------------------------------


def _gpus(
    reader: Reader,
    capabilities: Capabilities,
    *,
    directory: Path,
    pci_devices: Path,
    at: dt.datetime,
) -> Iterator[Finding]:
    """Make the checks that come before each lease on all GPUs at once."""
    try:
        uuids = [identity.uuid for identity in reader.identify()]
        seen = checks.look(reader=reader, gpu_uuids=uuids, at=at)
    except ReaderUnavailable as error:
        advice = "load or install NVIDIA's driver; `nvidia-smi` must list the GPUs"
        yield _failed("driver", str(error), advice)
        if capabilities.problem:
            yield _failed("provisioner", capabilities.problem, _ADVICE["provisioner"])
        return
    simulated = " (simulated)" if reader.simulated else ""
    version = seen.host.driver_version or "unknown"
    yield _passed("driver", f"version {version} answers{simulated}")
    if not uuids:
        yield _failed("gpus", "the driver lists none", "see that the cards are seated and powered")
        return
    missing = [] if reader.simulated else _not_listed(list(seen.identities.values()), pci_devices)
    if missing:
        advice = "restart the machine; if it happens again, have the card replaced"
        yield _failed("gpus", f"the driver does not list {', '.join(missing)}", advice)
    else:
        yield _passed("gpus", f"{len(uuids)} are listed")
    yield _virtualization(list(seen.identities.values()))
    yield from _readings(seen)
    for found in checks.preflight(
        seen=seen,
        gpu_uuids=uuids,
        policy=HealthPolicy(),
        health={uuid: judge(sample=sample) for uuid, sample in seen.samples.items()},
        capabilities=capabilities,
        disk_free_bytes=shutil.disk_usage(_existing(directory)).free,
        simulated=reader.simulated,
    ):
        passed = found.passed
        if found.name in _IN_USE and passed is False:
            passed = None  # somebody works here now: no lease is handed over, but nothing is wrong
        is_slow = found.name == "persistence" and bool(found.detail)
        detail = found.detail or ("" if passed else "cannot be told here")
        yield Finding(
            result=CheckResult(name=found.name.replace("_", " "), passed=passed, detail=detail),
            advice=_ADVICE.get(found.name, "") if found.passed is False or is_slow else "",
        )


def _not_listed(identities: list[GpuIdentity], pci_devices: Path) -> list[str]:
    """Return the PCI places that the kernel gave to NVIDIA's driver and the driver says nothing of.

    A GPU that fell off the bus before the driver was asked has no name there any more.
    """
    listed = {pci_place(bus_id=i.pci_bus_id) for i in identities if i.pci_bus_id is not None}
    found = []
    for device in sorted(pci_devices.glob("*")):
        try:
            kind = (device / "class").read_text()[:6]
            driver = (device / "driver").resolve(strict=True).name
        except OSError:
            continue  # bound to no driver, or gone while it was looked at
        if (
            driver == "nvidia"
            and kind in DISPLAY_CLASSES
            and pci_place(bus_id=device.name) not in listed
        ):
            found.append(device.name)
    return found


def _readings(seen: checks.Look) -> Iterator[Finding]:
    """Name what the driver should be able to tell of a GPU and does not."""
    for uuid, sample in seen.samples.items():
        failed = {
            name: why for name, why in sample.unread.items() if why not in (NOT_SUPPORTED, LOST)
        }
        if failed:
            words = ", ".join(f"{name} ({why})" for name, why in sorted(failed.items()))
            yield _failed("readings", f"{uuid} does not tell {words}", "update the driver")


def _virtualization(identities: list[GpuIdentity]) -> Finding:
    hosts = [i.uuid for i in identities if (i.virtualization_mode or "").startswith("host_")]
    if hosts:
        advice = "a card that is cut for virtual machines cannot be leased; use the plain driver"
        return _failed("vgpu", f"cards of a vGPU host: {', '.join(hosts)}", advice)
    return _passed("vgpu", "no card is cut for virtual machines")


def _kernel_log(path: Path) -> Finding:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        advice = "run the agent as root, or give it CAP_SYSLOG and read access"
        detail = f"{path} cannot be read ({error.strerror}): errors of the GPUs may go unseen"
        return _failed("kernel log", detail, advice)
    return _passed("kernel log", f"{path} can be read")


# --- the agent's own ------------------------------------------------------------------------------------


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def _state(directory: Path, settings: Settings) -> Iterator[Finding]:
    existing = _existing(directory)
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        advice = "run as the agent's user, or give --state-dir a place that it may write"
        yield _failed("state directory", f"{directory} cannot be written", advice)
        return
    free = shutil.disk_usage(existing).free
    wanted = settings.spool_quota_bytes
    if free < wanted:
        detail = f"{free >> 20} MiB are free at {existing}, the spool may need {wanted >> 20}"
        yield _failed("state directory", detail, "make room, or lower --spool-quota")
    else:
        yield _passed("state directory", f"{directory}: writable, {free >> 20} MiB free")
    yield from _enrolment(directory, has_token=bool(settings.token))


def _enrolment(directory: Path, *, has_token: bool) -> Iterator[Finding]:
    path = directory / "node.key"
    node_id = _node_id(directory / "spool.sqlite3")
    if not path.exists():
        if has_token:
            yield _passed("enrolment", "not enrolled yet; there is a token for the first start")
        else:
            advice = "make a token in the market's console and give it by --token-file"
            yield _failed("enrolment", "not enrolled yet, and there is no token", advice)
        return
    try:
        host.read_key(path=path)
    except StateUnusable as error:
        yield _failed("key", str(error), "restore the file, or remove it and enrol again")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield _failed("key", f"{path} has mode {mode:o}", f"chmod 600 {path}")
    else:
        yield _passed("key", f"{path} is for its owner alone")
    if node_id:
        yield _passed("enrolment", f"enrolled as node {node_id}")
    elif has_token:
        yield _passed("enrolment", "not enrolled yet; there is a token for the first start")
    else:
        advice = "make a token in the market's console and give it by --token-file"
        yield _failed("enrolment", "there is a key, but the market has not taken this node", advice)


def _node_id(spool: Path) -> str | None:
    """Return what the spool says, without a lock: the agent may run."""
    if not spool.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{spool}?mode=ro", uri=True)
        try:
            row = connection.execute("SELECT value FROM value WHERE name = 'node_id'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None  # an old or broken file: the agent itself says more
    return None if row is None else str(row[0])


# --- the market -----------------------------------------------------------------------------------------


def _market(settings: Settings, now: Callable[[], dt.datetime]) -> Iterator[Finding]:
    if not settings.server_url:
        yield _unknown("market", "no --server was given, so nothing was asked")
        return
    connection = Connection(
        server_url=settings.server_url, user_agent=f"headroom-node/{AGENT_VERSION}"
    )
    try:
        # Nothing is signed and nothing is sent: any answer shows that the way is open.
        answer = connection.request(method="GET", path=REPORT_PATH)
        expires = connection.certificate_expires
    except (NotSent, NoAnswer) as error:
        advice = (
            "see to DNS, firewall, proxy and the system's certificates; SSL_CERT_FILE names others"
        )
        yield _failed("market", f"{settings.server_url} does not answer: {error}", advice)
        return
    finally:
        connection.close()
    until = f", certificate until {expires}" if expires else ""
    milliseconds = answer.round_trip_seconds * 1000
    yield _passed("market", f"{settings.server_url} answers in {milliseconds:.0f} ms{until}")
    market_now = http_date(text=answer.headers.get("date", ""))
    if market_now is None:
        yield _unknown("clock", "the market's answer has no date")
        return
    off = (now() - market_now).total_seconds()
    if abs(off) > CLOCK_SECONDS_MAX:
        advice = "turn on time synchronisation (chrony or systemd-timesyncd)"
        yield _failed("clock", f"{off:.0f} s off the market's", advice)
    else:
        yield _passed("clock", f"within {max(1, round(abs(off)))} s of the market's")
