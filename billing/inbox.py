"""The provider's hints that something has changed, worked off by reading what it is about.

An event is only a reason to look: the object is read as it is now, under a lock of its own, and handed to
the same function that the poller and the reconciliation use. So events may come twice, in any order, or
not at all; what was missed is fetched from the provider's list, which goes back 30 days.
"""

import datetime as dt
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from django.db import connection, transaction

from billing import provider, watermarks
from billing import stripe_gateway as gateway
from billing.models import InboxEvent
from billing.provider_values import GatewayError, ProviderEvent

log = structlog.get_logger(__name__)

EVENTS_PER_RUN_MAX = 200  # some seconds of reading; the next tick takes the rest
LEASE_SECONDS = 60  # a claim this old is a dead process's
FIRST_PAUSE_SECONDS = 2
LONGEST_PAUSE_SECONDS = 3600
# An object that we have no row of after all these pauses, about two days, is not ours.
ATTEMPTS_MAX = 60
POLL_OVERLAP_SECONDS = 600  # an event may appear in the list after later ones
POLL_BEGINS_SECONDS = 86_400  # how far back the first poll looks
WATERMARK = "events"
ERROR_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Target:
    """What an event is about, in the words of the provider: `payment_intent`, and its id."""

    kind: str
    object_id: str


def store(*, event: ProviderEvent, source: str, at: dt.datetime) -> bool:
    """Store an event; say whether it is news."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO billing_inboxevent"
            " (id, type, object_id, payload, source, received_at, due_at, attempts, outcome, error)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 0, '', '') ON CONFLICT (id) DO NOTHING",
            [event.id, event.type[:120], event.object_id, event.payload, source, at, at],
        )
        is_news: bool = cursor.rowcount == 1
        return is_news


def poll(*, at: dt.datetime) -> int:
    """Fetch the events that no webhook brought; return how many there were."""
    if not provider.is_connected():
        return 0
    try:
        return watermarks.read(
            name=WATERMARK,
            overlap_seconds=POLL_OVERLAP_SECONDS,
            begins_seconds=POLL_BEGINS_SECONDS,
            list_between=gateway.events_between,
            store=lambda event: store(event=event, source="poll", at=at),
            at=at,
        )
    except GatewayError as error:
        log.warning("events could not be listed", error=str(error))
        return 0


def process_due(*, at: dt.datetime) -> int:
    """Work off the events that are due; return how many are done with.

    Several events about one object are one reason to read it. Safe to run side by side: each event is
    claimed, and each object has a lock.
    """
    if not provider.is_connected():
        return 0
    by_target: dict[Target, list[InboxEvent]] = {}
    for event in _claim(at=at):
        by_target.setdefault(target_of(event), []).append(event)
    return sum(_process(target, events, at=at) for target, events in by_target.items())


def target_of(event: InboxEvent) -> Target:
    """Return what is to be read because of an event."""
    body = json.loads(event.payload)
    subject = (body.get("data") or {}).get("object") or {}
    kind = str(subject.get("object") or (body.get("related_object") or {}).get("type") or "")
    if kind in {"cash_balance", "customer_cash_balance_transaction"}:
        return Target("cash_balance", str(subject.get("customer") or ""))
    if kind == "charge":
        return Target("payment_intent", str(subject.get("payment_intent") or ""))
    return Target(kind, event.object_id)


@contextmanager
def object_lock(object_id: str) -> Iterator[bool]:
    """Hold the lock of one of the provider's objects, outside of any transaction; say whether we got it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [object_id])
        (is_ours,) = cursor.fetchone()
    try:
        yield is_ours
    finally:
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [object_id])


def _claim(*, at: dt.datetime) -> list[InboxEvent]:
    with transaction.atomic():
        events = list(
            InboxEvent.objects.select_for_update(skip_locked=True, no_key=True)
            .filter(processed_at__isnull=True, due_at__lte=at)
            .order_by("due_at", "pk")[:EVENTS_PER_RUN_MAX]
        )
        for event in events:
            event.attempts += 1
            event.due_at = at + dt.timedelta(seconds=LEASE_SECONDS)
        InboxEvent.objects.bulk_update(events, ["attempts", "due_at"])
    return events


def _process(target: Target, events: list[InboxEvent], *, at: dt.datetime) -> int:
    if target.kind not in provider.READERS or not target.object_id:
        return _done(events, outcome="ignored", at=at)
    with object_lock(target.object_id) as is_ours:
        if not is_ours:
            _put_off(events, error="another worker reads it", at=at)
            return 0
        try:
            is_known = provider.READERS[target.kind](target.object_id, at)
        except Exception as error:
            log.exception("an event could not be applied", target=target)
            _put_off(events, error=str(error), at=at)
            return 0
    if is_known:
        return _done(events, outcome="applied", at=at)
    # The row of ours may be committed in the next moment: its call has not even returned yet.
    _put_off(events, error="no row of ours", at=at)
    return 0


def _done(events: Iterable[InboxEvent], *, outcome: str, at: dt.datetime) -> int:
    return InboxEvent.objects.filter(pk__in=[event.pk for event in events]).update(
        processed_at=at, outcome=outcome, error=""
    )


def _put_off(events: Iterable[InboxEvent], *, error: str, at: dt.datetime) -> None:
    for event in events:
        if event.attempts >= ATTEMPTS_MAX:
            _done([event], outcome="given_up", at=at)
            continue
        pause = min(FIRST_PAUSE_SECONDS * 2**event.attempts, LONGEST_PAUSE_SECONDS)
        InboxEvent.objects.filter(pk=event.pk).update(
            due_at=at + dt.timedelta(seconds=pause), error=error[:ERROR_LENGTH_MAX]
        )
