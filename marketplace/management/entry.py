"""Which command was meant, and what must be there before it can run."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from marketplace.management import bootstrap, suite, up
from marketplace.management.bootstrap import PROJECT, PYTHON
from marketplace.management.datadir import DataDirectory
from marketplace.management.errors import PlainError, StopRequested

SIGNAL_STATUS_BASE = 128


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is not Django's own."""

    run: Callable[[Sequence[str]], int]
    usage: str
    summary: str
    needs_tests: bool = False


COMMANDS = {
    "up": Command(
        run=up.up,
        usage="up [--port N] [--data-dir DIR] [--no-demo]",
        summary="run the whole market here: database, broker, web, worker, beat, demo fleet",
    ),
    "demo": Command(
        run=up.demo,
        usage="demo [--port N] [--data-dir DIR]",
        summary="tell the story of one lease over HTTP, in the running market or one of its own",
    ),
    "test": Command(
        run=suite.test,
        usage="test [-k EXPR] [--all] [PATH …]",
        summary="run the suite against a PostgreSQL of its own; --all adds the slow tests",
        needs_tests=True,
    ),
    "verify": Command(
        run=suite.verify,
        usage="verify [CHECK …]",
        summary=f"run the checks: {', '.join(suite.STEPS)}",
        needs_tests=True,
    ),
    "lock": Command(
        run=suite.lock,
        usage="lock [--upgrade]",
        summary="compile the pinned requirements from pyproject.toml",
        needs_tests=True,
    ),
}

# Where a Django command may come from: the project's packages, and those that are installed.
COMMAND_FILES = "management/commands/*.py"
INSTALLED_COMMANDS = (
    f"django/core/{COMMAND_FILES}",
    f"django/contrib/*/{COMMAND_FILES}",
    f"*/{COMMAND_FILES}",
)
# Before anything is installed these are known to come; an unknown word must not cost a download.
DJANGO_COMMANDS = {
    *("changepassword", "check", "clearsessions", "collectstatic", "createsuperuser", "dbshell"),
    *("diffsettings", "dumpdata", "findstatic", "flush", "inspectdb", "loaddata", "makemigrations"),
    *("migrate", "sendtestemail", "shell", "showmigrations", "spectacular", "sqlflush"),
    *("sqlmigrate", "sqlsequencereset"),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; return the exit status. Whatever is foreseen ends in one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, ask_to_stop)
    try:
        return dispatch(arguments)
    except PlainError as error:
        print(f"manage.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return SIGNAL_STATUS_BASE + signal.SIGINT
    except StopRequested as stop:
        return SIGNAL_STATUS_BASE + stop.signal_number


def ask_to_stop(number: int, frame: FrameType | None) -> NoReturn:
    """Turn a signal into an exception, so that what was begun is cleaned up on the way out."""
    del frame
    raise StopRequested(signal_number=number)


def dispatch(arguments: Sequence[str]) -> int:
    """Find the command, prepare its ground, run it.

    :raises PlainError: when there is no such command, or its ground cannot be prepared.
    """
    if not arguments or arguments[0] in {"help", "--help", "-h"}:
        print(help_text())
        return 0
    name, *rest = arguments
    command = COMMANDS.get(name)
    if command is None and name not in known_django_commands():
        raise PlainError(unknown(name))
    if name in up.DESCRIPTIONS:
        # Wrong options, a taken directory or port: said now, not after a minute of downloads.
        options = up.parse_arguments(name=name, arguments=rest)
        if name == "up" and not bootstrap.is_inside_venv():
            up.check_before_installing(port=options.port, data=DataDirectory(path=options.data_dir))
    bootstrap.ensure_installed(with_tests=command is not None and command.needs_tests, say=say)
    if not bootstrap.is_inside_venv():
        sys.stdout.flush()
        os.execv(PYTHON, [str(PYTHON), str(PROJECT / "manage.py"), *arguments])
    return command.run(rest) if command is not None else up.django_command(arguments)


def say(text: str) -> None:
    """Tell a person about the preparation, apart from the output of the command."""
    print(text, file=sys.stderr, flush=True)


def known_django_commands() -> set[str]:
    """Return the names of Django's commands, ours included, without loading Django."""
    files = list(PROJECT.glob(f"*/{COMMAND_FILES}"))
    for packages in bootstrap.VENV.glob("lib/python3.*/site-packages"):
        for pattern in INSTALLED_COMMANDS:
            files.extend(packages.glob(pattern))
    return DJANGO_COMMANDS | {file.stem for file in files if not file.stem.startswith("_")}


def own_django_commands() -> list[str]:
    """Return the project's own Django commands that have no line of their own in the help."""
    stems = {Path(file).stem for file in PROJECT.glob(f"*/{COMMAND_FILES}")}
    return sorted(stem for stem in stems - COMMANDS.keys() if not stem.startswith("_"))


def unknown(name: str) -> str:
    """Return the line for a word that is no command."""
    near = difflib.get_close_matches(name, [*COMMANDS, *known_django_commands()], n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    return f"unknown command `{name}`; {hint}`python3 manage.py --help` lists them"


def help_text() -> str:
    """Return what there is, one command a line."""
    lines = ["usage: python3 manage.py COMMAND [OPTION …]", ""]
    for command in COMMANDS.values():
        lines += [f"  {command.usage}", f"      {command.summary}"]
    own = ", ".join(own_django_commands())
    lines += [
        "",
        "Every Django command works as well, inside the running market or beside a database that",
        f"runs for as long as the command does: {own}, migrate, shell, createsuperuser, …",
        "",
        "DATABASE_URL, CELERY_BROKER_URL, SECRET_KEY, ALLOWED_HOSTS, STRIPE_SECRET_KEY and",
        "STRIPE_WEBHOOK_SECRET each replace an embedded part by a real one.",
    ]
    return "\n".join(lines)
