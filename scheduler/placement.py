"""Choose slots for a request and take them, so that rivals neither queue nor collide.

The exclusion constraint alone is safe but not live: racing buyers of one free GPU all wait for the same
row. So a buyer first locks the GPUs it wants with `FOR NO KEY UPDATE SKIP LOCKED` and lets a rival's go
by. When all that is left is in the hands of rivals, it waits for them once, in slot order and not for
long, because a rival may yet give up. The constraint has the last word in every case.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from django.db import OperationalError, connection, transaction

from marketplace.core.windows import Window, to_seconds
from marketplace.models import Listing
from marketplace.states import Tier
from scheduler import calendar, holds, pools
from scheduler.board import is_open
from scheduler.calendar import Busy, CapacityTaken, Place
from scheduler.pools import Pool, PoolGpu, PoolNode
from scheduler.states import Spread

ATTEMPTS_MAX = 8  # each one means that a rival was faster; after these the capacity counts as taken
LOCK_WAIT_MILLISECONDS_MAX = 1_000  # a loser must hear of it within two seconds

Take = Callable[[Sequence[Place]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be placed: GPUs of one region and tier, of listings with at most this floor.

    `listing_ids` names listings that serve whatever their floor is now: the price was promised on them.
    What comes in the place of something else keeps off `without_nodes`, and stays in `islands`, `None`: all.
    """

    gpu_model_id: str
    region: str
    tier: Tier
    gpus: int
    spread: Spread
    window: Window
    floor_rate_max: Decimal
    listing_ids: frozenset[str] = frozenset()
    without_nodes: frozenset[str] = frozenset()
    islands: frozenset[pools.Island] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeNode:
    """A node's GPUs that may serve: `slots` in the order of preference, of `gpus_total` in the pool."""

    node: PoolNode
    slots: tuple[int, ...]
    gpus_total: int

    @property
    def is_untouched(self) -> bool:
        return len(self.slots) == self.gpus_total


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """Take `count` of these slots, the first ones rather than the last."""

    node: PoolNode
    slots: tuple[int, ...]
    count: int


class _Contended(Exception):
    """A rival has locked some of the wanted slots."""

    def __init__(self, slots: set[int]) -> None:
        self.slots = slots


def assign(*, demand: Demand, take: Take, at: dt.datetime) -> list[Place]:
    """Choose places for a demand and give them to `take`; must run inside a transaction.

    The cheapest admissible listings serve first. Holds that have expired count as free and are ended here.

    :raises CapacityTaken: when there is no room any more.
    """
    found = pools.read(
        gpu_model_id=demand.gpu_model_id, region=demand.region, tier=demand.tier, at=at
    )
    offered = {
        gpu.slot: (gpu, listing)
        for pool in found
        for gpu, listing in offers(pool=pool, demand=demand, at=at)
    }
    gpus_total = totals(found)
    slot_bases = {gpu.node.slot_base for gpu, _ in offered.values()}
    contended: set[int] = set()
    for _ in range(ATTEMPTS_MAX):
        booked = calendar.busy(slot_bases=slot_bases, window=demand.window, at=at)
        free = _free(offered=offered, booked=booked)
        shares = _plan(free=free, totals=gpus_total, demand=demand, without=contended)
        patient = shares is None and bool(contended)
        if patient:
            contended = set()
            shares = _plan(free=free, totals=gpus_total, demand=demand, without=contended)
        if shares is None:
            break
        try:
            with transaction.atomic():
                slots = _lock_patiently(shares) if patient else _lock(shares)
                if patient:
                    booked = calendar.busy(slot_bases=slot_bases, window=demand.window, at=at)
                    if not slots <= _free(offered=offered, booked=booked).keys():
                        raise _Contended(set())
                _end_lapsed_holds(slots=slots, booked=booked, at=at)
                places = list(_places(slots=slots, offered=offered))
                take(places)
                return places
        except _Contended as rival:
            contended |= rival.slots
        except CapacityTaken:
            contended = set()
        except OperationalError as error:
            if calendar.sqlstate(error) not in (
                calendar.LOCK_NOT_AVAILABLE,
                calendar.DEADLOCK_DETECTED,
            ):
                raise
    raise CapacityTaken(
        f"{demand.gpus} × {demand.gpu_model_id} in {demand.region} are no longer free at this price"
    )


def offers(*, pool: Pool, demand: Demand, at: dt.datetime) -> Iterator[tuple[PoolGpu, Listing]]:
    """Yield each GPU that is on offer for a demand, with the cheapest listing that sells it."""
    admitted = {
        listing.id
        for listing in pool.listings
        if (listing.floor_rate <= demand.floor_rate_max or listing.id in demand.listing_ids)
        and admits(listing, gpus=demand.gpus, window=demand.window, at=at)
    }
    for gpu in pool.gpus:
        if gpu.node.id in demand.without_nodes:
            continue
        if demand.islands is not None and gpu.node.island not in demand.islands:
            continue
        for listing in gpu.listings:
            if listing.id in admitted:
                yield gpu, listing
                break


def admits(listing: Listing, *, gpus: int, window: Window, at: dt.datetime) -> bool:
    """Say whether a listing sells this many GPUs for this window."""
    if pools.serves(listing, gpus=gpus, window_seconds=window.seconds) is not None:
        return False
    starts, ends = (np.array([to_seconds(i)]) for i in (window.starts_at, window.ends_at))
    return bool(is_open(listing, starts=starts, ends=ends, at=at)[0])


def choose(*, nodes: Sequence[FreeNode], gpus: int, spread: Spread) -> list[NodeShare] | None:
    """Choose where `gpus` GPUs go, or return `None` when they do not fit.

    One node if one has room: a started one with the least left over before an untouched one, so that
    whole nodes stay whole. Otherwise the tightest island that fits, and only for `ANY` the whole region.
    """
    if (node := _tightest(nodes, gpus=gpus)) is not None:
        return [NodeShare(node=node.node, slots=node.slots, count=gpus)]
    if spread is Spread.SINGLE_NODE:
        return None
    islands: dict[pools.Island, list[FreeNode]] = defaultdict(list)
    for node in nodes:
        islands[node.node.island].append(node)
    rooms = {island: sum(len(n.slots) for n in members) for island, members in islands.items()}
    fitting = [island for island, room in rooms.items() if room >= gpus]
    if fitting:
        return _fill(islands[min(fitting, key=lambda island: (rooms[island], island))], gpus=gpus)
    if spread is Spread.ANY and sum(rooms.values()) >= gpus:
        return _fill(nodes, gpus=gpus)
    return None


def free_nodes(
    *, free: Mapping[int, tuple[PoolGpu, Listing]], totals: Mapping[str, int]
) -> list[FreeNode]:
    """Group free GPUs by node, the slots of the cheapest listing and of the tightest run first."""
    members: dict[str, list[tuple[PoolGpu, Listing]]] = defaultdict(list)
    for slot in sorted(free):
        gpu, listing = free[slot]
        members[gpu.node.id].append((gpu, listing))
    found = []
    for node_id, gpus in members.items():
        run_of = _run_lengths([gpu.slot for gpu, _ in gpus])
        preferred = sorted(gpus, key=lambda g: (g[1].floor_rate, run_of[g[0].slot], g[0].slot))
        found.append(
            FreeNode(
                node=gpus[0][0].node,
                slots=tuple(gpu.slot for gpu, _ in preferred),
                gpus_total=totals[node_id],
            )
        )
    return found


def _plan(
    *,
    free: Mapping[int, tuple[PoolGpu, Listing]],
    totals: Mapping[str, int],
    demand: Demand,
    without: set[int],
) -> list[NodeShare] | None:
    """Choose among the cheapest listings that have room, in the order of their floors."""
    usable = {slot: offer for slot, offer in free.items() if slot not in without}
    for floor in sorted({listing.floor_rate for _, listing in usable.values()}):
        within = {s: offer for s, offer in usable.items() if offer[1].floor_rate <= floor}
        if len(within) >= demand.gpus:
            nodes = free_nodes(free=within, totals=totals)
            shares = choose(nodes=nodes, gpus=demand.gpus, spread=demand.spread)
            if shares is not None:
                return shares
    return None


def _tightest(nodes: Sequence[FreeNode], *, gpus: int) -> FreeNode | None:
    fitting = [node for node in nodes if len(node.slots) >= gpus]
    return min(
        fitting,
        key=lambda n: (n.is_untouched and len(n.slots) > gpus, len(n.slots), n.node.slot_base),
        default=None,
    )


def _fill(nodes: Sequence[FreeNode], *, gpus: int) -> list[NodeShare]:
    """Take the fullest nodes whole, and the rest where the least is left over. There is room enough."""
    left = sorted(nodes, key=lambda n: (-len(n.slots), n.node.slot_base))
    shares: list[NodeShare] = []
    missing = gpus
    while missing:
        last = _tightest(left, gpus=missing)
        node = last or left[0]
        left.remove(node)
        count = min(missing, len(node.slots))
        shares.append(NodeShare(node=node.node, slots=node.slots, count=count))
        missing -= count
    return shares


def _free(
    *, offered: Mapping[int, tuple[PoolGpu, Listing]], booked: Sequence[Busy]
) -> dict[int, tuple[PoolGpu, Listing]]:
    taken = {
        slot
        for row in booked
        if row.lapsed_quote_id is None
        for slot in range(row.slot_lower, row.slot_upper)
    }
    return {slot: offer for slot, offer in offered.items() if slot not in taken}


def totals(found: Sequence[Pool]) -> dict[str, int]:
    """Return how many GPUs of some pools each node has."""
    counts: dict[str, int] = defaultdict(int)
    for pool in found:
        for gpu in pool.gpus:
            counts[gpu.node.id] += 1
    return counts


def _run_lengths(slots: Sequence[int]) -> dict[int, int]:
    """Return for each of some rising slots how long its run of neighbours is."""
    lengths: dict[int, int] = {}
    run: list[int] = []
    for slot in [*slots, None]:
        if run and (slot is None or slot != run[-1] + 1):
            lengths |= dict.fromkeys(run, len(run))
            run = []
        if slot is not None:
            run.append(slot)
    return lengths


def _lock(shares: Sequence[NodeShare]) -> set[int]:
    """Lock what the shares need and let go by what rivals have.

    :raises _Contended: when that leaves too little; the locks fall with the caller's savepoint.
    """
    whole = [slot for share in shares if share.count == len(share.slots) for slot in share.slots]
    wanted = [(whole, len(whole))] if whole else []
    wanted += [(list(s.slots), s.count) for s in shares if s.count < len(s.slots)]
    locked: set[int] = set()
    for slots, count in wanted:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT slot FROM agents_gpu WHERE slot = ANY(%s)"
                " ORDER BY array_position(%s::int[], slot) LIMIT %s FOR NO KEY UPDATE SKIP LOCKED",
                [slots, slots, count],
            )
            got = {slot for (slot,) in cursor.fetchall()}
        if len(got) < count:
            raise _Contended(set(slots) - got)
        locked |= got
    return locked


def _lock_patiently(shares: Sequence[NodeShare]) -> set[int]:
    """Lock the first choice of the shares, waiting for rivals: all wait in the order of the slots."""
    slots = sorted(slot for share in shares for slot in share.slots[: share.count])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_WAIT_MILLISECONDS_MAX}ms"]
        )
        cursor.execute(
            "SELECT slot FROM agents_gpu WHERE slot = ANY(%s) ORDER BY slot FOR NO KEY UPDATE",
            [slots],
        )
        cursor.execute("SET LOCAL lock_timeout TO DEFAULT")
    return set(slots)


def _end_lapsed_holds(*, slots: set[int], booked: Sequence[Busy], at: dt.datetime) -> None:
    lapsed = {
        row.lapsed_quote_id
        for row in booked
        if row.lapsed_quote_id is not None
        and not slots.isdisjoint(range(row.slot_lower, row.slot_upper))
    }
    if lapsed:
        holds.expire(quote_ids=lapsed, at=at)


def _places(*, slots: set[int], offered: Mapping[int, tuple[PoolGpu, Listing]]) -> Iterator[Place]:
    """Yield the runs of neighbouring slots of one node and one listing."""
    run: list[int] = []

    def key(slot: int) -> tuple[str, str]:
        gpu, listing = offered[slot]
        return gpu.node.id, listing.id

    for slot in [*sorted(slots), None]:
        if run and (slot is None or slot != run[-1] + 1 or key(slot) != key(run[0])):
            node_id, listing_id = key(run[0])
            yield Place(
                node_id=node_id,
                listing_id=listing_id,
                slot_lower=run[0],
                slot_upper=run[-1] + 1,
            )
            run = []
        if slot is not None:
            run.append(slot)
