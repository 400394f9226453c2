"""Money on its way back to tenants: due, sent, settled or failed; and what a person gives out of goodwill.

What a reservation owes that was not paid from the wallet waits in `refund_payable`. Sending it is for whoever
speaks to the provider: record the intent, call, and take the next arrow here. A refund that fails there is
the tenant's money still, and goes to its wallet.
"""

import datetime as dt
from collections.abc import Iterator

from django.db import transaction

from billing import (
    accounts,
    chargeable,
    disputes,
    ledger,
    parking,
    promotions,
    receivables,
    runs,
    steps,
)
from billing.models import Account, Entry, Payment, Refund, RefundTransition
from billing.provider_states import PaymentStatus
from billing.states import REFUND_ARROWS, AccountKind, EntryKind, RefundStatus
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Reservation

REFUNDS_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest
ACTOR = "billing.open_refunds"


class RefundRefused(InvalidValue):
    """The amount is not one that can be given back."""

    code = "refund_refused"
    title = "This cannot be refunded"


def open_due(*, at: dt.datetime) -> int:
    """Open the refunds of every reservation that owes any; return of how many. Safe side by side."""
    waiting = Account.objects.filter(kind=AccountKind.REFUND_PAYABLE, balance__gt=0).exclude(
        organization__in=parking.parked()
    )
    ids = waiting.order_by("pk").values_list("subject_id", flat=True)[:REFUNDS_PER_RUN_MAX]
    return runs.one_by_one(
        ids, lambda pk: bool(open_for(reservation_id=pk, at=at)), name="open_refunds"
    )


@transaction.atomic
def open_for(*, reservation_id: str, at: dt.datetime) -> list[Refund]:
    """Open the refunds of what a reservation owes, unless some are due; none where there is nothing.

    What it has to give back is set off first against what the tenant's bank has taken back for good, and then
    against what its tenant owes for it; while a dispute is open all of it waits. The rest is split over the
    payments that the provider took for it, the newest first and of each no more than it has left of what it
    brought: what was added last is given back first, and the charge that the bank knows best. What they do
    not cover came another way, or cannot go back by theirs, and is a refund of its own.
    """
    reservation = (
        Reservation.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=reservation_id)
        .select_related("organization")
        .first()
    )
    if reservation is None or parking.is_parked(organizations=[reservation.organization]):
        return []
    disputes.lock(reservation=reservation)
    receivables.lock_refund(reservation=reservation)
    if disputes.holds_back(reservation_id=reservation.pk, at=at) and not _set_off(
        reservation, at=at
    ):
        return []
    if Refund.objects.filter(reservation=reservation, status=RefundStatus.DUE).exists():
        return []
    receivables.offset(reservation=reservation, at=at)
    owed = ledger.kept_balance(account=_payable(reservation))
    return [
        _open(reservation, payment=payment, amount_minor=amount_minor, at=at)
        for payment, amount_minor in _ways_back(reservation, owed_minor=owed)
    ]


@transaction.atomic
def send(*, refund_id: str, at: dt.datetime, actor: str) -> Refund:
    """Take the arrow due → sent: from now on the provider is asked to give it back.

    :raises StateConflict: when the refund is not due.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    refund = _of(refund_id)
    parking.require_moving(organizations=[refund.reservation.organization])
    return _advance(
        refund,
        to=RefundStatus.SENT,
        kind=EntryKind.REFUND_SENT,
        debited=_payable(refund.reservation),
        credited=_clearing(refund),
        at=at,
        actor=actor,
    )


@transaction.atomic
def settle(*, refund_id: str, at: dt.datetime, actor: str) -> Refund:
    """Take the arrow sent → settled: the provider has given it back out of what we have there.

    :raises StateConflict: when the refund was not sent, or is over.
    """
    refund = _of(refund_id)
    return _advance(
        refund,
        to=RefundStatus.SETTLED,
        kind=EntryKind.REFUND_SETTLED,
        debited=_clearing(refund),
        credited=accounts.shared(kind=AccountKind.STRIPE_AVAILABLE, currency=refund.currency),
        at=at,
        actor=actor,
    )


@transaction.atomic
def fail(*, refund_id: str, at: dt.datetime, actor: str, stays_payable: bool = False) -> Refund:
    """Take an arrow to failed: the way back is closed, so the money goes to the wallet.

    What of it a promotion had paid goes back to that, and is not the tenant's to withdraw. One that had been
    settled comes back to what we have at the provider first. `stays_payable` keeps the money with the
    reservation instead: its charge is disputed, and the tenant's bank may have returned it.

    :raises StateConflict: when the refund was not sent, or has failed.
    """
    refund = _of(refund_id)
    if not stays_payable:
        reservation = lock(refund)
        promotions.lock_spent(reservation)
    was_settled = refund.status == RefundStatus.SETTLED
    available = accounts.shared(kind=AccountKind.STRIPE_AVAILABLE, currency=refund.currency)
    failed = _advance(
        refund,
        to=RefundStatus.FAILED,
        kind=EntryKind.REFUND_FAILED,
        debited=available if was_settled else _clearing(refund),
        credited=_payable(refund.reservation)
        if stays_payable
        else accounts.wallet(
            organization=refund.reservation.organization, currency=refund.currency
        ),
        at=at,
        actor=actor,
    )
    if not stays_payable:
        promotions.take_back(reservation=reservation, refunded_minor=refund.amount_minor, at=at)
    return failed


def lock(refund: Refund) -> Reservation:
    """Lock and return the reservation of a refund: before the refund itself, and before the wallet."""
    rows = Reservation.objects.select_for_update(no_key=True, of=("self",))
    return rows.select_related("organization").get(pk=refund.reservation_id)


def give(
    *, organization: Organization, subject_id: str, amount: Money, key: str, at: dt.datetime
) -> Entry:
    """Give a tenant money of ours out of goodwill, into its wallet; once per key.

    Who may decide that is not asked here: see `billing.approvals`.

    :raises RefundRefused: when the amount is not positive.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    if amount.amount_minor <= 0:
        raise RefundRefused("A refund is at least one minor unit.", pointer="/amount_minor")
    return ledger.post(
        idempotency_key=f"goodwill:{key}",
        kind=EntryKind.GOODWILL,
        subject_id=subject_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.SLA_CREDITS, currency=amount.currency),
            credited=accounts.wallet(organization=organization, currency=amount.currency),
            amount=amount.amount_minor,
        ),
    )


def _set_off(reservation: Reservation, *, at: dt.datetime) -> bool:
    """Set off what was lost, in the place of refunds that are due; say whether anything is left to send."""
    if not disputes.set_off(reservation=reservation, at=at):
        return False
    for refund in Refund.objects.filter(reservation=reservation, status=RefundStatus.DUE):
        _move(refund, to=RefundStatus.SET_OFF)
        _note(refund, came_from=RefundStatus.DUE, entry=None, at=at, actor=ACTOR)
    return not disputes.holds_back(reservation_id=reservation.pk, at=at)


def _ways_back(
    reservation: Reservation, *, owed_minor: int
) -> Iterator[tuple[Payment | None, int]]:
    """Yield by which payment how much goes back; None is what no payment brought, or can give back."""
    taken = reservation.provider_payments.filter(status=PaymentStatus.SUCCEEDED)
    left = owed_minor
    for payment in taken.order_by("-id") if left else ():
        part = chargeable.rounded_down(
            amount_minor=min(left, disputes.room_minor(payment=payment)),
            currency=payment.currency,
        )
        if part:
            yield payment, part
        left -= part
    if left:
        yield None, left


def _open(
    reservation: Reservation, *, payment: Payment | None, amount_minor: int, at: dt.datetime
) -> Refund:
    refund = Refund(
        reservation=reservation,
        payment=payment,
        amount_minor=amount_minor,
        currency=reservation.currency,
        created_at=at,
    )
    refund.save(force_insert=True)
    _note(refund, came_from="", entry=None, at=at, actor=ACTOR)
    return refund


def _advance(
    refund: Refund,
    *,
    to: RefundStatus,
    kind: EntryKind,
    debited: ledger.AccountRef,
    credited: ledger.AccountRef,
    at: dt.datetime,
    actor: str,
) -> Refund:
    """Compare and set; the winner posts and writes the transition in the same transaction."""
    came_from = _move(refund, to=to)
    entry = ledger.post(
        idempotency_key=f"refund:{refund.id}:{to.value}",
        kind=kind,
        subject_id=refund.id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=credited, amount=refund.amount_minor),
    )
    steps.reached(f"refund.{to.value}")
    _note(refund, came_from=came_from, entry=entry, at=at, actor=actor)
    return refund


def _move(refund: Refund, *, to: RefundStatus) -> RefundStatus:
    """Compare and set; return where it came from."""
    came_from = RefundStatus(refund.status)
    won = REFUND_ARROWS.allows(came_from, to) and Refund.objects.filter(
        pk=refund.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{refund.pk} is {came_from} or moved on; it cannot become {to}")
    refund.status = to
    return came_from


def _note(
    refund: Refund, *, came_from: str, entry: Entry | None, at: dt.datetime, actor: str
) -> None:
    RefundTransition.objects.create(
        refund=refund,
        from_status=came_from,
        to_status=refund.status,
        entry=entry,
        actor=actor,
        at=at,
    )


def _of(refund_id: str) -> Refund:
    return Refund.objects.select_related("reservation__organization").get(pk=refund_id)


def _payable(reservation: Reservation) -> ledger.AccountRef:
    return accounts.of_reservation(
        kind=AccountKind.REFUND_PAYABLE, reservation=reservation, currency=reservation.currency
    )


def _clearing(refund: Refund) -> ledger.AccountRef:
    return accounts.of_object(
        kind=AccountKind.PSP_CLEARING, object_id=refund.id, currency=refund.currency
    )
