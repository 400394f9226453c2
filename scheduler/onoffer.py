"""Why a GPU is or is not on offer just now: each thing that stands against it, with a code and in words.

A GPU is on offer when it may be sold (`agents.inventory`), a published listing selects it now and takes it
as it is, and nobody has it. What a listing asks of a request, its blackouts and its shortest duration, is
not asked here: they refuse windows, not GPUs.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from django.conf import settings
from django.db.models import (
    Case,
    DurationField,
    Exists,
    ExpressionWrapper,
    F,
    FloatField,
    OuterRef,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.functions import Extract

from agents import health, idleness, inventory
from agents.models import Alarm, Gpu, Outage
from agents.protocol import Health, IdleState
from agents.states import NodeStatus
from marketplace.core.windows import format_instant
from marketplace.models import Listing
from marketplace.states import ListingMode, ListingStatus
from scheduler.models import Allocation, Lease
from scheduler.states import LEASE_ARROWS, LeaseStatus

OPEN_LEASES = [status for status in LeaseStatus if not LEASE_ARROWS.is_final(status)]


class Code(StrEnum):
    """What may stand against a GPU. Codes are part of the API: they are added, never renamed."""

    ABSENT = "absent"
    NOT_IN_CATALOGUE = "not_in_catalogue"
    SIMULATED_HARDWARE = "simulated_hardware"
    MIG_ENABLED = "mig_enabled"
    VGPU_HOST = "vgpu_host"
    NODE_DRAINING = "node_draining"
    NODE_REVOKED = "node_revoked"
    NODE_STALE = "node_stale"
    READER_HUNG = "reader_hung"
    ALARM = "alarm"
    UNHEALTHY = "unhealthy"
    OUTAGE = "outage"
    QUARANTINED_BY_MARKET = "quarantined_by_market"
    NOT_LISTED = "not_listed"
    LISTING_PAUSED = "listing_paused"
    IDLENESS_UNKNOWN = "idleness_unknown"
    BUSY = "busy"
    PARKED = "parked"
    OWNER_SCHEDULER = "owner_scheduler"
    NOT_IDLE_LONG_ENOUGH = "not_idle_long_enough"
    COOLING_DOWN = "cooling_down"
    LEASED = "leased"
    BOOKED = "booked"
    TURNING_ROUND = "turning_round"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that stands against a GPU."""

    code: Code
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Whether a GPU is on offer just now, and if not, everything that stands against it."""

    reasons: tuple[Reason, ...]

    @property
    def on_offer(self) -> bool:
        return not self.reasons


@dataclass(slots=True, kw_only=True)
class _Facts:
    """What is known beside the GPUs themselves."""

    listings: Mapping[tuple[str, str | None], Sequence[Listing]]
    alarms: dict[str, list[Alarm]] = field(default_factory=lambda: defaultdict(list))
    outages: dict[str, Outage] = field(default_factory=dict)  # by GPU
    leased: set[str] = field(default_factory=set)  # UUIDs
    booked: dict[str, list[Allocation]] = field(default_factory=lambda: defaultdict(list))


def annotated(*, gpus: QuerySet[Gpu], at: dt.datetime) -> QuerySet[Gpu]:
    """Return the GPUs with `listed`, `leased`, `idle` and `on_offer` as they are at `at`, to filter by.

    `on_offer` is true for exactly those for which `read` gives no reason.
    """
    idle_seconds = Extract(
        ExpressionWrapper(Value(at) - F("idle_since"), output_field=DurationField()), "epoch"
    )
    may_return = Q(offered_again_at__isnull=True) | Q(offered_again_at__lte=at)
    selecting = _selecting(at=at)
    taking = selecting.filter(
        Q(mode=ListingMode.ALWAYS) | Q(idle_for_seconds__lte=OuterRef("offered_idle_seconds"))
    )
    holding = Lease.objects.filter(
        node=OuterRef("node"), status__in=OPEN_LEASES, gpu_uuids__contains=[OuterRef("uuid")]
    )
    booking = Allocation.objects.filter(
        node=OuterRef("node"), slots__contains=OuterRef("slot"), occupied__contains=at
    )
    sellable = inventory.sellable_gpus(at=at).filter(pk=OuterRef("pk"))
    return gpus.annotate(
        offered_idle_seconds=Case(
            When(
                may_return,
                idle_state=IdleState.OFFERABLE.value,
                idle_since__isnull=False,
                then=idle_seconds,
            ),
            default=Value(-1.0),
            output_field=FloatField(),
        ),
        listed=Exists(selecting),
        leased=Exists(holding),
        idle=idleness.is_idle(),
        on_offer=Exists(sellable) & Exists(taking) & ~Exists(holding) & ~Exists(booking),
    )


def read(*, gpus: Iterable[Gpu], at: dt.datetime) -> dict[str, Offer]:
    """Return the offer of each GPU by its id; five queries however many there are, if nodes are at hand."""
    rows = list(gpus)
    facts = _facts(gpus=rows, at=at)
    return {gpu.pk: Offer(reasons=tuple(_reasons(gpu=gpu, facts=facts, at=at))) for gpu in rows}


def _selecting(*, at: dt.datetime) -> QuerySet[Listing]:
    """Return the published listings that select the GPU of the query around it, at `at`."""
    return Listing.objects.published().filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=at),
        Q(region="") | Q(region=OuterRef("node__region")),
        Q(fabric="") | Q(fabric=OuterRef("node__fabric")),
        starts_at__lte=at,
        currency=settings.CURRENCY,
        organization=OuterRef("node__organization"),
        gpu_model=OuterRef("gpu_model"),
        labels__contained_by=OuterRef("node__labels"),
    )


def _facts(*, gpus: Sequence[Gpu], at: dt.datetime) -> _Facts:
    nodes = {gpu.node_id for gpu in gpus}
    listings: dict[tuple[str, str | None], list[Listing]] = defaultdict(list)
    for listing in Listing.objects.filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=at),
        starts_at__lte=at,
        currency=settings.CURRENCY,
        status__in=[ListingStatus.PUBLISHED, ListingStatus.PAUSED],
        organization__in={gpu.node.organization_id for gpu in gpus},
        gpu_model__in={gpu.gpu_model_id for gpu in gpus if gpu.gpu_model_id},
    ):
        listings[listing.organization_id, listing.gpu_model_id].append(listing)
    facts = _Facts(listings=listings)
    for alarm in Alarm.objects.filter(node__in=nodes, settled_at__isnull=True):
        facts.alarms[alarm.node_id].append(alarm)
    for outage in Outage.objects.filter(gpu__node__in=nodes, ends_at__isnull=True):
        facts.outages[outage.gpu_id] = outage
    for uuids in Lease.objects.filter(node__in=nodes, status__in=OPEN_LEASES).values_list(
        "gpu_uuids", flat=True
    ):
        facts.leased.update(uuids)
    for place in Allocation.objects.filter(node__in=nodes, occupied__contains=at):
        facts.booked[place.node_id].append(place)
    return facts


def _reasons(*, gpu: Gpu, facts: _Facts, at: dt.datetime) -> Iterator[Reason]:
    yield from _against_the_device(gpu=gpu)
    yield from _against_the_node(gpu=gpu, at=at)
    for alarm in facts.alarms[gpu.node_id]:
        if alarm.gpu_uuid in ("", gpu.uuid):
            yield Reason(code=Code.ALARM, detail=alarm.detail)
    if gpu.health != Health.HEALTHY:
        words = f"{gpu.health}: {gpu.health_reason}" if gpu.health_reason else gpu.health
        yield Reason(code=Code.UNHEALTHY, detail=words)
    if gpu.health == Health.HEALTHY and gpu.pk in facts.outages:
        outage = facts.outages[gpu.pk]
        yield Reason(code=Code.OUTAGE, detail=f"{outage.health}: {outage.reason}")
    if gpu.quarantined_by_market:
        yield Reason(code=Code.QUARANTINED_BY_MARKET, detail=gpu.quarantined_by_market)
    leased = gpu.uuid in facts.leased
    yield from _against_the_listings(gpu=gpu, facts=facts, leased=leased, at=at)
    if leased:
        yield Reason(code=Code.LEASED, detail="a lease has it")
        return
    for place in facts.booked[gpu.node_id]:
        if place.slots.lower <= gpu.slot < place.slots.upper:
            if place.live and at < place.period.upper:
                yield Reason(code=Code.BOOKED, detail="it is promised for this hour")
            else:
                ready = format_instant(place.occupied.upper)
                detail = f"its last tenant has gone; it is ready for the next one at {ready}"
                yield Reason(code=Code.TURNING_ROUND, detail=detail)


def _against_the_device(*, gpu: Gpu) -> Iterator[Reason]:
    if not gpu.present:
        yield Reason(code=Code.ABSENT, detail="it is not in its machine's last inventory")
    if gpu.gpu_model_id is None:
        detail = f"{gpu.product_name} is not in the catalogue"
        yield Reason(code=Code.NOT_IN_CATALOGUE, detail=detail)
    if gpu.mig_enabled:
        yield Reason(code=Code.MIG_ENABLED, detail="MIG has cut it, and only whole GPUs are sold")
    if gpu.virtualization_mode in inventory.VGPU_HOST_MODES:
        yield Reason(code=Code.VGPU_HOST, detail="its machine cuts it for guests (vGPU)")


def _against_the_node(*, gpu: Gpu, at: dt.datetime) -> Iterator[Reason]:
    node = gpu.node
    if node.simulated and not settings.ALLOW_SIMULATED_HARDWARE:
        yield Reason(code=Code.SIMULATED_HARDWARE, detail="only real GPUs are sold here")
    if node.status == NodeStatus.DRAINING:
        yield Reason(code=Code.NODE_DRAINING, detail="its machine is draining: resume it")
    if node.status == NodeStatus.REVOKED:
        yield Reason(code=Code.NODE_REVOKED, detail="its machine was revoked")
    if node.last_report_at is None:
        yield Reason(code=Code.NODE_STALE, detail="its machine has never reported")
    elif node.last_report_at < health.fresh_since(at=at):
        detail = f"its machine was last heard {format_instant(node.last_report_at)}"
        yield Reason(code=Code.NODE_STALE, detail=detail)
    if node.reader_hung_since is not None:
        detail = f"the driver has not answered since {format_instant(node.reader_hung_since)}"
        yield Reason(code=Code.READER_HUNG, detail=detail)


def _against_the_listings(
    *, gpu: Gpu, facts: _Facts, leased: bool, at: dt.datetime
) -> Iterator[Reason]:
    matching = [
        listing
        for listing in facts.listings.get((gpu.node.organization_id, gpu.gpu_model_id), ())
        if listing.region in ("", gpu.node.region)
        and listing.fabric in ("", gpu.node.fabric)
        and listing.labels.items() <= gpu.node.labels.items()
    ]
    published = [row for row in matching if row.status == ListingStatus.PUBLISHED]
    if not matching:
        yield Reason(code=Code.NOT_LISTED, detail="no published listing selects it now")
    elif not published:
        names = ", ".join(sorted(listing.name for listing in matching))
        yield Reason(code=Code.LISTING_PAUSED, detail=f"paused: {names}")
    elif all(listing.mode == ListingMode.WHEN_IDLE for listing in published):
        idle_for_seconds = min(listing.idle_for_seconds for listing in published)
        yield from _against_its_idleness(
            gpu=gpu, idle_for_seconds=idle_for_seconds, leased=leased, at=at
        )


def _against_its_idleness(
    *, gpu: Gpu, idle_for_seconds: int, leased: bool, at: dt.datetime
) -> Iterator[Reason]:
    """Yield why a GPU that is listed when idle is not idle in the sense of its listings."""
    words = gpu.idle_reason
    match IdleState(gpu.idle_state):
        case IdleState.UNKNOWN:
            detail = words or "its agent has not watched it for long enough"
            yield Reason(code=Code.IDLENESS_UNKNOWN, detail=detail)
        case IdleState.BUSY:
            if not leased:
                yield Reason(code=Code.BUSY, detail=words or "it works")
        case IdleState.PARKED:
            detail = words or "memory is held without work"
            yield Reason(code=Code.PARKED, detail=detail)
        case IdleState.FREE:
            detail = words or "the owner's scheduler has not let it go"
            yield Reason(code=Code.OWNER_SCHEDULER, detail=detail)
        case IdleState.OFFERABLE:
            again_at = gpu.offered_again_at
            idle = (at - gpu.idle_since).total_seconds() if gpu.idle_since else -1
            if idle < idle_for_seconds:
                detail = f"idle for {max(idle, 0):.0f} of {idle_for_seconds} s"
                yield Reason(code=Code.NOT_IDLE_LONG_ENOUGH, detail=detail)
            if again_at is not None and at < again_at:
                detail = (
                    f"withdrawn {gpu.withdrawals} times on {gpu.withdrawn_on}: "
                    f"offered again {format_instant(again_at)}"
                )
                yield Reason(code=Code.COOLING_DOWN, detail=detail)
