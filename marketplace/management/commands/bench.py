"""`manage.py bench fleet`: fill an empty market with a large fleet and its bookings."""

import argparse

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from marketplace.core.limits import HORIZON_DAYS
from marketplace.management import loading
from marketplace.management.errors import PlainError
from marketplace.management.loading.drawing import FleetSize


class Command(BaseCommand):
    help = "Fill an empty market with a large fleet and its bookings, for benchmarks."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        what = parser.add_subparsers(dest="what", required=True)
        fleet = what.add_parser("fleet", help="simulated machines, their listings, and bookings")
        fleet.add_argument("--nodes", type=int, default=12_500)
        fleet.add_argument("--gpus-per-node", type=int, default=8)
        fleet.add_argument("--pools", type=int, default=10, help="regions of equal size")
        fleet.add_argument("--nodes-per-fabric", type=int, default=125)
        fleet.add_argument("--bookings", type=int, default=1_000_000)
        fleet.add_argument("--days", type=int, default=HORIZON_DAYS, help="over which they lie")
        fleet.add_argument("--seed", type=int, default=1)

    def handle(
        self,
        *,
        nodes: int,
        gpus_per_node: int,
        pools: int,
        nodes_per_fabric: int,
        bookings: int,
        days: int,
        seed: int,
        **_: object,
    ) -> None:
        """Load the fleet and print the tenant's key.

        :raises CommandError: in production, in a market that is not empty, or when it does not fit.
        """
        if settings.IS_PRODUCTION:
            raise CommandError("machines that do not exist are refused in production")
        if not (1 <= gpus_per_node <= 16 and 1 <= pools <= nodes and nodes_per_fabric >= 1):
            raise CommandError("1 to 16 GPUs a node, and at least one node a pool and a fabric")
        if not (1 <= days <= HORIZON_DAYS and bookings >= 0):
            raise CommandError(f"bookings lie within 1 to {HORIZON_DAYS} days")
        size = FleetSize(
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            pools=pools,
            nodes_per_fabric=nodes_per_fabric,
            bookings=bookings,
            days=days,
            seed=seed,
        )
        try:
            loaded = loading.load(size=size, at=timezone.now(), say=self.stdout.write)
        except PlainError as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(
            f"{bookings} bookings on {nodes} nodes in {len(loaded.regions)} pools"
            f" ({loaded.regions[0]} …), tenant {loaded.tenant_id}, its key {loaded.api_key}"
        )
