"""Which of some free GPUs a request gets, node by node."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marketplace.models import Listing
from scheduler import pools
from scheduler.pools import PoolGpu, PoolNode
from scheduler.states import Spread


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
        return fill(islands[min(fitting, key=lambda island: (rooms[island], island))], gpus=gpus)
    if spread is Spread.ANY and sum(rooms.values()) >= gpus:
        return fill(nodes, gpus=gpus)
    return None


def fill(nodes: Sequence[FreeNode], *, gpus: int) -> list[NodeShare]:
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
        run_of = run_lengths([gpu.slot for gpu, _ in gpus])
        preferred = sorted(gpus, key=lambda g: (g[1].floor_rate, run_of[g[0].slot], g[0].slot))
        found.append(
            FreeNode(
                node=gpus[0][0].node,
                slots=tuple(gpu.slot for gpu, _ in preferred),
                gpus_total=totals[node_id],
            )
        )
    return found


def run_lengths(slots: Sequence[int]) -> dict[int, int]:
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


def _tightest(nodes: Sequence[FreeNode], *, gpus: int) -> FreeNode | None:
    fitting = [node for node in nodes if len(node.slots) >= gpus]
    return min(
        fitting,
        key=lambda n: (n.is_untouched and len(n.slots) > gpus, len(n.slots), n.node.slot_base),
        default=None,
    )
