"""Run a command only while holding an advisory lock: of many hosts' beats, one beats.

`celery beat` in two places sends every task twice. A scheduler that waits for the lock inside
beat hangs, because beat builds its scheduler twice; so the lock is held around the whole program.
When the holder dies PostgreSQL frees the lock with its session, and another one takes over.

    python -m marketplace.management.beat_leader celery -A marketplace.celery beat

The session must be a real one: a pooler in transaction mode would lose the lock unnoticed.
"""

import os
import select
import signal
import subprocess
import sys
from types import FrameType

import psycopg

from marketplace.management.processes import describe_exit, die_with_parent

# Any number that no other lock of this database uses; these are the letters "hrbeat".
ADVISORY_LOCK_KEY = int.from_bytes(b"hrbeat")

CHECK_SECONDS = 1.0
CONNECT_LIMIT_SECONDS = 5

# A leader that is cut off from the database notices within 5 + 3 x 2 s and stops beating.
KEEPALIVE_IDLE_SECONDS = 5
KEEPALIVE_INTERVAL_SECONDS = 2
KEEPALIVE_COUNT = 3


class Leader:
    """Waits for the lock, runs the command while it has it, starts over when it loses it."""

    def __init__(self, *, database_url: str, command: list[str]) -> None:
        """Name the database that holds the lock and the command that needs it."""
        self._database_url = database_url
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._wake_reader, self._wake_writer = os.pipe()

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: end the command and then this program."""
        del number, frame
        self._stopped = True
        os.write(self._wake_writer, b".")

    def run(self) -> int:
        """Beat until asked to stop; return the exit status, that of the command if it ends."""
        waiting_said = False
        while not self._stopped:
            try:
                with psycopg.connect(
                    self._database_url,
                    autocommit=True,
                    connect_timeout=CONNECT_LIMIT_SECONDS,
                    keepalives_idle=KEEPALIVE_IDLE_SECONDS,
                    keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
                    keepalives_count=KEEPALIVE_COUNT,
                ) as connection:
                    if self._try_lock(connection):
                        waiting_said = False
                        status = self._lead(connection)
                        if status is not None:
                            return status
                    elif not waiting_said:
                        print("another beat leads; waiting for its lock", flush=True)
                        waiting_said = True
                    self._pause()
            except psycopg.OperationalError as error:
                reason = str(error).strip().partition("\n")[0]
                print(f"no database, so no beat: {reason}", flush=True)
                self._pause()
            finally:
                self._end_child()
        return 0

    def _try_lock(self, connection: psycopg.Connection) -> bool:
        row = connection.execute("select pg_try_advisory_lock(%s)", (ADVISORY_LOCK_KEY,)).fetchone()
        return row is not None and bool(row[0])

    def _lead(self, connection: psycopg.Connection) -> int | None:
        """Run the command under the lock; return its status if it ended by itself."""
        print("this beat leads", flush=True)
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal_number=signal.SIGKILL),
        )
        while not self._stopped:
            if self._child.poll() is not None:
                print(f"beat {describe_exit(returncode=self._child.returncode)}", flush=True)
                return 1
            connection.execute("select 1")
            self._pause()
        return None

    def _pause(self) -> None:
        select.select([self._wake_reader], [], [], CHECK_SECONDS)

    def _end_child(self) -> None:
        """Kill the command: it keeps nothing that a kill could damage.

        Asked politely in the middle of sending, beat loses the request in the client of the broker,
        prints a traceback and goes on. A tick that was cut off comes again with the next period.
        """
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None


def main() -> int:
    """Lead with the command of the arguments."""
    command = sys.argv[1:]
    if not command:
        print("usage: python -m marketplace.management.beat_leader COMMAND…", file=sys.stderr)
        return 2
    leader = Leader(database_url=os.environ["DATABASE_URL"], command=command)
    signal.signal(signal.SIGTERM, leader.ask_to_stop)
    signal.signal(signal.SIGINT, leader.ask_to_stop)
    return leader.run()


if __name__ == "__main__":
    sys.exit(main())
