"""One whole market on one machine: which programs it is made of, and how they find each other."""

import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from marketplace.management import broker, standin
from marketplace.management.bootstrap import PROJECT
from marketplace.management.cluster import Cluster
from marketplace.management.datadir import (
    SOCKET_DIRECTORY_PREFIX,
    DataDirectory,
    RunRecord,
    remove_socket_directory,
    write_private,
)
from marketplace.management.errors import PlainError
from marketplace.management.fleet import agent_programs
from marketplace.management.postgres import database_url, make_socket_directory
from marketplace.management.processes import start_ticks
from marketplace.management.stream import LogStream
from marketplace.management.supervisor import Program, Supervisor

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
LOCAL_NAMES = "localhost,127.0.0.1,[::1]"
# After this many taken ports in a row something else is wrong.
PORTS_TRIED = 100
LISTEN_BACKLOG = 2048

WEB_PROCESSES = 2
WEB_THREADS = 16
WORKER_CONCURRENCY = 2

# Celery warns root at length; on a bare machine that is who runs the demo.
ROOT_WARNING = "ignore:You're running the worker with superuser privileges"

STORE_LIMIT_SECONDS = 60
PREPARE_LIMIT_SECONDS = 900
SEED_LIMIT_SECONDS = 300
WEB_LIMIT_SECONDS = 90
PROVIDER_LIMIT_SECONDS = 60
READINESS_CALL_LIMIT_SECONDS = 2.0

# The settings' soft shutdown gives a running task 20 s.
WORKER_STOP_LIMIT_SECONDS = 30
WEB_GRACE_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
WEB_STOP_LIMIT_SECONDS = 15


def choose_profile(*, environ: Mapping[str, str]) -> str:
    """Return `production` when the operator asks for it, or brings what only production has.

    A key of one's own for signing, or one for real money, ends the demo: its accounts with known
    keys and its simulated GPUs must not appear there.
    """
    if environ.get("HEADROOM_PROFILE"):
        return environ["HEADROOM_PROFILE"]
    live = environ.get("STRIPE_SECRET_KEY", "").startswith(("sk_live_", "rk_live_"))
    return "production" if environ.get("SECRET_KEY") or live else "demo"


def compose_environment(
    *, data: DataDirectory, environ: Mapping[str, str], profile: str, base_url: str
) -> dict[str, str]:
    """Return what the settings read, beside the addresses of the stores.

    A market outside production signs with a key of its own data directory.
    """
    environment = {
        "ALLOWED_HOSTS": LOCAL_NAMES,
        "DJANGO_SETTINGS_MODULE": "marketplace.settings",
        "HEADROOM_BASE_URL": base_url,
        **environ,
        "HEADROOM_PROFILE": profile,
        "HEADROOM_DATA_DIR": str(data.path),
        "PYTHONUNBUFFERED": "1",
    }
    if profile == "production" and not environ.get("ALLOWED_HOSTS"):
        del environment["ALLOWED_HOSTS"]  # the settings ask for it by name
    if profile != "production" and not environ.get("SECRET_KEY"):
        environment["SECRET_KEY"] = data.secret_key()
    return environment


def reserve_port(*, port: int | None) -> socket.socket:
    """Take the port for the web server: the one asked for, or the first free one from 8000 on.

    The socket is bound here and handed down, so nobody takes the port while the rest starts,
    and requests wait instead of being refused while a killed web server starts again.

    :raises PlainError: when the port asked for, or every port tried, is taken.
    """
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    for number in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Without it the connections of the last run would hold the port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
        except OSError as error:
            listener.close()
            if port is not None:
                raise PlainError(f"port {port} cannot be used: {error.strerror}") from error
        else:
            return listener
    raise PlainError(f"no free port from {DEFAULT_PORT} to {DEFAULT_PORT + PORTS_TRIED - 1}")


def can_share_semaphores() -> bool:
    """Say whether processes can share a lock here; it needs a writable /dev/shm."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (OSError, ImportError):
        return False
    return True


class Instance:
    """The programs of one market. Each `start_…` waits until its part is there."""

    def __init__(
        self,
        *,
        data: DataDirectory,
        supervisor: Supervisor,
        log: LogStream,
        environ: Mapping[str, str],
        base_url: str = "",
        profile: str | None = None,
    ) -> None:
        """Compose the environment of the children; parts the operator named are left alone."""
        self.data = data
        self.base_url = base_url
        self.profile = profile or choose_profile(environ=environ)
        self.is_fresh = False
        self.provider_url = ""
        self._supervisor = supervisor
        self._log = log
        self._ready = False
        self._sockets: Path | None = None
        self.environment = compose_environment(
            data=data, environ=environ, profile=self.profile, base_url=base_url
        )
        supervisor.report_changes_to(self.record)

    # --- the record -------------------------------------------------------------------------

    def record(self, pids: Mapping[str, int]) -> None:
        """Write down what runs now, for other commands and for the start after a kill."""
        try:
            self.data.write_record(self._record(pids))
        except OSError as error:
            self._log.say(f"{self.data.run_file} cannot be written: {error}")

    def _record(self, pids: Mapping[str, int]) -> RunRecord:
        return RunRecord(
            base_url=self.base_url,
            is_ready=self._ready,
            profile=self.profile,
            database_url=self.environment.get("DATABASE_URL", ""),
            broker_url=self.environment.get("CELERY_BROKER_URL", ""),
            provider_url=self.provider_url,
            socket_directory="" if self._sockets is None else str(self._sockets),
            pids=dict(pids),
            start_ticks={
                n: t for n, pid in pids.items() if (t := start_ticks(pid=pid)) is not None
            },
        )

    def mark_ready(self) -> None:
        """Let other commands join."""
        self._ready = True
        self.record(self._supervisor.process_ids())

    def forget(self) -> None:
        """Remove the sockets and the record of a run whose children have all ended."""
        if self._sockets is not None:
            remove_socket_directory(path=self._sockets)
        self.data.run_file.unlink(missing_ok=True)

    # --- the stores -------------------------------------------------------------------------

    def start_stores(self) -> None:
        """Start the database and the broker, each unless the operator named a real one.

        :raises PlainError: when one does not start.
        """
        embedded = [n for n in ("DATABASE_URL", "CELERY_BROKER_URL") if not self.environment.get(n)]
        if embedded:
            self._sockets = make_socket_directory(prefix=SOCKET_DIRECTORY_PREFIX, account=None)
            self._sockets.chmod(0o711)
        if "DATABASE_URL" in embedded:
            self._start_postgres()
        if "CELERY_BROKER_URL" in embedded:
            self._start_broker()

    def _start_postgres(self) -> None:
        assert self._sockets is not None
        cluster = Cluster(data_directory=self.data.path, say=self._log.say)
        directory = self._sockets / "pg"
        directory.mkdir(mode=0o700)
        if cluster.account is not None:
            os.chown(directory, cluster.account.uid, cluster.account.gid)
        bare = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        self.environment["DATABASE_URL"] = database_url(socket_directory=directory)
        if not cluster.is_made:
            self._log.say(f"making a database with PostgreSQL {cluster.major}")
            cluster.make(supervisor=self._supervisor, environment=bare)
            self.is_fresh = True
        program = cluster.program(socket_directory=directory, environment=bare)
        self._supervisor.start(program=program)
        self._supervisor.wait_until_ready(name=program.name, limit_seconds=STORE_LIMIT_SECONDS)

    def _start_broker(self) -> None:
        assert self._sockets is not None
        home = self.data.path / "broker"
        home.mkdir(mode=0o700, exist_ok=True)
        sockets = self._sockets
        self.environment["CELERY_BROKER_URL"] = broker.broker_url(socket_directory=sockets)
        program = Program(
            name="broker",
            command=broker.server_command(
                server=broker.find_server(), data=home, socket_directory=sockets
            ),
            environment={"PATH": os.environ.get("PATH", "")},
            working_directory=home,
            is_ready=lambda: broker.is_ready(socket_directory=sockets),
            hidden_lines=broker.HARMLESS_LINES,
            stop_rank=8,
        )
        self._supervisor.start(program=program)
        self._supervisor.wait_until_ready(name=program.name, limit_seconds=STORE_LIMIT_SECONDS)

    # --- the contents -----------------------------------------------------------------------

    def django(self, name: str, *arguments: str) -> Program:
        """Return a management command as a program of its own."""
        return Program(
            name=name,
            command=[sys.executable, str(PROJECT / "manage.py"), name, *arguments],
            environment=self.environment,
            working_directory=PROJECT,
        )

    def prepare(self) -> None:
        """Bring the tables and the static files up to date.

        :raises PlainError: when a migration or the collection fails.
        """
        self._supervisor.run(program=self.django("prepare"), limit_seconds=PREPARE_LIMIT_SECONDS)

    def seed(self) -> None:
        """Fill an empty market with a demo owner, a tenant, an admin and a fleet, once.

        :raises PlainError: when that fails; the next start tries again.
        """
        path = self.data.path / "demo.json"
        if path.exists() and not self.is_fresh:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known.get("base_url") != self.base_url:
                known["base_url"] = self.base_url
                write_private(path=path, text=json.dumps(known, indent=2) + "\n")
            return
        path.unlink(missing_ok=True)
        self._log.say("first run: making a demo owner, a tenant, an admin and a fleet")
        program = self.django("seed_demo", "--write", str(path), "--base-url", self.base_url)
        self._supervisor.run(program=program, limit_seconds=SEED_LIMIT_SECONDS)

    # --- the payment provider ---------------------------------------------------------------

    def start_provider(self) -> None:
        """Start a stand-in for the payment provider, where no key of a real one is given.

        :raises PlainError: when it does not answer in time.
        """
        if not standin.is_wanted(environ=self.environment, profile=self.profile):
            return
        port = standin.free_port()
        self.provider_url = f"http://{standin.HOST}:{port}"
        program = standin.program(
            port=port, data=self.data.path, base_url=self.base_url, environ=self.environment
        )
        self._supervisor.start(program=program)
        self._supervisor.wait_until_ready(name=program.name, limit_seconds=PROVIDER_LIMIT_SECONDS)
        self.environment |= standin.environment(url=self.provider_url)

    # --- the market -------------------------------------------------------------------------

    def start_market(self, *, listener: socket.socket) -> None:
        """Start web, worker and beat, and wait until the web server answers.

        :raises PlainError: when it does not answer in time.
        """
        try:
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            raise PlainError(f"{self.base_url} cannot be listened on: {error.strerror}") from error
        for program in (self._web(listener), self._worker(), self._beat()):
            self._supervisor.start(program=program)
        self._supervisor.wait_until_ready(name="web", limit_seconds=WEB_LIMIT_SECONDS)

    def _web(self, listener: socket.socket) -> Program:
        port = listener.getsockname()[1]
        flags = {
            "bind": f"fd://{listener.fileno()}",
            "worker-class": "marketplace.api.web_worker.ProblemWorker",
            "workers": str(WEB_PROCESSES),
            "threads": str(WEB_THREADS),
            "graceful-timeout": str(WEB_GRACE_SECONDS),
            "timeout": "60",
            # Above the pause between an agent's reports: at gunicorn's own 2 s an agent often met a
            # connection that was just being closed. A waiting connection holds no thread.
            "keep-alive": str(KEEP_ALIVE_SECONDS),
        }
        if os.access("/dev/shm", os.W_OK):
            # Its heartbeat file must not wait for a busy disk.
            flags["worker-tmp-dir"] = "/dev/shm"
        return Program(
            name="web",
            command=[
                *(sys.executable, "-m", "gunicorn", "marketplace.wsgi:application"),
                *(part for name, value in flags.items() for part in (f"--{name}", value)),
                "--no-control-socket",
            ],
            environment=self.environment,
            working_directory=PROJECT,
            pass_fds=[listener.fileno()],
            is_ready=lambda: answers(port=port),
            stop_rank=3,
            stop_limit_seconds=WEB_STOP_LIMIT_SECONDS,
        )

    def _worker(self) -> Program:
        pool = "prefork"
        if not can_share_semaphores():
            pool = "threads"
            self._log.say("/dev/shm is not writable: the worker runs threads instead of processes")
        environment = dict(self.environment)
        if self.profile != "production":
            environment["PYTHONWARNINGS"] = ROOT_WARNING
        command = [
            *(sys.executable, "-m", "celery", "-q", "-A", "marketplace.celery", "worker"),
            *("--concurrency", str(WORKER_CONCURRENCY), "--pool", pool, "--loglevel", "WARNING"),
            *("--without-gossip", "--without-mingle"),
        ]
        return Program(
            name="worker",
            command=command,
            environment=environment,
            working_directory=PROJECT,
            stop_rank=2,
            stop_limit_seconds=WORKER_STOP_LIMIT_SECONDS,
            # The broker dies at the same moment, and every gentler end waits for it for ever. A task
            # that is cut off is done again.
            death_signal=signal.SIGKILL,
        )

    def _beat(self) -> Program:
        command = [
            *(sys.executable, "-m", "marketplace.management.beat_leader"),
            *(sys.executable, "-m", "celery", "-q", "-A", "marketplace.celery", "beat"),
            # Its default keeps the last run of each task in a file that a kill corrupts. No cadence
            # is longer than an hour, and every task may come late or twice.
            *("--scheduler", "celery.beat:Scheduler", "--pidfile", "", "--loglevel", "WARNING"),
        ]
        return Program(
            name="beat",
            command=command,
            environment=self.environment,
            working_directory=PROJECT,
            stop_rank=1,
        )

    # --- the fleet --------------------------------------------------------------------------

    def start_fleet(self) -> int:
        """Start one agent for each machine of the demo's fleet; return how many there are."""
        programs = agent_programs(
            data=self.data, environment=self.environment, base_url=self.base_url
        )
        for program in programs:
            self._supervisor.start(program=program)
        return len(programs)


def answers(*, port: int) -> bool:
    """Say whether the web server gives any answer; what it says is not the supervisor's matter."""
    connection = http.client.HTTPConnection(HOST, port, timeout=READINESS_CALL_LIMIT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/healthz")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
    return True
