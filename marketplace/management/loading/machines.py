"""Nodes and GPUs that do not exist, with a listing for each pool."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

from django.conf import settings
from django.db import connection

from agents import protocol
from agents.models import SLOTS_PER_NODE, Gpu, Node
from marketplace import organizations
from marketplace.management.loading.drawing import FleetSize
from marketplace.management.loading.rows import ID, id_of, multiply
from marketplace.models import Listing
from marketplace.states import ListingStatus, Tier

GPU_MODEL = "h100-sxm-80gb"
FLOOR_RATE = Decimal("2.000000")
PRODUCT_NAME = "NVIDIA H100 80GB HBM3"
MEMORY_BYTES = 85_520_809_984
# No agent speaks for these machines. They count as heard of for that long, so that they stay on offer.
FRESH_DAYS = 2


def make_listings(*, size: FleetSize, at: dt.datetime) -> list[Listing]:
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


def make_nodes(*, size: FleetSize, listings: Sequence[Listing], at: dt.datetime) -> None:
    """Make the nodes: one by the model, the others like it. Neighbours share a pool and a fabric."""
    Node.objects.create(
        id=id_of("nde", 0),
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
    multiply(
        model=Node,
        template_id=id_of("nde", 0),
        source="generate_series(1, %(last)s) AS made (n)"
        " JOIN unnest(%(owners)s::text[], %(regions)s::text[]) WITH ORDINALITY"
        " AS pool (owner, region, number) ON pool.number = made.n / %(per_pool)s + 1",
        changes={
            "id": ID.format("nde", "made.n"),
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


def make_gpus(*, size: FleetSize, at: dt.datetime) -> None:
    Gpu.objects.create(
        id=id_of("gpu", 0),
        node_id=id_of("nde", 0),
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
    multiply(
        model=Gpu,
        template_id=id_of("gpu", 0),
        source="generate_series(0, %(nodes)s - 1) AS machine (n)"
        " CROSS JOIN generate_series(0, %(gpus)s - 1) AS place (n)",
        where="machine.n > 0 OR place.n > 0",
        changes={
            "id": ID.format("gpu", "(machine.n * %(block)s + place.n)"),
            "node_id": ID.format("nde", "machine.n"),
            "uuid": "'GPU-bench-' || machine.n * %(block)s + place.n",
            "slot": "machine.n * %(block)s + place.n",
        },
        parameters={"nodes": size.nodes, "gpus": size.gpus_per_node, "block": SLOTS_PER_NODE},
    )
