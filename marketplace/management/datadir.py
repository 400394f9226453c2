"""The data directory: one owner at a time, private files, and the trace of what ran there."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from marketplace.management.errors import PlainError
from marketplace.management.processes import kill_group, start_ticks

SOCKET_DIRECTORY_PREFIX = "headroom-"
SECRET_KEY_BYTES = 48

# PostgreSQL's fast shutdown is the slowest of what may still be ending after a kill.
LEFTOVER_LIMIT_SECONDS = 20
POLL_SECONDS = 0.1
LOCK_ATTEMPTS = 3


def write_private(*, path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only (mode 0600)."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def take_lock(*, descriptor: int) -> bool:
    """Take an exclusive lock if nobody keeps one; those who only look hold it for an instant."""
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(POLL_SECONDS)
    return False


def boot_id() -> str:
    """Return what names this uptime of the machine; process ids mean nothing across it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What runs in a data directory: for other commands to join, and for the next start to clear.

    An empty `base_url` means that a single command runs there, without a web server.
    """

    base_url: str
    profile: str
    database_url: str
    broker_url: str
    is_ready: bool = False
    provider_url: str = ""
    socket_directory: str = ""
    pids: Mapping[str, int] = field(default_factory=dict)
    start_ticks: Mapping[str, int] = field(default_factory=dict)
    boot_id: str = field(default_factory=boot_id)

    def to_json(self) -> str:
        """Return the file's text; the two addresses carry the names of their variables."""
        record = asdict(self)
        record["DATABASE_URL"] = record.pop("database_url")
        record["CELERY_BROKER_URL"] = record.pop("broker_url")
        return json.dumps(record, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Read the file's text; None when it is not a whole record."""
        try:
            record = json.loads(text)
            record["database_url"] = record.pop("DATABASE_URL")
            record["broker_url"] = record.pop("CELERY_BROKER_URL")
            return cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


class DataDirectory:
    """One directory under which an instance keeps all it must remember."""

    def __init__(self, *, path: Path) -> None:
        """Name the directory; nothing is touched yet."""
        self.path = path
        self._lock: int | None = None

    @property
    def run_file(self) -> Path:
        """Where the record of the running instance lies."""
        return self.path / "run.json"

    def create(self) -> None:
        """Make the directory if it is missing.

        :raises PlainError: when it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".write-test-"):
                pass
        except OSError as error:
            message = (
                f"the data directory {self.path} cannot be written ({error.strerror}):"
                " give it to this user, or choose another with --data-dir"
            )
            raise PlainError(message) from error

    def lock(self, *, purpose: str) -> None:
        """Take the directory for this process, until it ends.

        :raises PlainError: when another process has it; the line says which, and where it answers.
        """
        self.create()
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"{path} cannot be opened ({error.strerror}): it belongs to another user"
            raise PlainError(message) from error
        if not take_lock(descriptor=descriptor):
            holder = os.read(descriptor, 200).decode("utf-8", errors="replace").strip()
            os.close(descriptor)
            raise PlainError(self._describe_holder(holder))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{purpose}, process {os.getpid()}\n".encode())
        self._lock = descriptor

    def unlock(self) -> None:
        """Give the directory back; the end of the process does the same."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _describe_holder(self, holder: str) -> str:
        record = self.read_record()
        where = f" at {record.base_url}" if record is not None and record.base_url else ""
        return (
            f"already running{where} ({holder or 'a start in progress'}) with data in {self.path}"
        )

    def is_locked(self) -> bool:
        """Say whether some process has the directory now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except PermissionError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read_record(self) -> RunRecord | None:
        """Return the record of the last or the running instance, None when there is none."""
        try:
            return RunRecord.from_json(self.run_file.read_text(encoding="utf-8"))
        except OSError:
            return None

    def running(self) -> RunRecord | None:
        """Return the record of an instance that runs now, None when none does."""
        return self.read_record() if self.is_locked() else None

    def write_record(self, record: RunRecord) -> None:
        """Replace the record (mode 0600: it names the database)."""
        write_private(path=self.run_file, text=record.to_json())

    def clear_record(self, record: RunRecord) -> None:
        """Forget a run that has ended, and remove its sockets."""
        if record.socket_directory:
            remove_socket_directory(path=Path(record.socket_directory))
        self.run_file.unlink(missing_ok=True)

    def recover(self, *, say: Callable[[str], None]) -> None:
        """Clear what a killed run left: processes that still end, sockets, its record.

        Call it with the lock held: then the recorded run is over.
        """
        record = self.read_record()
        if record is None:
            return
        say("the last run was killed: clearing what it left")
        if record.boot_id == boot_id():
            end_leftovers(record=record)
        self.clear_record(record)

    def secret_key(self) -> str:
        """Return this directory's own secret key, made at the first call (mode 0600).

        :raises PlainError: when the directory cannot be made or written.
        """
        path = self.path / "secret_key"
        with contextlib.suppress(FileNotFoundError):
            kept = path.read_text(encoding="utf-8").strip()
            if kept:
                return kept
        # A command beside a database that the operator named is the first to need a directory.
        self.create()
        write_private(path=path, text=secrets.token_urlsafe(SECRET_KEY_BYTES) + "\n")
        return path.read_text(encoding="utf-8").strip()


def end_leftovers(*, record: RunRecord) -> None:
    """Wait for the processes of a killed run to end, and kill those that do not."""
    # The kernel asked them when their parent died; one that was still starting may have missed it.
    for pid in living(record=record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGINT if pid == record.pids.get("postgres") else signal.SIGTERM)
    deadline = time.monotonic() + LEFTOVER_LIMIT_SECONDS
    while (left := living(record=record)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for pid in left:
        kill_group(pid=pid)


def living(*, record: RunRecord) -> list[int]:
    """Return the recorded processes that still are the same ones."""
    return [
        pid
        for name, pid in record.pids.items()
        if (ticks := start_ticks(pid=pid)) is not None and ticks == record.start_ticks.get(name)
    ]


def remove_socket_directory(*, path: Path) -> None:
    """Remove a directory of sockets, if it is one of ours and nothing else."""
    if path.name.startswith(SOCKET_DIRECTORY_PREFIX) and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
