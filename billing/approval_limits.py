"""What one person of a tenant may order alone: lowered by one, raised or taken away by two.

Who wants it lower sets it, and it holds at once. Who wants it higher, or gone, asks; another key of the
tenant that writes bills lets it happen, or refuses. A tenant with no other such key is told that an operator
of the market decides. PostgreSQL refuses a limit that is raised without such a decision.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction

from billing.approvals import FourEyesNeeded
from billing.models import ApprovalLimit, LimitRequest, LimitRequestTransition
from billing.states import APPROVAL_ARROWS, ApprovalStatus, Decider
from marketplace import audit, events
from marketplace.core.errors import NotFound, StateConflict
from marketplace.core.money import Money
from marketplace.models import ApiKey, Organization
from marketplace.states import EventKind, Scope

_TOLD = {
    ApprovalStatus.REQUESTED: EventKind.LIMIT_REQUEST_OPENED,
    ApprovalStatus.APPROVED: EventKind.LIMIT_REQUEST_APPROVED,
    ApprovalStatus.REFUSED: EventKind.LIMIT_REQUEST_REFUSED,
}


def limit_of(*, organization: Organization) -> Money | None:
    """Return what one person alone may order, None where that is anything."""
    row = ApprovalLimit.objects.filter(organization=organization).first()
    return row.amount if row else None


def waiting(*, organization: Organization) -> LimitRequest | None:
    """Return what is asked for and not decided yet; there is one such request at most."""
    known = LimitRequest.objects.visible_to(organization)
    return known.filter(status=ApprovalStatus.REQUESTED).first()


@transaction.atomic
def set_limit(
    *, organization: Organization, amount_minor: int | None, at: dt.datetime, actor: str
) -> LimitRequest | None:
    """Set what one person alone may order, in minor units; None takes the limit away.

    Return the request that somebody else has to decide, None where the limit is in force now. Lowering it
    refuses what is being asked for: that was asked for of another limit.

    :raises StateConflict: when another limit is being asked for.
    """
    _lock(organization)
    before = limit_of(organization=organization)
    if amount_minor == (before.amount_minor if before else None):
        return None
    asked = waiting(organization=organization)
    if before is not None and (amount_minor is None or amount_minor > before.amount_minor):
        if asked is None:
            return _ask(organization, before, amount_minor, at=at, actor=actor)
        if asked.amount_minor == amount_minor:
            return asked
        raise StateConflict(f"{asked.pk} asks for another limit: let it be decided first")
    if asked is not None:
        _decide(asked, to=ApprovalStatus.REFUSED, at=at, actor=actor)
    _put(organization, amount_minor, at=at, actor=actor)
    return None


def get(*, organization: Organization, request_id: str) -> LimitRequest:
    """Return a tenant's request.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    known = LimitRequest.objects.visible_to(organization)
    found = known.filter(pk=request_id).first() if "\x00" not in request_id else None
    if found is None:
        raise NotFound(f"no request for another limit {request_id}")
    return found


def decider_of(request: LimitRequest, *, at: dt.datetime) -> Decider:
    """Return who can let a request happen: the tenant, where another of its keys writes bills."""
    others = ApiKey.objects.visible_to(request.organization).usable(at=at)
    others = others.filter(scopes__contains=[Scope.BILLING_WRITE]).exclude(pk=request.requested_by)
    return Decider.ORGANIZATION if others.exists() else Decider.OPERATOR


@transaction.atomic
def approve(
    *, organization: Organization, request_id: str, at: dt.datetime, actor: str
) -> LimitRequest:
    """Take the arrow requested → approved: the limit is in force.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    :raises FourEyesNeeded: when the same one asked for it; its detail says who decides.
    :raises StateConflict: when it was decided before.
    """
    _lock(organization)
    request = get(organization=organization, request_id=request_id)
    if actor == request.requested_by:
        who = (
            "another key of the organization that writes bills"
            if decider_of(request, at=at) == Decider.ORGANIZATION
            else "an operator of the market, as no other key of the organization writes bills,"
        )
        raise FourEyesNeeded(f"{actor} asked for this; {who} decides it.")
    _decide(request, to=ApprovalStatus.APPROVED, at=at, actor=actor)
    _put(organization, request.amount_minor, at=at, actor=actor)
    return request


@transaction.atomic
def refuse(
    *, organization: Organization, request_id: str, at: dt.datetime, actor: str
) -> LimitRequest:
    """Take the arrow requested → refused: the limit stays. Whoever asked may take it back this way as well.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    :raises StateConflict: when it was decided before.
    """
    _lock(organization)
    request = get(organization=organization, request_id=request_id)
    return _decide(request, to=ApprovalStatus.REFUSED, at=at, actor=actor)


def _lock(organization: Organization) -> None:
    """Let nobody else change this tenant's limit until the caller's transaction ends."""
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)


def _ask(
    organization: Organization,
    before: Money,
    amount_minor: int | None,
    *,
    at: dt.datetime,
    actor: str,
) -> LimitRequest:
    request = LimitRequest.objects.create(
        organization=organization,
        before_minor=before.amount_minor,
        amount_minor=amount_minor,
        currency=before.currency,
        requested_by=actor,
        requested_at=at,
    )
    _note(request, came_from="", at=at, actor=actor)
    return request


def _put(
    organization: Organization, amount_minor: int | None, *, at: dt.datetime, actor: str
) -> None:
    ApprovalLimit.objects.update_or_create(
        organization=organization,
        defaults={
            "amount_minor": amount_minor,
            "currency": settings.CURRENCY,
            "updated_by": actor,
            "updated_at": at,
        },
    )
    detail = {"amount_minor": amount_minor, "currency": settings.CURRENCY, "actor": actor}
    trail = audit.record(
        at=at,
        actor=actor,
        action=EventKind.APPROVAL_LIMIT_CHANGED.value,
        object_id=organization.pk,
        organization=organization,
        detail=detail,
    )
    events.record(
        organization=organization,
        kind=EventKind.APPROVAL_LIMIT_CHANGED,
        object_id=organization.pk,
        data=detail,
        at=at,
        key=f"approval_limit:{trail.pk}",
    )


def _decide(
    request: LimitRequest, *, to: ApprovalStatus, at: dt.datetime, actor: str
) -> LimitRequest:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = ApprovalStatus(request.status)
    won = APPROVAL_ARROWS.allows(came_from, to) and LimitRequest.objects.filter(
        pk=request.pk, status=came_from
    ).update(status=to, decided_by=actor, decided_at=at)
    if not won:
        raise StateConflict(f"{request.pk} was decided before")
    request.status, request.decided_by, request.decided_at = to, actor, at
    _note(request, came_from=came_from, at=at, actor=actor)
    return request


def _note(request: LimitRequest, *, came_from: str, at: dt.datetime, actor: str) -> None:
    status = ApprovalStatus(request.status)
    LimitRequestTransition.objects.create(
        limit_request=request, from_status=came_from, to_status=status, actor=actor, at=at
    )
    data = {
        "before_minor": request.before_minor,
        "amount_minor": request.amount_minor,
        "currency": request.currency,
        "actor": actor,
    }
    if status == ApprovalStatus.REQUESTED:
        data["decider"] = decider_of(request, at=at).value
    audit.record(
        at=at,
        actor=actor,
        action=_TOLD[status].value,
        object_id=request.pk,
        organization=request.organization,
        detail=data,
    )
    events.record(
        organization=request.organization,
        kind=_TOLD[status],
        object_id=request.pk,
        data=data,
        at=at,
        key=f"{request.pk}:{status.value}",
    )
