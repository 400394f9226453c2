"""What was delivered of a lease: receipts, meter readings and outages made into whole GPU-seconds.

Who pays for a fault: the time of a GPU in an outage that is the hardware's or nobody's was not delivered and
goes back to the tenant. Time in an outage that the lease's own tenant caused was delivered, also where the
meters say that the GPU was gone meanwhile: it fell off the bus by the tenant's doing. For another lease the
same outage is not its tenant's and is refunded. How outages and meters make one sum, and no second is taken
twice, is told in `agents.metering`.

Hours and lots differ in price, so what was delivered is counted apart for each rate of the GPUs' tariffs, and
for each floor of their owners.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from agents import grants, metering, outages
from agents.outages import OutageWindow
from agents.protocol import Cause, ReceiptKind
from billing import silences
from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import Window, to_instant
from scheduler.lots import Lots
from scheduler.models import Lease
from scheduler.tariffs import MICROS


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the evidence says of a lease, in whole GPU-seconds: `busy <= delivered <= bought`.

    `metered` are the delivered GPU-seconds that meter readings cover; `is_fully_metered` says that every
    GPU has readings up to the end, so that none is still on its way. `measured` are those of which it is
    known whether they were busy; `attached` those in which a process held the GPU's memory, None where
    nothing tells. `worth` is what the tariffs ask for the delivered ones, and `floor` what their owner's
    floors ask, exact, in major units. `outages` are clipped to the time between handover and end.
    """

    bought: int
    delivered: int
    metered: int
    busy: int
    energy_millijoules: int | None
    is_fully_metered: bool
    worth: Fraction = Fraction(0)
    floor: Fraction = Fraction(0)
    measured: int = 0
    attached: int | None = None
    outages: tuple[OutageWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a lease's time in which one rate and one floor hold, in micros per GPU-hour."""

    window: Window
    rate_micros: int
    floor_micros: int


def delivery_of(*, lease: Lease) -> Delivery:
    """Read the evidence of a lease that is over.

    Delivered is the time between the two receipts, which the lease carries clipped to its promise, less
    what the node itself says that a GPU was lost, and less the outages that its tenant did not cause. A
    lease that was handed over and has no instant of return delivered what its meters cover: that much is
    known, and no more. A return receipt that came after the lease was given up counts all the same, and what
    becomes of one without any is told in `billing.silences`. Busy is what the meters saw.
    """
    returned_at = returned_at_of(lease=lease)
    return _between(
        lease=lease,
        until=returned_at or lease.ends_at,
        bought=lease.gpu_seconds_bought,
        return_is_known=returned_at is not None,
    )


def delivery_so_far(*, lease: Lease, at: dt.datetime) -> Delivery:
    """Read the evidence of a lease that is not settled, as far as it is known at `at`."""
    return _between(
        lease=lease,
        until=lease.returned_at or min(at, lease.ends_at),
        bought=lease.gpu_seconds_bought,
        return_is_known=True,
    )


def delivery_within(*, lease: Lease, window: Window) -> Delivery:
    """Read the evidence of a part of a lease's time that is over; the lease may still run."""
    return _between(
        lease=lease,
        since=window.starts_at,
        until=min(window.ends_at, lease.returned_at or lease.ends_at),
        bought=len(lease.gpu_uuids) * window.seconds,
        return_is_known=True,
    )


def delivered_by_window(
    *, lease: Lease, gpu_uuids: Collection[str], windows: Sequence[Window]
) -> list[int]:
    """Return the GPU-seconds that some GPUs of a lease that is over delivered in each of some windows.

    Windows lie within the time from the handover to the return; what is said of the lease as a whole by
    `delivery_of` is made of the same evidence.
    """
    if not windows:
        return []
    hull = Window(min(w.starts_at for w in windows), max(w.ends_at for w in windows))
    told = outages.within(gpu_uuids=list(gpu_uuids), window=hull)
    found = metering.lease_meters_by_window(
        lease_id=lease.id,
        windows=windows,
        faults=_faults(lease=lease, told=told),
        gpu_uuids=gpu_uuids,
    )
    return_is_known = returned_at_of(lease=lease) is not None
    return [
        _had(meters, whole=len(gpu_uuids) * window.seconds, return_is_known=return_is_known)[1]
        for window, meters in zip(windows, found, strict=True)
    ]


def span_of(*, lease: Lease) -> Window | None:
    """Return when the tenant of a lease that is over had its GPUs; None where it never had."""
    until = returned_at_of(lease=lease) or lease.ends_at
    if lease.handed_over_at is None or not lease.handed_over_at < until:
        return None
    return Window(lease.handed_over_at, until)


def is_refunded(*, lease: Lease, outage: OutageWindow) -> bool:
    """Say whether an outage is at the owner's cost: unless the lease's own tenant caused it."""
    return outage.cause is not Cause.TENANT or outage.lease_id != lease.id


def _between(
    *,
    lease: Lease,
    until: dt.datetime,
    bought: int,
    return_is_known: bool,
    since: dt.datetime | None = None,
) -> Delivery:
    handed_over_at = lease.handed_over_at
    if handed_over_at is not None and since is not None:
        handed_over_at = max(handed_over_at, since)
    if handed_over_at is None or not handed_over_at < until:
        return Delivery(
            bought=bought,
            delivered=0,
            metered=0,
            busy=0,
            energy_millijoules=None,
            is_fully_metered=True,
        )
    window = Window(handed_over_at, until)
    told = outages.within(gpu_uuids=lease.gpu_uuids, window=window)
    faults = _faults(lease=lease, told=told)
    delivered = metered = busy = measured = worth_micros = floor_micros = 0
    attached: int | None = None
    found: list[metering.LeaseMeters] = []
    for number, gpu_uuids in _gpus_by_lot(lease).items():
        pieces = _pieces(lease=lease, lot=number, window=window)
        of_pieces = metering.lease_meters_by_window(
            lease_id=lease.id,
            windows=[piece.window for piece in pieces],
            faults={gpu: fault for gpu, fault in faults.items() if gpu in gpu_uuids},
            gpu_uuids=gpu_uuids,
        )
        for piece, meters in zip(pieces, of_pieces, strict=True):
            whole = min(len(gpu_uuids) * piece.window.seconds, bought - delivered)
            seen, had = _had(meters, whole=whole, return_is_known=return_is_known)
            delivered += had
            metered += seen
            busy += min(meters.gpu_seconds_busy, had)
            measured += min(meters.gpu_seconds_measured, had)
            if meters.gpu_seconds_attached is not None:
                attached = (attached or 0) + min(meters.gpu_seconds_attached, had)
            worth_micros += piece.rate_micros * had
            floor_micros += piece.floor_micros * had
        found += of_pieces
    energies = [m.energy_millijoules for m in found if m.energy_millijoules is not None]
    return Delivery(
        bought=bought,
        delivered=delivered,
        metered=metered,
        busy=busy,
        energy_millijoules=sum(energies) if energies else None,
        is_fully_metered={gpu for meters in found for gpu in meters.gpus} >= set(lease.gpu_uuids)
        and all(m.readings_until is not None and m.readings_until >= until for m in found),
        worth=Fraction(worth_micros, MICROS * SECONDS_PER_HOUR),
        floor=Fraction(floor_micros, MICROS * SECONDS_PER_HOUR),
        measured=measured,
        attached=attached,
        outages=tuple(told),
    )


def _had(meters: metering.LeaseMeters, *, whole: int, return_is_known: bool) -> tuple[int, int]:
    """Return the GPU-seconds of some that meters cover, and those that were delivered."""
    seen = min(meters.gpu_seconds_delivered, whole)
    return seen, max(seen, whole - meters.gpu_seconds_undelivered) if return_is_known else seen


def returned_at_of(*, lease: Lease) -> dt.datetime | None:
    """Return when the tenant had the GPUs no more, by the node's receipt before all else."""
    if lease.handed_over_at is None:
        return lease.returned_at
    receipt = grants.receipt(lease_id=lease.pk, lease_epoch=lease.epoch, kind=ReceiptKind.RETURN)
    if receipt is None:
        return silences.counts_until(lease=lease)
    return min(max(receipt.at, lease.handed_over_at), lease.ends_at)


def _gpus_by_lot(lease: Lease) -> dict[int, frozenset[str]]:
    """Return the GPUs of a lease by the number of their lot."""
    found: dict[int, set[str]] = defaultdict(set)
    for gpu_uuid, number in zip(lease.gpu_uuids, lease.lot_numbers, strict=True):
        found[number].add(gpu_uuid)
    return {number: frozenset(gpus) for number, gpus in sorted(found.items())}


def _pieces(*, lease: Lease, lot: int, window: Window) -> list[_Piece]:
    """Cut a window where the rate of a lot changes, or the floor of its owners."""
    priced = Lots.from_json(lease.reservation.lots).lots[lot]
    pieces = []
    for rate in priced.tariff.segments:
        for floor in priced.floors.segments:
            starts, ends = max(rate.starts, floor.starts), min(rate.ends, floor.ends)
            if starts < ends:
                part = window.intersection(Window(to_instant(starts), to_instant(ends)))
                if part is not None:
                    pieces.append(_Piece(part, rate.rate_micros, floor.rate_micros))
    assert pieces, f"{lease.pk}: no price for any of {window}"
    assert pieces[0].window.starts_at == window.starts_at, lease.pk
    assert pieces[-1].window.ends_at == window.ends_at, lease.pk
    return pieces


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
