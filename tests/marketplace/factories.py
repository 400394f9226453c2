"""Plain functions that make catalogue objects through the verbs that make them in earnest."""

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

from marketplace import catalog, listings, organizations
from marketplace.listings import ListingFields
from marketplace.models import Listing, Organization

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
_numbers = itertools.count(1)


def hours(count: float) -> dt.timedelta:
    return dt.timedelta(hours=count)


def an_owner(*, name: str | None = None) -> Organization:
    return organizations.create_organization(
        name=f"Owner {next(_numbers)}" if name is None else name,
        is_owner=True,
        is_tenant=False,
        at=NOON,
    )


def a_tenant(*, name: str | None = None) -> Organization:
    return organizations.create_organization(
        name=f"Tenant {next(_numbers)}" if name is None else name,
        is_owner=False,
        is_tenant=True,
        at=NOON,
    )


def a_wish(**changes: Any) -> ListingFields:
    wish: dict[str, Any] = {
        "name": "H100s in us-east",
        "gpu_model": "h100-sxm-80gb",
        "starts_at": NOON,
        "floor_rate": Decimal("2.00"),
    }
    return ListingFields(**(wish | changes))


def a_listing(*, owner: Organization | None = None, **changes: Any) -> Listing:
    catalog.seed_gpu_models()  # a test with real transactions begins with empty tables
    return listings.create(
        organization=owner or an_owner(), fields=a_wish(**changes), at=NOON, actor="test"
    )


def a_published_listing(*, owner: Organization | None = None, **changes: Any) -> Listing:
    listing = a_listing(owner=owner, **changes)
    return listings.publish(listing=listing, at=NOON, actor="test")
