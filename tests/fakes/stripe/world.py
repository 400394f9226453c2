"""What the stand-in knows: objects by id, their events, its clock, and the faults that were asked for."""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

API_VERSION = "2026-10-28.endive"
PAGE_DEFAULT = 10
PAGE_MAX = 100
DAY_SECONDS = 86_400

Object = dict[str, Any]


class ApiError(Exception):
    """An answer that is no success. `stored` says whether an idempotency key keeps it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        stored: bool = False,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.stored = stored
        body = {"type": kind, "code": code, "message": message, "param": param, **extra}
        self.body = {"error": {name: value for name, value in body.items() if value is not None}}


@dataclass
class Fault:
    """Break the next calls whose `METHOD /path` begins with `match`, after letting `skip` of them pass.

    `timeout_before` and `timeout_after` close the connection without an answer, before or after the effect;
    `rate_limit`, `conflict` and `server_error` answer 429, 409 and 500; `server_error_stored` answers 500 and
    keeps that answer under the call's idempotency key.
    """

    kind: str
    match: str = ""
    times: int = 1
    skip: int = 0


@dataclass
class Request:
    """One call: the parameters as nested values, and whom it is made for."""

    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    account: str | None = None
    key: str | None = None


class World:
    """All state. Every change is made under the server's lock."""

    def __init__(self, *, clock: int | None = None, seed: str = "standin") -> None:
        """Start empty. A given clock stands still until it is advanced; without one it is the real one."""
        self.frozen = clock
        self.offset = 0
        self.seed = seed
        self.objects: dict[str, Object] = {}
        self.events: list[Object] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.journal: list[tuple[str, str, str | None, int]] = []
        self.replayed_at: int | None = None
        self.base_url = ""
        self._count = 0

    # --- clock and names --------------------------------------------------------------------

    def now(self) -> int:
        if self.replayed_at is not None:
            return self.replayed_at
        return (self.frozen if self.frozen is not None else int(time.time())) + self.offset

    def advance(self, seconds: int) -> None:
        self.offset += seconds

    def new_id(self, prefix: str) -> str:
        self._count += 1
        tail = hashlib.sha256(f"{self.seed}:{self._count}".encode()).hexdigest()[:10]
        return f"{prefix}_{self._count:08d}{tail}"

    # --- objects ----------------------------------------------------------------------------

    def put(self, prefix: str, kind: str, **values: Any) -> Object:
        made: Object = {
            "id": self.new_id(prefix),
            "object": kind,
            "created": self.now(),
            "livemode": False,
            **values,
        }
        self.objects[made["id"]] = made
        return made

    def get(self, object_id: str, kind: str) -> Object:
        found = self.objects.get(object_id)
        if found is None or found["object"] != kind:
            raise ApiError(
                404, f"No such {kind}: '{object_id}'", code="resource_missing", param="id"
            )
        return found

    def all(self, kind: str) -> list[Object]:
        """Return the objects of a kind, newest first."""
        return [row for row in reversed(self.objects.values()) if row["object"] == kind]

    # --- events -----------------------------------------------------------------------------

    def emit(self, event_type: str, subject: Object, *, account: str | None = None) -> Object:
        event: Object = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "type": event_type,
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "data": {"object": self.shown(subject)},
        }
        if account is not None:
            event["account"] = account
        self.events.append(event)
        return event

    # --- views ------------------------------------------------------------------------------

    def shown(self, subject: Object, expand: list[str] | None = None) -> Object:
        """Return a copy without private fields, with the named ids replaced by their objects."""
        public = {
            name: copy.deepcopy(value)
            for name, value in subject.items()
            if not name.startswith("_")
        }
        for path in expand or []:
            self._expand(public, path.split("."))
        return public

    def _expand(self, node: Any, parts: list[str]) -> None:
        if not parts or not isinstance(node, dict):
            return
        name, rest = parts[0], parts[1:]
        value = node.get(name)
        if isinstance(value, list):
            for item in value:
                self._expand(item, rest)
            return
        if isinstance(value, str) and value in self.objects:
            node[name] = self.shown(self.objects[value])
        self._expand(node.get(name), rest)

    def page(self, rows: list[Object], params: dict[str, Any], *, url: str) -> Object:
        """Return one page of a list, newest first, under the filters that every list takes."""
        rows = [row for row in rows if _created_fits(row, params.get("created"))]
        limit = int(params.get("limit", PAGE_DEFAULT))
        if not 1 <= limit <= PAGE_MAX:
            raise ApiError(400, f"limit must be from 1 to {PAGE_MAX}", param="limit")
        ids = [row["id"] for row in rows]
        if (after := params.get("starting_after")) is not None:
            rows = rows[_place(ids, after) + 1 :]
        if (before := params.get("ending_before")) is not None:
            rows = rows[: _place(ids, before)]
            picked = rows[-limit:]
        else:
            picked = rows[:limit]
        inner = [p.removeprefix("data.") for p in params.get("expand", [])]
        return {
            "object": "list",
            "url": url,
            "has_more": len(rows) > len(picked),
            "data": [self.shown(row, inner) for row in picked],
        }


def _place(ids: list[str], object_id: str) -> int:
    if object_id not in ids:
        raise ApiError(400, f"No such object: '{object_id}'", code="resource_missing")
    return ids.index(object_id)


def _created_fits(row: Object, bounds: Any) -> bool:
    if bounds is None:
        return True
    if not isinstance(bounds, dict):
        return bool(row["created"] == int(bounds))
    tests = {
        "gt": lambda v: row["created"] > v,
        "gte": lambda v: row["created"] >= v,
        "lt": lambda v: row["created"] < v,
        "lte": lambda v: row["created"] <= v,
    }
    return all(tests[name](int(value)) for name, value in bounds.items())


def required(params: dict[str, Any], name: str) -> Any:
    value = params.get(name)
    if value in (None, ""):
        raise ApiError(
            400, f"Missing required param: {name}.", code="parameter_missing", param=name
        )
    return value


def positive(params: dict[str, Any], name: str, default: int | None = None) -> int:
    """Read an amount in minor units."""
    value = params.get(name, default)
    try:
        number = int(str(value))
    except ValueError:
        raise ApiError(
            400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=name
        ) from None
    if number < 1:
        raise ApiError(
            400,
            "This value must be greater than or equal to 1.",
            code="parameter_invalid_integer",
            param=name,
        )
    return number


def metadata_of(params: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in (params.get("metadata") or {}).items()}


def truth(value: Any) -> bool:
    return str(value).lower() == "true"
