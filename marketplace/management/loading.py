"""A large fleet with its bookings, straight into the database: for benchmarks, and to look at one.

Everything is made of one template row per table, made by the models, and multiplied inside PostgreSQL: a
column that a model gains is filled as the model says. What varies comes in by COPY.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from django.conf import settings
from django.db import connection, models, transaction
from psycopg.types.range import Int4Range, TimestamptzRange

from agents import protocol
from agents.models import SLOTS_PER_NODE, Gpu, Node
from billing import wallet
from marketplace import catalog, organizations
from marketplace.core.errors import DomainError
from marketplace.core.money import Money, currency_exponent
from marketplace.core.windows import Window, grid_ceiling
from marketplace.models import Listing, Organization
from marketplace.states import ListingStatus, Scope, Tier
from scheduler import reindexing
from scheduler.calendar import OVERLAP_CONSTRAINT
from scheduler.models import Allocation, Quote, Reservation, ReservationTransition
from scheduler.states import (
    PaymentMethod,
    QuoteStatus,
    ReservationReason,
    ReservationStatus,
    Spread,
)
from scheduler.tariffs import Tariff

ACTOR = "bench fleet"
HOUR = dt.timedelta(hours=1)
GPU_MODEL = "h100-sxm-80gb"
PRODUCT_NAME = "NVIDIA H100 80GB HBM3"
MEMORY_BYTES = 85_520_809_984
FLOOR_RATE, RATE = Decimal("2.000000"), Decimal("2.352942")
DEPOSITS, DEPOSIT_MINOR = 50, 1_000_000_000  # no benchmark runs out of money
# No agent speaks for these machines. They count as heard of for that long, so that they stay on offer.
FRESH_DAYS = 2
# How a node's GPUs are cut among its bookings, by number of lanes, with the share of nodes cut so.
LANES = ((1, 0.50), (2, 0.25), (4, 0.15), (8, 0.10))
LANES_AT_ONCE = 1_000  # a number for each of their 4,320 hours: 35 MB
TENANT_SCOPES = (
    Scope.MARKET_READ,
    Scope.RESERVATIONS_READ,
    Scope.RESERVATIONS_WRITE,
    Scope.BILLING_READ,
    Scope.BILLING_WRITE,
)

Numbers: TypeAlias = npt.NDArray[np.int64]

_Booked: TypeAlias = (
    type[Quote] | type[Reservation] | type[Allocation] | type[ReservationTransition]
)

_ID = "'{}_' || lpad(({})::text, 26, '0')"
_PROMISED = {
    "gpus": "b.gpus",
    "starts_at": "b.starts_at",
    "ends_at": "b.ends_at",
    "region": "node.region",
    "total_minor": "round(b.gpus * extract(epoch FROM b.ends_at - b.starts_at)"
    " * t.rate * %(minor)s / 3600)::bigint",
    "tariff": "jsonb_build_array(jsonb_build_array(extract(epoch FROM b.starts_at)::bigint,"
    " extract(epoch FROM b.ends_at)::bigint, (t.rate * 1000000)::bigint))",
}
# What a booking `b` is made of, with the columns in which it differs from the first one.
_BOOKED: tuple[tuple[_Booked, dict[str, str]], ...] = (
    (Quote, {**_PROMISED, "id": _ID.format("qte", "b.n"), "listing_ids": "ARRAY[listing.id]"}),
    (
        Reservation,
        {**_PROMISED, "id": _ID.format("rsv", "b.n"), "quote_id": _ID.format("qte", "b.n")},
    ),
    (
        Allocation,
        {
            "node_id": "node.id",
            "listing_id": "listing.id",
            "reservation_id": _ID.format("rsv", "b.n"),
            "slots": "int4range(b.slot, b.slot + b.gpus)",
            "period": "tstzrange(b.starts_at, b.ends_at)",
        },
    ),
    (ReservationTransition, {"reservation_id": _ID.format("rsv", "b.n")}),
)


class NotEmpty(DomainError):
    """The database has data of its own: a benchmark's fleet would drown it."""

    code = "not_empty"
    title = "The database is not empty"


class TooManyBookings(DomainError):
    code = "too_many_bookings"
    title = "So many bookings do not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSize:
    """How much to load. Bookings lie in the next `days`; each pool is a region of its own."""

    nodes: int
    gpus_per_node: int
    pools: int
    nodes_per_fabric: int
    bookings: int
    days: int
    seed: int


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
    watch = _Watch(say)
    with transaction.atomic():
        if Organization.objects.exists() or Node.objects.exists():
            raise NotEmpty("load the fleet into a database of its own")
        tenant, api_key = _tenant(at=at)
        listings = _listings(size=size, at=at)
        _nodes(size=size, listings=listings, at=at)
        _gpus(size=size, at=at)
        watch.lap(f"{size.nodes} nodes, {size.nodes * size.gpus_per_node} GPUs")
        if size.bookings:
            _book(size=size, tenant=tenant, listing=listings[0], at=at, watch=watch)
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


class _Watch:
    """Say how long each part took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self._say(f"{now - self._began:7.1f} s  {what}")
        self._began = now


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


def _listings(*, size: FleetSize, at: dt.datetime) -> list[Listing]:
    """Make an owner and a listing for each pool."""
    listings = []
    for number in range(size.pools):
        owner = organizations.create_organization(
            name=f"Bench owner {number:03d}", is_owner=True, is_tenant=False, at=at
        )
        listings.append(
            Listing.objects.create(
                organization=owner,
                name=f"bench {number:03d}",
                status=ListingStatus.PUBLISHED,
                gpu_model_id=GPU_MODEL,
                region=f"bench-{number:03d}",
                starts_at=at,
                floor_rate=FLOOR_RATE,
                currency=settings.CURRENCY,
                tier=Tier.FIRM,
                created_at=at,
                updated_at=at,
            )
        )
    return listings


def _nodes(*, size: FleetSize, listings: Sequence[Listing], at: dt.datetime) -> None:
    """Make the nodes: one by the model, the others like it. Neighbours share a pool and a fabric."""
    Node.objects.create(
        id=_id("nde", 0),
        organization=listings[0].organization,
        hostname="bench-0",
        machine_id="bench-0",
        region=listings[0].region,
        fabric="bench-fabric-0",
        simulated=True,
        public_key="bench-0",
        agent_version="0.2.0",
        slot_base=0,
        last_report_at=at + dt.timedelta(days=FRESH_DAYS),
        enrolled_at=at,
    )
    per_pool = -(-size.nodes // size.pools)
    _multiply(
        model=Node,
        template_id=_id("nde", 0),
        source="generate_series(1, %(last)s) AS made (n)"
        " JOIN unnest(%(owners)s::text[], %(regions)s::text[]) WITH ORDINALITY"
        " AS pool (owner, region, number) ON pool.number = made.n / %(per_pool)s + 1",
        changes={
            "id": _ID.format("nde", "made.n"),
            "organization_id": "pool.owner",
            "region": "pool.region",
            "hostname": "'bench-' || made.n",
            "machine_id": "'bench-' || made.n",
            "public_key": "'bench-' || made.n",
            "fabric": "'bench-fabric-' || made.n / %(per_fabric)s",
            "slot_base": "made.n * %(block)s",
        },
        parameters={
            "last": size.nodes - 1,
            "owners": [listing.organization_id for listing in listings],
            "regions": [listing.region for listing in listings],
            "per_pool": per_pool,
            "per_fabric": size.nodes_per_fabric,
            "block": SLOTS_PER_NODE,
        },
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval('agents_slot_block', %s)", [size.nodes])


def _gpus(*, size: FleetSize, at: dt.datetime) -> None:
    Gpu.objects.create(
        id=_id("gpu", 0),
        node_id=_id("nde", 0),
        uuid="GPU-bench-0",
        slot=0,
        product_name=PRODUCT_NAME,
        gpu_model_id=GPU_MODEL,
        memory_total_bytes=MEMORY_BYTES,
        mig_enabled=False,
        idle_state=protocol.IdleState.OFFERABLE,
        idle_since=at,
        first_seen_at=at,
    )
    _multiply(
        model=Gpu,
        template_id=_id("gpu", 0),
        source="generate_series(0, %(nodes)s - 1) AS machine (n)"
        " CROSS JOIN generate_series(0, %(gpus)s - 1) AS place (n)",
        where="machine.n > 0 OR place.n > 0",
        changes={
            "id": _ID.format("gpu", "(machine.n * %(block)s + place.n)"),
            "node_id": _ID.format("nde", "machine.n"),
            "uuid": "'GPU-bench-' || machine.n * %(block)s + place.n",
            "slot": "machine.n * %(block)s + place.n",
        },
        parameters={"nodes": size.nodes, "gpus": size.gpus_per_node, "block": SLOTS_PER_NODE},
    )


def _book(
    *, size: FleetSize, tenant: Organization, listing: Listing, at: dt.datetime, watch: _Watch
) -> None:
    first = grid_ceiling(at, grid_seconds=3600) + HOUR
    bookings = draw(size=size)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE bench_booking (n int, node int, slot int, gpus int,"
            " starts_at timestamptz, ends_at timestamptz) ON COMMIT DROP"
        )
        with cursor.copy(
            "COPY bench_booking (n, node, slot, gpus, starts_at, ends_at)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int4", "int4", "int4", "int4", "timestamptz", "timestamptz"])
            for n, (node, slot, gpus, starts, ends) in enumerate(bookings.tolist()):
                copy.write_row((n, node, slot, gpus, first + starts * HOUR, first + ends * HOUR))
        cursor.execute("ANALYZE bench_booking")
    watch.lap(f"{len(bookings)} bookings drawn")
    with _quietly():
        _first_booking(bookings=bookings, tenant=tenant, listing=listing, first=first, at=at)
        for model, changes in _BOOKED:
            for template_id in model.objects.values_list("pk", flat=True):
                _multiply(
                    model=model,
                    template_id=template_id,
                    source="bench_booking b"
                    " JOIN agents_node node ON node.slot_base = b.node * %(block)s"
                    " JOIN marketplace_listing listing"
                    " ON listing.organization_id = node.organization_id",
                    where="b.n > 0",
                    changes=changes,
                    parameters={
                        "minor": 10 ** currency_exponent(settings.CURRENCY),
                        "block": SLOTS_PER_NODE,
                    },
                )
            watch.lap(f"{model.__name__} rows")
    watch.lap("exclusion constraint")


def draw(*, size: FleetSize) -> Numbers:
    """Draw bookings: rows of node, first slot, GPUs, first and last hour, half-open; none overlap.

    Each node is cut into lanes of equal width. A lane's windows and the gaps between them have the same
    mean: half of the time is sold.

    :raises TooManyBookings: when a lane has not two hours for each of its bookings.
    """
    dice = np.random.default_rng(size.seed)
    usable = [(lanes, share) for lanes, share in LANES if size.gpus_per_node % lanes == 0]
    shares = np.array([share for _, share in usable])
    cuts = np.array([lanes for lanes, _ in usable])[
        dice.choice(len(usable), size=size.nodes, p=shares / shares.sum())
    ]
    node = np.repeat(np.arange(size.nodes), cuts)
    width = size.gpus_per_node // cuts[node]
    number = np.arange(len(node)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    each, rest = divmod(size.bookings, len(node))
    count = np.full(len(node), each)
    count[:rest] += 1
    hours = size.days * 24 - 2  # the first hour is left to whoever tries the market
    if 2 * int(count.max()) > hours:
        raise TooManyBookings(f"{size.bookings} bookings in {size.days} days of {len(node)} lanes")
    rows = []
    for many, lanes in _batches(count):
        points = np.sort(
            np.argpartition(dice.random((len(lanes), hours)), 2 * many - 1, axis=1)[:, : 2 * many],
            axis=1,
        ).reshape(len(lanes), many, 2)
        rows.append(
            np.stack(
                [
                    np.repeat(node[lanes], many),
                    np.repeat(node[lanes] * SLOTS_PER_NODE + number[lanes] * width[lanes], many),
                    np.repeat(width[lanes], many),
                    points[:, :, 0].ravel(),
                    points[:, :, 1].ravel(),
                ],
                axis=1,
            )
        )
    drawn: Numbers = np.concatenate(rows).astype(np.int64)
    return drawn


def _batches(count: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Yield lanes that have the same number of bookings, some at a time."""
    for many in np.unique(count[count > 0]).tolist():
        lanes = np.flatnonzero(count == many)
        for offset in range(0, len(lanes), LANES_AT_ONCE):
            yield many, lanes[offset : offset + LANES_AT_ONCE]


def _first_booking(
    *,
    bookings: Numbers,
    tenant: Organization,
    listing: Listing,
    first: dt.datetime,
    at: dt.datetime,
) -> None:
    """Make the booking that the others are multiplied from, by the models; it is paid for by nobody."""
    node, slot, gpus, starts, ends = bookings[0].tolist()
    window = Window(first + starts * HOUR, first + ends * HOUR)
    tariff = Tariff.flat(window=window, rate=RATE)
    shared: dict[str, Any] = {
        "organization": tenant,
        "gpu_model_id": GPU_MODEL,
        "gpus": gpus,
        "region": listing.region,
        "tier": Tier.FIRM,
        "spread": Spread.SAME_FABRIC,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
        "rate": RATE,
        "tariff": tariff.as_json(),
        "total_minor": tariff.amount(
            window=window, gpus=gpus, currency=settings.CURRENCY
        ).amount_minor,
        "currency": settings.CURRENCY,
        "fee_basis_points": settings.PLATFORM_FEE_BASIS_POINTS,
        "simulated": True,
        "created_at": at,
    }
    quote = Quote.objects.create(
        id=_id("qte", 0),
        status=QuoteStatus.USED,
        floor_rate=FLOOR_RATE,
        listing_ids=[listing.pk],
        price_breakdown={},
        expires_at=at,
        used_at=at,
        **shared,
    )
    reservation = Reservation.objects.create(
        id=_id("rsv", 0),
        quote=quote,
        status=ReservationStatus.SCHEDULED,
        payment_method=PaymentMethod.INVOICE,
        payment_due_at=at,
        **shared,
    )
    for before, after, reason in (
        ("", ReservationStatus.PAYMENT_PENDING, ReservationReason.QUOTE_ACCEPTED),
        (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED, ReservationReason.PAID),
    ):
        ReservationTransition.objects.create(
            reservation=reservation,
            from_status=before,
            to_status=after,
            reason=reason,
            actor=ACTOR,
            at=at,
        )
    Allocation.objects.create(
        node_id=_id("nde", node),
        listing=listing,
        reservation=reservation,
        slots=Int4Range(slot, slot + gpus),
        period=TimestamptzRange(window.starts_at, window.ends_at),
        created_at=at,
    )


def _id(prefix: str, number: int) -> str:
    """Return the id that `_ID` makes in SQL."""
    return f"{prefix}_{number:026d}"


def _multiply(
    *,
    model: type[models.Model],
    template_id: str | int,
    source: str,
    changes: Mapping[str, str],
    parameters: Mapping[str, Any],
    where: str = "true",
) -> None:
    """Insert a copy of a row for each row of a source, with other values in some columns."""
    options = model._meta  # noqa: SLF001 - Django's documented way to a model's columns
    columns = [
        field.column
        for field in options.concrete_fields
        if not isinstance(field, models.AutoField | models.BigAutoField)
    ]
    values = [changes.get(column, f't."{column}"') for column in columns]
    names = ", ".join(f'"{column}"' for column in columns)
    statement = (
        f"INSERT INTO {options.db_table} ({names}) SELECT {', '.join(values)}"  # noqa: S608 - texts of this file
        f" FROM {source} CROSS JOIN {options.db_table} t WHERE t.id = %(template)s AND ({where})"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, {**parameters, "template": template_id})


@contextmanager
def _quietly() -> Iterator[None]:
    """Let a block load rows without triggers and without the exclusion constraint, which is then built.

    What it loads overlaps nowhere, or building the constraint fails. Only a superuser may silence the
    triggers of foreign keys; for others the load takes longer.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('is_superuser')::bool")
        (is_superuser,) = cursor.fetchone()
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s",
            [OVERLAP_CONSTRAINT],
        )
        (definition,) = cursor.fetchone()
        cursor.execute(f"ALTER TABLE scheduler_allocation DROP CONSTRAINT {OVERLAP_CONSTRAINT}")
        # The index is derived when all is loaded; a mark for each booking would be a second load.
        cursor.execute("ALTER TABLE scheduler_allocation DISABLE TRIGGER USER")
        if is_superuser:
            cursor.execute("SET LOCAL session_replication_role = replica")
        yield
        if is_superuser:
            cursor.execute("SET LOCAL session_replication_role = origin")
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE scheduler_allocation ENABLE TRIGGER USER")
        cursor.execute("SET LOCAL maintenance_work_mem = '256MB'")
        cursor.execute(
            f"ALTER TABLE scheduler_allocation ADD CONSTRAINT {OVERLAP_CONSTRAINT} {definition}"
        )
