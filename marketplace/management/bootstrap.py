"""From a bare python3 to a virtual environment with the pinned requirements, once.

Runs on the machine's own Python, before anything is installed.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from marketplace.management.errors import PlainError
from marketplace.management.processes import describe_exit, kill_group, spawn
from marketplace.management.stream import LineSplitter

PROJECT = Path(__file__).resolve().parents[2]
VENV = PROJECT / ".venv"
PYTHON = VENV / "bin/python"
MARKER = VENV / "headroom-installed.json"
INSTALL_LOG = VENV / "headroom-install.log"
REQUIREMENTS = "requirements.txt"
TEST_REQUIREMENTS = "tests/requirements.txt"

PROGRESS_EVERY_SECONDS = 2.0
READ_SIZE_BYTES = 64 * 1024
LAST_LINES_KEPT = 40

# pip's own default of 5 keeps a person without a network waiting for minutes.
DOWNLOAD_RETRIES = 2

# What the system said, in the middle of pip's line about trying again.
CAUSE_OF_RETRY = re.compile(r"(?:\[Errno -?\d+\] |: )([A-Z][A-Za-z ]+)[\"')]*: /")
# What pip says of a package whose index it could not reach.
NOT_FOUND = ("Could not find a version", "No matching distribution")

OLDEST_PYTHON = (3, 11)
FIRST_UNTESTED_PYTHON = (3, 14)

Say = Callable[[str], None]


def fingerprint(*, files: Sequence[str]) -> dict[str, str]:
    """Return each requirements file's SHA-256, by name."""
    return {name: hashlib.sha256((PROJECT / name).read_bytes()).hexdigest() for name in files}


def read_marker(*, path: Path) -> dict[str, str]:
    """Return what was installed, by the hashes of the requirements; empty when unknown."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def is_installed(*, wanted: Mapping[str, str], marker: Mapping[str, str]) -> bool:
    """Say whether everything wanted is there in exactly the wanted version."""
    return all(marker.get(name) == value for name, value in wanted.items())


def is_inside_venv() -> bool:
    """Say whether this process already runs on the virtual environment's Python."""
    return VENV.is_dir() and os.path.samefile(sys.prefix, VENV)


def ensure_installed(*, with_tests: bool, say: Say) -> None:
    """Make `.venv` and install the pinned requirements, unless that was done before.

    :raises PlainError: when the directory cannot be written, Python lacks what it takes, or a
        download fails. What was begun can be gone on with by the next call.
    """
    files = [REQUIREMENTS, TEST_REQUIREMENTS] if with_tests else [REQUIREMENTS]
    wanted = fingerprint(files=files)
    if PYTHON.exists() and is_installed(wanted=wanted, marker=read_marker(path=MARKER)):
        return
    with one_installer_at_a_time(say=say):
        marker = read_marker(path=MARKER)
        if PYTHON.exists() and is_installed(wanted=wanted, marker=marker):
            return
        if not os.access(VENV if VENV.exists() else PROJECT, os.W_OK):
            raise PlainError(f"{PROJECT} cannot be written by this user: .venv must be made there")
        began_at = time.monotonic()
        if not venv_is_usable():
            make_venv(say=say)
        for name in files:
            if marker.get(name) != wanted[name]:
                install(requirements=name, say=say)
        MARKER.write_text(json.dumps({**marker, **wanted}, indent=2) + "\n", encoding="utf-8")
        say(f"installed in {time.monotonic() - began_at:.0f} s")


@contextmanager
def one_installer_at_a_time(*, say: Say) -> Iterator[None]:
    """Hold a lock on the requirements themselves: two first starts must not mix their work."""
    descriptor = os.open(PROJECT / REQUIREMENTS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is installing; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def venv_is_usable() -> bool:
    """Say whether `.venv` runs a Python we support and has pip."""
    if not PYTHON.exists():
        return False
    test = "import sys, pip; print(*sys.version_info[:2])"
    answer = subprocess.run([PYTHON, "-c", test], capture_output=True, check=False, text=True)
    if answer.returncode != 0:
        return False
    major, minor = map(int, answer.stdout.split())
    return OLDEST_PYTHON <= (major, minor) < FIRST_UNTESTED_PYTHON


def make_venv(*, say: Say) -> None:
    """Make an empty virtual environment from the Python that runs.

    :raises PlainError: when this Python cannot make one.
    """
    if importlib.util.find_spec("ensurepip") is None:
        install_ensurepip(say=say)
    say(f"making .venv with Python {sys.version.split()[0]}")
    lines = follow([sys.executable, "-m", "venv", "--clear", str(VENV)], on_line=None, on_wait=None)
    if lines.status != 0:
        raise PlainError(f"making .venv failed: {lines.reason()}")


def debian_package() -> str:
    """Return the Debian package that completes the Python that runs."""
    default = shutil.which("python3", path="/usr/bin")
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    if default is not None and Path(default).resolve().name == f"python{minor}":
        return "python3-venv"
    return f"python{minor}-venv"


def install_ensurepip(*, say: Say) -> None:
    """Install what Debian leaves out of its python3.

    :raises PlainError: when that needs a person: not root, not Debian, or apt-get failed.
    """
    package = debian_package()
    command = f"apt-get update && apt-get install -y --no-install-recommends {package}"
    if shutil.which("apt-get") is None:
        raise PlainError(
            f"{sys.executable} has no `ensurepip` module: install your system's package for it"
            " (often called python3-venv or python3-pip), then start again"
        )
    if os.geteuid() != 0:
        raise PlainError(f"this python3 has no `venv`; run once as root:  {command}")
    say(f"this python3 has no `venv`: installing {package}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = follow(["/bin/sh", "-c", command], on_line=None, on_wait=None, environment=environment)
    importlib.invalidate_caches()
    if result.status != 0 or importlib.util.find_spec("ensurepip") is None:
        raise PlainError(f"`{command}` failed: {result.reason()}")


def install(*, requirements: str, say: Say) -> None:
    """Install one file of pinned, hashed requirements, with a word on how far it is.

    :raises PlainError: when pip fails; the line says why and where the whole log lies.
    """
    progress = Progress(total=count_requirements(path=PROJECT / requirements), say=say)
    say(f"installing {progress.total} packages from {requirements}")
    command = [
        *(
            str(PYTHON),
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "-r",
            str(PROJECT / requirements),
        ),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--retries", str(DOWNLOAD_RETRIES), "--log", str(INSTALL_LOG)),
    ]
    result = follow(command, on_line=progress.read, on_wait=progress.look)
    progress.end()
    if result.status != 0:
        raise PlainError(
            f"installing {requirements} failed: {result.reason()} (whole log: {INSTALL_LOG})"
        )


def count_requirements(*, path: Path) -> int:
    """Count the pinned packages that apply to this machine, leaving out those for others."""
    pins = re.findall(r"^[A-Za-z0-9._\[\]-]+==.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    elsewhere = ["win32"]
    for bound in ((3, 11, 3), (3, 12)):
        side = "<" if sys.version_info >= bound else ">="
        elsewhere.append(f"python_full_version {side} '{'.'.join(map(str, bound))}'")
    return sum(not any(word in pin for word in elsewhere) for pin in pins)


class Progress:
    """Reads pip's lines and says how far it is, often enough that nobody thinks it hangs."""

    def __init__(self, *, total: int, say: Say) -> None:
        """Count up to about `total` packages."""
        self.total = total
        self._say = say
        self._collected = 0
        self._installing = False
        self._there_before = 0
        self._began_at = time.time()
        self._said_at = time.monotonic()
        self._in_place = sys.stdout.isatty()

    def read(self, line: str) -> None:
        """Take one line of pip."""
        if line.startswith(("Collecting ", "Requirement already satisfied: ")):
            self._collected += 1
            name = re.split(r"[ =<>;\[]", line.removeprefix("Collecting "))[0]
            if line.startswith("Collecting "):
                self._tell(f"{self._collected}/{self.total} {name}")
        elif line.startswith("Installing collected packages"):
            self._installing = True
            self._tell("unpacking", at_once=True)

    def look(self) -> None:
        """Say something while pip is silent: it unpacks for a while without a line."""
        if self._installing:
            done = sum(
                info.stat().st_mtime >= self._began_at
                for info in VENV.glob("lib/python3.*/site-packages/*.dist-info")
            )
            self._tell(f"unpacked {done} of {self._collected}")
        else:
            self._tell(f"{self._collected}/{self.total} waiting for pip")

    def end(self) -> None:
        """Leave the line on which progress was drawn."""
        if self._in_place:
            print("\r\x1b[K", end="", flush=True)

    def _tell(self, text: str, *, at_once: bool = False) -> None:
        if self._in_place:
            print(f"\r\x1b[K  {text}", end="", flush=True)
        elif at_once or time.monotonic() - self._said_at >= PROGRESS_EVERY_SECONDS:
            self._said_at = time.monotonic()
            self._say(f"  {text}")


class Ended:
    """How a followed program ended, and the last it said."""

    def __init__(self, *, status: int, lines: Sequence[str]) -> None:
        """Keep the exit status and the last lines."""
        self.status = status
        self._lines = lines

    def reason(self) -> str:
        """Return what explains a failure best: a lost connection, the first error, the last line."""
        errors = [
            line.partition(": ")[2]
            for line in self._lines
            if line.startswith(("ERROR: ", "E: ", "Error: "))
        ]
        retries = [line for line in self._lines if line.startswith("WARNING: Retrying ")]
        if retries and (not errors or errors[0].startswith(NOT_FOUND)):
            cause = CAUSE_OF_RETRY.search(retries[-1])
            what = cause[1] if cause else "no connection"
            return f"a download failed ({what}): check the network, the proxy, pip's settings"
        if errors:
            return errors[0]
        return self._lines[-1] if self._lines else describe_exit(returncode=self.status)


def follow(
    command: Sequence[str],
    *,
    on_line: Callable[[str], None] | None,
    on_wait: Callable[[], None] | None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program to its end, handing on its lines; it is killed if we are interrupted."""
    process = spawn(command=command, environment=environment, output=subprocess.PIPE)
    assert process.stdout is not None
    splitter = LineSplitter()
    last: deque[str] = deque(maxlen=LAST_LINES_KEPT)
    try:
        chunk = b"."
        while chunk:
            ready, _, _ = select.select([process.stdout], [], [], PROGRESS_EVERY_SECONDS)
            if not ready:
                if on_wait is not None:
                    on_wait()
                continue
            chunk = os.read(process.stdout.fileno(), READ_SIZE_BYTES)
            for line in splitter.feed(chunk) if chunk else splitter.flush():
                if line.strip():
                    last.append(line)
                    if on_line is not None:
                        on_line(line)
        return Ended(status=process.wait(), lines=list(last))
    finally:
        process.stdout.close()
        if process.poll() is None:
            kill_group(pid=process.pid)
            with suppress(ChildProcessError):
                process.wait()
