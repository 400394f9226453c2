"""What was delivered of a lease: receipts, meter readings and outages made into whole GPU-seconds.

Who pays for a fault: the time of a GPU in an outage that is the hardware's or nobody's was not delivered and
goes back to the tenant. Time in an outage that the lease's own tenant caused was delivered, also where the
meters say that the GPU was gone meanwhile: it fell off the bus by the tenant's doing. For another lease the
same outage is not its tenant's and is refunded. How outages and meters make one sum, and no second is taken
twice, is told in `agents.metering`.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from agents import metering, outages
from agents.outages import OutageWindow
from agents.protocol import Cause
from marketplace.core.windows import Window
from scheduler.models import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the evidence says of a lease, in whole GPU-seconds: `busy <= delivered <= bought`.

    `metered` are the delivered GPU-seconds that meter readings cover; `is_fully_metered` says that every
    GPU has readings up to the end, so that none is still on its way. `outages` are clipped to the time
    between handover and end.
    """

    bought: int
    delivered: int
    metered: int
    busy: int
    energy_millijoules: int | None
    is_fully_metered: bool
    outages: tuple[OutageWindow, ...] = ()


def delivery_of(*, lease: Lease) -> Delivery:
    """Read the evidence of a lease that is over.

    Delivered is the time between the two receipts, which the lease carries clipped to its promise, less
    what the node itself says that a GPU was lost, and less the outages that its tenant did not cause. A
    lease that was handed over and has no instant of return delivered what its meters cover: that much is
    known, and no more. Busy is what the meters saw.
    """
    return _until(
        lease=lease,
        end=lease.returned_at or lease.ends_at,
        return_is_known=lease.returned_at is not None,
    )


def delivery_so_far(*, lease: Lease, at: dt.datetime) -> Delivery:
    """Read the evidence of a lease that is not settled, as far as it is known at `at`."""
    return _until(
        lease=lease, end=lease.returned_at or min(at, lease.ends_at), return_is_known=True
    )


def is_refunded(*, lease: Lease, outage: OutageWindow) -> bool:
    """Say whether an outage is at the owner's cost: unless the lease's own tenant caused it."""
    return outage.cause is not Cause.TENANT or outage.lease_id != lease.id


def _until(*, lease: Lease, end: dt.datetime, return_is_known: bool) -> Delivery:
    bought = lease.gpu_seconds_bought
    if lease.handed_over_at is None or not lease.handed_over_at < end:
        return Delivery(
            bought=bought,
            delivered=0,
            metered=0,
            busy=0,
            energy_millijoules=None,
            is_fully_metered=True,
        )
    window = Window(lease.handed_over_at, end)
    told = outages.within(gpu_uuids=lease.gpu_uuids, window=window)
    meters = metering.lease_meters(
        lease_id=lease.id, window=window, faults=_faults(lease=lease, told=told)
    )
    between_receipts = min(len(lease.gpu_uuids) * window.seconds, bought)
    metered = min(meters.gpu_seconds_delivered, between_receipts)
    had = max(metered, between_receipts - meters.gpu_seconds_undelivered)
    delivered = had if return_is_known else metered
    return Delivery(
        bought=bought,
        delivered=delivered,
        metered=metered,
        busy=min(meters.gpu_seconds_busy, delivered),
        energy_millijoules=meters.energy_millijoules,
        is_fully_metered=set(meters.gpus) >= set(lease.gpu_uuids)
        and meters.readings_until is not None
        and meters.readings_until >= end,
        outages=tuple(told),
    )


def _faults(*, lease: Lease, told: Sequence[OutageWindow]) -> dict[str, metering.Faults]:
    """Return the outages of each GPU by who bears them."""
    faults = {}
    for gpu_uuid in {outage.gpu_uuid for outage in told}:
        of_gpu = [outage for outage in told if outage.gpu_uuid == gpu_uuid]
        faults[gpu_uuid] = metering.Faults(
            refunded=[o.window for o in of_gpu if is_refunded(lease=lease, outage=o)],
            by_tenant=[o.window for o in of_gpu if not is_refunded(lease=lease, outage=o)],
        )
    return faults
