"""Starts programs, passes their lines on, starts them again when they die, stops them in order.

One thread does all of it: a fork from a program with threads may stand still for ever.
"""

import contextlib
import errno
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

from marketplace.management.errors import PlainError, StopRequested
from marketplace.management.processes import Account, describe_exit, kill_group, spawn
from marketplace.management.stream import LineSplitter, LogStream

# A program that dies at once is tried again after 0.5 s, then 1, 2, 4 … 30 s, for ever: what it
# waits for (a disk, a database) may come back long after the last person looked.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# One that lived this long had started well, so its next death is a first one again.
STEADY_AFTER_SECONDS = 20.0

POLL_SECONDS = 0.1
CHECK_EVERY_SECONDS = 0.2
# `timeout`, a terminal and an init may each pass on the same request; only a later one is a person.
IMPATIENT_AFTER_SECONDS = 1.0
READ_SIZE_BYTES = 64 * 1024
LAST_LINES_KEPT = 3
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Program:
    """How one program is run, and how it is asked to end.

    `stop_rank` orders the end: all programs of one rank are asked together, lower ranks first.
    `death_signal` is what the kernel sends when the supervisor itself is killed. A line that holds
    one of `hidden_lines` is not passed on; of a quiet program none is, unless it fails.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    working_directory: Path | None = None
    account: Account | None = None
    pass_fds: Sequence[int] = ()
    is_ready: Callable[[], bool] | None = None
    before_start: Callable[[], None] | None = None
    is_quiet: bool = False
    hidden_lines: Sequence[str] = ()
    stop_rank: int = 0
    stop_signal: int = signal.SIGTERM
    stop_limit_seconds: float = 10.0
    death_signal: int = signal.SIGTERM


@dataclass(kw_only=True)
class Child:
    """One run of a program, or the pause before its next one."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    splitter: LineSplitter = field(default_factory=LineSplitter)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES_KEPT))
    started_at: float = 0.0
    failures: int = 0
    restart_at: float | None = None
    ready_once: bool = False
    # When readiness is looked at next; None when nobody waits for it.
    check_at: float | None = None


class Supervisor:
    """Owns children from `start` until `stop_all`, which leaving the `with` block calls.

    Inside the block SIGINT, SIGTERM and SIGHUP end whatever waits with `StopRequested`.
    """

    def __init__(self, *, log: LogStream) -> None:
        """Pass lines on to `log`."""
        self._log = log
        self._on_change: Callable[[Mapping[str, int]], None] | None = None
        self._children: dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._stop_signal: int | None = None
        self._stopping = False
        self._stop_began_at = 0.0
        self._previous_handlers: dict[int, object] = {}
        # A signal writes into this pair, so that a wait ends at once and not a poll later.
        self._wake_reader, self._wake_writer = socket.socketpair()

    def __enter__(self) -> Self:
        for end in (self._wake_reader, self._wake_writer):
            end.settimeout(0)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the terminal's end is not ours
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.stop_all()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it
            self._selector.close()
            self._wake_reader.close()
            self._wake_writer.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGCHLD:
            return
        if self._stopping:
            if time.monotonic() - self._stop_began_at < IMPATIENT_AFTER_SECONDS:
                return
            self._log.say("asked a second time: killing what is left")
            for child in self._children.values():
                if child.process is not None and child.process.poll() is None:
                    kill_group(pid=child.process.pid)
        elif self._stop_signal is None:
            self._stop_signal = number
            self._stop_began_at = time.monotonic()

    def report_changes_to(self, listener: Callable[[Mapping[str, int]], None]) -> None:
        """Call `listener` with the ids of what runs, by name, whenever they change."""
        self._on_change = listener

    def forget_stop(self) -> None:
        """Go on although a stop was asked for: somebody else has dealt with it."""
        self._stop_signal = None

    # --- the parts of a start ---------------------------------------------------------------

    def start(self, *, program: Program) -> None:
        """Run a program and keep it running; it counts as ready when its own check says so.

        :raises PlainError: when it cannot be run at all.
        """
        child = Child(program=program)
        self._children[program.name] = child
        try:
            self._launch(child)
        except OSError as error:
            del self._children[program.name]
            raise PlainError(f"{program.name} cannot be started: {error}") from error

    def wait_until_ready(self, *, name: str, limit_seconds: float) -> None:
        """Wait for a started program.

        :raises PlainError: when it ends first, or is not ready in time.
        :raises StopRequested: when a person or the system asks to stop.
        """
        child = self._children[name]
        deadline = time.monotonic() + limit_seconds
        while not child.ready_once:
            if child.process is None:
                raise PlainError(f"{name} did not start: {self._last_words(child)}")
            if time.monotonic() > deadline:
                raise PlainError(
                    f"{name} was not ready within {limit_seconds:.0f} s: {self._last_words(child)}"
                )
            self.pump()

    def run(self, *, program: Program, limit_seconds: float) -> None:
        """Run a program to its end, its lines in the stream.

        :raises PlainError: when it fails or takes longer than the limit.
        :raises StopRequested: when a person or the system asks to stop.
        """
        self.start(program=program)
        child = self._children[program.name]
        deadline = time.monotonic() + limit_seconds
        child.ready_once = False
        while child.process is not None:
            if time.monotonic() > deadline:
                raise PlainError(f"{program.name} took longer than {limit_seconds:.0f} s")
            self.pump()
        del self._children[program.name]
        if child.failures:
            raise PlainError(f"{program.name} failed: {self._last_words(child)}")

    def supervise(self) -> None:
        """Keep everything running until somebody asks to stop.

        :raises StopRequested: then, and it never returns otherwise.
        """
        while True:
            self.pump()

    def process_ids(self) -> dict[str, int]:
        """Return the ids of what runs now, by name."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None
        }

    # --- one turn ---------------------------------------------------------------------------

    def pump(self) -> None:
        """Pass on what was written, notice who died or became ready, start who is due.

        :raises StopRequested: when a stop was asked for.
        """
        self._read()
        for child in list(self._children.values()):
            self._reap(child)
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._launch_again(child)
            if child.check_at is not None and time.monotonic() >= child.check_at:
                self._check_readiness(child)
        if self._stop_signal is not None and not self._stopping:
            raise StopRequested(signal_number=self._stop_signal)

    def _launch(self, child: Child) -> None:
        program = child.program
        if program.before_start is not None:
            program.before_start()
        child.restart_at = None
        child.started_at = time.monotonic()
        child.splitter = LineSplitter()
        child.process = spawn(
            command=program.command,
            environment=program.environment,
            working_directory=program.working_directory,
            account=program.account,
            pass_fds=program.pass_fds,
            death_signal=program.death_signal,
            output=subprocess.PIPE,
        )
        child.check_at = None if program.is_ready is None else child.started_at
        child.ready_once = child.ready_once or program.is_ready is None
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)
        self._tell_change()

    def _launch_again(self, child: Child) -> None:
        try:
            self._launch(child)
        except (OSError, PlainError) as error:
            self._log.say(f"{child.program.name} cannot be started: {error}")
            self._schedule(child)

    def _read(self) -> None:
        for key, _ in self._selector.select(POLL_SECONDS):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(READ_SIZE_BYTES)
            else:
                self._drain(key.data, rounds=1)

    def _drain(self, child: Child, *, rounds: int) -> None:
        """Read what a child wrote, at most `rounds` pieces, so that a talker starves nobody."""
        assert child.process is not None
        assert child.process.stdout is not None
        for _ in range(rounds):
            try:
                chunk = os.read(child.process.stdout.fileno(), READ_SIZE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                chunk = b""
            if not chunk:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(child.process.stdout)
                return
            self._pass_on(child, child.splitter.feed(chunk))

    def _pass_on(self, child: Child, lines: Sequence[str]) -> None:
        for spoken in lines:
            line = spoken.removeprefix(f"{child.program.name} ")
            if not line or any(hidden in line for hidden in child.program.hidden_lines):
                continue
            child.last_lines.append(line)
            if not child.program.is_quiet:
                self._log.line(name=child.program.name, text=line)

    def _reap(self, child: Child) -> None:
        process = child.process
        if process is None or process.poll() is None:
            return
        # Its own children would go on without a master, and keep its output open.
        kill_group(pid=process.pid)
        self._drain(child, rounds=LAST_LINES_KEPT)
        self._pass_on(child, child.splitter.flush())
        assert process.stdout is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.stdout)
        process.stdout.close()
        child.process = None
        child.check_at = None
        how = describe_exit(returncode=process.returncode)
        if self._stopping:
            self._log.say(f"{child.program.name} {how}")
        elif child.ready_once:
            self._log.say(f"{child.program.name} (process {process.pid}) {how}")
            self._schedule(child)
        else:
            child.failures = int(process.returncode != 0)
            if process.returncode != 0:
                child.last_lines.append(f"it {how}")
        self._tell_change()

    def _schedule(self, child: Child) -> None:
        if time.monotonic() - child.started_at > STEADY_AFTER_SECONDS:
            child.failures = 0
        pause = min(FIRST_PAUSE_SECONDS * 2**child.failures, LONGEST_PAUSE_SECONDS)
        child.failures = min(child.failures + 1, 16)  # enough for the longest pause
        child.restart_at = time.monotonic() + pause
        self._log.say(f"{child.program.name} starts again in {pause:g} s")

    def _check_readiness(self, child: Child) -> None:
        assert child.program.is_ready is not None
        child.check_at = time.monotonic() + CHECK_EVERY_SECONDS
        if child.program.is_ready():
            child.check_at = None
            self._log.say(f"{child.program.name} is {'back' if child.ready_once else 'ready'}")
            child.ready_once = True

    def _last_words(self, child: Child) -> str:
        return " / ".join(child.last_lines) or "it wrote nothing"

    def _tell_change(self) -> None:
        if self._on_change is not None and not self._stopping:
            self._on_change(self.process_ids())

    # --- the end ----------------------------------------------------------------------------

    def stop_all(self) -> None:
        """Stop every child, rank by rank; kill what does not end within its own limit."""
        if not self._stopping:
            self._stopping = True
            self._stop_began_at = time.monotonic()
        living = [child for child in self._children.values() if child.process is not None]
        for rank in sorted({child.program.stop_rank for child in living}):
            self._stop_together([c for c in living if c.program.stop_rank == rank])
        self._children.clear()

    def _stop_together(self, children: Sequence[Child]) -> None:
        asked_at = time.monotonic()
        for child in children:
            if child.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(child.program.stop_signal)
        while any(child.process is not None for child in children):
            self._read()
            for child in children:
                self._reap(child)
                waited = time.monotonic() - asked_at
                if child.process is not None and waited > child.program.stop_limit_seconds:
                    self._log.say(f"{child.program.name} did not stop in time and is killed")
                    kill_group(pid=child.process.pid)
