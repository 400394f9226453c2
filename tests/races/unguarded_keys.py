"""The web application in which a key stands for no effect, or for no answer: for the twins alone."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from marketplace.wsgi import application as guarded

# isort: split
# Models can be loaded once the application is.
from billing import provider
from marketplace.api import idempotency
from marketplace.models import IdempotencyRecord

WAIT_SECONDS_MAX = 60

_drive = provider.drive_payment
_somebody_asked = threading.Event()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve every call as if it had no key."""
    idempotency.key_of = lambda _request, **_: None
    return guarded(environ, start_response)


def unsealed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Take any answer for the last one, while the provider is slow enough for somebody to ask."""
    idempotency._is_sealed = _sealed_at_once
    provider.drive_payment = _drive_later
    return guarded(environ, start_response)


def _sealed_at_once(record: IdempotencyRecord) -> bool:
    assert record.response_status is not None
    _somebody_asked.set()
    return True


def _drive_later(**arguments: Any) -> None:
    assert _somebody_asked.wait(timeout=WAIT_SECONDS_MAX)
    _drive(**arguments)
