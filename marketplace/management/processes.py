"""Children that never outlive their parent, and names for how they ended."""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from marketplace.management.errors import PlainError

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Field 22 of /proc/PID/stat, counted after the command name, which may hold spaces (proc(5)).
START_TIME_FIELD_AFTER_NAME = 19


class Account(NamedTuple):
    """A user that a child becomes before it runs."""

    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return `nobody` when we are root, else None: the servers that refuse uid 0 run as it.

    :raises PlainError: when we are root and the machine has no `nobody`, or when we are a user
        without a name, as `docker run --user 1234` makes one: initdb refuses that as well.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            message = (
                f"PostgreSQL refuses a user without a name: add user id {os.geteuid()} to"
                " /etc/passwd, start as another user, or set DATABASE_URL"
            )
            raise PlainError(message) from None
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        message = "PostgreSQL refuses to run as root and this machine has no user `nobody`"
        raise PlainError(message) from None
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def die_with_parent(*, signal_number: int) -> Callable[[], None]:
    """Return a hook for the forked child that asks the kernel to signal it when its parent dies.

    The hook closes the gap between fork and prctl itself: a child whose parent is already gone
    ends at once. It runs after the change of user, which would have cleared the request.
    """
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_the_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        # The shell and nohup leave signals ignored; a server must hear its stop signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if os.getppid() != parent:
            os._exit(1)

    return in_the_child


def end_with_parent() -> None:
    """Ask the kernel to kill this process when the one that forked it dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def spawn(
    *,
    command: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str] | None = None,
    working_directory: Path | None = None,
    account: Account | None = None,
    death_signal: int = signal.SIGTERM,
    output: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start one child in its own session, with no input, both its outputs in one stream.

    :param death_signal: what the kernel sends the child when this process dies.
    :raises OSError: when the program cannot be run.
    """
    return subprocess.Popen(
        [os.fspath(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=None if environment is None else dict(environment),
        cwd=working_directory,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        start_new_session=True,
        preexec_fn=die_with_parent(signal_number=death_signal),
        pass_fds=tuple(pass_fds),
    )


def describe_exit(*, returncode: int) -> str:
    """Say how a process ended, from `Popen.returncode`: negative means a signal."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def start_ticks(*, pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when there is none.

    Together with the id it names one process for the uptime of the machine: ids come again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return int(fields[START_TIME_FIELD_AFTER_NAME])


def kill_group(*, pid: int) -> None:
    """Send SIGKILL to the session that `spawn` gave a child, its own children included."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
