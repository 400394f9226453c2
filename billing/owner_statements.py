"""The statement of an owner for a month: every lease, fee and adjustment, from one balance to the next.

All amounts come from postings (`billing.owner_movements`), so that the lines of a month are what the balance
changed by. What only moved between the owner's own accounts, a release or a reserve, changes no balance and
is told apart. Of a tenant nothing is told: no name, no project, no tag, and not what it ran.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from django.conf import settings
from django.db.models import DateTimeField, F, Max
from django.db.models.functions import Coalesce, Least

from billing import evidence, owner_movements
from billing.evidence import Evidence
from billing.models import Resale, Settlement
from billing.month_movements import month_window
from billing.owner_movements import Balances, Delivered, Movement
from billing.states import AccountKind, EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Lease


class LineKind(StrEnum):
    """Why an owner's balance changed."""

    EARNED = "earned"  # by a lease: its price less the platform's fee
    SLA_SHARE = "sla_share"  # of a tenant's credit for what the owner's hardware did not deliver
    COMPENSATION = "compensation"  # for a lease that the owner took back
    CORRECTION = "correction"  # by evidence that came after the settlement
    FEE_SHARE = "fee_share"  # of what a tenant paid for giving time back
    RESALE = "resale"  # of that, what the owner got twice: a lease sold the time again
    TRANSFER = "transfer"  # sent
    TRANSFER_RETURNED = "transfer_returned"  # could not be received
    TRANSFER_REVERSED = (
        "transfer_reversed"  # taken back of what was sent, so that it is owed no more
    )
    DISPUTE = "dispute"  # lost by the owner's fault; what of that was given back is positive
    WRITE_OFF = "write_off"  # of what the owner owed, and owes no more
    ADJUSTMENT = "adjustment"  # anything else, such as the reversal of an entry


_KINDS = {
    EntryKind.EARNING: LineKind.EARNED,
    EntryKind.SETTLEMENT: LineKind.EARNED,
    EntryKind.CREDIT: LineKind.SLA_SHARE,
    EntryKind.COMPENSATION: LineKind.COMPENSATION,
    EntryKind.CORRECTION: LineKind.CORRECTION,
    EntryKind.FEE_SHARE: LineKind.FEE_SHARE,
    EntryKind.RESALE: LineKind.RESALE,
    EntryKind.TRANSFER: LineKind.TRANSFER,
    EntryKind.TRANSFER_FAILED: LineKind.TRANSFER_RETURNED,
    EntryKind.TRANSFER_REVERSAL: LineKind.TRANSFER_REVERSED,
    EntryKind.DISPUTE_LOST: LineKind.DISPUTE,
    EntryKind.DISPUTE_CHARGED: LineKind.DISPUTE,
    EntryKind.OWNER_WRITE_OFF: LineKind.WRITE_OFF,
    EntryKind.DISPUTE_RETURNED: LineKind.DISPUTE,
}
_OF_LEASES = (LineKind.EARNED, LineKind.SLA_SHARE, LineKind.COMPENSATION, LineKind.CORRECTION)
_NAMED = (LineKind.FEE_SHARE, LineKind.TRANSFER, LineKind.TRANSFER_RETURNED)
_RELEASES = (EntryKind.RELEASE, EntryKind.RESERVE_RELEASE, EntryKind.CORRECTION_RELEASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLine:
    """One lease in the month: GPU-seconds, and minor units that add up to what it brought the owner.

    `price - fee = earned` and `net = earned + sla_share + compensation + correction`, the last three mostly
    negative. `given_back` was the price of what was not delivered. Evidence is there once it is settled.
    """

    lease: Lease
    gpu_seconds_delivered: int
    gpu_seconds_undelivered: int
    price: int
    fee: int
    earned: int
    given_back: int
    sla_share: int
    compensation: int
    correction: int
    evidence: Evidence | None

    @property
    def net(self) -> int:
        return self.earned + self.sla_share + self.compensation + self.correction


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What changed the balance and is not of a lease's own price.

    The reference is a share of a fee, a payout, or of a resale the lease that sold the time again.
    """

    kind: LineKind
    reference: str
    entry_id: str
    at: dt.datetime
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What moved between the owner's own accounts: `released = netted + kept + payable`.

    Out of what a lease earned, a correction added or a reserve held, first a debt is paid, a part is kept in
    reserve, and the rest becomes payable.
    """

    kind: EntryKind
    reference: str
    lease_id: str | None
    at: dt.datetime
    released: int
    netted: int
    kept: int
    payable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """An owner's month. `final`: it is over, and every hour of it has found its place."""

    month: str
    window: Window
    currency: str
    final: bool
    opening: Balances
    closing: Balances
    leases: list[LeaseLine]
    lines: list[Line]
    moves: list[Move]
    totals: dict[LineKind, int] = field(default_factory=dict)


def statement(*, owner: Organization, month: str, at: dt.datetime) -> Statement:
    """Return an owner's statement of a month as it stands at an instant.

    :raises ValueError: when `month` names no month.
    """
    window, currency = month_window(month=month), settings.CURRENCY
    movements = owner_movements.in_window(owner=owner, window=window, currency=currency)
    opening, closing = owner_movements.balances(owner=owner, window=window, currency=currency)
    found = Statement(
        month=month,
        window=window,
        currency=currency,
        final=_is_final(owner=owner, window=window, at=at),
        opening=opening,
        closing=closing,
        leases=_leases(movements, owner=owner, window=window),
        lines=_lines(each for each in movements if _is_line(each)),
        moves=_moves(each for each in movements if each.kind in _RELEASES),
    )
    found.totals.update(_totals(found))
    return found


def change_of(found: Statement) -> int:
    """Return what the lines of a statement add up to, in minor units: its balance changed by just that."""
    return sum(each.net for each in found.leases) + sum(each.amount for each in found.lines)


def _kind_of(movement: Movement) -> LineKind:
    return _KINDS.get(movement.kind, LineKind.ADJUSTMENT)


def _is_line(movement: Movement) -> bool:
    """Say whether a movement changed the balance and is told by no lease."""
    return bool(movement.total) and _kind_of(movement) not in _OF_LEASES


def _lines(movements: Iterable[Movement]) -> list[Line]:
    moved = list(movements)
    resold = Resale.objects.filter(
        entry__in=[each.entry_id for each in moved if each.kind is EntryKind.RESALE]
    )
    leases = dict(resold.values_list("entry_id", "settlement__lease_id"))
    return [_line(each, lease_id=leases.get(each.entry_id)) for each in moved]


def _line(movement: Movement, *, lease_id: str | None) -> Line:
    kind = _kind_of(movement)
    return Line(
        kind=kind,
        reference=movement.subject_id if kind in _NAMED else lease_id or movement.entry_id,
        entry_id=movement.entry_id,
        at=movement.at,
        amount=movement.total,
    )


def _leases(
    movements: Iterable[Movement], *, owner: Organization, window: Window
) -> list[LeaseLine]:
    """Return the leases that ran in the month or were corrected in it, in the order of their beginning."""
    sums: dict[str, dict[LineKind, int]] = {}
    for movement in movements:
        kind = _kind_of(movement)
        if kind in _OF_LEASES:
            of_lease = sums.setdefault(movement.subject_id, {})
            of_lease[kind] = of_lease.get(kind, 0) + movement.total
    ran = Lease.objects.filter(
        node__organization=owner, starts_at__lt=window.ends_at, ends_at__gt=window.starts_at
    ).values_list("pk", flat=True)
    delivered = owner_movements.delivered(lease_ids={*sums, *ran}, window=window)
    leases = (
        Lease.objects.filter(pk__in={*sums, *delivered})
        .select_related("node", "reservation__gpu_model")
        .order_by("starts_at", "pk")
    )
    settled = {
        each.lease_id: each
        for each in Settlement.objects.filter(lease__in=leases).prefetch_related("corrections")
    }
    return [
        _lease_line(
            lease,
            sums=sums.get(lease.pk, {}),
            delivered=delivered.get(lease.pk, Delivered()),
            settlement=settled.get(lease.pk),
        )
        for lease in leases
    ]


def _lease_line(
    lease: Lease,
    *,
    sums: dict[LineKind, int],
    delivered: Delivered,
    settlement: Settlement | None,
) -> LeaseLine:
    earned = sums.get(LineKind.EARNED, 0)
    price = earned + delivered.fee
    return LeaseLine(
        lease=lease,
        gpu_seconds_delivered=delivered.gpu_seconds_delivered,
        gpu_seconds_undelivered=delivered.gpu_seconds_undelivered,
        price=price,
        fee=delivered.fee,
        earned=earned,
        given_back=delivered.deferred - price,
        sla_share=sums.get(LineKind.SLA_SHARE, 0),
        compensation=sums.get(LineKind.COMPENSATION, 0),
        correction=sums.get(LineKind.CORRECTION, 0),
        evidence=evidence.of_settlement(settlement) if settlement else None,
    )


def _moves(movements: Iterable[Movement]) -> list[Move]:
    moved = list(movements)
    lease_of = dict(
        Settlement.objects.filter(pk__in=[each.subject_id for each in moved]).values_list(
            "pk", "lease_id"
        )
    )
    found = []
    for each in moved:
        netted, payable, reserve = (
            each.amounts.get(kind, 0)
            for kind in (
                AccountKind.OWNER_CLAWBACK,
                AccountKind.OWNER_PAYABLE,
                AccountKind.OWNER_RESERVE,
            )
        )
        kept = max(reserve, 0)
        found.append(
            Move(
                kind=each.kind,
                reference=each.subject_id,
                lease_id=lease_of.get(each.subject_id),
                at=each.at,
                released=netted + payable + kept,
                netted=netted,
                kept=kept,
                payable=payable,
            )
        )
    return found


def _totals(found: Statement) -> dict[LineKind, int]:
    """Return what each kind of line added to the balance."""
    totals = dict.fromkeys(LineKind, 0)
    for lease in found.leases:
        totals[LineKind.EARNED] += lease.earned
        totals[LineKind.SLA_SHARE] += lease.sla_share
        totals[LineKind.COMPENSATION] += lease.compensation
        totals[LineKind.CORRECTION] += lease.correction
    for line in found.lines:
        totals[line.kind] += line.amount
    return totals


def _is_final(*, owner: Organization, window: Window, at: dt.datetime) -> bool:
    """Say whether the month is over and no lease has time in it that is neither closed nor settled."""
    if at < window.ends_at:
        return False
    still_open = (
        Lease.objects.filter(
            node__organization=owner,
            settlement__isnull=True,
            starts_at__lt=window.ends_at,
            ends_at__gt=window.starts_at,
        )
        .annotate(closed_until=Coalesce(Max("earned_hours__ends_at"), F("starts_at")))
        .filter(closed_until__lt=Least(F("ends_at"), window.ends_at, output_field=DateTimeField()))
    )
    return not still_open.exists()
