"""A real web server over the suite's database, for tests in which the network and threads matter."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
from django.db import connection

PROJECT = Path(__file__).resolve().parents[1]
START_TRIES_MAX = 200
START_PAUSE_SECONDS = 0.1
WORKER_CLASS = "marketplace.api.web_worker.ProblemWorker"  # as `up` runs it
BACKLOG = 512  # more than the clients that race


def database_url() -> str:
    """Return the URL of the database of this test, for other processes."""
    database = connection.settings_dict
    host = quote(database["HOST"] or database["OPTIONS"].get("host", ""))
    return f"postgres://{quote(database['USER'])}@/{quote(str(database['NAME']))}?host={host}"


@contextmanager
def web_server(
    *,
    application: str = "marketplace.wsgi:application",
    threads: int = 16,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    **variables: str,
) -> Iterator[str]:
    """Serve an application with gunicorn on a free port of the loopback; yield its base URL.

    `environment` and `variables` are added to this process's own.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", application]
        command += ["--bind", f"fd://{listener.fileno()}", "--worker-class", WORKER_CLASS]
        command += ["--workers", str(workers), "--threads", str(threads), "--log-level", "warning"]
        command += ["--keep-alive", "75"]  # as `up` runs it: clients wait at barriers
        server = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={
                **os.environ,
                "DATABASE_URL": database_url(),
                **(environment or {}),
                **variables,
            },
            pass_fds=(listener.fileno(),),
        )
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{port}/healthz", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(START_TRIES_MAX):
        assert server.poll() is None, "the web server ended while it started"
        try:
            httpx.get(url, timeout=2, trust_env=False)
        except httpx.TransportError:
            time.sleep(START_PAUSE_SECONDS)
        else:
            return
    raise AssertionError(f"{url} did not answer")
