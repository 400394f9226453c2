"""The stand-in for the payment provider that a demo pays at, as a program; it moves no money.

It lives with the tests, so it is there in a checkout and nowhere else: without it, or with a key of a real
provider, or in production, nothing is started and nothing is simulated.
"""

import contextlib
import http.client
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from marketplace.management.bootstrap import PROJECT
from marketplace.management.supervisor import Program

HOST = "127.0.0.1"
SOURCES = PROJECT / "tests" / "fakes" / "stripe"
READINESS_CALL_LIMIT_SECONDS = 2.0
# Words and no secrets: whoever reaches the stand-in can do with it what he likes.
SECRET_KEY = "sk_test_standin"  # noqa: S105 - it opens nothing
PUBLISHABLE_KEY = "pk_test_standin"
WEBHOOK_SECRET = "whsec_standin"  # noqa: S105 - it opens nothing


def is_wanted(*, environ: Mapping[str, str], profile: str) -> bool:
    """Say whether a market shall pay at the stand-in: outside production, where no key is given."""
    named = environ.get("STRIPE_SECRET_KEY") or environ.get("STRIPE_API_BASE")
    return profile != "production" and not named and SOURCES.is_dir()


def free_port() -> int:
    """Return a port on which nobody listens at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        number: int = probe.getsockname()[1]
        return number


def environment(*, url: str) -> dict[str, str]:
    """Return what the settings read to pay at a stand-in."""
    return {
        "STRIPE_SECRET_KEY": SECRET_KEY,
        "STRIPE_PUBLISHABLE_KEY": PUBLISHABLE_KEY,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "STRIPE_API_BASE": url,
        "STRIPE_JS_URL": f"{url}/v3/",
    }


def program(*, port: int, data: Path, base_url: str, environ: Mapping[str, str]) -> Program:
    """Return the stand-in as a program. What is done at it is kept in the data directory."""
    home = data / "provider"
    home.mkdir(mode=0o700, exist_ok=True)
    return Program(
        name="provider",
        command=[
            *(sys.executable, "-m", "tests.fakes.stripe", "--port", str(port)),
            *("--journal", str(home / "journal.jsonl")),
            *("--webhook-url", f"{base_url}/webhooks/stripe", "--webhook-secret", WEBHOOK_SECRET),
        ],
        environment={name: environ[name] for name in ("PATH", "LANG") if name in environ},
        working_directory=PROJECT,
        is_ready=lambda: answers(port=port),
        # After the web server and the worker, who may be in the middle of a call.
        stop_rank=4,
    )


def answers(*, port: int) -> bool:
    """Say whether the stand-in gives any answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=READINESS_CALL_LIMIT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v1/balance", headers={"Authorization": "Bearer ready"})
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
    return True
