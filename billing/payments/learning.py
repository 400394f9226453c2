"""Learn from the provider what became of a payment, and buy with what came."""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, OuterRef, Value
from django.db.models.functions import Concat

from billing import (
    budgets,
    card_refunds,
    changes,
    deposits,
    intents,
    ledger,
    parking,
    purchases,
    receivables,
    runs,
    wallet,
)
from billing.models import Entry, Parking, Payer, Payment
from billing.payments import moves
from billing.payments.asking import CAPTURE_BEFORE_START_SECONDS, READ_AGAIN_SECONDS
from billing.promised import Promise
from billing.provider_states import (
    PAYMENT_ARROWS,
    PaymentPurpose,
    PaymentStatus,
)
from billing.provider_values import ProviderPayment
from billing.states import EntryKind
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.states import EventKind
from scheduler import changes as scheduled
from scheduler import extensions, held_moves, reservations
from scheduler.models import Change, ExtensionHold, Reservation
from scheduler.states import ReservationReason, ReservationStatus

CAPTURE_BEFORE_HOLD_ENDS_SECONDS = 6 * 3600
# The tick comes every two seconds; a day covers a market that was down when the money was let go.
PARKED_INVOICES_LOOKED_FOR_SECONDS = 86_400
AUTHENTICATION_REQUIRED = "authentication_required"


@transaction.atomic
def apply(*, payment_id: str, made: ProviderPayment, at: dt.datetime) -> Payment:
    """Take over what the provider says of a payment. Safe to call with the same, or with older news."""
    payment = (
        Payment.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization", "reservation", "extension__quote")
        .get(pk=payment_id)
    )
    if PAYMENT_ARROWS.is_final(PaymentStatus(payment.status)):
        return payment
    _remember(payment, made, at=at)
    match made.state:
        case "succeeded":
            _succeed(payment, made, at=at)
        case "requires_capture":
            _authorize(payment, made, at=at)
        case "canceled":
            moves.close(payment, at=at)
        case _:
            _wait(payment, made, at=at)
    return payment


@transaction.atomic
def refused(*, payment_id: str, code: str, message: str, at: dt.datetime) -> None:
    """Give up a payment that the provider would not even begin."""
    payment = (
        Payment.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization", "reservation", "extension__quote")
        .get(pk=payment_id)
    )
    if payment.status not in moves.OPEN_STATUSES:
        return
    Payment.objects.filter(pk=payment.pk).update(
        failure_code=code[:100], failure_message=message[:500]
    )
    payment.failure_code, payment.failure_message = code[:100], message[:500]
    moves.close(payment, at=at)


@transaction.atomic
def declined_at_once(
    *, payment_id: str, provider_id: str, code: str, message: str, at: dt.datetime
) -> None:
    """Note that a saved card was declined; the payment stays at the provider until it is read."""
    Payment.objects.filter(pk=payment_id, status__in=moves.OPEN_STATUSES).update(
        provider_id=provider_id,
        failure_code=code[:100],
        failure_message=message[:500],
        read_due_at=at,
    )


def _remember(payment: Payment, made: ProviderPayment, *, at: dt.datetime) -> None:
    payment.provider_id = made.id
    payment.client_secret = made.client_secret
    payment.charge_id = made.charge_id
    payment.instructions = made.instructions
    payment.failure_code = made.failure_code[:100]
    payment.failure_message = made.failure_message[:500]
    payment.received_minor = made.received_minor
    payment.read_due_at = at + dt.timedelta(seconds=READ_AGAIN_SECONDS)
    payment.save(
        update_fields=[
            "provider_id",
            "client_secret",
            "charge_id",
            "instructions",
            "failure_code",
            "failure_message",
            "received_minor",
            "read_due_at",
        ]
    )


def _wait(payment: Payment, made: ProviderPayment, *, at: dt.datetime) -> None:
    """The provider waits for the tenant; after a decline another card may still do."""
    if payment.status == PaymentStatus.CREATED:
        moves.move(payment, to=PaymentStatus.OPEN, reason=made.state, at=at)
    if not made.failure_code:
        return
    is_question = made.failure_code == AUTHENTICATION_REQUIRED
    kind = EventKind.PAYMENT_ACTION_REQUIRED if is_question else EventKind.PAYMENT_DECLINED
    moves.tell(payment, kind=kind, occasion=f"{kind}:{made.charge_id or made.failure_code}", at=at)
    if payment.is_off_session and not is_question and payment.purpose != PaymentPurpose.BALANCE:
        # Nobody is there who could take another card; for a balance there is time to be told and return.
        Payment.objects.filter(pk=payment.pk).update(due_at=at)
        payment.due_at = at
        moves.give_back(payment, at=at)


def _authorize(payment: Payment, made: ProviderPayment, *, at: dt.datetime) -> None:
    if payment.status == PaymentStatus.AUTHORIZED:
        return
    reservation = payment.reservation
    assert reservation is not None, payment.pk
    limits = [reservation.starts_at - dt.timedelta(seconds=CAPTURE_BEFORE_START_SECONDS)]
    if made.capture_before is not None:
        limits.append(made.capture_before - dt.timedelta(seconds=CAPTURE_BEFORE_HOLD_ENDS_SECONDS))
    payment.capture_due_at = max(at, min(limits))
    payment.save(update_fields=["capture_due_at"])
    moves.move(payment, to=PaymentStatus.AUTHORIZED, reason="", at=at)
    try:
        with transaction.atomic():
            reservations.confirm_held(reservation_id=reservation.pk, at=at, actor=moves.ACTOR)
    except DomainError:
        # Too late: nothing was taken yet, so nothing needs to go back but the hold.
        moves.give_up(payment, at=at)
        return
    moves.tell(payment, kind=EventKind.PAYMENT_AUTHORIZED, occasion="authorized", at=at)


def _succeed(payment: Payment, made: ProviderPayment, *, at: dt.datetime) -> None:
    _lock_what_is_paid(payment)
    refusal = _refused_by_budget(payment, at=at)
    moves.move(payment, to=PaymentStatus.SUCCEEDED, reason="", at=at)
    ledger.post(
        idempotency_key=f"topup:{payment.pk}",
        kind=EntryKind.TOP_UP,
        subject_id=payment.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=moves.clearing(payment=payment),
            credited=wallet.account(organization=payment.organization, currency=payment.currency),
            amount=payment.received_minor,
        ),
    )
    if payment.saves_card and made.method_id:
        Payer.objects.filter(organization=payment.organization).update(saved_card_id=made.method_id)
    moves.tell(payment, kind=EventKind.PAYMENT_SUCCEEDED, occasion="succeeded", at=at)
    if payment.purpose == PaymentPurpose.BALANCE and parking.is_parked(
        organizations=[payment.organization]
    ):
        # It waits in the wallet; `deposits.collecting` buys with it when the money moves again.
        deposits.note_waiting(payment=payment, at=at)
    elif payment.reservation is not None:
        _spend(payment, reservation=payment.reservation, refusal=refusal, at=at)
    elif payment.invoice_id and not parking.is_parked(organizations=[payment.organization]):
        _pay_invoice(payment, at=at)


def _lock_what_is_paid(payment: Payment) -> None:
    """Lock what a payment is for before the wallet, as everybody does who changes it, and read it anew.

    The plan comes first, as where a balance is collected; then the budgets, which are asked if what was kept
    for the payment has lapsed: the reservation tells that, and whoever holds its lock does not wait for them.
    """
    if payment.invoice_id:
        receivables.lock(payment.organization)
    elif payment.reservation is not None:
        reservation = payment.reservation
        deposits.lock(reservation=reservation)
        budgets.lock(organization=payment.organization, project=reservation.project)
        payment.reservation = scheduled.locked(
            organization=payment.organization, reservation_id=reservation.pk
        )
        if payment.extension is not None:
            payment.extension.refresh_from_db(fields=["dropped_at", "made_at"])


def pay_invoices_due(*, at: dt.datetime) -> int:
    """Pay the invoices whose money came while it was parked, now that it moves again; return how many."""
    paid = Entry.objects.filter(idempotency_key=Concat(Value("invpay:"), OuterRef("pk")))
    was_parked = Parking.objects.filter(
        organization=OuterRef("organization"),
        parked_at__lte=OuterRef("closed_at"),
        ended_at__gt=at - dt.timedelta(seconds=PARKED_INVOICES_LOOKED_FOR_SECONDS),
    )
    waiting = Payment.objects.filter(
        Exists(was_parked),
        ~Exists(paid),
        purpose=PaymentPurpose.INVOICE,
        status=PaymentStatus.SUCCEEDED,
    ).exclude(organization__in=parking.parked())
    rows = waiting.select_related("organization").order_by("pk")[: intents.INTENTS_PER_RUN_MAX]
    return runs.one_by_one(rows, lambda row: _pay_invoice(row, at=at), name="pay_invoices")


def _pay_invoice(payment: Payment, *, at: dt.datetime) -> bool:
    receivables.pay_from_wallet(
        organization=payment.organization,
        invoice_id=payment.invoice_id,
        payment_id=payment.pk,
        amount=Money(payment.received_minor, payment.currency),
        at=at,
    )
    return True


def _refused_by_budget(payment: Payment, *, at: dt.datetime) -> DomainError | None:
    """Return why what was given up cannot come back: what it left of a budget may have been spent since."""
    reservation, held = payment.reservation, payment.extension
    if reservation is None:
        return None
    promise, instead_of = Promise.of(reservation), None
    if held is not None:
        after = Promise.after(held.quote)
        assert after is not None, held.pk
        promise, instead_of = after, reservation
        has_lapsed = held.dropped_at is not None
    else:
        has_lapsed = reservation.status == ReservationStatus.EXPIRED
    if not has_lapsed:
        return None
    try:
        budgets.require(
            organization=reservation.organization,
            project=reservation.project,
            promise=promise,
            at=at,
            instead_of=instead_of,
        )
    except (budgets.BudgetExceeded, budgets.ProjectFrozen) as refusal:
        return refusal
    return None


def _spend(
    payment: Payment, *, reservation: Reservation, refusal: DomainError | None, at: dt.datetime
) -> None:
    """Buy with what came what it was asked for; when that cannot be had any more, send all of it back.

    A reservation that still counted on this money ends then: nothing is delivered that nobody has paid.
    """
    try:
        with transaction.atomic():
            if refusal is not None:
                raise refusal
            if payment.purpose == PaymentPurpose.BALANCE:
                deposits.settle(payment=payment, at=at)
            elif payment.extension is not None:
                changes.post(change=_made(payment.extension, at=at), spends_promotions=False)
            else:
                _buy(reservation, at=at)
    except DomainError as refusal:
        if moves.reservation_waits(payment):
            reservations.fail_payment(
                reservation_id=reservation.pk,
                at=at,
                actor=moves.ACTOR,
                reason=ReservationReason.PAYMENT_RETURNED,
            )
        card_refunds.write(
            payment=payment,
            amount_minor=payment.received_minor,
            reason="paid_too_late",
            at=at,
        )
        moves.tell(
            payment,
            kind=EventKind.PAYMENT_RETURNED,
            occasion="returned",
            at=at,
            why=refusal.detail,
        )


def _made(held: ExtensionHold, *, at: dt.datetime) -> Change:
    """Make the change that was kept until its payment."""
    verb = extensions.make_held if held.kept_id is None else held_moves.make
    return verb(hold_id=held.pk, at=at)


def _buy(reservation: Reservation, *, at: dt.datetime) -> None:
    # GPUs that are looked for again are locked before the accounts of what is bought.
    if reservation.is_payment_held:
        reservations.take_held(reservation_id=reservation.pk)
    else:
        reservations.confirm_late(reservation_id=reservation.pk, at=at, actor=moves.ACTOR)
    purchases.post(reservation=reservation, at=at)
    deposits.open_plan(reservation=reservation, at=at)
