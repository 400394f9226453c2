"""A large fleet with its bookings, straight into the database: for benchmarks, and to look at one.

Everything is made of one template row per table, made by the models, and multiplied inside PostgreSQL: a
column that a model gains is filled as the model says. What varies comes in by COPY.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db import connection, transaction

from agents.models import Node
from billing import wallet
from marketplace import catalog, organizations
from marketplace.core.money import Money
from marketplace.management.errors import PlainError
from marketplace.management.loading.bookings import ACTOR, book
from marketplace.management.loading.drawing import FleetSize
from marketplace.management.loading.machines import (
    make_gpus,
    make_listings,
    make_nodes,
)
from marketplace.management.loading.watch import Watch
from marketplace.models import Organization
from marketplace.states import Scope
from scheduler import reindexing

DEPOSITS, DEPOSIT_MINOR = 50, 1_000_000_000  # no benchmark runs out of money
TENANT_SCOPES = (
    Scope.MARKET_READ,
    Scope.RESERVATIONS_READ,
    Scope.RESERVATIONS_WRITE,
    Scope.BILLING_READ,
    Scope.BILLING_WRITE,
)


class NotEmpty(PlainError):
    """The database has data of its own: a benchmark's fleet would drown it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was loaded. `api_key` is the tenant's, with a wallet that no benchmark empties."""

    tenant_id: str
    api_key: str
    regions: tuple[str, ...]
    index_rows: int


def load(*, size: FleetSize, at: dt.datetime, say: Callable[[str], None]) -> Loaded:
    """Load a fleet and its bookings; all or nothing.

    :raises NotEmpty: when the database has organizations or machines already.
    :raises TooManyBookings: when they do not fit into the days.
    """
    watch = Watch(say)
    with transaction.atomic():
        if Organization.objects.exists() or Node.objects.exists():
            raise NotEmpty("load the fleet into a database of its own")
        tenant, api_key = _tenant(at=at)
        listings = make_listings(size=size, at=at)
        make_nodes(size=size, listings=listings, at=at)
        make_gpus(size=size, at=at)
        watch.lap(f"{size.nodes} nodes, {size.nodes * size.gpus_per_node} GPUs")
        if size.bookings:
            book(size=size, tenant=tenant, listing=listings[0], at=at, watch=watch)
        rows = reindexing.rebuild(at=at)
        watch.lap(f"index of {rows} node-weeks")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    watch.lap("vacuum and statistics")
    return Loaded(
        tenant_id=tenant.pk,
        api_key=api_key,
        regions=tuple(listing.region for listing in listings),
        index_rows=rows,
    )


def _tenant(*, at: dt.datetime) -> tuple[Organization, str]:
    catalog.seed_gpu_models()
    tenant = organizations.create_organization(
        name="Bench tenant", is_owner=False, is_tenant=True, at=at
    )
    _, secret = organizations.issue_api_key(
        organization=tenant, name="bench", scopes=TENANT_SCOPES, at=at
    )
    for number in range(DEPOSITS):
        wallet.record_deposit(
            organization=tenant,
            amount=Money(DEPOSIT_MINOR, settings.CURRENCY),
            idempotency_key=f"bench_fleet_{number}",
            at=at,
            actor=ACTOR,
        )
    return tenant, secret
