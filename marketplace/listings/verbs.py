"""Write down, change, publish, pause, retire and get a listing."""

import dataclasses
import datetime as dt
from collections.abc import Mapping

from django.conf import settings
from django.db import transaction

from marketplace import audit
from marketplace.core.errors import NotFound, StateConflict
from marketplace.listings.checks import ListingRefused, PeriodRefused, check
from marketplace.listings.wish import ListingChanges, ListingFields, as_json, columns, fields_of
from marketplace.models import Listing, ListingTransition, Organization
from marketplace.states import LISTING_ARROWS, ListingStatus


class NotAnOwner(ListingRefused):
    """Only an owner may list."""

    code = "not_an_owner"
    title = "The organization is not an owner"


@transaction.atomic
def create(
    *, organization: Organization, fields: ListingFields, at: dt.datetime, actor: str
) -> Listing:
    """Write down a wish as a draft; nothing is on offer before it is published.

    :raises ListingRefused: when the wish makes no sense, see the subclasses.
    :raises NoSuchModel: when the market does not know the GPU model.
    :raises InvalidValue: when a text or a label does not fit.
    """
    if not organization.is_owner:
        raise NotAnOwner(f"{organization.id} does not sell")
    check(fields=fields, at=at)
    listing = Listing.objects.create(
        organization=organization,
        currency=settings.CURRENCY,
        created_at=at,
        updated_at=at,
        **columns(fields=fields),
    )
    ListingTransition.objects.create(
        listing=listing, to_status=ListingStatus.DRAFT, actor=actor, at=at
    )
    _record(
        listing=listing,
        action="listing.created",
        at=at,
        actor=actor,
        detail=as_json(fields=fields),
    )
    return listing


@transaction.atomic
def update(*, listing: Listing, changes: ListingChanges, at: dt.datetime, actor: str) -> Listing:
    """Change parts of a wish. What is already sold under it keeps its price and its GPUs.

    :raises StateConflict: when the listing is retired.
    :raises ListingRefused: when the wish would make no sense, see the subclasses.
    :raises NoSuchModel: when the market does not know the GPU model.
    :raises InvalidValue: when a text or a label does not fit.
    """
    locked = Listing.objects.select_for_update().get(pk=listing.pk)
    if LISTING_ARROWS.is_final(ListingStatus(locked.status)):
        raise StateConflict(f"{locked.id} is {locked.status}")
    before = fields_of(listing=locked)
    after = dataclasses.replace(before, **changes)
    check(fields=after, at=at)
    for column, value in columns(fields=after).items():
        setattr(locked, column, value)
    locked.updated_at = at
    locked.save()
    old, new = as_json(fields=before), as_json(fields=after)
    changed = {name: {"from": old[name], "to": new[name]} for name in new if old[name] != new[name]}
    _record(listing=locked, action="listing.changed", at=at, actor=actor, detail=changed)
    return locked


def publish(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Put a draft or a paused listing on offer.

    :raises StateConflict: when it is published or retired, or another writer was faster.
    :raises PeriodRefused: when its period is over.
    """
    if listing.ends_at is not None and listing.ends_at <= at:
        raise PeriodRefused("the listing's period is over", pointer="/ends_at")
    return _move(listing=listing, to_status=ListingStatus.PUBLISHED, at=at, actor=actor)


def pause(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Take a published listing off offer for a while; what is sold stays sold.

    :raises StateConflict: when it is not published, or another writer was faster.
    """
    return _move(listing=listing, to_status=ListingStatus.PAUSED, at=at, actor=actor)


def retire(*, listing: Listing, at: dt.datetime, actor: str) -> Listing:
    """Take a listing off offer for good; what is sold stays sold.

    :raises StateConflict: when it is retired already, or another writer was faster.
    """
    return _move(listing=listing, to_status=ListingStatus.RETIRED, at=at, actor=actor)


def get(*, organization: Organization, listing_id: str) -> Listing:
    """Return a listing of this owner.

    :raises NotFound: when there is none, or it is another owner's: the answers are the same.
    """
    listing = (
        Listing.objects.visible_to(organization)
        .select_related("gpu_model")
        .filter(id=listing_id)
        .first()
    )
    if listing is None:
        raise NotFound(f"there is no listing {listing_id}")
    return listing


@transaction.atomic
def _move(*, listing: Listing, to_status: ListingStatus, at: dt.datetime, actor: str) -> Listing:
    """Compare and set the status; the winner writes the transition and the trail."""
    from_status = ListingStatus(listing.status)
    if not LISTING_ARROWS.allows(from_status, to_status):
        raise StateConflict(f"{listing.id} is {from_status} and cannot become {to_status}")
    rows = Listing.objects.filter(pk=listing.pk, status=from_status)
    if not rows.update(status=to_status, updated_at=at):
        raise StateConflict(f"{listing.id} is no longer {from_status}")
    ListingTransition.objects.create(
        listing=listing, from_status=from_status, to_status=to_status, actor=actor, at=at
    )
    _record(
        listing=listing,
        action=f"listing.{to_status}",
        at=at,
        actor=actor,
        detail={"from": from_status},
    )
    listing.refresh_from_db()
    return listing


def _record(
    *, listing: Listing, action: str, at: dt.datetime, actor: str, detail: Mapping[str, object]
) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=listing.id,
        organization=listing.organization,
        detail=detail,
    )
