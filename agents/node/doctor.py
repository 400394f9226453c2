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

from agents.node import AGENT_VERSION, assembly, host
from agents.node.clock import MarketClock, SystemClock
from agents.node.config import Settings
from agents.node.connection import Connection, NoAnswer, NotSent
from agents.node.host import StateUnusable
from agents.node.kernel_log import KERNEL_LOG
from agents.node.reader import LOST, Reader, ReaderUnavailable
from agents.node.sender import http_date
from agents.protocol import (
    REPORT_PATH,
    SIGNATURE_SKEW_SECONDS_MAX,
    CheckResult,
    GpuIdentity,
    GpuSettings,
)

# Half of what a signature may be off by: the rest is for the way.
CLOCK_SECONDS_MAX = SIGNATURE_SKEW_SECONDS_MAX / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result, and what a person can do about it when it did not pass."""

    result: CheckResult
    advice: str = ""


def examine(
    *,
    settings: Settings,
    kernel_log: Path = KERNEL_LOG,
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
    identities: list[GpuIdentity] = []
    try:
        findings = list(_driver(reader, identities, now()))
    finally:
        reader.close()
    if settings.fleet is None:
        findings.append(_kernel_log(kernel_log))
        findings += _handover(settings, [identity.uuid for identity in identities])
    findings += _state(settings)
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
        lines.append(f"{word} {result.name}: {result.detail}")
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


def _driver(reader: Reader, identities: list[GpuIdentity], at: dt.datetime) -> Iterator[Finding]:
    """Look at the GPUs, and leave in `identities` who they are."""
    try:
        facts = reader.host()
        identities += reader.identify()
        uuids = [identity.uuid for identity in identities]
        samples = reader.read(at=at)
        set_up = reader.settings(gpu_uuids=uuids)
    except ReaderUnavailable as error:
        advice = "load or install NVIDIA's driver; `nvidia-smi` must list the GPUs"
        yield _failed("driver", str(error), advice)
        return
    simulated = " (simulated)" if reader.simulated else ""
    yield _passed("driver", f"version {facts.driver_version or 'unknown'} answers{simulated}")
    lost = [s.gpu_uuid for s in samples if LOST in s.unread.values()]
    if lost:
        advice = "restart the machine; if it happens again, have the card replaced"
        yield _failed("gpus", f"the driver has lost {', '.join(lost)}", advice)
    elif not uuids:
        yield _failed(
            "gpus", "the driver lists no GPU", "see that the cards are seated and powered"
        )
    else:
        yield _passed("gpus", f"{len(uuids)} seen, none lost")
    yield from _modes(identities)
    yield _persistence(set_up)
    if facts.scrubs_memory_on_free is False:
        advice = "take RMDisableScrubOnFree out of the options of the module nvidia, and restart"
        yield _failed("memory scrub", "the driver leaves memory as a tenant left it", advice)
    elif facts.scrubs_memory_on_free is None:
        yield _unknown("memory scrub", "the driver's parameters cannot be read")
    else:
        yield _passed("memory scrub", "the driver clears memory that is freed")


def _modes(identities: list[GpuIdentity]) -> Iterator[Finding]:
    """MIG and vGPU: such cards are reported, but not sold as whole GPUs."""
    cut = [identity.uuid for identity in identities if identity.mig_enabled]
    if cut:
        advice = "`nvidia-smi -mig 0` on those that shall be sold as a whole"
        yield _failed("mig", f"on, so not sold as whole GPUs: {', '.join(cut)}", advice)
    else:
        yield _passed("mig", "off")
    hosts = [i.uuid for i in identities if (i.virtualization_mode or "").startswith("host_")]
    if hosts:
        advice = "a card that is cut for virtual machines cannot be leased; use the plain driver"
        yield _failed("vgpu", f"cards of a vGPU host: {', '.join(hosts)}", advice)
    else:
        yield _passed("vgpu", "no card is cut for virtual machines")


def _persistence(set_up: list[GpuSettings]) -> Finding:
    states = [gpu.persistence_enabled for gpu in set_up]
    off = [gpu.gpu_uuid for gpu in set_up if gpu.persistence_enabled is False]
    if off:
        advice = "enable the service nvidia-persistenced, or run `nvidia-smi -pm 1`"
        return _failed("persistence", f"off for {', '.join(off)}: each start takes seconds", advice)
    if not states or None in states:
        return _unknown("persistence", "the driver does not say")
    return _passed("persistence", "on")


def _kernel_log(path: Path) -> Finding:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        advice = "run the agent as root, or give it CAP_SYSLOG and read access"
        detail = f"{path} cannot be read ({error.strerror}): errors of the GPUs may go unseen"
        return _failed("kernel log", detail, advice)
    return _passed("kernel log", f"{path} can be read")


# --- handing over ---------------------------------------------------------------------------------------


def _handover(settings: Settings, gpu_uuids: list[str]) -> Iterator[Finding]:
    if settings.hook is not None and not os.access(settings.hook, os.X_OK):
        advice = f"chmod +x {settings.hook}, or correct the path"
        yield _failed("handover", f"the hook {settings.hook} cannot be executed", advice)
        return
    found = assembly.provisioner_for(settings=settings).probe()
    if found.problem:
        advice = "configure how GPUs are handed over; until then leases of this node fail"
        yield _failed("handover", found.problem, advice)
        return
    yield _passed("handover", f"{found.kind} {found.version}".strip())
    if found.devices is None or not gpu_uuids:
        return
    missing = [uuid for uuid in gpu_uuids if uuid not in found.devices]
    if missing:
        advice = "nvidia-ctk cdi generate --device-name-strategy uuid --output /etc/cdi/nvidia.yaml"
        yield _failed("cdi", f"no entry for {', '.join(missing)}", advice)
    else:
        yield _passed("cdi", "every GPU has an entry by its UUID")


# --- the agent's own ------------------------------------------------------------------------------------


def _state(settings: Settings) -> Iterator[Finding]:
    directory = settings.state_dir
    assert directory is not None, "a state directory is always set but for --once"
    existing = next(path for path in (directory, *directory.parents) if path.exists())
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
