"""Events on their way: claimed in batches, sent outside of any transaction, and tried again for days.

A claim moves `due_at` into the future, and is committed before the call: a worker that dies between the call
and its record leaves a delivery that is due again. So each event arrives at least once, in no promised order;
its id is the message's id, by which a receiver knows it again.
"""

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from django.db import connection, transaction

from marketplace.core.windows import format_instant, to_seconds
from marketplace.deliveries import calling, endpoints, signing
from marketplace.deliveries.calling import Answer
from marketplace.models import WebhookCall, WebhookDelivery, WebhookEndpoint
from marketplace.states import DisabledBecause

# After each attempt that fails, until the next one: about three days in all, as the specification suggests.
RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
FAILING_DAYS_MAX = 5  # nobody has mended it: stop, and say so
BATCH = 32  # one thread each: a run of nothing but time-outs lasts as long as one of them
PER_ENDPOINT = 4  # of a batch: one that hangs leaves room for the others
CLAIM_SECONDS = 60  # well above a call's time-out: what is claimed longer was a dead worker's
BODY_BYTES_MAX = 20_000  # as the specification suggests
PAYLOAD_VERSION = 1
GONE = 410
_ONE_AT_A_TIME = (
    0x77686B  # the advisory lock of the run: calls wait on others, and hold one process at most
)
# A last event may be written while its endpoint is being disabled: nobody calls it for that.
_GIVE_UP = """
    UPDATE marketplace_webhookdelivery d SET due_at = NULL FROM marketplace_webhookendpoint e
    WHERE d.due_at <= %s AND e.id = d.endpoint_id AND e.disabled_at IS NOT NULL
"""
_CLAIM = """
    UPDATE marketplace_webhookdelivery SET attempts = attempts + 1, due_at = %(again_at)s
    WHERE id IN (
        SELECT d.id FROM marketplace_webhookdelivery d
        WHERE d.due_at <= %(at)s AND d.id IN (
            SELECT id FROM (
                SELECT id, row_number() OVER (PARTITION BY endpoint_id ORDER BY due_at, id) AS place
                FROM marketplace_webhookdelivery WHERE due_at <= %(at)s
            ) ranked WHERE place <= %(per_endpoint)s
        )
        ORDER BY d.due_at, d.id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    )
    RETURNING id
"""


class _Message(NamedTuple):
    url: str
    headers: dict[str, str]
    body: bytes


def deliver_due(*, at: dt.datetime) -> int:
    """Make the calls that are due, a batch of them; return how many. A second run meanwhile does nothing."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [_ONE_AT_A_TIME])
        (is_ours,) = cursor.fetchone()
    if not is_ours:
        return 0
    try:
        claimed = _claim(at=at)
        messages = [_message(delivery, at=at) for delivery in claimed]
        if not claimed:
            return 0
        with ThreadPoolExecutor(max_workers=len(claimed)) as threads:
            answers = list(threads.map(lambda each: calling.call(**each._asdict()), messages))
        for delivery, answer in zip(claimed, answers, strict=True):
            _record(delivery, answer=answer, at=at)
        return len(claimed)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_ONE_AT_A_TIME])


@transaction.atomic
def _claim(*, at: dt.datetime) -> list[WebhookDelivery]:
    with connection.cursor() as cursor:
        cursor.execute(_GIVE_UP, [at])
        cursor.execute(
            _CLAIM,
            {
                "at": at,
                "again_at": at + dt.timedelta(seconds=CLAIM_SECONDS),
                "per_endpoint": PER_ENDPOINT,
                "batch": BATCH,
            },
        )
        ids = [row[0] for row in cursor.fetchall()]
    known = WebhookDelivery.objects.filter(pk__in=ids).select_related(
        "endpoint__organization", "event"
    )
    return list(known.order_by("pk"))


def _message(delivery: WebhookDelivery, *, at: dt.datetime) -> _Message:
    """Return the call of a delivery: thin, versioned, and signed by each secret that holds now."""
    endpoint, event = delivery.endpoint, delivery.event
    content = {
        "id": event.pk,
        "type": event.kind,
        "timestamp": format_instant(event.at),
        "version": PAYLOAD_VERSION,
        "object_id": event.object_id,
        "data": event.data,
    }
    body = json.dumps(content, separators=(",", ":")).encode()
    if len(body) > BODY_BYTES_MAX:
        # The whole of it is at /v1/events.
        body = json.dumps({**content, "data": None}, separators=(",", ":")).encode()
    keys = [signing.unseal(endpoint.sealed_secret)]
    if endpoint.secret_before_until is not None and at < endpoint.secret_before_until:
        keys.append(signing.unseal(endpoint.sealed_secret_before))
    timestamp = to_seconds(at)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Headroom-Webhooks/1",
        "webhook-id": event.pk,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signing.sign(
            keys=keys, message_id=event.pk, timestamp=timestamp, body=body
        ),
    }
    return _Message(endpoint.url, headers, body)


def _lock_endpoint(delivery: WebhookDelivery) -> None:
    """Lock an endpoint before what is sent to it, as everybody does who disables it or sends again."""
    known = WebhookEndpoint.objects.select_for_update(no_key=True)
    known.filter(pk=delivery.endpoint_id).first()


@transaction.atomic
def _record(delivery: WebhookDelivery, *, answer: Answer, at: dt.datetime) -> None:
    """Write down a call, and what comes of it, unless the delivery was claimed again or ended since."""
    _lock_endpoint(delivery)
    # Its endpoint, or its old age, may have taken the delivery away meanwhile.
    if not WebhookDelivery.objects.select_for_update(no_key=True).filter(pk=delivery.pk).exists():
        return
    error = "" if answer.is_taken else answer.text
    WebhookCall.objects.create(delivery=delivery, at=at, response_status=answer.status, error=error)
    retry = (
        RETRY_SECONDS[delivery.attempts - 1] if delivery.attempts <= len(RETRY_SECONDS) else None
    )
    due_at = None if answer.is_taken or retry is None else at + dt.timedelta(seconds=retry)
    won = WebhookDelivery.objects.filter(
        pk=delivery.pk, attempts=delivery.attempts, due_at__isnull=False
    ).update(
        due_at=due_at,
        delivered_at=at if answer.is_taken else None,
        last_status=answer.status,
        last_answer=error,
    )
    if not won:
        return
    endpoint = delivery.endpoint
    known = WebhookEndpoint.objects.filter(pk=endpoint.pk)
    if answer.is_taken:
        known.filter(failing_since__isnull=False).update(failing_since=None)
        return
    known.filter(failing_since__isnull=True).update(failing_since=at)
    since = known.values_list("failing_since", flat=True).first()
    if answer.status == GONE:
        endpoints.disable(endpoint=endpoint, because=DisabledBecause.GONE, at=at)
    elif since is not None and at - since >= dt.timedelta(days=FAILING_DAYS_MAX):
        endpoints.disable(endpoint=endpoint, because=DisabledBecause.FAILING_FOR_DAYS, at=at)
