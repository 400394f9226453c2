"""Did an owner's machines work: idle, listed, sold, delivered and busy GPU-seconds, and income, in a period.

Each figure has its own source, and is None where that source says nothing:

- idle: since when the agents find a GPU free that they find free now. What was idle before is not kept.
- listed: published listings of today's selector, by their transitions, over GPUs that are present. A listing
  that offers only what is idle leaves no trace of when that was: where one selects a GPU, nothing is known.
- sold: the windows of leases, and of what is booked and has not started.
- delivered, busy, income: closed hours, what settlements added to them where the lease's time ended, and
  corrections where they were made. So they add up to what settlements say. Income is the owner's part of
  leases, less the credits that it bears; its part of cancellation fees, and what goes back of that when the
  time is sold again, belong to no machine.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from django.conf import settings
from django.db import connection
from django.db.models import Count

from agents.models import Gpu, Node
from agents.protocol import IdleState
from marketplace import listings
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.models import Listing, Organization
from marketplace.states import ListingMode, ListingStatus

GROUPS = ("node", "gpu_model", "region", "day")
NOT_IN_CATALOGUE = "not_in_catalogue"  # the group of GPUs whose model the market does not know
_DAY = dt.timedelta(days=1)
_KEYS = {
    "node": "n.id",
    "gpu_model": "r.gpu_model_id",
    "region": "n.region",
    "day": "to_char(d.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_SOLD = """
    SELECT {key}, sum(x.gpus
        * extract(epoch FROM least(x.ends_at, d.ends_at) - greatest(x.starts_at, d.starts_at)))
    FROM (
        SELECT l.node_id, l.reservation_id, cardinality(l.gpu_uuids) AS gpus, l.starts_at, l.ends_at
        FROM scheduler_lease l JOIN agents_node m ON m.id = l.node_id
        WHERE m.organization_id = %(owner)s
            AND l.starts_at < %(ends_at)s AND l.ends_at > %(starts_at)s
        UNION ALL
        SELECT a.node_id, a.reservation_id, upper(a.slots) - lower(a.slots), lower(a.period),
            upper(a.period)
        FROM scheduler_allocation a JOIN agents_node m ON m.id = a.node_id
        JOIN scheduler_reservation b ON b.id = a.reservation_id
        WHERE m.organization_id = %(owner)s AND a.live AND a.lease_id IS NULL
            AND b.status IN ('scheduled', 'active')
            AND a.period && tstzrange(%(starts_at)s, %(ends_at)s)
    ) x
    JOIN agents_node n ON n.id = x.node_id JOIN scheduler_reservation r ON r.id = x.reservation_id
    JOIN unnest(%(day_starts)s::timestamptz[], %(day_ends)s::timestamptz[]) AS d (starts_at, ends_at)
        ON x.starts_at < d.ends_at AND x.ends_at > d.starts_at
    GROUP BY 1
"""
_EARNED = """
    SELECT {key}, sum(x.delivered), sum(x.busy), bool_or(x.is_measured), sum(x.owner)
    FROM (
        SELECT h.lease_id, h.starts_at AS moment, h.gpu_seconds_delivered AS delivered,
            h.gpu_seconds_busy AS busy, true AS is_measured, h.owner_minor AS owner
        FROM billing_earnedhour h
        JOIN scheduler_lease l ON l.id = h.lease_id JOIN agents_node m ON m.id = l.node_id
        WHERE m.organization_id = %(owner)s
            AND h.starts_at >= %(starts_at)s AND h.starts_at < %(ends_at)s
        UNION ALL
        SELECT s.lease_id, least(l.closed_at, l.ends_at) - interval '1 microsecond',
            s.gpu_seconds_delivered - hours.delivered, s.gpu_seconds_busy - hours.busy,
            s.gpu_seconds_metered > 0, s.owner_minor - hours.owner - s.credit_of_owner_minor
        FROM billing_settlement s JOIN scheduler_lease l ON l.id = s.lease_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(h.gpu_seconds_delivered), 0) AS delivered,
                coalesce(sum(h.gpu_seconds_busy), 0) AS busy, coalesce(sum(h.owner_minor), 0) AS owner
            FROM billing_earnedhour h WHERE h.lease_id = s.lease_id
        ) hours
        WHERE s.owner_id = %(owner)s AND s.currency = %(currency)s
            AND least(l.closed_at, l.ends_at) > %(starts_at)s
            AND least(l.closed_at, l.ends_at) <= %(ends_at)s
        UNION ALL
        SELECT s.lease_id, c.corrected_at, c.gpu_seconds_delivered, c.gpu_seconds_busy,
            c.gpu_seconds_busy <> 0, c.owner_minor - c.credit_of_owner_minor
        FROM billing_correction c JOIN billing_settlement s ON s.id = c.settlement_id
        WHERE s.owner_id = %(owner)s AND s.currency = %(currency)s
            AND c.corrected_at >= %(starts_at)s AND c.corrected_at < %(ends_at)s
    ) x
    JOIN scheduler_lease l ON l.id = x.lease_id JOIN agents_node n ON n.id = l.node_id
    JOIN scheduler_reservation r ON r.id = l.reservation_id
    JOIN unnest(%(day_starts)s::timestamptz[], %(day_ends)s::timestamptz[]) AS d (starts_at, ends_at)
        ON x.moment >= d.starts_at AND x.moment < d.ends_at
    GROUP BY 1
"""


@dataclass(slots=True, kw_only=True)
class Use:
    """The GPU-seconds of some machines in a period, and what they earned their owner; None: not known."""

    idle: int | None = None
    listed: int | None = 0
    sold: int = 0
    delivered: int | None = 0
    busy: int | None = 0
    income: int = 0

    @property
    def has_work(self) -> bool:
        """Say whether there is anything to deliver, or to correct of what was."""
        return bool(self.sold or self.delivered)


@dataclass(frozen=True, slots=True)
class _Machine:
    """The GPUs of one model in one node that came at one instant."""

    node_id: str
    region: str
    fabric: str
    labels: dict[str, str]
    gpu_model_id: str | None
    since: dt.datetime
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """An owner's machines in a period, in all and by group."""

    window: Window
    total: Use
    groups: list[tuple[str, Use]]

    @property
    def currency(self) -> str:
        return str(settings.CURRENCY)


def utilization(
    *, owner: Organization, window: Window, group_by: str, at: dt.datetime
) -> Utilization:
    """Return what an owner's machines did in a period; a fixed number of queries.

    `group_by` is one of `GROUPS`. Days are of UTC. `at` is the end of what a running listing has offered.
    """
    parts = list(_days(window)) if group_by == "day" else [window]
    found: dict[str, Use] = {}
    if group_by == "day":
        found = {f"{part.starts_at:%Y-%m-%d}": Use() for part in parts}
    _add_listed(found, owner=owner, parts=parts, group_by=group_by, at=at)
    _add_idle(found, owner=owner, parts=parts, group_by=group_by)
    parameters: dict[str, str | dt.datetime | list[dt.datetime]] = {
        "owner": owner.pk,
        "currency": settings.CURRENCY,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
        "day_starts": [part.starts_at for part in parts],
        "day_ends": [part.ends_at for part in parts],
    }
    with connection.cursor() as cursor:
        cursor.execute(_SOLD.format(key=_KEYS[group_by]), parameters)
        for key, seconds in cursor.fetchall():
            use = found.setdefault(key, Use())
            use.sold = int(seconds)
            use.delivered = use.busy = None
        cursor.execute(_EARNED.format(key=_KEYS[group_by]), parameters)
        for key, delivered, busy, is_measured, income in cursor.fetchall():
            use = found.setdefault(key, Use())
            use.delivered = int(delivered)
            use.busy = int(busy) if is_measured or not delivered else None
            use.income = int(income)
    return Utilization(window=window, total=_total(found.values()), groups=sorted(found.items()))


def income(use: Use) -> Money:
    """Return what some machines earned, as money."""
    return Money(use.income, settings.CURRENCY)


def _add_listed(
    found: dict[str, Use],
    *,
    owner: Organization,
    parts: list[Window],
    group_by: str,
    at: dt.datetime,
) -> None:
    rows = [
        (listing, _published(listing, at=at))
        for listing in Listing.objects.filter(organization=owner).prefetch_related("transitions")
    ]
    for machine in _machines(owner):
        of_machine = [(row, windows) for row, windows in rows if _selects(row, machine)]
        always = _joined(
            window
            for row, windows in of_machine
            if row.mode == ListingMode.ALWAYS
            for window in windows
        )
        at_times = [
            window
            for row, windows in of_machine
            if row.mode != ListingMode.ALWAYS
            for window in windows
        ]
        for part in parts:
            use = found.setdefault(_key(machine, part=part, group_by=group_by), Use())
            if part.ends_at <= machine.since:
                continue
            span = Window(max(part.starts_at, machine.since), part.ends_at)
            if any(window.intersection(span) for window in at_times):
                use.listed = None
            if use.listed is not None:
                use.listed += machine.gpus * _seconds_within(always, span=span)


def _add_idle(
    found: dict[str, Use], *, owner: Organization, parts: list[Window], group_by: str
) -> None:
    free = Gpu.objects.visible_to(owner).filter(
        present=True,
        idle_state__in=(IdleState.FREE, IdleState.OFFERABLE),
        idle_since__isnull=False,
        measured_at__isnull=False,
    )
    for gpu in free.select_related("node"):
        assert gpu.idle_since is not None
        assert gpu.measured_at is not None
        if not gpu.idle_since < gpu.measured_at:
            continue
        machine = _machine(gpu.node, model=gpu.gpu_model_id, since=gpu.first_seen_at, gpus=1)
        for part in parts:
            known = Window(gpu.idle_since, gpu.measured_at).intersection(part)
            if known is not None:
                use = found.setdefault(_key(machine, part=part, group_by=group_by), Use())
                use.idle = (use.idle or 0) + known.seconds


def _machines(owner: Organization) -> Iterator[_Machine]:
    """Yield the owner's GPUs that are present, those that came together as one."""
    counted = (
        Gpu.objects.visible_to(owner)
        .filter(present=True)
        .values_list("node", "gpu_model", "first_seen_at")
        .annotate(gpus=Count("pk"))
        .order_by("node", "gpu_model", "first_seen_at")
    )
    nodes = Node.objects.visible_to(owner).in_bulk()
    for node_id, model, since, gpus in counted:
        yield _machine(nodes[node_id], model=model, since=since, gpus=gpus)


def _machine(node: Node, *, model: str | None, since: dt.datetime, gpus: int) -> _Machine:
    return _Machine(node.pk, node.region, node.fabric, node.labels, model, since, gpus)


def _key(machine: _Machine, *, part: Window, group_by: str) -> str:
    match group_by:
        case "node":
            return machine.node_id
        case "gpu_model":
            return machine.gpu_model_id or NOT_IN_CATALOGUE
        case "region":
            return machine.region
        case _:
            assert group_by == "day", group_by
            return f"{part.starts_at:%Y-%m-%d}"


def _selects(listing: Listing, machine: _Machine) -> bool:
    return (
        listing.gpu_model_id == machine.gpu_model_id
        and listing.region in {"", machine.region}
        and listing.fabric in {"", machine.fabric}
        and listing.labels.items() <= machine.labels.items()
    )


def _published(listing: Listing, *, at: dt.datetime) -> list[Window]:
    """Return when a listing was published, within its period and without its blackouts."""
    found: list[Window] = []
    since: dt.datetime | None = None
    for move in (*listing.transitions.all(), None):
        until = at if move is None else move.at
        if since is not None:
            first = max(since, listing.starts_at)
            end = min(until, listing.ends_at or until)
            found += [Window(first, end)] if first < end else []
        since = until if move and move.to_status == ListingStatus.PUBLISHED else None
    for blackout in listings.blackouts_of(listing=listing):
        found = [rest for window in found for rest in window.less(blackout)]
    return found


def _joined(windows: Iterable[Window]) -> list[Window]:
    """Return windows that do not overlap and cover the same time, in order."""
    joined: list[Window] = []
    for window in sorted(windows):
        if joined and window.starts_at <= joined[-1].ends_at:
            joined[-1] = Window(joined[-1].starts_at, max(joined[-1].ends_at, window.ends_at))
        else:
            joined.append(window)
    return joined


def _seconds_within(windows: Iterable[Window], *, span: Window) -> int:
    parts = (window.intersection(span) for window in windows)
    return sum(part.seconds for part in parts if part is not None)


def _days(window: Window) -> Iterator[Window]:
    """Yield the days of UTC that a window touches, the first and the last cut to it."""
    starts_at = window.starts_at.astimezone(dt.UTC)
    while starts_at < window.ends_at:
        midnight = starts_at.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
        yield Window(starts_at, min(midnight, window.ends_at))
        starts_at = midnight


def _total(parts: Collection[Use]) -> Use:
    """Return the sum: of what is known, and for what was listed None where it is not known of a part."""
    listed = [part.listed for part in parts]
    idle = [part.idle for part in parts if part.idle is not None]
    return Use(
        idle=sum(idle) if idle else None,
        listed=None if None in listed else sum(seconds or 0 for seconds in listed),
        sold=sum(part.sold for part in parts),
        delivered=_sum_known([part.delivered for part in parts if part.has_work]),
        busy=_sum_known([part.busy for part in parts if part.has_work]),
        income=sum(part.income for part in parts),
    )


def _sum_known(parts: Collection[int | None]) -> int | None:
    """Return the sum of what is known; None where there is something and nothing of it is known."""
    known = [part for part in parts if part is not None]
    return sum(known) if known or not parts else None
