"""Times in which GPUs could not be used, and whose doing that was: derived from what their nodes told.

An outage is what one health event says, `quarantined` or `lost`, until the next event of the same GPU. So it
can be rebuilt from the events at any time, and comes out the same in whatever order and however often they
arrive. Where a reading says it and no event does, as from a node of the first protocol, the reading opens
the outage, with nobody to blame; an event that tells of that time takes its place.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Q, QuerySet

from agents import protocol
from agents.models import Gpu, GpuEvent, Grant, Outage
from agents.protocol import Cause, EventKind, Health
from marketplace.core.windows import Window

GRAVE = frozenset({Health.QUARANTINED.value, Health.LOST.value})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageWindow:
    """The part of an outage of one GPU that lies in the time that was asked for; half-open.

    `lease_id` is the lease that had the GPU when the outage began, empty where none had.
    """

    gpu_uuid: str
    window: Window
    health: Health
    cause: Cause
    reason: str
    lease_id: str


def follow_events(*, gpu_id: str, since: dt.datetime) -> None:
    """Make the outages of a GPU those that its health events tell, from `since` on.

    The caller holds the row of the GPU's node. The event before `since` counts too: it ended another way.
    """
    told = GpuEvent.objects.filter(gpu_id=gpu_id, kind=EventKind.HEALTH)
    before = told.filter(at__lt=since).order_by("-at").values_list("at", flat=True).first()
    order = ("at", "enrolment", "epoch", "sequence")
    events = list(told.filter(at__gte=since if before is None else before).order_by(*order))
    _replace_provisional(gpu_id=gpu_id, events=events)
    stored = {
        outage.opened_by_id: outage
        for outage in Outage.objects.filter(gpu_id=gpu_id, opened_by__in=events)
    }
    ends: list[dt.datetime | None] = [*(event.at for event in events[1:]), None]
    fresh = []
    for event, ends_at in zip(events, ends, strict=True):
        outage = stored.get(event.pk)
        if event.health not in GRAVE or ends_at == event.at:
            if outage is not None:
                outage.delete()
        elif outage is None:
            fresh.append(_of_event(event=event, ends_at=ends_at))
        elif ends_at is not None and outage.ends_at != ends_at:
            Outage.objects.filter(pk=outage.pk).update(ends_at=ends_at)
    # At last: of one GPU only one outage may be open, and the one before is closed only now.
    Outage.objects.bulk_create(fresh)


def follow_reading(*, gpu: Gpu, reading: protocol.Reading) -> None:
    """Open or close an outage by the newest reading of a GPU, which still has its earlier state.

    Nothing is asked of the database unless the one or the other says quarantined or lost.
    """
    is_grave = reading.health.value in GRAVE
    if not is_grave and gpu.health not in GRAVE:
        return
    at = reading.measured_at
    told = GpuEvent.objects.filter(gpu=gpu, kind=EventKind.HEALTH)
    if told.filter(at__gt=at).exists() or (is_grave and told.filter(at=at).exists()):
        return
    still_open = Outage.objects.filter(gpu=gpu, ends_at__isnull=True)
    if is_grave and not still_open.exists():
        Outage.objects.create(
            gpu=gpu,
            health=reading.health,
            cause=Cause.UNKNOWN,
            reason=reading.health_reason,
            lease_id=_lease_with(gpu=gpu, at=at),
            starts_at=at,
        )
    elif not is_grave:
        still_open.filter(starts_at__lte=at).update(ends_at=at)


def open_for(*, gpu_uuids: Iterable[str]) -> QuerySet[Outage]:
    """Return the outages that last, at most one for each of these GPUs."""
    return (
        Outage.objects.filter(gpu__uuid__in=list(gpu_uuids), ends_at__isnull=True)
        .select_related("gpu")
        .order_by("gpu__uuid")
    )


def of_lease(*, lease_id: str) -> QuerySet[Outage]:
    """Return the outages that began while a lease had the GPU, the oldest first."""
    return Outage.objects.filter(lease_id=lease_id).select_related("gpu").order_by("starts_at")


def between(*, gpu_uuid: str, window: Window) -> list[OutageWindow]:
    """Return what of a GPU's outages lies in a window, in the order of time; no two overlap."""
    return within(gpu_uuids=[gpu_uuid], window=window)


def within(*, gpu_uuids: Collection[str], window: Window) -> list[OutageWindow]:
    """Return what of some GPUs' outages lies in a window, GPU after GPU, each in the order of time."""
    rows = (
        Outage.objects.filter(
            Q(ends_at__isnull=True) | Q(ends_at__gt=window.starts_at),
            gpu__uuid__in=list(gpu_uuids),
            starts_at__lt=window.ends_at,
        )
        .select_related("gpu")
        .order_by("gpu__uuid", "starts_at")
    )
    found = []
    for row in rows:
        ends_at = window.ends_at if row.ends_at is None else row.ends_at
        part = (
            Window(row.starts_at, ends_at).intersection(window) if row.starts_at < ends_at else None
        )
        if part is not None:
            found.append(
                OutageWindow(
                    gpu_uuid=row.gpu.uuid,
                    window=part,
                    health=Health(row.health),
                    cause=Cause(row.cause),
                    reason=row.reason,
                    lease_id=row.lease_id,
                )
            )
    return found


def _of_event(*, event: GpuEvent, ends_at: dt.datetime | None) -> Outage:
    return Outage(
        gpu_id=event.gpu_id,
        health=event.health,
        cause=event.cause,
        reason=event.reason,
        lease_id=event.lease_id,
        starts_at=event.at,
        ends_at=ends_at,
        opened_by=event,
    )


def _replace_provisional(*, gpu_id: str, events: Sequence[GpuEvent]) -> None:
    """Let outages that a reading opened give way to events that tell of the same time."""
    provisional = Outage.objects.filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=events[0].at),
        gpu_id=gpu_id,
        opened_by__isnull=True,
    )
    for outage in provisional:
        known = [event for event in events if event.at <= outage.starts_at]
        later = [event.at for event in events if event.at > outage.starts_at]
        if known and known[-1].health in GRAVE:
            outage.delete()
        elif later and (outage.ends_at is None or later[0] < outage.ends_at):
            Outage.objects.filter(pk=outage.pk).update(ends_at=later[0])


def _lease_with(*, gpu: Gpu, at: dt.datetime) -> str:
    """Return the lease that had a GPU at an instant, by the market's own grants; empty when none had."""
    grant = (
        Grant.objects.filter(
            node_id=gpu.node_id,
            gpu_uuids__contains=[gpu.uuid],
            reported_state__in=(protocol.LeaseState.ACTIVE, protocol.LeaseState.STOPPING),
            not_before__lte=at,
            not_after__gt=at,
        )
        .order_by("not_before")
        .first()
    )
    return "" if grant is None else grant.lease_id
