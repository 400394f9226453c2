"""What organizations are told: one row per occasion, written in the transaction of what happened.

Who is to be told, and of what, is known where it happens; how the word travels is not decided here.
"""

import datetime as dt
import json
from collections.abc import Mapping

from django.db import connection

from marketplace.core import ids
from marketplace.models import Organization
from marketplace.states import EventKind


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
            "INSERT INTO marketplace_event (id, organization_id, kind, object_id, data, key, at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (key) DO NOTHING",
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
        is_news: bool = cursor.rowcount == 1
        return is_news
