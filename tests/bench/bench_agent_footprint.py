"""What the agent takes of the machine it runs on: CPU and memory, over ten minutes, on the stand-in NVML.

    python -m tests.bench.bench_agent_footprint [--seconds 600]

Starts `python -m agents.node` against a market on loopback, over TLS as in life (a store of certificates is
a part of the agent's memory), with eight GPUs whose buffers of utilisation samples fill as a driver fills
them, at the rates that the agent has by default. After it has enrolled and settled, its processes are
watched through /proc. Prints for each process and for all together the share of
one core and the memory (RSS, and PSS, which counts shared pages once). Above a bar the exit status is 1.
"""

import argparse
import datetime as dt
import ipaddress
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.bench.bench_reader import busy_machine
from tests.fakes import nvml
from tests.fakes.market import FakeMarket

BAR_CPU_PERCENT = 0.5
BAR_RSS_MIB = 60.0
SETTLE_SECONDS = 20.0
LOOK_SECONDS = 5.0
START_SECONDS_MAX = 60.0
GRANTED_INTERVAL_SECONDS = 15  # the shortest that a market grants a node without news
DRIVER_SAMPLE_MILLISECONDS = 166  # six utilisation samples a second
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Process:
    """One process of the agent, as last seen."""

    command: str
    cpu_seconds: float
    ended_children_cpu_seconds: float
    rss_kib: int
    pss_kib: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, TlsMarket(directory=Path(name)) as market:
        directory = Path(name)
        market.interval_seconds = GRANTED_INTERVAL_SECONDS
        journal = nvml.Journal(path=directory / "journal", library=nvml.build(directory=directory))
        busy_machine(journal)
        journal.set("*", sampling=DRIVER_SAMPLE_MILLISECONDS)
        with (directory / "log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "agents.node", "--server", market.url, "--name", "bench"],
                cwd=ROOT,
                env={
                    **os.environ,
                    **journal.environment,
                    "SSL_CERT_FILE": str(market.store),
                    "HEADROOM_TOKEN": market.token,
                    "HEADROOM_STATE_DIR": str(directory / "state"),
                },
                stderr=log,
            )
        try:
            return _watch(agent=agent, market=market, seconds=options.seconds)
        except NotRunning:
            sys.stderr.write((directory / "log").read_text())
            raise
        finally:
            agent.terminate()
            agent.wait(timeout=30)


class TlsMarket(FakeMarket):
    """The fake market behind a certificate of its own, which the system's store plus `store` knows."""

    def __init__(self, *, directory: Path) -> None:
        super().__init__(now=lambda: dt.datetime.now(tz=dt.UTC))
        certificate, key = _self_signed()
        (directory / "server.pem").write_bytes(key + certificate)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "server.pem")
        self.store = directory / "store.pem"
        known = ssl.get_default_verify_paths().cafile
        self.store.write_bytes((Path(known).read_bytes() if known else b"") + certificate)

    def up(self) -> None:
        super().up()
        assert self._server is not None, "it was just made"
        # The descriptor stays the same, so the thread that already waits on it need not know.
        self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        return super().url.replace("http://", "https://")


def _self_signed() -> tuple[bytes, bytes]:
    """Return a certificate for 127.0.0.1 and its key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = dt.datetime.now(tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


class NotRunning(Exception):
    """The agent does not do what was to be measured."""


def _watch(*, agent: subprocess.Popen[bytes], market: FakeMarket, seconds: float) -> int:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not market.reports:
        if agent.poll() is not None or time.monotonic() > deadline:
            raise NotRunning("the agent has not reported")
        time.sleep(0.2)
    time.sleep(SETTLE_SECONDS)
    first, began, reports = _look(agent.pid), time.monotonic(), len(market.reports)
    rss_max_kib = pss_max_kib = 0
    last = first
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(LOOK_SECONDS, left))
        last = _look(agent.pid)
        if agent.poll() is not None:
            raise NotRunning("the agent ended")
        rss_max_kib = max(rss_max_kib, sum(process.rss_kib for process in last.values()))
        pss_max_kib = max(pss_max_kib, sum(process.pss_kib for process in last.values()))
    elapsed = time.monotonic() - began
    total_percent = 0.0
    lines = []
    for pid, process in last.items():
        before = first.get(pid)
        used = process.cpu_seconds - (before.cpu_seconds if before else 0.0)
        ended = process.ended_children_cpu_seconds
        ended -= before.ended_children_cpu_seconds if before else 0.0
        percent, ended_percent = 100 * used / elapsed, 100 * ended / elapsed
        total_percent += percent + ended_percent
        lines.append(
            f"{process.command:34s} {percent:6.3f} % CPU, ended children {ended_percent:.3f} %,"
            f" {process.rss_kib / 1024:5.1f} MiB RSS, {process.pss_kib / 1024:5.1f} MiB PSS"
        )
    rss_mib = rss_max_kib / 1024
    total = (
        f"{total_percent:6.3f} % CPU of one core (bar {BAR_CPU_PERCENT} %),"
        f" {rss_mib:5.1f} MiB RSS at most (bar {BAR_RSS_MIB:g}), {pss_max_kib / 1024:.1f} MiB PSS"
    )
    lines.append(f"{'together':34s} {total}")
    received = len(market.reports) - reports
    lines.append(f"{elapsed:.0f} s, {received} reports of {_gpu_count(market)} GPUs taken in")
    sys.stdout.write("\n".join(lines) + "\n")
    if not received:
        raise NotRunning("the agent stopped reporting")
    return int(total_percent > BAR_CPU_PERCENT or rss_mib > BAR_RSS_MIB)


def _gpu_count(market: FakeMarket) -> int:
    """Return how many GPUs the agent enrolled with."""
    return len(market.enrolments[0].gpus)


def _look(pid: int) -> dict[int, Process]:
    """Return a process and all that come from it."""
    found: dict[int, Process] = {}
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        try:
            found[pid] = _process(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, task.joinpath("children").read_text().split())
        except FileNotFoundError:
            found.pop(pid, None)  # it ended between two looks
    return found


def _process(pid: int) -> Process:
    proc = Path(f"/proc/{pid}")
    words = proc.joinpath("cmdline").read_bytes().decode().split("\0")
    module = words[words.index("-m") + 1] if "-m" in words else words[0]
    after_name = proc.joinpath("stat").read_text().rpartition(")")[2].split()
    ended_ticks = int(after_name[13]) + int(after_name[14])  # cutime, cstime
    nanoseconds = sum(
        int(task.joinpath("schedstat").read_text().split()[0])
        for task in proc.joinpath("task").iterdir()
    )
    memory = dict(
        re.findall(r"^(Rss|Pss): +(\d+) kB", proc.joinpath("smaps_rollup").read_text(), re.M)
    )
    return Process(
        command=f"{module} ({pid})",
        cpu_seconds=nanoseconds / 1e9,
        ended_children_cpu_seconds=ended_ticks / os.sysconf("SC_CLK_TCK"),
        rss_kib=int(memory["Rss"]),
        pss_kib=int(memory["Pss"]),
    )


if __name__ == "__main__":
    sys.exit(main())
