"""`test`, `verify` and `lock`: what the code is judged by, and what it is pinned to."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from marketplace.management.bootstrap import PROJECT
from marketplace.management.errors import PlainError
from marketplace.management.postgres import ThrowAwayPostgres

# What the composition needs beside a database, when the caller has not said otherwise.
TEST_ENVIRONMENT = {
    "HEADROOM_PROFILE": "test",
    "SECRET_KEY": "a-key-for-the-suite-that-signs-nothing-of-value",
    "CELERY_BROKER_URL": "memory://",
    "ALLOWED_HOSTS": "testserver,localhost,127.0.0.1",
}

# Each has a database and a few hundred megabytes of its own; more than four gain little.
SUITE_PROCESSES_LIMIT = 4

IMPORT_LINTER = "from importlinter.cli import lint_imports_command as run; run()"

STEPS: Mapping[str, Sequence[str]] = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "imports": ["-c", IMPORT_LINTER],
    "migrations": ["manage.py", "makemigrations", "--check", "--dry-run"],
    "schema": ["manage.py", "export_schema", "--check"],
}

COMPILE = (
    *("-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "-q"),
)
LOCKS: Mapping[str, Sequence[str]] = {
    "requirements.txt": ["pyproject.toml", "-o", "requirements.txt"],
    "tests/requirements.txt": [
        *("-c", "requirements.txt", "--extra", "test"),
        *("pyproject.toml", "-o", "tests/requirements.txt"),
    ],
}


def test(arguments: Sequence[str]) -> int:
    """Become pytest: its summary is the last thing that is written.

    `--all` adds the slow tests; everything else is pytest's own. Asked for nothing in particular,
    it spreads over the processors. A choice of tests, or the slow ones, which start whole markets,
    run one after the other unless `-n` says otherwise.
    """
    chosen = [argument for argument in arguments if argument != "--all"]
    processes = min(len(os.sched_getaffinity(0)), SUITE_PROCESSES_LIMIT)
    if not arguments and processes > 1:
        chosen = ["-n", str(processes)]
    if "--all" not in arguments:
        chosen = ["-m", "not slow", *chosen]
    os.chdir(PROJECT)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *chosen])


def verify(arguments: Sequence[str]) -> int:
    """Run every check, or those named, each to its end; return 0 when all passed.

    :raises PlainError: when there is no such check.
    """
    for name in arguments:
        if name not in STEPS:
            raise PlainError(f"no check named `{name}`; there are {', '.join(STEPS)}")
    chosen = {name: STEPS[name] for name in arguments} or STEPS
    server = ThrowAwayPostgres()
    environment = {**TEST_ENVIRONMENT, **os.environ, "DATABASE_URL": server.url}
    environment["DJANGO_SETTINGS_MODULE"] = "marketplace.settings"
    try:
        failed = [name for name, step in chosen.items() if not passes(name, step, environment)]
    finally:
        server.stop()
    if failed:
        print(f"verify: {', '.join(failed)} failed")
        return 1
    print(f"verify: {len(chosen)} checks passed")
    return 0


def passes(name: str, step: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Run one check; say how long it took, and what it said if it failed."""
    print(f"{name:<12}", end="", flush=True)
    began_at = time.monotonic()
    result = subprocess.run(
        [sys.executable, *step],
        cwd=PROJECT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    seconds = time.monotonic() - began_at
    print(f"{'ok' if result.returncode == 0 else 'FAILED':<8}{seconds:6.1f} s", flush=True)
    if result.returncode != 0:
        print(result.stdout.rstrip(), flush=True)
    return result.returncode == 0


def lock(arguments: Sequence[str]) -> int:
    """Compile the requirements of `pyproject.toml` into pinned, hashed files, for all Pythons.

    `--upgrade` takes the newest releases that fit; without it what is pinned stays.
    """
    for name, sources in LOCKS.items():
        print(f"compiling {name}", flush=True)
        command = [sys.executable, *COMPILE, *arguments, *sources]
        result = subprocess.run(command, cwd=PROJECT, check=False, stdin=subprocess.DEVNULL)
        if result.returncode != 0:
            return result.returncode
    return 0
