"""What counts as a fault of a lease's GPUs: the node's own word that they cannot be used, never its silence.

A GPU that is gone counts at once. One that is quarantined must have been so for a minute, so that a flicker
costs nobody a running job; one that flickers three times in an hour counts also while it works. The tenant's
own doing is no fault of the GPUs: whoever breaks them gets no others.
"""

import datetime as dt
from collections import Counter

from django.db.models import Count, Q, QuerySet

from agents import outages
from agents.models import Gpu, Outage
from agents.protocol import Cause, Health
from agents.states import NodeStatus
from marketplace.states import Tier
from scheduler.models import Lease
from scheduler.states import LeaseStatus

QUARANTINE_PATIENCE_SECONDS = 60  # the agent's own tests of a suspect GPU take half of that
FLAPS_MAX = 3  # outages of one GPU within `FLAP_SECONDS` that a lease bears
FLAP_SECONDS = 3_600


def suspects(*, at: dt.datetime) -> QuerySet[Lease]:
    """Return the active firm leases of which something speaks of a fault; `has_fault` looks closer."""
    # Lists that do not depend on the lease: each is made once, not for each of all leases that run.
    flapping = (
        Outage.objects.filter(starts_at__gt=at - dt.timedelta(seconds=FLAP_SECONDS))
        .exclude(lease_id="")
        .values("lease_id", "gpu")
        .annotate(count=Count("pk"))
        .filter(count__gte=FLAPS_MAX)
        .values("lease_id")
    )
    lasting = Outage.objects.filter(ends_at__isnull=True).values("gpu__node")
    gone = Gpu.objects.filter(present=False).values("node")
    return Lease.objects.filter(
        Q(node__in=lasting)
        | Q(node__in=gone)
        | Q(pk__in=flapping)
        | Q(node__status=NodeStatus.REVOKED),
        status=LeaseStatus.ACTIVE,
        reservation__tier=Tier.FIRM,
        ends_at__gt=at,
    )


def has_fault(*, lease: Lease, at: dt.datetime) -> bool:
    """Say whether a lease's GPUs cannot be used, by positive evidence and not by its tenant's doing."""
    if lease.node.status == NodeStatus.REVOKED:
        return True
    gpus = Gpu.objects.filter(node=lease.node_id, uuid__in=lease.gpu_uuids, present=True)
    if gpus.count() < len(lease.gpu_uuids):
        return True
    quarantined_by = at - dt.timedelta(seconds=QUARANTINE_PATIENCE_SECONDS)
    for outage in outages.open_for(gpu_uuids=lease.gpu_uuids):
        patience_is_over = outage.health == Health.LOST or outage.starts_at <= quarantined_by
        if patience_is_over and not _is_of_tenant(outage, lease=lease):
            return True
    recent = outages.of_lease(lease_id=lease.pk).filter(
        starts_at__gt=at - dt.timedelta(seconds=FLAP_SECONDS)
    )
    flaps = Counter(row.gpu_id for row in recent if not _is_of_tenant(row, lease=lease))
    return any(count >= FLAPS_MAX for count in flaps.values())


def _is_of_tenant(outage: Outage, *, lease: Lease) -> bool:
    return outage.cause == Cause.TENANT and outage.lease_id == lease.pk
