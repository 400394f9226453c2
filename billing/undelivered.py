"""Why bought GPU-seconds were not delivered: read from the evidence, never guessed, adding up to the second.

Within a lease the time before its handover, the time after its return, and the outages that are refunded each
have their cause; what its meters missed without any of them is unknown. Outside of all leases lies what came
after one that broke off, until another took its place or the reservation ended, and that has the cause of the
break. A settlement keeps the sums with its evidence, so the reasons of a bill are those of its day; one that
was made before they were kept says unknown.
"""

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from django.db.models import Q, Sum

from agents.models import NodeTransition
from agents.states import NodeStatus
from billing import month_movements
from billing.deliveries import Delivery, is_refunded, returned_at_of
from billing.models import Posting, Settlement
from billing.states import AccountKind, EntryKind, Side, UndeliveredReason
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseReason, LeaseStatus

EVIDENCE_KEY = "undelivered_by_reason"
_NO_HANDOVER = (
    LeaseReason.HANDOVER_FAILED,
    LeaseReason.HANDOVER_TIMED_OUT,
    LeaseReason.TENANT_RETURNED,  # it left before it had anything
)
_INSTANT = dt.timedelta(
    microseconds=1
)  # as in `month_movements.MOMENT`: an end belongs to before it

Reasons: TypeAlias = Counter[UndeliveredReason]
NO_REASONS: Reasons = Counter()


class Said(NamedTuple):
    """What one entry changed of the reasons of a lease, and when; None: a correction that posted nothing.

    `moment` is the instant to which it belongs, `recorded_at` when it was posted.
    """

    entry_id: str | None
    moment: dt.datetime
    recorded_at: dt.datetime
    reasons: Reasons


def of_lease(*, lease: Lease, delivery: Delivery) -> Reasons:
    """Return the GPU-seconds of a finished lease that were not delivered, by reason; none is zero."""
    ending = _ending_of(lease)
    gpus = len(lease.gpu_uuids)
    until = returned_at_of(lease=lease) or lease.ends_at
    if lease.handed_over_at is None:
        parts = [(_reason_of_failure(ending), gpus * lease.window.seconds)]
    else:
        outages = sum(
            _seconds(outage.window.starts_at, outage.window.ends_at)
            for outage in delivery.outages
            if is_refunded(lease=lease, outage=outage)
        )
        parts = [
            (UndeliveredReason.HANDOVER, gpus * _seconds(lease.starts_at, lease.handed_over_at)),
            (_reason_of_break(lease, ending=ending), gpus * _seconds(until, lease.ends_at)),
            (UndeliveredReason.GPU_FAULT, outages),
        ]
    return _within(parts, whole=delivery.bought - delivery.delivered)


def of_evidence(*, evidence: Mapping[str, object], undelivered: int) -> Reasons:
    """Return what the evidence of a settlement says of the GPU-seconds that were not delivered."""
    kept = evidence.get(EVIDENCE_KEY)
    if not isinstance(kept, dict):
        return _without_zeros({UndeliveredReason.UNKNOWN: undelivered})
    return _without_zeros({UndeliveredReason(reason): count for reason, count in kept.items()})


def of_settlement(settlement: Settlement) -> list[Said]:
    """Return what a settlement and each of its corrections say, as differences.

    `lease`, the entry, and the corrections with theirs are loaded by whoever has many of them.
    """
    undelivered = settlement.gpu_seconds_bought - settlement.gpu_seconds_delivered
    said = of_evidence(evidence=settlement.evidence, undelivered=undelivered)
    moment = min(settlement.entry.effective_at, settlement.lease.ends_at) - _INSTANT
    found = [Said(settlement.entry_id, moment, settlement.entry.recorded_at, said)]
    for correction in settlement.corrections.all():
        undelivered -= correction.gpu_seconds_delivered
        now = of_evidence(evidence=correction.evidence, undelivered=undelivered)
        changed = {reason: now[reason] - said[reason] for reason in UndeliveredReason}
        at, entry = correction.corrected_at, correction.entry
        recorded_at = entry.recorded_at if entry else at
        found.append(Said(correction.entry_id, at, recorded_at, _without_zeros(changed)))
        said = now
    return found


def of_rest(*, leases: Iterable[Lease], reservation: Reservation, undelivered: int) -> Reasons:
    """Return why GPU-seconds of a reservation that no lease accounts for were not delivered."""
    known = list(leases)
    if not known:
        return _without_zeros({UndeliveredReason.NOT_STARTED: undelivered})
    # Others took the place of a lease all at the same time, with as many GPUs.
    taken_over = {lease.replaces_id: lease.starts_at for lease in known if lease.replaces_id}
    parts = []
    for lease in known:
        if lease.ends_at < reservation.ends_at:
            until = taken_over.get(lease.pk, reservation.ends_at)
            gap = len(lease.gpu_uuids) * _seconds(lease.ends_at, until)
            parts.append((_reason_of_gap(lease), gap))
    return _within(parts, whole=undelivered)


def in_month(*, organization: Organization, window: Window) -> dict[str, Reasons]:
    """Return what was not delivered of each reservation in a month, by reason, as its bill counts it.

    What was posted after a month was closed is of the first that was open, as in `month_movements`.
    """
    found: dict[str, Reasons] = {}
    cut = month_movements.cutoffs(organization=organization, window=window)
    during = {"starts_at__lt": window.ends_at, "ends_at__gte": window.starts_at}
    corrected = {"at__gte": window.starts_at, "at__lt": window.ends_at}
    wanted = Q(**{f"lease__{name}": value for name, value in during.items()}) | Q(
        **{f"corrections__corrected_{name}": value for name, value in corrected.items()}
    )
    if cut["opened_at"] is not None:
        wanted |= Q(entry__recorded_at__gte=cut["opened_at"])
        wanted |= Q(corrections__entry__recorded_at__gte=cut["opened_at"])
    settlements = (
        Settlement.objects.visible_to(organization)
        .filter(wanted, lease__starts_at__lt=window.ends_at)
        .select_related("lease", "entry")
        .prefetch_related("corrections__entry")
        .distinct()
    )
    for settlement in settlements:
        for said in of_settlement(settlement):
            if month_movements.holds(
                moment=said.moment, recorded_at=said.recorded_at, window=window, cut=cut
            ):
                of_reservation = found.setdefault(settlement.lease.reservation_id, Counter())
                of_reservation.update(said.reasons)
    rests = dict(
        Posting.objects.filter(
            month_movements.of_entries(window=window, cut=cut),
            account__organization=organization,
            account__kind=AccountKind.U_UNDELIVERED,
            entry__kind=EntryKind.REFUND,
            side=Side.DEBIT,
        )
        .values_list("entry__subject_id")
        .annotate(seconds=Sum("amount"))
        .order_by()
    )
    for key, reasons in of_rests(seconds=rests).items():
        found.setdefault(key, Counter()).update(reasons)
    return {key: _without_zeros(reasons) for key, reasons in found.items()}


def of_rests(*, seconds: Mapping[str, int]) -> dict[str, Reasons]:
    """Return, by reservation, why GPU-seconds that no lease accounts for were not delivered; five queries."""
    known = Reservation.objects.filter(pk__in=list(seconds)).prefetch_related(
        "leases__transitions", "leases__reclaim", "leases__node__transitions"
    )
    return {
        each.pk: of_rest(leases=each.leases.all(), reservation=each, undelivered=seconds[each.pk])
        for each in known
    }


def complete(reasons: Mapping[UndeliveredReason, int], *, undelivered: int) -> Reasons:
    """Return reasons that add up to what the books have: of what none is known the reason is unknown."""
    found = Counter(reasons)
    found[UndeliveredReason.UNKNOWN] += undelivered - sum(reasons.values())
    return _without_zeros(found)


def as_evidence(reasons: Mapping[UndeliveredReason, int]) -> dict[str, int]:
    """Return reasons as a settlement keeps them."""
    return {reason.value: seconds for reason, seconds in sorted(reasons.items())}


def _ending_of(lease: Lease) -> LeaseReason | None:
    """Return why a lease made its last move; None for one that was written without any."""
    moves = list(lease.transitions.all())
    return LeaseReason(moves[-1].reason) if moves else None


def _reason_of_failure(ending: LeaseReason | None) -> UndeliveredReason:
    """Return why nothing of a lease was delivered that was never handed over."""
    if ending in _NO_HANDOVER:
        return UndeliveredReason.HANDOVER
    return UndeliveredReason.UNKNOWN


def _reason_of_break(lease: Lease, *, ending: LeaseReason | None) -> UndeliveredReason:
    """Return why a lease was over before its end; that of a fault begins with an outage."""
    match ending:
        case LeaseReason.RETURN_UNCONFIRMED:
            return UndeliveredReason.NETWORK
        case LeaseReason.NODE_FAULT:
            return UndeliveredReason.GPU_FAULT
        case LeaseReason.RETURNED_UNASKED | LeaseReason.RETURNED:
            is_planned = _was_draining(lease)
            return UndeliveredReason.MAINTENANCE if is_planned else UndeliveredReason.NODE_DOWN
        case _:
            return UndeliveredReason.UNKNOWN


def _reason_of_gap(lease: Lease) -> UndeliveredReason:
    """Return why nothing was delivered after a lease that ended before its reservation."""
    if getattr(lease, "reclaim", None) is not None and lease.status == LeaseStatus.ENDED:
        return UndeliveredReason.RECLAIM
    ending = _ending_of(lease)
    if lease.handed_over_at is None:
        return _reason_of_failure(ending)
    return _reason_of_break(lease, ending=ending)


def _was_draining(lease: Lease) -> bool:
    """Say whether the owner was taking the machine off the market when it gave the GPUs back."""
    until = lease.returned_at or lease.ends_at
    moves = [move for move in lease.node.transitions.all() if move.at <= until]
    return bool(moves) and max(moves, key=_order).to_status == NodeStatus.DRAINING


def _order(move: NodeTransition) -> tuple[dt.datetime, int]:
    return move.at, move.pk


def _within(parts: Iterable[tuple[UndeliveredReason, int]], *, whole: int) -> Reasons:
    """Return parts that add up to a whole: each takes what the ones before left, and the rest is unknown.

    Seconds are rounded up before, because what is delivered was rounded down.
    """
    found: Reasons = Counter()
    left = whole
    for reason, seconds in parts:
        taken = min(seconds, left)
        found[reason] += taken
        left -= taken
    found[UndeliveredReason.UNKNOWN] += left
    return _without_zeros(found)


def _without_zeros(seconds: Mapping[UndeliveredReason, int]) -> Reasons:
    return Counter({reason: count for reason, count in seconds.items() if count})


def _seconds(starts_at: dt.datetime, ends_at: dt.datetime) -> int:
    """Return the seconds between two instants, a begun one as a whole one; none where they are reversed."""
    return max(0, math.ceil((ends_at - starts_at) / dt.timedelta(seconds=1)))
