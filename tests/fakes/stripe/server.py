"""The stand-in on the wire: forms and JSON in, JSON out, idempotency keys, faults, and its own controls."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.stripe import balance, connect, pages, payments, refunds, webhooks
from tests.fakes.stripe.routes import ROUTES
from tests.fakes.stripe.world import DAY_SECONDS, ApiError, Fault, Object, Request, World

SECRET = "whsec_standin"
BODY_BYTES_MAX = 1_000_000


class Hangup(Exception):
    """Close the connection without an answer."""


class StandIn:
    """A world on a port of the loopback. Use it as a context manager, or `serve` it for ever."""

    def __init__(
        self,
        *,
        clock: int | None = None,
        port: int = 0,
        journal: Path | None = None,
        secret: str = SECRET,
    ) -> None:
        """Bind the port; read the journal of an earlier run, if there is one."""
        self.world = World(clock=clock)
        self.secret = secret
        self.lock = threading.RLock()
        self.postman: webhooks.Postman | None = None
        self._journal = journal
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.world.base_url = self.base_url
        if journal is not None and journal.exists():
            self._replay(journal)

    def __enter__(self) -> Self:
        threading.Thread(
            target=lambda: self._server.serve_forever(poll_interval=0.05), daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, *, webhook_url: str | None = None) -> None:
        """Answer until the process ends; deliver webhooks where somebody wants them."""
        if webhook_url:
            self.postman = webhooks.Postman(world=self.world, url=webhook_url, secret=self.secret)
            threading.Thread(target=self.postman.run, daemon=True).start()
        self._server.serve_forever()

    # --- what tests turn --------------------------------------------------------------------

    def advance(self, *, seconds: int = 0, days: int = 0) -> None:
        """Move the clock, and let happen what was due meanwhile."""
        with self.lock:
            self.world.advance(seconds + days * DAY_SECONDS)
            self._tick()

    def fail(self, kind: str, match: str = "", *, times: int = 1, skip: int = 0) -> None:
        self.world.faults.append(Fault(kind, match, times, skip))

    def deliveries(self, **knobs: Any) -> list[webhooks.Delivery]:
        return webhooks.deliveries(self.world, secrets=[self.secret], knobs=webhooks.Knobs(**knobs))

    def _tick(self) -> None:
        payments.expire_holds(self.world)
        refunds.settle_refunds(self.world)
        balance.settle_payouts(self.world)

    # --- one call ---------------------------------------------------------------------------

    def answer(self, request: Request) -> tuple[int, Object, dict[str, str]]:
        """Answer a call of the provider's own interface.

        :raises Hangup: when a fault says that no answer comes.
        """
        with self.lock:
            fault = self._fault_of(request)
            if fault == "timeout_before":
                raise Hangup
            if (refusal := _refusal_of(fault)) is not None:
                if fault == "server_error_stored":
                    self._remember(request, refusal.status, refusal.body)
                return refusal.status, refusal.body, {}
            status, body, headers = self._once(request)
            self.world.journal.append((request.method, request.path, request.key, status))
            if fault == "timeout_after":
                raise Hangup
            return status, body, headers

    def _once(self, request: Request) -> tuple[int, Object, dict[str, str]]:
        stored = self.world.answers.get(request.key or "")
        if stored is not None and self.world.now() - stored["at"] < DAY_SECONDS:
            if stored["fingerprint"] != _fingerprint(request):
                error = ApiError(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters.",
                    kind="idempotency_error",
                )
                return error.status, error.body, {}
            return stored["status"], stored["body"], {"Idempotent-Replayed": "true"}
        self._tick()
        try:
            status, body = 200, self._route(request)
        except ApiError as error:
            status, body = error.status, error.body
            if not error.stored:
                return status, body, {}
        if request.method == "POST":
            self._remember(request, status, body)
            self._write_journal(request)
        return status, body, {}

    def _route(self, request: Request) -> Object:
        for method, pattern, view in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match is not None and method == request.method:
                result = view(self.world, request, *match.groups())
                if result.get("object") in {"list", "search_result"} or "data" in result:
                    return result
                return self.world.shown(result, request.params.get("expand"))
        raise ApiError(404, f"Unrecognized request URL ({request.method}: {request.path}).")

    def _remember(self, request: Request, status: int, body: Object) -> None:
        if request.key:
            self.world.answers[request.key] = {
                "at": self.world.now(),
                "fingerprint": _fingerprint(request),
                "status": status,
                "body": body,
            }

    def _fault_of(self, request: Request) -> str | None:
        call = f"{request.method} {request.path}"
        for fault in self.world.faults:
            if fault.times and call.startswith(fault.match):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault.kind
        return None

    # --- the journal ------------------------------------------------------------------------

    def _write_journal(self, request: Request) -> None:
        if self._journal is None or self.world.replayed_at is not None:
            return
        row = {
            "at": self.world.now(),
            "path": request.path,
            "params": request.params,
            "account": request.account,
            "key": request.key,
        }
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _replay(self, journal: Path) -> None:
        """Do again what was done before this process began: ids and instants come out the same."""
        for line in journal.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self.world.replayed_at = row["at"]
            if row["path"].startswith("/_control/"):
                self.control(row["path"], row["params"])
            else:
                self._once(Request("POST", row["path"], row["params"], row["account"], row["key"]))
        self.world.replayed_at = None

    # --- controls ---------------------------------------------------------------------------

    def control(self, path: str, values: dict[str, Any]) -> Object:
        """Do what no call of the provider's does: move the clock, break, play a card holder or a bank."""
        with self.lock:
            world, verb = self.world, path.removeprefix("/_control/")
            if verb == "faults":
                world.faults.append(Fault(**values))
                return {"faults": len(world.faults)}
            if verb == "webhooks":
                if self.postman is not None:
                    self.postman.set_knobs(values)
                return {"knobs": values}
            acts: dict[str, Callable[[], Object]] = {
                "clock": lambda: self._advanced(int(values["seconds"])),
                "authenticate": lambda: payments.authenticate(
                    world, values["id"], passed=bool(values.get("passed", True))
                ),
                "confirm": lambda: payments.confirm_intent(
                    world, Request("POST", path, values), values["id"]
                ),
                "capability": lambda: connect.set_capability(
                    world, values["id"], status=values.get("status", "active")
                ),
                "dispute": lambda: balance.open_dispute(world, values["id"]),
                "close-dispute": lambda: balance.close_dispute(
                    world, values["id"], won=bool(values.get("won"))
                ),
                "inquiry": lambda: balance.open_inquiry(world, values["id"]),
                "close-inquiry": lambda: balance.close_inquiry(world, values["id"]),
                "prevent-dispute": lambda: balance.prevent_dispute(
                    world, values["id"], refunded=bool(values.get("refunded"))
                ),
                "escalate-inquiry": lambda: balance.escalate_inquiry(world, values["id"]),
                "fail-refund": lambda: refunds.fail_refund(world, values["id"]),
                "fail-payout": lambda: balance.fail_payout(world, values["id"]),
            }
            if verb not in acts:
                raise ApiError(404, f"There is no control {verb}.")
            try:
                return world.shown(acts[verb]())
            finally:
                self._write_journal(Request("POST", path, values))

    def _advanced(self, seconds: int) -> Object:
        self.world.advance(seconds)
        self._tick()
        return {"object": "clock", "now": self.world.now()}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer leaves in one piece: a head of its own waits 40 ms for its receipt.
            wbufsize = -1

            def do_GET(self) -> None:
                self._handle("GET")

            def do_POST(self) -> None:
                self._handle("POST")

            def do_DELETE(self) -> None:
                self._handle("DELETE")

            def log_message(self, *_: Any) -> None:
                """Say nothing: the journal tells."""

            def _handle(self, method: str) -> None:
                url = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(min(length, BODY_BYTES_MAX))
                try:
                    if url.path.startswith("/_pages/") or url.path.startswith("/v3"):
                        text, kind = pages.render(stand_in, url.path, dict(parse_qsl(url.query)))
                        self._send(200, text.encode(), content_type=kind)
                        return
                    if url.path.startswith("/_control/"):
                        values = json.loads(body or b"{}")
                        self._send_json(200, stand_in.control(url.path, values), {})
                        return
                    self._send_json(
                        *stand_in.answer(self._request(method, url.path, url.query, body))
                    )
                except ApiError as error:
                    self._send_json(error.status, error.body, {})
                except Hangup:
                    self.close_connection = True
                    self.connection.close()

            def _request(self, method: str, path: str, query: str, body: bytes) -> Request:
                if not self.headers.get("Authorization", "").startswith("Bearer "):
                    raise ApiError(401, "You did not provide an API key.")
                params = nested(parse_qsl(query, keep_blank_values=True))
                if body and "json" in self.headers.get("Content-Type", ""):
                    params |= json.loads(body)
                elif body:
                    params |= nested(parse_qsl(body.decode(), keep_blank_values=True))
                return Request(
                    method=method,
                    path=path,
                    params=params,
                    account=self.headers.get("Stripe-Account"),
                    key=self.headers.get("Idempotency-Key"),
                )

            def _send_json(self, status: int, body: Object, headers: dict[str, str]) -> None:
                self._send(status, json.dumps(body).encode(), headers=headers)

            def _send(
                self,
                status: int,
                body: bytes,
                *,
                content_type: str = "application/json",
                headers: dict[str, str] | None = None,
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Request-Id", "req_standin")
                self.send_header("Access-Control-Allow-Origin", "*")
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler


def nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Read the brackets of a form: `a[b]=1` and `a[0][b]=1` make dictionaries and lists."""
    tree: dict[str, Any] = {}
    for name, value in pairs:
        head, *rest = [part.rstrip("]") for part in name.split("[")]
        node, last = tree, head
        for part in rest:
            node = node.setdefault(last, {})
            last = part or str(len(node))
        node[last] = value
    listed = _lists_of(tree)
    assert isinstance(listed, dict)
    return listed


def _lists_of(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {name: _lists_of(value) for name, value in node.items()}
    if children and all(name.isdigit() for name in children):
        return [children[name] for name in sorted(children, key=int)]
    return children


def _fingerprint(request: Request) -> str:
    text = json.dumps([request.method, request.path, request.params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _refusal_of(fault: str | None) -> ApiError | None:
    match fault:
        case "rate_limit":
            return ApiError(429, "Too many requests.", code="rate_limit")
        case "conflict":
            return ApiError(
                409,
                "Another request holds the lock.",
                code="lock_timeout",
            )
        case "server_error" | "server_error_stored":
            return ApiError(500, "An unknown error occurred.", kind="api_error")
    return None
