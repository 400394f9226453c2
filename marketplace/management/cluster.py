"""The database cluster of one data directory: where it lies, whose it is, how it starts."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from marketplace.management.errors import PlainError
from marketplace.management.postgres import (
    SHARED_STATE,
    TOO_EARLY_LINES,
    find_binaries,
    initdb_command,
    is_ready,
    server_command,
    usable_by,
)
from marketplace.management.processes import Account, unprivileged_account
from marketplace.management.supervisor import Program, Supervisor

INITDB_LIMIT_SECONDS = 120
# A fast shutdown waits for a checkpoint; a slow disk may need long for it.
STOP_LIMIT_SECONDS = 60


class Cluster:
    """A PostgreSQL cluster under a data directory, complete or absent."""

    def __init__(
        self,
        *,
        data_directory: Path,
        say: Callable[[str], None],
        shared_state: Path = SHARED_STATE,
    ) -> None:
        """Find or make the place, and the binaries that fit what lies there.

        :raises PlainError: when no PostgreSQL can run here, or another major version wrote it.
        """
        # Its user may not be able to follow a link out of a closed directory; so we do.
        self.home = self._follow(data_directory / "postgres")
        self.account = self._choose_account()
        self._make_home(shared_state=shared_state, say=say)
        self.binaries, self.major = find_binaries(account=self.account, shared_state=shared_state)
        self._refuse_another_major()

    @property
    def data(self) -> Path:
        """The cluster itself (PGDATA)."""
        return self.home / "data"

    @property
    def is_made(self) -> bool:
        """Whether the cluster exists; it is renamed into place when it is complete."""
        return self.data.is_dir()

    def make(self, *, supervisor: Supervisor, environment: Mapping[str, str]) -> None:
        """Run initdb beside the final name, and rename.

        :raises PlainError: when initdb fails.
        """
        half = self.home / "data.new"
        shutil.rmtree(half, ignore_errors=True)
        supervisor.run(
            program=Program(
                name="initdb",
                command=initdb_command(binaries=self.binaries, major=self.major, data=half),
                environment=environment,
                working_directory=Path("/"),
                account=self.account,
                death_signal=signal.SIGKILL,
                is_quiet=True,
            ),
            limit_seconds=INITDB_LIMIT_SECONDS,
        )
        half.rename(self.data)

    def program(self, *, socket_directory: Path, environment: Mapping[str, str]) -> Program:
        """Return how the supervisor runs the server."""
        return Program(
            name="postgres",
            command=server_command(
                binaries=self.binaries, data=self.data, socket_directory=socket_directory
            ),
            environment=environment,
            working_directory=Path("/"),
            account=self.account,
            is_ready=lambda: is_ready(binaries=self.binaries, socket_directory=socket_directory),
            hidden_lines=TOO_EARLY_LINES,
            before_start=self.remove_stale_pid_file,
            stop_rank=9,
            stop_signal=signal.SIGINT,
            stop_limit_seconds=STOP_LIMIT_SECONDS,
            death_signal=signal.SIGINT,
        )

    def remove_stale_pid_file(self) -> None:
        """Remove a killed server's pid file when its number belongs to another program now.

        PostgreSQL itself discards the file of a process that is gone. In a container the same
        small numbers come again after a restart, and it would take a stranger for itself.
        """
        path = self.data / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text(encoding="utf-8").partition("\n")[0])
            name = Path(f"/proc/{pid}/comm")
            if name.exists() and name.read_text(encoding="utf-8").strip() != "postgres":
                path.unlink()

    def _follow(self, home: Path) -> Path:
        if home.is_symlink() and not home.exists():
            raise PlainError(
                f"{home} points to {home.readlink()}, which is gone:"
                " bring it back, or remove the link to start with an empty database"
            )
        return home.resolve()

    def _choose_account(self) -> Account | None:
        """Return the owner of what is there already, else `nobody`, when we are root."""
        account = unprivileged_account()
        if account is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            owner = self.home.stat()
            if owner.st_uid != 0:
                return Account(uid=owner.st_uid, gid=owner.st_gid)
        return account

    def _make_home(self, *, shared_state: Path, say: Callable[[str], None]) -> None:
        try:
            self.home.mkdir(mode=0o700, exist_ok=True)
            if self.account is not None:
                os.chown(self.home, self.account.uid, self.account.gid)
            if usable_by(path=self.home, account=self.account):
                return
            if self.account is None or self.is_made:
                raise PlainError(f"the user that runs PostgreSQL cannot write {self.home}")
            self.home.rmdir()
            shared_state.mkdir(mode=0o755, parents=True, exist_ok=True)
            elsewhere = Path(tempfile.mkdtemp(prefix="data-", dir=shared_state))
            os.chown(elsewhere, self.account.uid, self.account.gid)
            self.home.symlink_to(elsewhere)
        except OSError as error:
            raise PlainError(f"the database cannot be placed in {self.home}: {error}") from error
        say(
            f"PostgreSQL does not run as root, and its user cannot reach {self.home.parent}:"
            f" the database lies in {elsewhere}"
        )
        self.home = elsewhere

    def _refuse_another_major(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            made_by = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
            if made_by != str(self.major):
                raise PlainError(
                    f"{self.data} was made by PostgreSQL {made_by} and this is {self.major}:"
                    " move it with pg_dump, or choose another --data-dir"
                )
