"""The arrows of a price that is paid in two parts, and what each posts and tells.

Whoever takes one has locked the row. A balance that is not paid by `return_by` ends the reservation; see
`collecting`.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction

from billing import purchases
from billing.models import Deposit, Payment, ProviderTransition
from billing.provider_states import DEPOSIT_ARROWS, DepositStatus, Machine
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.core.windows import format_instant
from marketplace.states import EventKind
from scheduler import reservations
from scheduler.models import Reservation

# Whoever is asked so late that the start is near has at least the time that it takes to hand GPUs over.
CLOSES_BEFORE_START_SECONDS = 3600


@transaction.atomic
def open_plan(*, reservation: Reservation, at: dt.datetime) -> None:
    """Take the arrow awaited → open, where a reservation is paid in two parts: its deposit is there."""
    plan = _locked(reservation_id=reservation.pk)
    if plan is None:
        return
    notice = dt.timedelta(seconds=settings.BALANCE_NOTICE_SECONDS)
    _move(plan, to=DepositStatus.OPEN, at=at, act_due_at=plan.balance_due_at - notice)


def lock(*, reservation: Reservation) -> None:
    """Lock the plan of a reservation that is paid in two parts: before the reservation itself."""
    _locked(reservation_id=reservation.pk)


def announce_due(plan: Deposit, *, at: dt.datetime) -> None:
    """Tell a tenant, once, that its saved card will be charged, and when."""
    Deposit.objects.filter(pk=plan.pk).update(announced_at=at, act_due_at=plan.balance_due_at)
    _tell(plan, kind=EventKind.BALANCE_ANNOUNCED, at=at)


def mark_asked(plan: Deposit, *, at: dt.datetime) -> None:
    """Take the arrow open → asked: from now on its tenant has `BALANCE_RETURN_SECONDS` to return.

    Not beyond an hour before the start: who was asked later than planned has less.
    """
    patience = dt.timedelta(seconds=settings.BALANCE_RETURN_SECONDS)
    plan.return_by = min(at + patience, latest_return(plan))
    _move(
        plan,
        to=DepositStatus.ASKED,
        at=at,
        return_by=plan.return_by,
        act_due_at=plan.return_by,
    )
    _tell(plan, kind=EventKind.BALANCE_ASKED, at=at)


def ask_longer(plan: Deposit, *, at: dt.datetime) -> None:
    """Give a tenant its time to return once more: its money was parked in it."""
    patience = dt.timedelta(seconds=settings.BALANCE_RETURN_SECONDS)
    plan.return_by = min(at + patience, latest_return(plan))
    Deposit.objects.filter(pk=plan.pk).update(return_by=plan.return_by, act_due_at=plan.return_by)


@transaction.atomic
def note_waiting(*, payment: Payment, at: dt.datetime) -> None:
    """Let the next step look at a balance that was paid while the tenant's money was parked."""
    Deposit.objects.filter(pk=payment.reservation_id, act_due_at__gt=at).update(act_due_at=at)


def latest_return(plan: Deposit) -> dt.datetime:
    """Return until when a balance can be waited for at all."""
    return plan.reservation.starts_at - dt.timedelta(seconds=CLOSES_BEFORE_START_SECONDS)


@transaction.atomic
def settle(*, payment: Payment, at: dt.datetime) -> None:
    """Take an arrow to paid: the rest of the price is bought with what came, and the reservation may begin.

    :raises StateConflict: when the reservation was given up meanwhile, or the balance was paid otherwise.
    :raises ledger.InsufficientFunds: when the wallet does not hold what came.
    """
    reservation = payment.reservation
    assert reservation is not None, payment.pk
    plan = _locked(reservation_id=reservation.pk)
    if plan is None or plan.status not in {DepositStatus.OPEN, DepositStatus.ASKED}:
        raise StateConflict(f"no balance of {reservation.pk} is open any more")
    _move(plan, to=DepositStatus.PAID, at=at, act_due_at=None)
    reservations.pay_up(reservation_id=reservation.pk, at=at)
    purchases.post_balance(reservation=reservation, net_minor=plan.balance_net_minor, at=at)
    _tell(plan, kind=EventKind.BALANCE_PAID, at=at)


def take_back(plan: Deposit, *, kept_minor: int | None, at: dt.datetime) -> None:
    """Take an arrow to ended: the reservation was given up.

    `kept_minor` says that it was given up because the balance was not paid, and how much was kept for that.
    """
    _move(plan, to=DepositStatus.ENDED, at=at, act_due_at=None)
    if kept_minor is not None:
        _tell(plan, kind=EventKind.BALANCE_NOT_PAID, at=at, kept_minor=kept_minor)


def _locked(*, reservation_id: str) -> Deposit | None:
    return (
        Deposit.objects.select_for_update(no_key=True, of=("self",))
        .select_related("reservation__organization")
        .filter(pk=reservation_id)
        .first()
    )


def _tell(plan: Deposit, *, kind: EventKind, at: dt.datetime, **more: object) -> None:
    events.record(
        organization=plan.reservation.organization,
        kind=kind,
        object_id=plan.pk,
        data={
            "reservation_id": plan.pk,
            "amount_minor": plan.balance_gross_minor,
            "currency": plan.currency,
            "balance_due_at": format_instant(plan.balance_due_at),
            "return_by": plan.return_by and format_instant(plan.return_by),
            **more,
        },
        at=at,
        key=f"{plan.pk}:{kind.value}",
    )


def _move(plan: Deposit, *, to: DepositStatus, at: dt.datetime, **columns: object) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = DepositStatus(plan.status)
    closed_at = at if DEPOSIT_ARROWS.is_final(to) else None
    won = DEPOSIT_ARROWS.allows(came_from, to) and Deposit.objects.filter(
        pk=plan.pk, status=came_from
    ).update(status=to, closed_at=closed_at, **columns)
    if not won:
        raise StateConflict(f"{plan} is {came_from} or moved on; it cannot become {to}")
    plan.status = to
    ProviderTransition.objects.create(
        machine=Machine.DEPOSIT,
        subject_id=plan.pk,
        from_status=came_from,
        to_status=to,
        at=at,
    )
