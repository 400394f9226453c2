"""Signed webhooks, in order or not: late, twice, shuffled, lost or forged."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.fakes.stripe.world import Object, World

SEND_LIMIT_SECONDS = 10
RETRIES_MAX = 6


@dataclass(frozen=True)
class Delivery:
    """What stands on the wire: a body and the header that signs it."""

    event_id: str
    body: bytes
    signature: str


@dataclass
class Knobs:
    """What goes wrong on the way. `delay` is a number of later deliveries, not of seconds: every second one
    arrives behind so many that were sent after it.
    """

    delay: int = 0
    duplicate: int = 1
    shuffle_seed: int | None = None
    drop: float = 0.0
    wrong_signature: bool = False


def sign(body: bytes, *, secret: str, at: int) -> str:
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def delivery_of(event: Object, *, secrets: list[str], at: int, forged: bool = False) -> Delivery:
    body = json.dumps(event, separators=(",", ":")).encode()
    used = ["whsec_of_somebody_else"] if forged else secrets
    parts = [sign(body, secret=secret, at=at).split(",", 1)[1] for secret in used]
    return Delivery(event["id"], body, ",".join([f"t={at}", *parts]))


def deliveries(
    world: World,
    *,
    secrets: list[str],
    events: list[Object] | None = None,
    knobs: Knobs | None = None,
) -> list[Delivery]:
    """Return the events as they arrive under the knobs."""
    knobs = knobs or Knobs()
    rows = list(world.events if events is None else events) * knobs.duplicate
    chance = random.Random(knobs.shuffle_seed)
    if knobs.shuffle_seed is not None:
        chance.shuffle(rows)
    kept = [row for row in rows if chance.random() >= knobs.drop]
    if knobs.delay:
        # Every second one is on time, so many of them take up twice the places; just behind the last.
        behind = 2 * knobs.delay - 0.5
        places = [place if place % 2 else place + behind for place in range(len(kept))]
        kept = [row for _, row in sorted(zip(places, kept, strict=True), key=lambda pair: pair[0])]
    return [
        delivery_of(row, secrets=secrets, at=world.now(), forged=knobs.wrong_signature)
        for row in kept
    ]


def send(delivery: Delivery, *, url: str) -> bool:
    """Post one delivery; say whether the endpoint took it."""
    request = urllib.request.Request(
        url,
        data=delivery.body,
        headers={"Content-Type": "application/json", "Stripe-Signature": delivery.signature},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SEND_LIMIT_SECONDS) as answer:
            return bool(200 <= answer.status < 300)
    except (urllib.error.URLError, OSError):
        return False


class Postman:
    """Delivers every event of a running stand-in to one endpoint, with retries."""

    def __init__(self, *, world: World, url: str, secret: str) -> None:
        self.world = world
        self.url = url
        self.secret = secret
        self.knobs = Knobs()
        self._place = len(world.events)
        self._waiting: list[tuple[float, int, Object]] = []

    def run(self) -> None:
        """Deliver for ever; called on a thread of its own."""
        while True:
            self.turn()
            time.sleep(0.2)

    def turn(self) -> None:
        """Send what is new and what is due again."""
        fresh = self.world.events[self._place :]
        self._place += len(fresh)
        due = [(tries, event) for at, tries, event in self._waiting if at <= time.monotonic()]
        self._waiting = [row for row in self._waiting if row[0] > time.monotonic()]
        for tries, event in [*due, *((0, event) for event in fresh)]:
            for delivery in deliveries(
                self.world, secrets=[self.secret], events=[event], knobs=self.knobs
            ):
                if not send(delivery, url=self.url) and tries < RETRIES_MAX:
                    self._waiting.append((time.monotonic() + 2**tries, tries + 1, event))

    def set_knobs(self, values: dict[str, Any]) -> None:
        self.knobs = Knobs(**values)
