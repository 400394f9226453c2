"""What comes back to a tenant that left for a fee, where another bought that time and had it delivered.

The owner was paid for it twice then: by its part of the fee, and by what it earned of the new lease. The
smaller of the two is what it got double. It is taken from what the lease earned, as this is released to the
owner: of it the tenant that left gets the share that was promised when the fee was kept, and the market the
rest. So an owner never has less than what was delivered on its machines earned it.

A slice is what one lease sold of what one change gave back, GPU by GPU and second by second. Only time that
was bought after the change counts, of it only what was delivered, and of several who left the same time for
a fee only the last. Nobody gets a share of what it bought again itself: leaving would cost next to nothing.
A fee that the tenant's bank may take back, or that was written off, was not paid.

A share is reckoned once. Evidence that comes later than the release changes none: it is between the owner
and the new tenant, as ever. By default the last look at evidence is six days before the release.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from django.db.models import Exists, OuterRef, Sum
from psycopg.types.range import Int4Range, TimestamptzRange

from agents.models import SLOTS_PER_NODE, Gpu
from billing import accounts, ledger, parking, promotions, receivables, steps
from billing.amounts import BASIS_POINTS
from billing.deliveries import delivered_by_window, delivery_of, span_of
from billing.models import CreditSale, Dispute, Entry, FeeShare, Resale, ResalePart, Settlement
from billing.states import AccountKind, DisputeStatus, EntryKind
from marketplace import events
from marketplace.core.money import SECONDS_PER_HOUR, round_half_even, share_of
from marketplace.core.windows import Window, to_instant
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler import given_back
from scheduler.lots import Lot, Lots
from scheduler.models import Lease, ReleasedPlace, Reservation
from scheduler.tariffs import MICROS

_MICRO_SECONDS = MICROS * SECONDS_PER_HOUR  # of a major unit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A run of slots for a time: what of it was delivered again, and what that was worth in each lease."""

    slot_lower: int
    slot_upper: int
    window: Window
    gpu_seconds: int
    worth_left: int  # by the lots that were given back: micros × seconds
    worth_sold: int  # by the lots of who bought it


@dataclass(slots=True, kw_only=True)
class _Slice:
    """What a lease sold of what one change had given back."""

    fee_share: FeeShare
    parts: list[_Part] = field(default_factory=list)

    @property
    def reservation(self) -> Reservation:
        """Return the one that was left."""
        return self.fee_share.change.reservation

    @property
    def tenant(self) -> Organization:
        """Return who left."""
        return self.reservation.organization

    @property
    def gpu_seconds(self) -> int:
        return sum(part.gpu_seconds for part in self.parts)

    @property
    def worth_left(self) -> int:
        return sum(part.worth_left for part in self.parts)

    @property
    def worth_sold(self) -> int:
        return sum(part.worth_sold for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Amounts:
    """What becomes of a slice, in minor units: `taken` is the smaller of the first two."""

    earned: int
    fee_part: int
    taken: int
    share: int


def share_out(*, settlement: Settlement, at: dt.datetime) -> bool:
    """Share what an owner got twice with those who left the time that a lease sold again.

    To be called in the transaction that releases what the lease earned, before it leaves its account. False
    means that the release has to wait: the money of somebody who is to get a share is parked, or a fee that
    was paid was not any more when its tenant was locked. Locks the reservations that were left, then the
    owner's parts of fees, then all whose money moves, what promotions paid, and the wallets, each in the
    order of their keys.
    """
    slices = _slices(settlement)
    if not slices:
        return True
    if parking.is_parked(organizations=[each.tenant for each in slices]):
        return False
    _lock(slices, settlement=settlement)
    if not _are_paid(slices, settlement=settlement):
        return False
    left = _earned(settlement)
    whole = delivery_of(lease=settlement.lease).worth * _MICRO_SECONDS
    earned, sold = left, 0
    for each in slices:
        before, sold = sold, sold + each.worth_sold
        amounts = _amounts(
            each, earned=_until(earned, sold, of=whole) - _until(earned, before, of=whole)
        )
        _give(each, settlement=settlement, amounts=amounts, at=at)
        left -= amounts.taken
    assert left >= 0, settlement.pk
    return True


def _earned(settlement: Settlement) -> int:
    """Return what a lease has earned its owner and is not released: fee, credits and corrections are out."""
    accrued = accounts.owner_accrued(
        lease_id=settlement.lease_id, owner=settlement.owner, currency=settlement.currency
    )
    return max(ledger.balance(account=accrued), 0)


def _until(total_minor: int, part: int, *, of: Fraction) -> int:
    """Return the first part of a total, rounded: parts are differences of such sums."""
    return round_half_even(total_minor * min(Fraction(part) / of, Fraction(1))) if of else 0


def _amounts(each: _Slice, *, earned: int) -> _Amounts:
    """Divide what is double of a slice: differences of sums over all slices of the same part of a fee."""
    fee_share = each.fee_share
    earlier = fee_share.resales.aggregate(
        worth=Sum("worth_micro_seconds"), taken=Sum("taken_minor")
    )
    worth, taken_before = earlier["worth"] or 0, earlier["taken"] or 0
    whole = Fraction(fee_share.change.given_back_by_owner[fee_share.owner_id])
    fee_part = _until(fee_share.amount_minor, worth + each.worth_left, of=whole) - _until(
        fee_share.amount_minor, worth, of=whole
    )
    taken = min(earned, fee_part)
    until, before = (
        share_of(total_minor=total, part=fee_share.resale_basis_points, whole=BASIS_POINTS)
        for total in (taken_before + taken, taken_before)
    )
    return _Amounts(earned=earned, fee_part=fee_part, taken=taken, share=until - before)


def _give(each: _Slice, *, settlement: Settlement, amounts: _Amounts, at: dt.datetime) -> None:
    """Post a slice, write it down, and tell who left.

    What it still owes for the reservation on account is paid by it first, and what a promotion had paid of
    the fee goes back to that: nobody gets money for what it has not paid.
    """
    change, reservation, currency = each.fee_share.change, each.reservation, settlement.currency
    entry = _post(each, settlement=settlement, amounts=amounts, at=at) if amounts.taken else None
    steps.reached("resale.posted")
    row = Resale.objects.create(
        fee_share=each.fee_share,
        settlement=settlement,
        entry=entry,
        currency=currency,
        gpu_seconds=each.gpu_seconds,
        worth_micro_seconds=each.worth_left,
        earned_minor=amounts.earned,
        fee_part_minor=amounts.fee_part,
        taken_minor=amounts.taken,
        share_minor=amounts.share,
        shared_at=at,
    )
    ResalePart.objects.bulk_create(
        ResalePart(
            resale=row,
            slots=Int4Range(part.slot_lower, part.slot_upper),
            period=TimestamptzRange(part.window.starts_at, part.window.ends_at),
            gpu_seconds=part.gpu_seconds,
        )
        for part in each.parts
    )
    set_off = receivables.set_credit_off(reservation=reservation, amount_minor=amounts.share, at=at)
    promotions.take_back(reservation=reservation, refunded_minor=amounts.share - set_off, at=at)
    steps.reached("resale.stored")
    if not amounts.share:
        return
    events.record(
        organization=each.tenant,
        kind=EventKind.RESALE_CREDITED,
        object_id=reservation.pk,
        data={
            "change_id": change.pk,
            "resale_id": row.pk,
            "gpu_seconds": row.gpu_seconds,
            "share_minor": row.share_minor,
            "set_off_minor": set_off,
            "currency": currency,
        },
        at=at,
        key=f"{row.pk}:credited",
    )


def _post(each: _Slice, *, settlement: Settlement, amounts: _Amounts, at: dt.datetime) -> Entry:
    change, currency = each.fee_share.change, settlement.currency
    purse = accounts.wallet(organization=each.tenant, currency=currency)
    margin = accounts.shared(kind=AccountKind.RESALE_MARGIN, currency=currency)
    accrued = accounts.owner_accrued(
        lease_id=settlement.lease_id, owner=settlement.owner, currency=currency
    )
    return ledger.post(
        idempotency_key=f"resale:{change.pk}:{settlement.lease_id}",
        kind=EntryKind.RESALE,
        subject_id=change.pk,
        effective_at=at,
        legs=ledger.differences(
            [(accrued, purse, amounts.share), (accrued, margin, amounts.taken - amounts.share)]
        ),
    )


def _lock(slices: Sequence[_Slice], *, settlement: Settlement) -> None:
    reservations = {each.reservation.pk for each in slices}
    list(
        Reservation.objects.select_for_update(no_key=True)
        .filter(pk__in=reservations)
        .order_by("pk")
    )
    shares = {each.fee_share.pk for each in slices}
    list(FeeShare.objects.select_for_update(no_key=True).filter(pk__in=shares).order_by("pk"))
    parties = {settlement.owner_id, *(each.tenant.pk for each in slices)}
    list(Organization.objects.select_for_update(no_key=True).filter(pk__in=parties).order_by("pk"))
    promotions.lock_spent(*(each.reservation for each in slices))
    tenants = {each.tenant.pk: each.tenant for each in slices}
    for _, tenant in sorted(tenants.items()):
        purse = accounts.wallet(organization=tenant, currency=settlement.currency)
        ledger.locked_balance(account=purse)


def _are_paid(slices: Sequence[_Slice], *, settlement: Settlement) -> bool:
    """Say whether the fees are still paid for which slices were found before anything was locked."""
    found = {each.fee_share.change_id for each in slices}
    return found == set(_paid_shares(settlement, change_ids=found))


def _slices(settlement: Settlement) -> list[_Slice]:
    """Return what a lease sold again, by change in the order of their ids."""
    lease = settlement.lease
    left = _left_before(lease)
    span = span_of(lease=lease) if left else None
    if span is None:
        return []
    fee_shares = _paid_shares(settlement, change_ids={place.change_id for place in left})
    left = [place for place in left if place.change_id in fee_shares]
    found: dict[str, _Slice] = {}
    for (place, window), slots in _sold_again(lease, span=span, left=left).items():
        if place.change.reservation.organization_id == lease.reservation.organization_id:
            continue
        if not fee_shares[place.change_id].resale_basis_points:
            continue
        parts = _parts(lease, place=place, window=window, slots=slots)
        each = found.setdefault(place.change_id, _Slice(fee_share=fee_shares[place.change_id]))
        each.parts += [part for part in parts if part.gpu_seconds]
    return [each for _, each in sorted(found.items()) if each.parts]


def _left_before(lease: Lease) -> list[ReleasedPlace]:
    """Return what was left of the window of a lease on its node, the last first; one query."""
    base = lease.node.slot_base
    places = ReleasedPlace.objects.filter(
        slots__overlap=Int4Range(base, base + SLOTS_PER_NODE),
        period__overlap=TimestamptzRange(lease.starts_at, lease.ends_at),
    )
    return list(
        places.select_related("change__reservation__organization").order_by("-change__at", "-pk")
    )


def _paid_shares(settlement: Settlement, *, change_ids: Iterable[str]) -> dict[str, FeeShare]:
    """Return by change the owner's part of a fee that was in fact paid, in the currency of the lease."""
    of_it = OuterRef("change__reservation")
    disputed = Dispute.objects.filter(reservation=of_it).exclude(status=DisputeStatus.WON)
    written_off = Entry.objects.filter(kind=EntryKind.WRITE_OFF, subject_id=OuterRef("invoice"))
    unpaid = CreditSale.objects.filter(Exists(written_off), reservation=of_it)
    shares = FeeShare.objects.filter(
        ~Exists(disputed),
        ~Exists(unpaid),
        owner=settlement.owner,
        currency=settlement.currency,
        change__in=list(change_ids),
    ).select_related("owner", "change__reservation__organization")
    return {share.change_id: share for share in shares}


def _sold_again(
    lease: Lease, *, span: Window, left: Sequence[ReleasedPlace]
) -> dict[tuple[ReleasedPlace, Window], list[int]]:
    """Return which slots of a lease were whose before, by place and time; `left` is the last first."""
    slots = _slots(lease)
    found: dict[tuple[ReleasedPlace, Window], list[int]] = defaultdict(list)
    for window, bought_at in given_back.bought_at(reservation=lease.reservation):
        bought = window.intersection(span)
        for slot in sorted(slots) if bought is not None else ():
            assert bought is not None
            rest = [bought]
            for place in left:
                if place.change.at > bought_at or slot not in place.slots:
                    continue
                period = Window(place.period.lower, place.period.upper)
                for piece in rest:
                    again = piece.intersection(period)
                    if again is not None:
                        found[place, again].append(slot)
                rest = [part for piece in rest for part in piece.less(period)]
    return found


def _slots(lease: Lease) -> dict[int, str]:
    """Return the GPUs of a lease by their slots, which never change."""
    gpus = Gpu.objects.filter(uuid__in=lease.gpu_uuids, node=lease.node_id)
    return dict(gpus.values_list("slot", "uuid"))


def _parts(
    lease: Lease, *, place: ReleasedPlace, window: Window, slots: Sequence[int]
) -> Iterator[_Part]:
    """Yield what of some slots was delivered in a window, a run of neighbours of one lot at a time."""
    lot_of = dict(zip(lease.gpu_uuids, lease.lot_numbers, strict=True))
    uuid_of = _slots(lease)
    left = Lots.from_json(place.change.from_lots).lots[place.lot]
    lots = Lots.from_json(lease.reservation.lots).lots
    for run in _runs(slots, lot_of={slot: lot_of[uuid_of[slot]] for slot in slots}):
        sold = lots[lot_of[uuid_of[run[0]]]]
        pieces = list(_pieces(window, left=left, sold=sold))
        delivered = delivered_by_window(
            lease=lease,
            gpu_uuids={uuid_of[slot] for slot in run},
            windows=[piece for piece, _, _ in pieces],
        )
        worths = list(zip(delivered, pieces, strict=True))
        yield _Part(
            slot_lower=run[0],
            slot_upper=run[-1] + 1,
            window=window,
            gpu_seconds=sum(delivered),
            worth_left=sum(seconds * rate for seconds, (_, rate, _) in worths),
            worth_sold=sum(seconds * rate for seconds, (_, _, rate) in worths),
        )


def _runs(slots: Sequence[int], *, lot_of: dict[int, int]) -> list[list[int]]:
    """Return rising slots as runs of neighbours of one lot."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and runs[-1][-1] + 1 == slot and lot_of[runs[-1][0]] == lot_of[slot]:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs


def _pieces(window: Window, *, left: Lot, sold: Lot) -> Iterator[tuple[Window, int, int]]:
    """Yield a window in pieces of one rate on both sides, with the two rates in micros per GPU-hour."""
    for before in left.tariff.segments:
        for after in sold.tariff.segments:
            starts, ends = max(before.starts, after.starts), min(before.ends, after.ends)
            if starts < ends:
                piece = window.intersection(Window(to_instant(starts), to_instant(ends)))
                if piece is not None:
                    yield piece, before.rate_micros, after.rate_micros
