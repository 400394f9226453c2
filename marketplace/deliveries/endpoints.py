"""Endpoints: added, disabled and enabled again, given another secret, taken away; and what is sent again."""

import datetime as dt
from collections.abc import Sequence

from django.db import transaction
from django.db.models import Q, QuerySet

from marketplace import audit, events
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.deliveries import calling, signing
from marketplace.models import Organization, WebhookDelivery, WebhookEndpoint
from marketplace.states import DeliveryState, DisabledBecause, EventKind

ENDPOINTS_MAX = 16  # per organization: each event is sent to each of them
SECRET_BEFORE_SECONDS = 24 * 3600  # a day to bring the new secret to every machine


class TooManyEndpoints(DomainError):
    code = "too_many_webhook_endpoints"
    title = "There are enough webhook endpoints"


@transaction.atomic
def add(
    *,
    organization: Organization,
    url: str,
    kinds: Sequence[EventKind],
    at: dt.datetime,
    actor: str,
) -> tuple[WebhookEndpoint, str]:
    """Add an endpoint for some kinds of events, for all where none is named; return it and its secret.

    The secret is not shown again.

    :raises WebhookAddressRefused: when nobody here calls such an address.
    :raises TooManyEndpoints: when the organization has enough of them.
    """
    calling.check(url)
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    if WebhookEndpoint.objects.visible_to(organization).count() >= ENDPOINTS_MAX:
        raise TooManyEndpoints(f"at most {ENDPOINTS_MAX}")
    secret = signing.new_secret()
    endpoint = WebhookEndpoint.objects.create(
        organization=organization,
        url=url,
        kinds=sorted(kind.value for kind in kinds),
        sealed_secret=signing.seal(secret),
        created_at=at,
    )
    _trail(endpoint, action="webhook_endpoint.added", at=at, actor=actor)
    return endpoint, secret


def get(*, organization: Organization, endpoint_id: str) -> WebhookEndpoint:
    """Return one of an organization's endpoints.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = WebhookEndpoint.objects.visible_to(organization)
    found = known.filter(pk=endpoint_id).first() if "\x00" not in endpoint_id else None
    if found is None:
        raise NotFound(f"no webhook endpoint {endpoint_id}")
    return found


@transaction.atomic
def remove(*, organization: Organization, endpoint_id: str, at: dt.datetime, actor: str) -> None:
    """Take an endpoint away, with everything that is on its way to it.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    endpoint = get(organization=organization, endpoint_id=endpoint_id)
    _trail(endpoint, action="webhook_endpoint.removed", at=at, actor=actor)
    endpoint.delete()


@transaction.atomic
def rotate_secret(
    *, organization: Organization, endpoint_id: str, at: dt.datetime, actor: str
) -> tuple[WebhookEndpoint, str]:
    """Give an endpoint another secret; the one before signs as well for `SECRET_BEFORE_SECONDS`.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    get(organization=organization, endpoint_id=endpoint_id)
    endpoint = WebhookEndpoint.objects.select_for_update().get(pk=endpoint_id)
    secret = signing.new_secret()
    endpoint.sealed_secret_before = endpoint.sealed_secret
    endpoint.secret_before_until = at + dt.timedelta(seconds=SECRET_BEFORE_SECONDS)
    endpoint.sealed_secret = signing.seal(secret)
    endpoint.save(update_fields=["sealed_secret", "sealed_secret_before", "secret_before_until"])
    _trail(endpoint, action="webhook_endpoint.secret_rotated", at=at, actor=actor)
    return endpoint, secret


@transaction.atomic
def enable(
    *, organization: Organization, endpoint_id: str, at: dt.datetime, actor: str
) -> WebhookEndpoint:
    """Call a disabled endpoint again, from the next event on.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    endpoint = get(organization=organization, endpoint_id=endpoint_id)
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        disabled_at=None, disabled_because="", failing_since=None
    )
    _trail(endpoint, action="webhook_endpoint.enabled", at=at, actor=actor)
    return get(organization=organization, endpoint_id=endpoint_id)


@transaction.atomic
def disable(*, endpoint: WebhookEndpoint, because: DisabledBecause, at: dt.datetime) -> bool:
    """Call an endpoint no more, give up what is on its way, and tell its organization, once.

    Say whether it was enabled before.
    """
    known = WebhookEndpoint.objects.filter(pk=endpoint.pk, disabled_at__isnull=True)
    if not known.update(disabled_at=at, disabled_because=because):
        return False
    WebhookDelivery.objects.filter(endpoint=endpoint, due_at__isnull=False).update(due_at=None)
    events.record(
        organization=endpoint.organization,
        kind=EventKind.WEBHOOK_ENDPOINT_DISABLED,
        object_id=endpoint.pk,
        data={"url": endpoint.url, "because": because.value},
        at=at,
        key=f"{endpoint.pk}:disabled:{at:%Y-%m-%dT%H:%M:%S.%f}",
    )
    return True


@transaction.atomic
def stop(*, endpoint: WebhookEndpoint, at: dt.datetime, actor: str) -> None:
    """Disable an endpoint by an operator's hand; its organization may enable it again.

    :raises StateConflict: when it is disabled.
    """
    if not disable(endpoint=endpoint, because=DisabledBecause.OPERATOR, at=at):
        raise StateConflict(f"{endpoint.pk} is disabled")
    _trail(endpoint, action="webhook_endpoint.disabled", at=at, actor=actor)


def sent_to(*, endpoint: WebhookEndpoint, state: DeliveryState | None) -> QuerySet[WebhookDelivery]:
    """Return what was sent to an endpoint or is on its way, in one state if named."""
    found = WebhookDelivery.objects.filter(endpoint=endpoint).select_related("event")
    return found if state is None else found.in_state(state)


def get_delivery(*, organization: Organization, endpoint_id: str, event_id: str) -> WebhookDelivery:
    """Return the delivery of an event to one of an organization's endpoints.

    :raises NotFound: when there is none, or the endpoint is somebody else's.
    """
    endpoint = get(organization=organization, endpoint_id=endpoint_id)
    known = sent_to(endpoint=endpoint, state=None)
    found = known.filter(event=event_id).first() if "\x00" not in event_id else None
    if found is None:
        raise NotFound(f"nothing of {event_id} was sent to {endpoint_id} in the last days")
    return found


@transaction.atomic
def resend(
    *, organization: Organization, endpoint_id: str, event_id: str, at: dt.datetime, actor: str
) -> WebhookDelivery:
    """Send an event to one endpoint once more, now, whatever came of it before; return the delivery.

    :raises NotFound: when there is none, or the endpoint is somebody else's.
    :raises StateConflict: when the endpoint is disabled.
    """
    delivery = get_delivery(organization=organization, endpoint_id=endpoint_id, event_id=event_id)
    # What disables it locks it as well, and gives up afterwards all that is due.
    endpoint = WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint_id)
    if endpoint.disabled_at is not None:
        raise StateConflict(f"{endpoint_id} is disabled: enable it first")
    WebhookDelivery.objects.filter(pk=delivery.pk).update(**_anew(at=at))
    audit.record(
        at=at,
        actor=actor,
        action="webhook_delivery.resent",
        object_id=endpoint_id,
        organization=organization,
        detail={"event_id": event_id},
    )
    delivery.refresh_from_db(fields=["due_at", "attempts", "delivered_at"])
    return delivery


@transaction.atomic
def replay(*, organization: Organization, event_id: str, at: dt.datetime) -> int:
    """Send an event of the last 30 days once more, to each endpoint that wants its kind; return to how many.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    event = events.get(organization=organization, event_id=event_id, at=at)
    wanting = WebhookEndpoint.objects.visible_to(organization).filter(
        Q(kinds=[]) | Q(kinds__contains=[event.kind]), disabled_at__isnull=True
    )
    for endpoint in wanting:
        WebhookDelivery.objects.update_or_create(
            endpoint=endpoint, event=event, defaults=_anew(at=at)
        )
    return len(wanting)


def _anew(*, at: dt.datetime) -> dict[str, object]:
    """Return the columns of a delivery that begins again, with all of its attempts."""
    return {"due_at": at, "attempts": 0, "delivered_at": None}


def _trail(endpoint: WebhookEndpoint, *, action: str, at: dt.datetime, actor: str) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=endpoint.pk,
        organization=endpoint.organization,
        detail={"url": endpoint.url, "kinds": endpoint.kinds},
    )
