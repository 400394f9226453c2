"""How long prices take: a refresh of all pools, a search's rates, a quote's price.

    python -m tests.bench.bench_prices [--pools 10 100]

Pools have 181 days of hours, bookings in every one, and four weeks of demand where they are large. A refresh
reads listings, machines and the calendar, computes, and stores a version of each. Uses the database of
DATABASE_URL, which must be migrated and is written to, or a throw-away one.
"""

import argparse
import datetime as dt
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np

from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT

QUOTES = 200  # repetitions of what takes milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, nargs="+", default=[10, 100])
    options = parser.parse_args()
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    server = None if os.environ.get("DATABASE_URL") else ThrowAwayPostgres()
    if server is not None:
        os.environ["DATABASE_URL"] = server.url
    try:
        _bench(options.pools)
    finally:
        if server is not None:
            server.stop()


def _bench(sizes: list[int]) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    lines = []
    for pools in sizes:
        lines += _read_and_refresh(pools)
        lines.append(_with_forecast(pools))
    lines += _quotes(sizes[0])
    sys.stdout.write("\n".join(lines) + "\n")


def _read_and_refresh(pools: int) -> list[str]:
    """Refresh pools of one node and 20 reservations each, all of it: reading, computing, storing."""
    from agents.models import Node
    from marketplace import catalog
    from marketplace.models import GpuModel
    from scheduler.models import PriceVersion
    from scheduler.prices import refresh
    from tests.scheduler import factories

    owner = factories.make_organization()
    tenant = factories.make_organization()
    catalog.seed_gpu_models()
    name = f"bench-{pools}"
    GpuModel.objects.update_or_create(
        pk=name, defaults={"name": name, "memory_gib": 80, "nvml_names": [name]}
    )
    factories.make_listing(owner=owner, gpu_model_id=name)
    for number in range(pools):
        region = f"{name}-{number}"
        factories.make_node(owner=owner, region=region, gpu_gpu_model_id=name)
        for booking in range(20):
            quote = factories.make_quote(
                tenant=tenant,
                gpu_model=name,
                region=region,
                gpus=1 + booking % 4,
                window=factories.window_in(24 + 200 * booking, length=100),
            )
            factories.reserve(quote)
    figures = []
    for hour in range(3):
        at = factories.NOW + dt.timedelta(hours=hour)
        Node.objects.update(last_report_at=at)
        began = time.perf_counter()
        made = refresh.refresh_due(at=at)
        figures.append(time.perf_counter() - began)
        assert made >= pools, made
    sizes = [
        sum(len(bytes(each)) for each in (row.rates, row.inputs, row.reference))
        for row in PriceVersion.objects.filter(gpu_model_id=name)
    ]
    Node.objects.filter(region__startswith=f"{name}-").update(last_report_at=None)
    seconds = statistics.median(figures)
    return [
        f"refresh of {pools} small pools, read to stored   {seconds:7.3f} s",
        f"a version of a small pool                        {statistics.median(sizes):7.0f} bytes",
    ]


def _with_forecast(pools: int) -> str:
    """Refresh large pools from their counts on, each with a forecast of its own demand."""
    from marketplace.states import Tier
    from scheduler.models import DemandSample, PriceVersion
    from scheduler.pool_keys import PoolKey
    from scheduler.prices import refresh
    from scheduler.prices.counts import HOURS, PoolCounts
    from scheduler.states import PriceCause
    from tests.scheduler import factories

    random = np.random.default_rng(7)
    first = int(factories.NOW.timestamp()) // 3600
    tenants = [factories.make_organization() for _ in range(20)]
    counts = []
    for number in range(pools):
        key = PoolKey(
            gpu_model_id=factories.MODEL, region=f"large-{pools}-{number}", tier=Tier.FIRM
        )
        asked = first - 1 - random.integers(0, 4 * 168, 1_000)
        starts = asked + 1 + random.integers(0, 600, 1_000)
        DemandSample.objects.bulk_create(
            [
                DemandSample(
                    organization=tenants[n % 20],
                    gpu_model_id=key.gpu_model_id,
                    region=key.region,
                    tier=key.tier,
                    kind="quote",
                    occasion=f"{n}",
                    asked_at=factories.NOW - dt.timedelta(hours=1),
                    asked_hour=int(asked[n]),
                    start_hour=int(starts[n]),
                    end_hour=int(starts[n]) + 24,
                    gpus=8,
                    counted_gpus=8,
                )
                for n in range(1_000)
            ]
        )
        counts.append(
            PoolCounts(
                key=key,
                first_hour=first,
                floors=(Decimal(2), Decimal(3)),
                middle_floor=Decimal(2),
                offered=np.full((2, HOURS), 512, dtype=np.int64),
                sold=random.integers(0, 1_024, HOURS),
                gpus=1_024,
            )
        )
    began = time.perf_counter()
    made = refresh.refresh(at=factories.NOW, cause=PriceCause.HOUR, found=counts)
    seconds = time.perf_counter() - began
    assert made == pools, made
    size = statistics.median(
        sum(
            len(bytes(part or b"")) for part in (row.rates, row.inputs, row.reference, row.forecast)
        )
        for row in PriceVersion.objects.filter(region__startswith=f"large-{pools}-")
    )
    return (
        f"refresh of {pools} large pools, forecast to stored {seconds:7.3f} s, a version "
        f"{size:.0f} bytes, every hour unlike the next"
    )


def _quotes(pools: int) -> list[str]:
    """Price windows of a large pool whose every hour has a price of its own: the dearest case."""
    from marketplace.states import Tier
    from scheduler.lots import GpusAtFloor
    from scheduler.pool_keys import PoolKey
    from scheduler.prices import tables
    from tests.scheduler import factories

    key = PoolKey(gpu_model_id=factories.MODEL, region=f"large-{pools}-0", tier=Tier.FIRM)
    table = tables(keys=[key], at=factories.NOW)[key]
    # As the pool will be when its prices have got where they are heading.
    table = replace(table, rate_micros=table.target_micros)
    assert len(set(table.rate_micros.tolist())) > 100

    def priced(hours: int) -> Any:
        return table.price(
            window=factories.window_in(24, length=hours),
            floors=[GpusAtFloor(Decimal(2), 64)],
            currency="usd",
        )

    starts = np.arange(4_000, dtype=np.int64) * 3600 + table.first_hour_seconds
    rows: tuple[tuple[str, Callable[[], object]], ...] = (
        ("read a pool's table", lambda: tables(keys=[key], at=factories.NOW)),
        ("price a window of 48 hours", lambda: priced(48)),
        ("price a window of 30 days", lambda: priced(720)),
        ("price a window of 150 days", lambda: priced(3_600)),
        (
            "rates of 4,000 starts at 3 floors",
            lambda: table.window_rates(
                starts=starts, seconds=48 * 3600, floor_rates=[Decimal(1), Decimal(2), Decimal(3)]
            ),
        ),
    )
    return [f"{name:<48} {_milliseconds(call):7.2f} ms" for name, call in rows]


def _milliseconds(call: Callable[[], object]) -> float:
    """Return the median of `QUOTES` calls."""
    figures = []
    for _ in range(QUOTES):
        began = time.perf_counter()
        call()
        figures.append(1_000 * (time.perf_counter() - began))
    return statistics.median(figures)


if __name__ == "__main__":
    main()
