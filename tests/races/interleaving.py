"""Rivals that begin at a chosen instant of somebody else's deed, and locks that are taken out for a twin."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, models

from marketplace.core.errors import DomainError

POLLS_MAX = 20_000  # some ten seconds of asking PostgreSQL
RIVAL_SECONDS_MAX = 60


def heard(action: Callable[[], object]) -> Callable[[], str]:
    """Return an action that says `done`, or the code of what refused it."""

    def run() -> str:
        try:
            action()
        except DomainError as refusal:
            return refusal.code
        return "done"

    return run


class Rival:
    """Somebody who acts once, in a thread and a connection of its own."""

    def __init__(self, action: Callable[[], str]) -> None:
        self._action = action
        self._outcome: list[str] = []
        self._fault: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def outcome(self) -> str:
        """Return what the rival heard, once it is through."""
        self._thread.join(RIVAL_SECONDS_MAX)
        assert not self._thread.is_alive()
        if self._fault:
            raise self._fault[0]
        (outcome,) = self._outcome
        return outcome

    def go(self) -> None:
        """Begin, and return when the rival waits for the caller's transaction, or is through."""
        if self._thread.ident is not None:
            return
        self._thread.start()
        for _ in range(POLLS_MAX):
            if not self._thread.is_alive() or self._waits_for_us():
                return
        raise AssertionError("the rival neither waits nor ends")

    def _run(self) -> None:
        try:
            self._outcome.append(self._action())
        except BaseException as fault:  # noqa: BLE001 - told to whoever asks for the outcome
            self._fault.append(fault)
        finally:
            connection.close()

    @staticmethod
    def _waits_for_us() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                # Not pg_stat_activity, which a transaction sees as it was at its first look.
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted"
                " AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
            )
            (waits,) = cursor.fetchone()
        return bool(waits)


def before(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str, action: Callable[[], str]
) -> Rival:
    """Let a rival act when `place.name` is called for the first time, before that does anything."""
    rival, real = Rival(action), getattr(place, name)

    def interrupted(*args: Any, **named: Any) -> Any:
        rival.go()
        return real(*args, **named)

    monkeypatch.setattr(place, name, interrupted)
    return rival


def unlocked(monkeypatch: pytest.MonkeyPatch, *guarded: type[models.Model]) -> None:
    """Let rows of some models be read without the lock that is asked for."""
    real = models.QuerySet.select_for_update

    def select_for_update(self: Any, *args: Any, **named: Any) -> Any:
        return self if self.model in guarded else real(self, *args, **named)

    monkeypatch.setattr(models.QuerySet, "select_for_update", select_for_update)


def unconditional(
    monkeypatch: pytest.MonkeyPatch, rows: type[models.QuerySet[Any]], condition: str
) -> None:
    """Let rows be found, and so written to, without a condition that is asked for."""
    real = rows.filter

    def found(self: Any, *args: Any, **conditions: Any) -> Any:
        conditions.pop(condition, None)
        return real(self, *args, **conditions)

    monkeypatch.setattr(rows, "filter", found)
