"""What owners have earned becomes payable once a tenant can no longer reasonably dispute the lease.

What an owner owes is netted first, a part is kept in reserve, and the rest is a payout of `billing.payouts`.
While a reservation's payment is disputed, or an owner's money is parked, nothing is released.
"""

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from functools import partial

from django.db import transaction

from billing import accounts, ledger, parking, payouts, resales, reserves, steps
from billing.models import Correction, Dispute, FeeShare, Payout, Reserve, Settlement
from billing.states import AccountKind, DisputeStatus, EntryKind
from marketplace import contention
from marketplace.models import Organization

logger = logging.getLogger(__name__)

RELEASES_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest
CANDIDATES_PER_RUN_MAX = 5_000  # ids; so many may fail before they hold up those behind them


def release_due(*, at: dt.datetime) -> int:
    """Make what is due payable: settlements, what was kept back of them, corrections; return how many.

    Safe to run twice or side by side. One that cannot be released is logged and does not hold up the rest.
    """
    released = 0
    for name, verb in _due(at=at):
        if released >= RELEASES_PER_RUN_MAX:
            break
        try:
            released += contention.repeated(verb, name="release")
        except Exception:
            logger.exception("%s could not be released", name)
    return released


@transaction.atomic
def release(*, settlement_id: str, at: dt.datetime) -> bool:
    """Move what a lease earned to what is payable; say whether it was this call that did it.

    What the owner got twice for the same time goes out of it first: see `billing.resales`.
    A settlement that earned the owner nothing is marked as released and makes no payout; one that cost it
    something adds to what the owner owes.
    """
    settlement = (
        Settlement.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=settlement_id, released_at__isnull=True, release_due_at__lte=at)
        .select_related("owner", "lease__node", "lease__reservation__quote")
        .first()
    )
    if settlement is None or _settlement_is_frozen(settlement):
        return False
    if not resales.share_out(settlement=settlement, at=at):
        return False
    owner, currency = settlement.owner, settlement.currency
    _lock(owner)
    accrued = accounts.owner_accrued(lease_id=settlement.lease_id, owner=owner, currency=currency)
    earned = ledger.balance(account=accrued)
    parts = reserves.parts_of(earned=earned, owner=owner, currency=currency)
    legs = ledger.differences(
        [
            (
                accrued,
                _account(AccountKind.OWNER_CLAWBACK, settlement),
                parts.netted if earned > 0 else earned,
            ),
            (accrued, _account(AccountKind.OWNER_RESERVE, settlement), parts.kept_back),
            (accrued, _account(AccountKind.OWNER_PAYABLE, settlement), parts.payable),
        ]
    )
    Settlement.objects.filter(pk=settlement.pk).update(released_at=at)
    if not legs:
        return True
    entry = ledger.post(
        idempotency_key=f"release:{settlement.id}",
        kind=EntryKind.RELEASE,
        subject_id=settlement.id,
        effective_at=at,
        legs=legs,
    )
    steps.reached("release.posted")
    if parts.kept_back:
        reserves.keep(settlement=settlement, amount_minor=parts.kept_back, currency=currency, at=at)
    if parts.payable:
        payouts.make(
            Payout(settlement=settlement, entry=entry, amount_minor=parts.payable),
            owner=owner,
            currency=currency,
            due_at=settlement.release_due_at,
            at=at,
        )
    steps.reached("release.stored")
    return True


@transaction.atomic
def release_reserve(*, reserve_id: int, at: dt.datetime) -> bool:
    """Move what is left of what was kept back to what is payable, less what the owner owes by then.

    The owner is locked before what is kept of it, as where a dispute draws on that.
    """
    known = Reserve.objects.filter(
        pk=reserve_id, released_at__isnull=True, release_due_at__lte=at
    ).select_related(
        "settlement__owner", "settlement__lease", "fee_share__owner", "fee_share__change"
    )
    found = known.first()
    if found is None:
        return False
    _lock(found.owner)
    reserve = known.select_for_update(skip_locked=True, no_key=True, of=("self",)).first()
    if reserve is None:
        return False
    owner, source = reserve.owner, reserve.settlement or reserve.fee_share
    assert source is not None  # reserve_is_of_one_thing
    if is_frozen(owner=owner, reservation_id=_reservation_of(source)):
        return False
    kept = accounts.of_owner(kind=AccountKind.OWNER_RESERVE, owner=owner, currency=reserve.currency)
    payable, legs = _net(
        source=kept, owner=owner, currency=reserve.currency, amount=reserve.left_minor
    )
    Reserve.objects.filter(pk=reserve.pk).update(released_at=at)
    entry = ledger.post(
        idempotency_key=f"reserve:{source.pk}",
        kind=EntryKind.RESERVE_RELEASE,
        subject_id=source.pk,
        effective_at=at,
        legs=legs,
    )
    if payable:
        payouts.make(
            Payout(reserve=reserve, entry=entry, amount_minor=payable),
            owner=owner,
            currency=reserve.currency,
            due_at=reserve.release_due_at,
            at=at,
        )
    return True


@transaction.atomic
def release_correction(*, correction_id: int, at: dt.datetime) -> bool:
    """Make payable what late evidence added to a lease whose earnings had been released."""
    correction = (
        Correction.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=correction_id, released_at__isnull=True)
        .select_related("settlement__owner", "settlement__lease")
        .first()
    )
    if correction is None or _settlement_is_frozen(correction.settlement):
        return False
    settlement = correction.settlement
    _lock(settlement.owner)
    accrued = accounts.owner_accrued(
        lease_id=settlement.lease_id, owner=settlement.owner, currency=settlement.currency
    )
    payable, legs = _net(
        source=accrued,
        owner=settlement.owner,
        currency=settlement.currency,
        amount=correction.owner_minor - correction.credit_of_owner_minor,
    )
    Correction.objects.filter(pk=correction.pk).update(released_at=at)
    entry = ledger.post(
        idempotency_key=f"release:{settlement.id}:{correction.number}",
        kind=EntryKind.CORRECTION_RELEASE,
        subject_id=settlement.id,
        effective_at=at,
        legs=legs,
    )
    if payable:
        payouts.make(
            Payout(correction=correction, entry=entry, amount_minor=payable),
            owner=settlement.owner,
            currency=settlement.currency,
            due_at=at,
            at=at,
        )
    return True


def is_frozen(*, owner: Organization, reservation_id: str) -> bool:
    """Say whether nothing that a reservation brings an owner is released now: parked, or disputed."""
    return (
        parking.is_parked(organizations=[owner])
        or Dispute.objects.filter(reservation=reservation_id, status=DisputeStatus.OPEN).exists()
    )


def _due(*, at: dt.datetime) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Yield what is due by its name, with the call that releases it."""
    settled = Settlement.objects.filter(released_at__isnull=True, release_due_at__lte=at)
    for pk in settled.order_by("release_due_at").values_list("pk", flat=True)[
        :CANDIDATES_PER_RUN_MAX
    ]:
        yield f"settlement {pk}", partial(release, settlement_id=pk, at=at)
    kept_back = Reserve.objects.filter(released_at__isnull=True, release_due_at__lte=at)
    for number in kept_back.order_by("release_due_at").values_list("pk", flat=True)[
        :CANDIDATES_PER_RUN_MAX
    ]:
        yield f"reserve {number}", partial(release_reserve, reserve_id=number, at=at)
    corrected = Correction.objects.filter(released_at__isnull=True)
    for number in corrected.order_by("pk").values_list("pk", flat=True)[:CANDIDATES_PER_RUN_MAX]:
        yield f"correction {number}", partial(release_correction, correction_id=number, at=at)


def _settlement_is_frozen(settlement: Settlement) -> bool:
    return is_frozen(owner=settlement.owner, reservation_id=settlement.lease.reservation_id)


def _reservation_of(source: Settlement | FeeShare) -> str:
    if isinstance(source, Settlement):
        return source.lease.reservation_id
    return source.change.reservation_id


def _lock(owner: Organization) -> None:
    """Let no other release net what this owner owes meanwhile."""
    Organization.objects.select_for_update(no_key=True).get(pk=owner.pk)


def _net(
    *, source: ledger.AccountRef, owner: Organization, currency: str, amount: int
) -> tuple[int, list[ledger.Leg]]:
    """Return what of an amount is payable once the owner's debt is taken out, and the legs of both."""
    debt, due = (
        accounts.of_owner(kind=kind, owner=owner, currency=currency)
        for kind in (AccountKind.OWNER_CLAWBACK, AccountKind.OWNER_PAYABLE)
    )
    netted = min(amount, reserves.owed(owner=owner, currency=currency))
    payable = amount - netted
    return payable, ledger.differences([(source, debt, netted), (source, due, payable)])


def _account(kind: AccountKind, settlement: Settlement) -> ledger.AccountRef:
    return accounts.of_owner(kind=kind, owner=settlement.owner, currency=settlement.currency)
