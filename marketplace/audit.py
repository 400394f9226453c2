"""The trail of the catalogue: who changed what. Written in the transaction of the change."""

import datetime as dt
from collections.abc import Mapping

from marketplace.models import AuditEvent, Organization

ACTOR_LENGTH_MAX = 100  # the width of every `actor` column


def record(
    *,
    at: dt.datetime,
    actor: str,
    action: str,
    object_id: str,
    organization: Organization | None,
    detail: Mapping[str, object],
) -> AuditEvent:
    """Append one event to the trail.

    `actor` is a key's id, a user's name or a task's name; `action` is a noun and a past participle, such
    as `listing.published`. `detail` must be JSON and must hold no secret.
    """
    return AuditEvent.objects.create(
        at=at,
        actor=actor[:ACTOR_LENGTH_MAX],
        action=action,
        object_id=object_id,
        organization=organization,
        detail=dict(detail),
    )
