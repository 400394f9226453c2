"""`up` runs the whole market; any other command joins it, or borrows what it needs of it."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from marketplace.management import standin
from marketplace.management.bootstrap import PROJECT
from marketplace.management.datadir import DataDirectory, RunRecord
from marketplace.management.errors import PlainError, StopRequested
from marketplace.management.instance import (
    DEFAULT_PORT,
    HOST,
    Instance,
    choose_profile,
    compose_environment,
    reserve_port,
)
from marketplace.management.processes import die_with_parent
from marketplace.management.stream import LogStream
from marketplace.management.supervisor import Supervisor

# What a shell reports for a program that a signal ended.
SIGNAL_STATUS_BASE = 128
COMMAND_STOP_LIMIT_SECONDS = 10
# PostgreSQL's code for a table that is not there (its appendix A).
UNDEFINED_TABLE = "42P01"

DESCRIPTIONS = {
    "up": "Run the whole market on this machine until Ctrl-C.",
    "demo": "Tell the story of one lease, against a running market or one of its own.",
}


def parse_arguments(*, name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options of `up` and `demo`."""
    parser = argparse.ArgumentParser(prog=f"manage.py {name}", description=DESCRIPTIONS[name])
    parser.add_argument(
        "--port",
        type=port_number,
        help="the web server's port (default: 8000 or the next free one)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_directory(),
        help="where everything is kept (default: var beside manage.py)",
    )
    if name == "up":
        parser.add_argument(
            "--no-demo",
            action="store_true",
            help="make no demo accounts and run no simulated machines",
        )
    parsed = parser.parse_args(list(arguments))
    parsed.data_dir = parsed.data_dir.expanduser().absolute()
    return parsed


def port_number(text: str) -> int:
    """Read a TCP port.

    :raises argparse.ArgumentTypeError: when it is none.
    """
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a whole number from 1 to 65535, not {text!r}")
    return int(text)


def default_data_directory() -> Path:
    """Return where the data lies unless the command line says otherwise."""
    named = os.environ.get("HEADROOM_DATA_DIR")
    return Path(named) if named else PROJECT / "var"


def check_before_installing(*, port: int | None, data: DataDirectory) -> None:
    """Refuse at once what would be refused after a minute of downloads.

    :raises PlainError: when the directory is taken or closed, or the port is in use.
    """
    data.create()
    data.lock(purpose="a start")
    try:
        if data.read_record() is None:  # else a killed run may hold its port a little longer
            reserve_port(port=port).close()
    finally:
        data.unlock()


def up(arguments: Sequence[str]) -> int:
    """Run the market until somebody stops it; return the exit status."""
    options = parse_arguments(name="up", arguments=arguments)
    log = LogStream()
    started = False
    try:
        with running_market(
            data=DataDirectory(path=options.data_dir),
            port=options.port,
            with_demo=not options.no_demo,
            log=log,
            purpose="up",
        ) as (instance, supervisor):
            started = True
            log.block(closing_block(instance=instance))
            supervisor.supervise()
    except StopRequested as stop:
        log.say("everything has stopped")
        return 0 if started else SIGNAL_STATUS_BASE + stop.signal_number
    return 0


@contextlib.contextmanager
def running_market(
    *, data: DataDirectory, port: int | None, with_demo: bool, log: LogStream, purpose: str
) -> Iterator[tuple[Instance, Supervisor]]:
    """Bring a whole market up, and down again however the block ends.

    :raises PlainError: when a part does not start; what had started is stopped first.
    """
    data.lock(purpose=purpose)
    data.recover(say=log.say)
    listener = reserve_port(port=port)
    number = listener.getsockname()[1]
    if port is None and number != DEFAULT_PORT:
        log.say(f"port {DEFAULT_PORT} is in use: taking {number}")
    with contextlib.closing(listener), Supervisor(log=log) as supervisor:
        instance = Instance(
            data=data,
            supervisor=supervisor,
            log=log,
            environ=os.environ,
            base_url=os.environ.get("HEADROOM_BASE_URL") or f"http://{HOST}:{number}",
        )
        demo = with_demo and instance.profile != "production"
        log.say(f"starting in the {instance.profile} profile, data in {data.path}")
        try:
            instance.start_stores()
            instance.start_provider()
            instance.prepare()
            if demo:
                instance.seed()
            instance.start_market(listener=listener)
            if demo:
                instance.start_fleet()
            instance.mark_ready()
            yield instance, supervisor
        finally:
            log.say("stopping: beat, worker and agents, web, provider, broker, PostgreSQL")
            supervisor.stop_all()
            instance.forget()


def closing_block(*, instance: Instance) -> list[str]:
    """Return what a person needs to know once everything runs."""
    url = instance.base_url
    rows = [("Market", url), ("API", f"{url}/v1/docs"), ("Admin", f"{url}/admin/")]
    tries = ["python3 manage.py demo          the story of one lease, over HTTP"]
    path = instance.data.path / "demo.json"
    if path.exists() and instance.profile != "production":
        known = json.loads(path.read_text(encoding="utf-8"))
        admin = known.get("admin", {})
        rows += [
            ("Admin login", f"{admin.get('username')} / {admin.get('password')}"),
            ("Owner key", str(known.get("owner", {}).get("api_key"))),
            ("Tenant key", str(known.get("tenant", {}).get("api_key"))),
            ("Kept in", f"{path} (mode 0600)"),
        ]
        key = known.get("tenant", {}).get("api_key")
        tries.append(f"curl -s {url}/v1/market -H 'Authorization: Bearer {key}'")
    tries.append(f"curl -s {url}/v1/gpu-models")
    if instance.provider_url:
        rows.append(("Payments", "simulated: no key of a provider is given, no money moves"))
    notes = (
        "windows last from one minute; hardware and money are simulated"
        if instance.profile == "demo"
        else f"profile {instance.profile}"
    )
    width = max(len(name) for name, _ in rows)
    return [
        "",
        f"  Headroom is up: {notes}.",
        "",
        *(f"    {name:<{width}}   {value}" for name, value in rows),
        "",
        "  Try next:",
        *(f"    {line}" for line in tries),
        "",
        "  Ctrl-C stops everything; the data stays.",
        "",
    ]


def demo(arguments: Sequence[str]) -> int:
    """Tell the story against the running market, or against one that lives as long as the story."""
    options = parse_arguments(name="demo", arguments=arguments)
    data = DataDirectory(path=options.data_dir)
    record = data.running()
    if record is not None and record.base_url:
        if not record.is_ready:
            raise PlainError("the market is still starting: try again when it shows its addresses")
        os.environ.update(environment_of(record=record, data=data))
        return run_django(["demo"])
    print("No market runs here: starting one for the story (a few seconds) …", flush=True)
    try:
        with (
            quiet_log(data=data) as log,
            running_market(
                data=data, port=options.port, with_demo=True, log=log, purpose="demo"
            ) as (instance, supervisor),
        ):
            print(
                f"It answers at {instance.base_url}; its log is {log_path(data=data)}", flush=True
            )
            return foreground(
                supervisor=supervisor, arguments=["demo"], environment=instance.environment
            )
    except StopRequested as stop:
        return SIGNAL_STATUS_BASE + stop.signal_number


def environment_of(*, record: RunRecord, data: DataDirectory) -> dict[str, str]:
    """Return the environment in which a command joins a running market."""
    return {
        **compose_environment(
            data=data, environ=os.environ, profile=record.profile, base_url=record.base_url
        ),
        "DATABASE_URL": record.database_url,
        "CELERY_BROKER_URL": record.broker_url,
        **(standin.environment(url=record.provider_url) if record.provider_url else {}),
    }


def log_path(*, data: DataDirectory) -> Path:
    """Return where the lines go when a command owns the terminal."""
    return data.path / "command.log"


@contextlib.contextmanager
def quiet_log(*, data: DataDirectory) -> Iterator[LogStream]:
    """Write the stream into a file, because the terminal belongs to a command."""
    data.create()
    with log_path(data=data).open("a", encoding="utf-8") as file:
        yield LogStream(output=file)


def django_command(arguments: Sequence[str]) -> int:
    """Run any Django command where it finds a database.

    That is the one that the operator named, or the running market's, or the data directory's
    own, which then runs for as long as the command does. `--data-dir` is ours and not passed on.

    :raises PlainError: when the data directory is taken by something that is still starting.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data-dir", type=Path, default=default_data_directory())
    options, arguments = parser.parse_known_args(list(arguments))
    data = DataDirectory(path=options.data_dir.expanduser().absolute())
    if all(os.environ.get(name) for name in ("DATABASE_URL", "CELERY_BROKER_URL")):
        profile = choose_profile(environ=os.environ)
        base_url = os.environ.get("HEADROOM_BASE_URL", "")
        os.environ.update(
            compose_environment(data=data, environ=os.environ, profile=profile, base_url=base_url)
        )
        return run_django(arguments)
    record = data.running()
    if record is not None and record.database_url:
        os.environ.update(environment_of(record=record, data=data))
        return run_django(arguments)
    return beside_borrowed_stores(arguments=arguments, data=data)


def beside_borrowed_stores(*, arguments: Sequence[str], data: DataDirectory) -> int:
    """Run one Django command beside a database and a broker that live as long as it does."""
    data.lock(purpose=f"manage.py {arguments[0]}")
    try:
        with quiet_log(data=data) as log, Supervisor(log=log) as supervisor:
            data.recover(say=log.say)
            instance = Instance(data=data, supervisor=supervisor, log=log, environ=os.environ)
            try:
                instance.start_stores()
                return foreground(
                    supervisor=supervisor, arguments=arguments, environment=instance.environment
                )
            finally:
                supervisor.stop_all()
                instance.forget()
    except StopRequested as stop:
        return SIGNAL_STATUS_BASE + stop.signal_number


def foreground(
    *, supervisor: Supervisor, arguments: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run a Django command on our own terminal while the supervisor keeps the rest alive.

    Ctrl-C at a terminal reaches the command directly; it decides what that means. What only we
    get is passed on.

    :raises StopRequested: when we were asked to stop; the command has ended then.
    """
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "manage.py"), *arguments],
        env=dict(environment),
        preexec_fn=die_with_parent(signal_number=signal.SIGTERM),
    )
    try:
        while process.poll() is None:
            try:
                supervisor.pump()
            except StopRequested as stop:
                if stop.signal_number != signal.SIGINT:
                    raise
                supervisor.forget_stop()
                if not sys.stdin.isatty():
                    process.send_signal(signal.SIGINT)
        if process.returncode < 0:
            return SIGNAL_STATUS_BASE - process.returncode
        return process.returncode
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(COMMAND_STOP_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_django(arguments: Sequence[str]) -> int:
    """Run a Django command in this process, whose environment is complete.

    :raises PlainError: when a setting is missing or wrong, the database does not answer, or it has
        no tables yet.
    """
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError, OperationalError

    try:
        execute_from_command_line(["manage.py", *arguments])
    except ImproperlyConfigured as error:
        raise PlainError(str(error)) from error
    except OperationalError as error:
        first = str(error).strip().partition("\n")[0]
        raise PlainError(f"the database does not answer: {first}") from error
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) != UNDEFINED_TABLE:
            raise
        message = "this database has no tables yet: `python3 manage.py up` or `migrate` makes them"
        raise PlainError(message) from error
    return 0
