"""A booked market for benchmarks: pools of whole nodes, and so many bookings ahead on them.

Every pool is a region of its own with one owner and one listing, islands of 32 nodes of 8 GPUs. Nodes come
through the models; bookings are copies of one real reservation, written by one statement per table, so
that a million of them take minutes.
"""

import datetime as dt
from decimal import Decimal

from django.db import connection, models
from django.db.backends.utils import CursorWrapper

NODES_PER_ISLAND, GPUS_PER_NODE, SLOTS_PER_NODE = 32, 8, 16
AHEAD_HOURS = 178 * 24  # bookings end two days before the horizon
BATCH_ROWS = 5_000
MODEL = "h100-sxm-80gb"


def region_of(pool: int) -> str:
    return f"bench-{pool}"


def make_market(*, pools: int, nodes_per_pool: int, bookings: int, at: dt.datetime) -> None:
    """Fill an empty, migrated database. Nodes count as heard for a day.

    Bookings are of four GPUs each and take about half of the time of every node.
    """
    from marketplace import catalog
    from marketplace.core.windows import grid_ceiling
    from scheduler import reindexing

    catalog.seed_gpu_models()
    for pool in range(pools):
        _make_pool(pool=pool, nodes=nodes_per_pool, at=at)
    if bookings:
        start = grid_ceiling(at, grid_seconds=3600) + dt.timedelta(hours=2)
        _make_bookings(
            pools=pools, nodes=pools * nodes_per_pool, bookings=bookings, start=start, at=at
        )
    reindexing.rebuild(at=at)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _make_pool(*, pool: int, nodes: int, at: dt.datetime) -> None:
    from agents import protocol
    from agents.models import Gpu, Node
    from marketplace.models import Listing, Organization
    from marketplace.states import ListingStatus

    owner = Organization.objects.create(name=f"Bench {pool}", is_owner=True, created_at=at)
    numbers = range(pool * nodes, (pool + 1) * nodes)
    made = [
        Node(
            id=f"nde_bench{number:08d}",
            organization=owner,
            hostname=f"gpu-{number}",
            machine_id=f"machine-{number}",
            region=region_of(pool),
            fabric=f"ib-{number // NODES_PER_ISLAND}",
            simulated=True,
            public_key=f"bench-{number}",
            agent_version="0.2.0",
            slot_base=number * SLOTS_PER_NODE,
            last_report_at=at + dt.timedelta(days=1),
            enrolled_at=at,
        )
        for number in numbers
    ]
    Node.objects.bulk_create(made, BATCH_ROWS)
    Gpu.objects.bulk_create(
        (
            Gpu(
                id=f"gpu_bench{node.slot_base + place:010d}",
                node=node,
                uuid=f"GPU-{node.slot_base + place}",
                slot=node.slot_base + place,
                product_name="NVIDIA H100 80GB HBM3",
                gpu_model_id=MODEL,
                memory_total_bytes=85_520_809_984,
                mig_enabled=False,
                idle_state=protocol.IdleState.OFFERABLE,
                idle_since=at,
                first_seen_at=at,
            )
            for node in made
            for place in range(GPUS_PER_NODE)
        ),
        BATCH_ROWS,
    )
    Listing.objects.create(
        organization=owner,
        name=f"Bench {pool}",
        status=ListingStatus.PUBLISHED,
        gpu_model_id=MODEL,
        starts_at=at - dt.timedelta(days=1),
        floor_rate=Decimal("2.000000"),
        currency="usd",
        region=region_of(pool),
        created_at=at,
        updated_at=at,
    )


def _make_bookings(
    *, pools: int, nodes: int, bookings: int, start: dt.datetime, at: dt.datetime
) -> None:
    """Copy one reservation with its quote and its place: two lanes of four GPUs a node, one after another."""
    from agents.models import Node
    from marketplace.core.windows import Window
    from marketplace.models import Listing, Organization
    from scheduler import calendar
    from scheduler.models import Allocation, Quote, Reservation
    from tests.scheduler.factories import make_quote

    tenant = Organization.objects.create(name="Bench tenant", is_tenant=True, created_at=at)
    quote = make_quote(
        tenant=tenant,
        at=at,
        gpus=4,
        region=region_of(0),
        window=Window(start, start + dt.timedelta(hours=1)),
    )
    reservation = Reservation.objects.create(
        organization=tenant,
        quote=quote,
        status="scheduled",
        gpu_model_id=MODEL,
        gpus=4,
        region=quote.region,
        tier=quote.tier,
        spread=quote.spread,
        starts_at=quote.starts_at,
        ends_at=quote.ends_at,
        rate=quote.rate,
        total_minor=quote.total_minor,
        tariff=quote.tariff,
        currency=quote.currency,
        fee_basis_points=quote.fee_basis_points,
        payment_method="wallet",
        simulated=True,
        created_at=at,
        payment_due_at=at + dt.timedelta(minutes=15),
    )
    Quote.objects.filter(pk=quote.pk).update(status="used", used_at=at)
    listing = Listing.objects.get(region=region_of(0))
    place = calendar.Place(
        node_id=Node.objects.earliest("slot_base").pk,
        listing_id=listing.pk,
        slot_lower=0,
        slot_upper=4,
    )
    calendar.take_for_reservation(
        places=[place], window=quote.window, reservation_id=reservation.pk, at=at
    )
    lanes = nodes * 2
    step = AHEAD_HOURS * lanes // bookings  # hours from one start of a lane to the next
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE TEMPORARY TABLE plan AS
            SELECT i, 'n' || lpad(i::text, 12, '0') AS tail, i %% %(nodes)s AS node,
                   i / %(nodes)s %% 2 AS lane, i / %(lanes)s AS turn,
                   %(start)s::timestamptz + i / %(lanes)s * %(step)s * interval '1 hour' AS starts_at,
                   %(start)s::timestamptz
                     + (i / %(lanes)s * %(step)s + greatest(1, %(step)s / 2 + (i * 7919 %% 7) - 3))
                     * interval '1 hour' AS ends_at
              FROM generate_series(1, %(bookings)s) i
            """,
            {
                "nodes": nodes,
                "lanes": lanes,
                "step": max(1, step),
                "start": start,
                "bookings": bookings,
            },
        )
        period = {"starts_at": "plan.starts_at", "ends_at": "plan.ends_at"}
        region = {"region": f"'bench-' || plan.node / {nodes // pools}"}
        _copy(cursor, Quote, quote.pk, {"id": "'quo_' || tail", **period, **region})
        _copy(
            cursor,
            Reservation,
            reservation.pk,
            {"id": "'rsv_' || tail", "quote_id": "'quo_' || tail", **period, **region},
        )
        _copy(
            cursor,
            Allocation,
            Allocation.objects.get().pk,
            {
                "node_id": "'nde_bench' || lpad(plan.node::text, 8, '0')",
                "listing_id": "(SELECT id FROM marketplace_listing WHERE marketplace_listing.region"
                f" = {region['region']})",
                "reservation_id": "'rsv_' || tail",
                "slots": f"int4range(plan.node * {SLOTS_PER_NODE} + lane * 4,"
                f" plan.node * {SLOTS_PER_NODE} + lane * 4 + 4)",
                "period": "tstzrange(plan.starts_at, plan.ends_at)",
            },
        )


def _copy(
    cursor: CursorWrapper, model: type[models.Model], key: str | int, changes: dict[str, str]
) -> None:
    """Copy one row once per row of the plan, with some columns computed from it."""
    fields = [f.column for f in model._meta.concrete_fields if not isinstance(f, models.AutoField)]
    table = model._meta.db_table
    values = ", ".join(changes.get(column, f"old.{column}") for column in fields)
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(fields)})"
        f" SELECT {values} FROM {table} old, plan WHERE old.id = %s ORDER BY plan.node, plan.turn",
        [key],
    )
