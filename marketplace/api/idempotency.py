"""One effect per Idempotency-Key, however often and however parallel the call is made.

1. The key is claimed by an insert, committed before anything is done: a rival sees it and answers 409.
2. The effect and the answer's text are committed in one transaction. A process that dies between claim and
   commit has changed nothing; after `CLAIM_SECONDS` its claim may be taken over.
3. A process that is merely slow cannot act twice with its successor: both close the record under the same
   row lock by compare-and-set on the claim, and the one that comes second is rolled back.
4. Where others are called after the commit, the answer is the one after that: until then the claim stands,
   and a rival hears 409. Who takes over the claim of a process that died there seals the first answer, so
   that nobody who hears one ever hears another.

A refusal of the verb (4xx) is an answer as well and is kept, so that the same call never first fails and
then succeeds behind its caller's back. Kept is nothing that happened before the verb ran (a missing scope,
a body that does not fit, a limit of calls), and no fault of ours (5xx): there the key is free again.
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from rest_framework.renderers import JSONRenderer

from marketplace import contention
from marketplace.api import errors
from marketplace.core.errors import DomainError
from marketplace.models import IdempotencyRecord, Organization

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
KEY_LENGTH_MAX = 255
_KEY_FORM = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?", flags=re.ASCII)
# Above the web server's own time limit for a request: a claim this old is a dead process's.
CLAIM_SECONDS = 60
KEPT_DAYS = 7
PRUNE_BATCH = 5_000  # rows per delete: a second of work, so that no lock is held for long

Answer = tuple[int, Any]


class IdempotencyKeyRequired(DomainError):
    code = "idempotency_key_required"
    title = "An Idempotency-Key is required"


class IdempotencyKeyMalformed(DomainError):
    code = "idempotency_key_malformed"
    title = "The Idempotency-Key cannot be used"


class IdempotencyKeyReused(DomainError):
    """The key was used for another call: to answer the first one again would mislead."""

    code = "idempotency_key_reused"
    title = "The Idempotency-Key belongs to another request"


class IdempotencyInFlight(DomainError):
    """The first call with this key is still running; ask again in a moment."""

    code = "idempotency_in_flight"
    title = "The first call with this Idempotency-Key is still running"


class _ClaimLost(Exception):
    """Another process took the claim over while this one worked; roll back and let it answer."""


def key_of(request: HttpRequest, *, required: bool) -> str | None:
    """Return the call's key, or None when it has none and needs none.

    :raises IdempotencyKeyRequired: when it needs one.
    :raises IdempotencyKeyMalformed: when it is not 1 to 255 printable ASCII characters.
    """
    key = request.headers.get(HEADER)
    if key is None:
        if required:
            raise IdempotencyKeyRequired(
                f"this call moves capacity or money: send the header {HEADER} with a value of your own making"
            )
        return None
    if not _KEY_FORM.fullmatch(key):
        raise IdempotencyKeyMalformed(
            f"{HEADER} must be 1 to {KEY_LENGTH_MAX} printable ASCII characters, without spaces at the ends"
        )
    return key


def fingerprint(*, method: str, path: str, body: object) -> str:
    """Return the SHA-256 of a call: method, path, and the body by value, not by its spaces or order."""
    text = json.dumps([method, path, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def once(
    *,
    request: HttpRequest,
    organization: Organization,
    key: str | None,
    request_sha256: str,
    action: Callable[[], Answer],
    then: Callable[[], Answer] | None = None,
) -> HttpResponse:
    """Run `action` once per key and return its answer, or the first answer again.

    `action` returns a status and plain values to render; what it writes is committed together with the
    record of the answer. Without a key it simply runs. Where PostgreSQL breaks that transaction off for a
    rival's sake, all of it is done again (`marketplace.contention`): so `action` reads what it changes, and
    calls nobody outside. `then` runs when all of that is committed, outside of
    any transaction, and may call others; its answer takes the first one's place, and until it is there no
    repetition is answered. A process that dies in between, or takes longer than its claim, has answered with
    the first one.

    :raises IdempotencyKeyReused: when the key was used for another call.
    :raises IdempotencyInFlight: when the first call is still running.
    """
    if key is None:
        status, body = contention.repeated(partial(_whole, action), name=request.path)
        if then is not None:
            status, body = then()
        return _rendered(status=status, text=_text(body))
    at = timezone.now()
    claimed_until = at + dt.timedelta(seconds=CLAIM_SECONDS)
    record = _claim(
        organization=organization,
        key=key,
        request_sha256=request_sha256,
        at=at,
        until=claimed_until,
    )
    if record.response_status is not None:
        response = _rendered(status=record.response_status, text=str(record.response_body))
        response[REPLAYED_HEADER] = "true"
        return response
    try:
        response = contention.repeated(
            partial(
                _run,
                record=record,
                claimed_until=claimed_until,
                sealed_until=record.created_at if then is None else claimed_until,
                request=request,
                action=action,
            ),
            name=request.path,
        )
    except _ClaimLost:
        raise _in_flight() from None
    except Exception:
        _release(record=record, claimed_until=claimed_until)
        raise
    if then is None or response.status_code >= HTTPStatus.BAD_REQUEST:
        return response
    try:
        status, body = then()
    except Exception:
        _seal(record=record, claimed_until=claimed_until)
        raise
    text = _text(body)
    if not _seal(
        record=record, claimed_until=claimed_until, response_status=status, response_body=text
    ):
        return response  # a successor has said it to somebody
    return _rendered(status=status, text=text)


def _whole(action: Callable[[], Answer]) -> Answer:
    with transaction.atomic():
        return action()


def is_answered(*, organization: Organization, key: str) -> bool:
    """Say whether a call with this key has an answer, so that its repetition asks for nothing anew."""
    return IdempotencyRecord.objects.filter(
        organization=organization, key=key, response_status__isnull=False
    ).exists()


def _run(
    *,
    record: IdempotencyRecord,
    claimed_until: dt.datetime,
    sealed_until: dt.datetime,
    request: HttpRequest,
    action: Callable[[], Answer],
) -> HttpResponse:
    """Act and keep the answer; with `sealed_until` before the end of the claim it is final."""
    try:
        with transaction.atomic():
            status, body = action()
            text = _text(body)
            _close(
                record=record,
                claimed_until=claimed_until,
                sealed_until=sealed_until,
                status=status,
                text=text,
            )
    except DomainError as refusal:
        status = errors.status_of(refusal.code)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        text = _text(errors.body_of(refusal, request=request))
        _close(
            record=record,
            claimed_until=claimed_until,
            sealed_until=record.created_at,
            status=status,
            text=text,
        )
        response = _rendered(status=status, text=text)
        for name, value in errors.headers_of(refusal).items():
            response[name] = value
        return response
    return _rendered(status=status, text=text)


def _claim(
    *,
    organization: Organization,
    key: str,
    request_sha256: str,
    at: dt.datetime,
    until: dt.datetime,
) -> IdempotencyRecord:
    """Return the record: ours to work on, or with the first answer in it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO marketplace_idempotencyrecord"
            " (organization_id, key, request_sha256, created_at, locked_until)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (organization_id, key) DO NOTHING RETURNING id",
            [organization.pk, key, request_sha256, at, until],
        )
        claimed = cursor.fetchone()
    if claimed is not None:
        return IdempotencyRecord(
            pk=claimed[0],
            organization=organization,
            key=key,
            request_sha256=request_sha256,
            created_at=at,
            locked_until=until,
        )
    records = IdempotencyRecord.objects.filter(organization=organization, key=key)
    record = records.first()
    if record is None:  # its first call failed in this very moment and gave the key back
        raise _in_flight()
    if record.request_sha256 != request_sha256:
        raise IdempotencyKeyReused("use a new key for a new request")
    if record.response_status is not None:
        return _answered(record, at=at)
    taken_over = records.filter(
        pk=record.pk,
        response_status__isnull=True,
        locked_until=record.locked_until,
        locked_until__lte=at,
    ).update(locked_until=until)
    if not taken_over:
        raise _in_flight()
    return record


def _answered(record: IdempotencyRecord, *, at: dt.datetime) -> IdempotencyRecord:
    """Return a record with the answer that every repetition hears, or refuse while there may be another."""
    if _is_sealed(record):
        return record
    if record.locked_until > at:
        raise _in_flight()
    _seal(record=record, claimed_until=record.locked_until)
    record.refresh_from_db()  # with the answer of whoever sealed it
    return record


def _is_sealed(record: IdempotencyRecord) -> bool:
    return record.locked_until <= record.created_at


def _seal(*, record: IdempotencyRecord, claimed_until: dt.datetime, **answer: Any) -> bool:  # noqa: ANN401 - columns of the answer
    """Make an answer final, or put another in its place and make that final; say whether it was open."""
    still_open = IdempotencyRecord.objects.filter(pk=record.pk, locked_until=claimed_until)
    return bool(still_open.update(locked_until=record.created_at, **answer))


def _in_flight() -> IdempotencyInFlight:
    return IdempotencyInFlight("ask again with the same key", extra={"retry_after_seconds": 1})


def _close(
    *,
    record: IdempotencyRecord,
    claimed_until: dt.datetime,
    sealed_until: dt.datetime,
    status: int,
    text: str,
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE marketplace_idempotencyrecord"
            " SET response_status = %s, response_body = %s, locked_until = %s"
            " WHERE id = %s AND response_status IS NULL AND locked_until = %s",
            [int(status), text, sealed_until, record.pk, claimed_until],
        )
        closed = cursor.rowcount
    if not closed:
        raise _ClaimLost


def _release(*, record: IdempotencyRecord, claimed_until: dt.datetime) -> None:
    """Give the key back after a fault of ours: nothing was done under it."""
    IdempotencyRecord.objects.filter(
        pk=record.pk, response_status__isnull=True, locked_until=claimed_until
    ).delete()


def _text(body: object) -> str:
    return str(JSONRenderer().render(body), "utf-8")


def _rendered(*, status: int, text: str) -> HttpResponse:
    content_type = (
        errors.PROBLEM_CONTENT_TYPE if status >= HTTPStatus.BAD_REQUEST else "application/json"
    )
    return HttpResponse(text, status=status, content_type=content_type)


def prune(*, at: dt.datetime) -> int:
    """Forget the answers that are older than `KEPT_DAYS`, a batch; return how many."""
    old = IdempotencyRecord.objects.filter(created_at__lt=at - dt.timedelta(days=KEPT_DAYS))
    batch = old.order_by("created_at").values("pk")[:PRUNE_BATCH]
    deleted, _ = IdempotencyRecord.objects.filter(pk__in=batch).delete()
    return deleted
