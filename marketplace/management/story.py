"""How the demo speaks: with the market through a patient client, with the reader step by step."""

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from django.core.management.base import CommandError

POLL_SECONDS = 1.0
OUTAGE_SECONDS_MAX = 60  # a part of the market that was killed is back by then
REQUEST_TRIES_MAX = 120


class StepFailed(CommandError):
    """A step of the story did not happen."""


class Client:
    """A REST client that survives restarts of the market: every call that it repeats is idempotent."""

    def __init__(self, *, base_url: str, api_key: str = "") -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=10, trust_env=False)

    def get(self, path: str, **query: object) -> Any:  # noqa: ANN401 - JSON
        return self.call("GET", path, params={k: str(v) for k, v in query.items()}).json()

    def post(self, path: str, body: dict[str, Any], *, key: str | None = None) -> Any:  # noqa: ANN401 - JSON
        return self.call(
            "POST", path, json=body, headers={"Idempotency-Key": key or secrets.token_hex(12)}
        ).json()

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request, again while the market is away.

        :raises StepFailed: when it answers with an error, or is away for longer than `OUTAGE_SECONDS_MAX`.
        """
        away_since = time.monotonic()
        for _ in range(REQUEST_TRIES_MAX):
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if (
                    response.status_code < 500
                    and response.status_code != 429
                    and not _in_flight(response)
                ):
                    return _require_success(method, path, response)
                trouble = f"{response.status_code} {response.text[:200]}"
            if time.monotonic() - away_since > OUTAGE_SECONDS_MAX:
                break
            time.sleep(POLL_SECONDS / 2)
        raise StepFailed(f"{method} {path}: no answer for {OUTAGE_SECONDS_MAX} s ({trouble})")


def _in_flight(response: httpx.Response) -> bool:
    """Say whether an earlier try of the same call, whose answer was lost, still runs."""
    return response.status_code == 409 and response.json().get("code") == "idempotency_in_flight"


def _require_success(method: str, path: str, response: httpx.Response) -> httpx.Response:
    if response.status_code >= 400:
        problem = response.json() if "json" in response.headers.get("content-type", "") else {}
        detail = problem.get("detail") or response.text[:200]
        raise StepFailed(
            f"{method} {path} answered {response.status_code} {problem.get('code', '')}: {detail}"
        )
    return response


class Storyteller:
    """Print each step with what happened and how long it took."""

    def __init__(self) -> None:
        self._number = 0
        self._live = sys.stdout.isatty()
        self.started = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        self._number += 1
        began = time.monotonic()
        lines: list[str] = []
        yield lines.append
        self._clear()
        print(f"{self._number:2}. {title:<58} {time.monotonic() - began:6.1f} s", flush=True)
        for line in lines:
            print(f"      {line}", flush=True)

    def progress(self, text: str) -> None:
        """Show a line that the next one replaces; nothing where no person watches."""
        if self._live:
            print(f"\r\x1b[2K    … {text}", end="", flush=True)

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="")

    def wait(
        self, what: str, probe: Callable[[], Any], *, seconds_max: float, until: str = ""
    ) -> Any:  # noqa: ANN401
        """Poll until `probe` returns something true and return it.

        :raises StepFailed: when it does not within `seconds_max`.
        """
        began = time.monotonic()
        while not (found := probe()):
            waited = time.monotonic() - began
            if waited > seconds_max:
                raise StepFailed(f"waited {waited:.0f} s for {what}, in vain")
            self.progress(f"{what} {until} ({waited:.0f} s)")
            time.sleep(POLL_SECONDS)
        return found
