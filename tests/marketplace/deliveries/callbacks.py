"""A receiver of callbacks on this machine, and events to send it."""

import datetime as dt
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from marketplace import deliveries, events
from marketplace.models import Event, Organization, WebhookEndpoint
from marketplace.states import EventKind

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def later(**passed: float) -> dt.datetime:
    return NOW + dt.timedelta(**passed)


class Receiver:
    """A receiver of callbacks that answers with what a test lays out, and 200 when that is used up."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.calls.append(({k.lower(): v for k, v in self.headers.items()}, body))
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"x" * 2000)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"


def add(
    tenant: Organization, url: str, *kinds: EventKind, at: dt.datetime = NOW
) -> tuple[WebhookEndpoint, str]:
    return deliveries.add(organization=tenant, url=url, kinds=kinds, at=at, actor="test")


def tell(
    tenant: Organization, *, at: dt.datetime = NOW, kind: EventKind = EventKind.MONEY_PARKED
) -> Event:
    key = f"{kind.value}:{at}:{Event.objects.count()}"
    data = {"why": "test"}
    assert events.record(
        organization=tenant, kind=kind, object_id="rsv_1", data=data, at=at, key=key
    )
    return Event.objects.get(key=key)
