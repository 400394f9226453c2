"""Ask for balances when they are due, take them earlier from who wants that, and give up what was not paid.

A step is claimed by its row; each is safe to run twice, late or side by side. The saved card is charged once:
when its bank declines or asks a question, the same payment waits for the tenant until `return_by`.

While a tenant's money is parked nothing is charged and nothing given up. What it pays meanwhile waits in its
wallet and buys the balance afterwards; and whose time to return was parked, in part, has all of it anew.
"""

import datetime as dt

import structlog
from django.conf import settings
from django.db import transaction

from billing import card_refunds, changes, ledger, parking, payments, provider
from billing.deposits import plans
from billing.models import Deposit, Parking, Payer, Payment
from billing.payment_methods import require_provider
from billing.payments import Wishes
from billing.provider_states import (
    DepositStatus,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.models import Organization
from scheduler import cancellations, ticks
from scheduler.states import PaymentMethod, ReservationStatus

log = structlog.get_logger(__name__)

ACTOR = "billing.deposits"
# Who pays early has as long for it as for a purchase; the page can be asked for again.
EARLY_SECONDS = 15 * 60
_WAITING = (DepositStatus.OPEN, DepositStatus.ASKED)


def advance_due(*, at: dt.datetime) -> int:
    """Take the step that is due of every balance; return of how many. Safe to run twice or side by side."""
    due = Deposit.objects.filter(status__in=_WAITING, act_due_at__lte=at)
    return ticks.drain(
        due=due.select_related("reservation__organization").order_by("act_due_at", "pk"),
        advance=lambda plan: _step(plan, at=at),
        name="collect_balances",
        once=True,
        batch=1,  # a plan's reservation is locked before any wallet
    )


@transaction.atomic
def pay_early(
    *, organization: Organization, reservation_id: str, wishes: Wishes, at: dt.datetime
) -> Payment:
    """Ask a tenant for a balance now, or return the payment by which it is asked for already.

    That one can be paid with any card. The call is made when this transaction is over.

    :raises NotFound: when the tenant has no such reservation.
    :raises StateConflict: when no balance of it is open.
    :raises PaymentMethodUnavailable: when no provider is connected.
    :raises NoSavedCard: when the saved card is to pay and there is none.
    """
    require_provider(PaymentMethod.CARD, is_connected=provider.is_connected())
    plan = (
        Deposit.objects.select_for_update(no_key=True, of=("self",))
        .select_related("reservation__organization")
        .filter(reservation__organization=organization, pk=reservation_id)
        .first()
        if "\x00" not in reservation_id
        else None
    )
    if plan is None:
        raise NotFound(f"no reservation {reservation_id} with a balance")
    if plan.status not in _WAITING or plan.reservation.status != ReservationStatus.SCHEDULED:
        raise StateConflict(f"no balance of {reservation_id} is open")
    if plan.return_by is not None and plan.return_by <= at:
        raise StateConflict(f"the balance of {reservation_id} was not paid in time")
    if (waiting := _open_payment(plan)) is not None:
        return waiting
    due_at = plan.return_by or at + dt.timedelta(seconds=EARLY_SECONDS)
    return payments.open_for_balance(plan=plan, wishes=wishes, due_at=due_at, at=at)


def _step(plan: Deposit, *, at: dt.datetime) -> None:
    """Take the next step of a plan that the caller has locked; one whose tenant is parked waits."""
    organization = plan.reservation.organization
    waiting = _waiting_payment(plan)
    if plan.reservation.status != ReservationStatus.SCHEDULED:
        plans.take_back(plan, kept_minor=None, at=at)
        if waiting is not None:
            _return(waiting, at=at)
    elif parking.is_parked(organizations=[organization]) or (
        waiting is not None and _settle(waiting, at=at)
    ):
        return
    elif plan.status == DepositStatus.ASKED:
        if not _asks_longer(plan, at=at):
            _give_up(plan, at=at)
    elif plan.announced_at is None and at < plan.balance_due_at:
        plans.announce_due(plan, at=at)
    elif (
        _open_payment(plan) is None
    ):  # otherwise its tenant is about to pay, and has minutes for it
        _ask(plan, at=at)


def _ask(plan: Deposit, *, at: dt.datetime) -> None:
    """Charge the saved card; where there is none any more, the payment waits for its tenant."""
    plans.mark_asked(plan, at=at)
    assert plan.return_by is not None, plan
    if plan.return_by > at:
        _open(plan, at=at)
    # Otherwise nobody asked in time: the next look gives it up, and nothing of it is kept.


def _open(plan: Deposit, *, at: dt.datetime) -> None:
    assert plan.return_by is not None, plan
    payer = Payer.objects.filter(organization=plan.reservation.organization).first()
    has_card = payer is not None and bool(payer.saved_card_id)
    payments.open_for_balance(
        plan=plan,
        wishes=Wishes(means=PaymentMeans.CARD, with_saved_card=has_card),
        due_at=plan.return_by,
        at=at,
    )


def _give_up(plan: Deposit, *, at: dt.datetime) -> None:
    """Cancel a reservation whose balance was not paid: what was paid is kept, the GPUs are on sale again.

    Who was asked so late that less time was left to return than is promised gets everything back: it was this
    market that was late.
    """
    assert plan.return_by is not None, plan
    had_its_time = plan.return_by < plans.latest_return(plan)
    reservation = plan.reservation
    try:
        with transaction.atomic():
            quote = cancellations.quote(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                at=at,
                fee_basis_points=changes.BASIS_POINTS if had_its_time else 0,
            )
            change = changes.cancel(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                quote_id=quote.pk,
                at=at,
                actor=ACTOR,
            )
    except DomainError as refusal:
        log.warning("balance_gives_up_later", reservation=reservation.pk, why=refusal.detail)
        return
    plans.take_back(plan, kept_minor=change.fee_minor, at=at)


def _asks_longer(plan: Deposit, *, at: dt.datetime) -> bool:
    """Give a tenant that was parked while it could return the time anew; say whether there is any."""
    assert plan.return_by is not None, plan
    asked_at = plan.return_by - dt.timedelta(seconds=settings.BALANCE_RETURN_SECONDS)
    was_parked = Parking.objects.filter(
        organization=plan.reservation.organization_id, ended_at__gt=asked_at
    )
    if plans.latest_return(plan) <= at or not was_parked.exists():
        return False
    plans.ask_longer(plan, at=at)
    waits = _open_payment(plan)
    if waits is None:
        _open(plan, at=at)
    else:
        Payment.objects.filter(pk=waits.pk).update(due_at=plan.return_by)
    return True


def _settle(payment: Payment, *, at: dt.datetime) -> bool:
    """Buy the balance with what came while it was parked; say whether the wallet still holds it."""
    try:
        with transaction.atomic():
            plans.settle(payment=payment, at=at)
    except ledger.InsufficientFunds as refusal:
        log.warning("balance_was_spent", payment=payment.pk, why=refusal.detail)
        return False
    return True


def _return(payment: Payment, *, at: dt.datetime) -> None:
    """Send back what came while it was parked, and bought nothing before the reservation was given up."""
    try:
        with transaction.atomic():
            card_refunds.write(
                payment=payment,
                amount_minor=payment.received_minor,
                reason="paid_too_late",
                at=at,
            )
    except DomainError as refusal:
        log.warning("balance_stays_in_the_wallet", payment=payment.pk, why=refusal.detail)


def _waiting_payment(plan: Deposit) -> Payment | None:
    """Return the payment of a balance that has come and not bought it: it came while it was parked."""
    came = Payment.objects.filter(
        reservation=plan.reservation,
        purpose=PaymentPurpose.BALANCE,
        status=PaymentStatus.SUCCEEDED,
        refunded_minor=0,
    )
    return came.select_related("organization", "reservation__organization").first()


def _open_payment(plan: Deposit) -> Payment | None:
    known = Payment.objects.filter(
        reservation=plan.reservation,
        purpose=PaymentPurpose.BALANCE,
        status__in=payments.OPEN_STATUSES,
    )
    return known.first()
