"""What organizations are told: one row per occasion, written in the transaction of what happened.

Who is to be told, and of what, is known where it happens; how the word travels is for `deliveries`, which
finds a row for each endpoint that wants the event, written together with it.
"""

import datetime as dt
import json
from collections.abc import Mapping

from django.db import connection
from django.db.models import QuerySet

from marketplace.core import ids
from marketplace.core.errors import NotFound
from marketplace.models import Event, Organization
from marketplace.states import EventKind

# Long enough for a month's end, short enough to be read. The rows stay: they are why nobody is told twice.
SHOWN_DAYS = 30
_RECORD = """
    WITH told AS (
        INSERT INTO marketplace_event (id, organization_id, kind, object_id, data, key, at)
        VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (key) DO NOTHING
        RETURNING id, organization_id, kind, at
    ), due AS (
        INSERT INTO marketplace_webhookdelivery (endpoint_id, event_id, due_at, attempts, last_answer)
        SELECT e.id, told.id, told.at, 0, '' FROM told JOIN marketplace_webhookendpoint e
            ON e.organization_id = told.organization_id AND e.disabled_at IS NULL
            AND (e.kinds = '{}' OR told.kind = ANY(e.kinds))
    )
    SELECT count(*) > 0 FROM told
"""


def shown(
    *, organization: Organization, kind: str | None, object_id: str | None, at: dt.datetime
) -> QuerySet[Event]:
    """Return what an organization was told in the last `SHOWN_DAYS`, of one kind or one object if named."""
    found = Event.objects.visible_to(organization).filter(at__gt=at - dt.timedelta(days=SHOWN_DAYS))
    if kind is not None:
        found = found.filter(kind=kind)
    if object_id is not None:
        found = found.filter(object_id=object_id)
    return found


def get(*, organization: Organization, event_id: str, at: dt.datetime) -> Event:
    """Return one event of the last `SHOWN_DAYS`.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = shown(organization=organization, kind=None, object_id=None, at=at)
    event = known.filter(pk=event_id).first() if "\x00" not in event_id else None
    if event is None:
        raise NotFound(f"no event {event_id}")
    return event


def record(
    *,
    organization: Organization,
    kind: EventKind,
    object_id: str,
    data: Mapping[str, object],
    at: dt.datetime,
    key: str,
) -> bool:
    """Tell an organization of an occasion; say whether it is news.

    `key` names the occasion, for example `rsv_…:scheduled`: however often a tick runs, there is one row of
    it, ever. `data` must be JSON and must hold no secret.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORD,
            [
                ids.new_event_id(),
                organization.pk,
                kind.value,
                object_id,
                json.dumps(dict(data)),
                key,
                at,
            ],
        )
        (is_news,) = cursor.fetchone()
        return bool(is_news)
