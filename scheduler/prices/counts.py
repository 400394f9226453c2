"""What the prices of a pool follow from: GPUs on offer by floor, and GPUs sold or held, hour by hour."""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from django.conf import settings
from django.db.models import Count, Q

from agents import inventory
from agents.models import SLOTS_PER_NODE
from marketplace.core.limits import HORIZON_DAYS
from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import occupancy, pools
from scheduler.board import is_open
from scheduler.models import Reservation
from scheduler.pool_keys import PoolKey
from scheduler.pools import Pool
from scheduler.prices.packed import Counts
from scheduler.pricing.rule import BASIS_POINTS
from scheduler.states import ReservationStatus

# A day more than what is sold: a table that is late by less still knows every hour.
HOURS = (HORIZON_DAYS + 1) * 24
BLOCKS_PER_STEP = 2_000  # nodes read in one go: 17 MB of bits
RECLAIMS_DAYS = 28
RECLAIM_PRIOR = 20
RECLAIM_LIKELIHOOD_UNKNOWN = BASIS_POINTS // RECLAIM_PRIOR  # where nothing was reclaimable yet


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """One pool over `HOURS` hours from `first_hour` (hours since the Unix epoch).

    `offered[i]` are the GPUs on offer at `floors[i]` as their cheapest; a GPU counts as sold in an hour of
    which any part is taken, whatever tier it was sold in. `middle_floor` is the floor that half of the GPUs
    do not exceed.
    """

    key: PoolKey
    first_hour: int
    floors: tuple[Decimal, ...]
    middle_floor: Decimal
    offered: Counts
    sold: Counts
    gpus: int


def keys_on_offer(*, at: dt.datetime) -> list[PoolKey]:
    """Return the pools that may have something on offer at an instant; two queries.

    It looks at models and regions alone, so that now and then one is named that has nothing.
    """
    wishes = set(
        Listing.objects.published()
        .filter(currency=settings.CURRENCY)
        .values_list("gpu_model_id", "region", "tier")
        .distinct()
    )
    places = set(
        inventory.sellable_gpus(at=at)
        .order_by()
        .values_list("gpu_model_id", "node__region")
        .distinct()
    )
    return sorted(
        {
            PoolKey(gpu_model_id=model, region=place, tier=Tier(tier))
            for model, place in places
            for wished, region, tier in wishes
            if wished == model and region in ("", place)
        }
    )


def read(*, at: dt.datetime, keys: Collection[PoolKey]) -> Iterator[PoolCounts]:
    """Yield the counts of those of the pools in which something is on offer at an instant."""
    first_hour = to_seconds(at) // SECONDS_PER_HOUR
    for key in keys:
        for pool in pools.read(
            gpu_model_id=key.gpu_model_id, region=key.region, tier=key.tier, at=at
        ):
            yield _counts(pool, first_hour=first_hour, at=at)


def _counts(pool: Pool, *, first_hour: int, at: dt.datetime) -> PoolCounts:
    floors = pool.floors
    classes = Counter(tuple(listing.id for listing in gpu.listings) for gpu in pool.gpus)
    return PoolCounts(
        key=PoolKey(gpu_model_id=pool.gpu_model_id, region=pool.region, tier=pool.tier),
        first_hour=first_hour,
        floors=floors,
        middle_floor=_middle([gpu.listings[0].floor_rate for gpu in pool.gpus]),
        offered=_offered(pool, classes=classes, first_hour=first_hour, at=at),
        sold=_sold(pool, first_hour=first_hour, at=at),
        gpus=len(pool.gpus),
    )


def _offered(
    pool: Pool, *, classes: Counter[tuple[str, ...]], first_hour: int, at: dt.datetime
) -> Counts:
    starts = np.arange(first_hour, first_hour + HOURS, dtype=np.int64) * SECONDS_PER_HOUR
    ends = starts + SECONDS_PER_HOUR
    # What is on offer in the rest of the running hour is what counts of it.
    starts[0] = to_seconds(at)
    listings = pool.listings
    open_ = {each.id: is_open(each, starts=starts, ends=ends, at=at) for each in listings}
    level_of = {floor: level for level, floor in enumerate(pool.floors)}
    offered = np.zeros((len(pool.floors), HOURS), dtype=np.int64)
    for ids, gpus in classes.items():
        cheapest = np.full(HOURS, len(pool.floors), dtype=np.int64)
        for listing in reversed([each for each in listings if each.id in ids]):
            cheapest[open_[listing.id]] = level_of[listing.floor_rate]
        for level in range(len(pool.floors)):
            offered[level, cheapest == level] += gpus
    return offered


def _sold(pool: Pool, *, first_hour: int, at: dt.datetime) -> Counts:
    """Return how many of the pool's GPUs are taken per hour, from the calendar's index."""
    bits: dict[int, int] = defaultdict(int)
    for gpu in pool.gpus:
        block, place = divmod(gpu.slot, SLOTS_PER_NODE)
        bits[block] |= 1 << place
    blocks = np.array(sorted(bits), dtype=np.int32)
    mine = np.array([bits[block] for block in blocks.tolist()], dtype=np.uint16)
    sold = np.zeros(HOURS, dtype=np.int64)
    for begin in range(0, len(blocks), BLOCKS_PER_STEP):
        part = slice(begin, begin + BLOCKS_PER_STEP)
        taken = occupancy.read(blocks=blocks[part], first_hour=first_hour, hours=HOURS, at=at)
        sold += np.bitwise_count(taken & mine[part, None]).sum(axis=0, dtype=np.int64)
    return sold


def reclaim_likelihoods_basis_points(*, at: dt.datetime) -> dict[tuple[str, str], int]:
    """Return by model and region the share of reclaimable reservations that were called back; one query.

    Counted over `RECLAIMS_DAYS`, as if there had been `RECLAIM_PRIOR` more, one of them called back.
    """
    ended = (
        Reservation.objects.filter(
            tier=Tier.RECLAIMABLE,
            status__in=[ReservationStatus.COMPLETED, ReservationStatus.RECLAIMED],
            ends_at__gt=at - dt.timedelta(days=RECLAIMS_DAYS),
        )
        .order_by()
        .values_list("gpu_model_id", "region")
        .annotate(
            every=Count("pk"),
            reclaimed=Count("pk", filter=Q(status=ReservationStatus.RECLAIMED)),
        )
    )
    return {
        (model, region): BASIS_POINTS * (reclaimed + 1) // (every + RECLAIM_PRIOR)
        for model, region, every, reclaimed in ended
    }


def _middle(floors: Sequence[Decimal]) -> Decimal:
    rising = sorted(floors)
    return rising[(len(rising) - 1) // 2]
