"""Ask tenants for money, take what they let us hold, and give up what nobody paid."""

import datetime as dt
from dataclasses import dataclass, replace

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from billing import chargeable, intents, parking, purchases, runs, tax
from billing.models import Deposit, Intent, Payer, Payment
from billing.payments import moves
from billing.provider_states import (
    IntentKind,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from marketplace.core.errors import DomainError, InvalidValue, NotFound
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import reservations
from scheduler.models import ExtensionHold, Reservation
from scheduler.states import ReservationReason, ReservationStatus

# How long a top-up waits for its tenant: somebody who left a page open over night may still pay.
TOP_UP_WINDOW_SECONDS = {
    PaymentMeans.CARD: 24 * 3600,
    PaymentMeans.BANK_TRANSFER: 14 * 86_400,  # banks take days, and nothing is kept for it
}
# A price that may still end in nothing is held and not taken: best-effort capacity that starts before the
# shortest hold of any card scheme, four days and eighteen hours, is over.
HELD_TIERS = (Tier.RECLAIMABLE,)
HELD_START_WITHIN_SECONDS = 4 * 86_400
CAPTURE_BEFORE_START_SECONDS = 15 * 60  # the provider may be away for ten of them
# What is not taken by then ends: sixty ticks before the scheduler, which starts nothing that is only held.
UNTAKEN_ENDS_BEFORE_START_SECONDS = 2 * 60
READ_AGAIN_SECONDS = 60  # a payment of which nothing is heard is read from the provider this often


class NoSavedCard(DomainError):
    """A payment without the tenant present needs a card that it saved before."""

    code = "no_saved_card"
    title = "There is no saved card"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a tenant wants to pay: with the saved card, at once and unasked, or saving the one it uses."""

    means: PaymentMeans
    with_saved_card: bool = False
    saves_card: bool = False


@transaction.atomic
def open_top_up(
    *, organization: Organization, amount: Money, wishes: Wishes, at: dt.datetime
) -> Payment:
    """Ask a tenant for money for its wallet. Whoever drives its intents gets the answer.

    :raises InvalidValue: when the amount is not one that the provider takes, or of another currency.
    :raises NoSavedCard: when the payment is to be made with one and there is none.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    if not organization.is_tenant:
        raise InvalidValue("only an organization that buys has a wallet", pointer="/amount")
    if amount.currency != settings.CURRENCY:
        raise InvalidValue(
            f"this market keeps its wallets in {settings.CURRENCY}", pointer="/amount/currency"
        )
    return _open_for_wallet(
        organization=organization,
        purpose=PaymentPurpose.TOP_UP,
        invoice_id="",
        amount=amount,
        wishes=wishes,
        at=at,
    )


@transaction.atomic
def open_for_invoice(
    *,
    organization: Organization,
    invoice_id: str,
    amount: Money,
    wishes: Wishes,
    at: dt.datetime,
) -> Payment:
    """Ask a tenant to pay an invoice; the money comes into its wallet and pays it from there.

    :raises InvalidValue: when the amount is not one that the provider takes.
    :raises NoSavedCard: when the payment is to be made with one and there is none.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    return _open_for_wallet(
        organization=organization,
        purpose=PaymentPurpose.INVOICE,
        invoice_id=invoice_id,
        amount=amount,
        wishes=wishes,
        at=at,
    )


@transaction.atomic
def open_for_reservation(*, reservation: Reservation, wishes: Wishes, at: dt.datetime) -> Payment:
    """Ask a tenant to pay for a reservation that waits for it until `payment_due_at`.

    Where a deposit is asked for, the card is saved: the balance is charged to it.

    :raises InvalidValue: when the amount is less than the provider takes.
    :raises NoSavedCard: when the payment is to be made with one and there is none.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    in_two_parts = reservation.unpaid_minor > 0
    if in_two_parts:
        wishes = replace(wishes, saves_card=True)
    amount_minor = chargeable.rounded_up(
        amount_minor=purchases.due_now_with_tax(reservation=reservation),
        currency=reservation.currency,
    )
    _require_takeable(Money(amount_minor, reservation.currency), pointer="/payment_method")
    starts_soon = reservation.starts_at - at <= dt.timedelta(seconds=HELD_START_WITHIN_SECONDS)
    has_time = reservation.starts_at - at > dt.timedelta(seconds=2 * CAPTURE_BEFORE_START_SECONDS)
    payment = Payment(
        organization=reservation.organization,
        purpose=PaymentPurpose.DEPOSIT if in_two_parts else PaymentPurpose.RESERVATION,
        reservation=reservation,
        amount_minor=amount_minor,
        currency=reservation.currency,
        is_held=wishes.means == PaymentMeans.CARD
        and reservation.tier in HELD_TIERS
        and starts_soon
        and has_time,
        due_at=reservation.payment_due_at,
    )
    return _open(payment, wishes=wishes, at=at)


@transaction.atomic
def open_for_balance(
    *, plan: Deposit, wishes: Wishes, due_at: dt.datetime, at: dt.datetime
) -> Payment:
    """Ask a tenant for the rest of a price, by `due_at`; with the saved card, or on the page.

    In a currency of which the provider takes steps it is the next one, and the rest stays in the wallet.

    :raises NoSavedCard: when the payment is to be made with one and there is none.
    """
    reservation = plan.reservation
    payment = Payment(
        organization=reservation.organization,
        purpose=PaymentPurpose.BALANCE,
        reservation=reservation,
        amount_minor=chargeable.rounded_up(
            amount_minor=plan.balance_gross_minor, currency=plan.currency
        ),
        currency=plan.currency,
        due_at=due_at,
    )
    return _open(payment, wishes=wishes, at=at)


@transaction.atomic
def open_for_added_hours(*, held: ExtensionHold, wishes: Wishes, at: dt.datetime) -> Payment:
    """Ask a tenant to pay for the hours that are kept for it until `held_until`.

    :raises NoSavedCard: when the payment is to be made with one and there is none.
    :raises InvalidValue: when the amount is not one that the provider takes.
    """
    reservation, net_minor = held.reservation, held.quote.charge_minor
    taxed = tax.preview(reservation=reservation, charged=net_minor)
    amount_minor = chargeable.rounded_up(
        amount_minor=net_minor + taxed.charged, currency=reservation.currency
    )
    _require_takeable(Money(amount_minor, reservation.currency), pointer="/quote_id")
    payment = Payment(
        organization=reservation.organization,
        purpose=PaymentPurpose.ADDED_HOURS,
        reservation=reservation,
        extension=held,
        amount_minor=amount_minor,
        currency=reservation.currency,
        due_at=held.held_until,
    )
    return _open(payment, wishes=wishes, at=at)


def customer_made(*, organization: Organization, customer_id: str, at: dt.datetime) -> None:
    """Know a tenant at the provider, and ask for what waited for that."""
    payer, _ = Payer.objects.get_or_create(
        organization=organization, defaults={"customer_id": customer_id, "created_at": at}
    )
    waiting = Payment.objects.filter(
        organization=organization, status=PaymentStatus.CREATED, provider_id=""
    )
    for payment in waiting.select_related("reservation", "organization").order_by("pk"):
        _ask_provider(payment, payer=payer, at=at)


def give_up_due(*, at: dt.datetime) -> int:
    """Ask the provider to cancel what nobody paid in time, or wants any more; return how many.

    The payment itself ends when the provider has answered: until then the tenant may have paid.
    """
    alive = (
        ReservationStatus.PAYMENT_PENDING,
        ReservationStatus.SCHEDULED,
        ReservationStatus.ACTIVE,
    )
    unwanted = Q(reservation__isnull=False) & ~Q(reservation__status__in=alive)
    unwanted |= Q(extension__dropped_at__isnull=False)
    due = Payment.objects.filter(
        Q(due_at__lte=at, status__in=(PaymentStatus.CREATED, PaymentStatus.OPEN)) | unwanted,
        status__in=moves.OPEN_STATUSES,
    )
    rows = due.select_related("organization", "reservation").order_by("due_at")
    return runs.one_by_one(
        rows[: intents.INTENTS_PER_RUN_MAX],
        lambda payment: moves.give_up(payment, at=at),
        name="give_up_payments",
    )


def capture_due(*, at: dt.datetime) -> int:
    """Take what is held for reservations that begin soon; return how many captures are asked for.

    Nothing is taken of a tenant whose money is parked.
    """
    due = _held().filter(capture_due_at__lte=at).exclude(organization__in=parking.parked())
    rows = due.select_related("organization")[: intents.INTENTS_PER_RUN_MAX]
    return runs.one_by_one(rows, lambda payment: _capture(payment, at=at), name="capture_payments")


def end_untaken(*, at: dt.datetime) -> int:
    """End what begins within moments while its price is only held, and release the hold; return how many.

    So its GPUs are on sale again before the start. A capture that is under way all the same is given back as
    soon as it is heard of.
    """
    until = at + dt.timedelta(seconds=UNTAKEN_ENDS_BEFORE_START_SECONDS)
    late = _held().filter(reservation__starts_at__lte=until)
    rows = late.select_related("organization", "reservation")[: intents.INTENTS_PER_RUN_MAX]
    return runs.one_by_one(
        rows, lambda payment: _end_untaken(payment, at=at), name="end_untaken_bookings"
    )


def get(*, organization: Organization, payment_id: str) -> Payment:
    """Return a tenant's payment.

    :raises NotFound: when there is none of this id, or it is somebody else's.
    """
    found = Payment.objects.visible_to(organization).filter(pk=payment_id).first()
    if found is None:
        raise NotFound(f"no payment {payment_id}")
    return found


def _held() -> QuerySet[Payment]:
    """Return the payments on whose hold a reservation counts."""
    return Payment.objects.filter(
        status=PaymentStatus.AUTHORIZED,
        reservation__status=ReservationStatus.SCHEDULED,
        reservation__is_payment_held=True,
    ).order_by("capture_due_at", "pk")


def _capture(payment: Payment, *, at: dt.datetime) -> bool:
    intents.write(
        kind=IntentKind.CAPTURE,
        subject_id=payment.pk,
        organization=payment.organization,
        params={"payment_id": payment.provider_id, "amount_minor": payment.amount_minor},
        at=at,
    )
    return True


def _end_untaken(payment: Payment, *, at: dt.datetime) -> bool:
    assert payment.reservation_id is not None, payment.pk
    reservations.fail_payment(
        reservation_id=payment.reservation_id,
        at=at,
        actor=moves.ACTOR,
        reason=ReservationReason.PAYMENT_NOT_TAKEN,
    )
    return moves.give_up(payment, at=at)


def _open_for_wallet(
    *,
    organization: Organization,
    purpose: PaymentPurpose,
    invoice_id: str,
    amount: Money,
    wishes: Wishes,
    at: dt.datetime,
) -> Payment:
    _require_takeable(amount, pointer="/amount/amount_minor")
    payment = Payment(
        organization=organization,
        purpose=purpose,
        invoice_id=invoice_id,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        due_at=at + dt.timedelta(seconds=TOP_UP_WINDOW_SECONDS[wishes.means]),
    )
    return _open(payment, wishes=wishes, at=at)


def _require_takeable(amount: Money, *, pointer: str) -> None:
    """Refuse an amount that the provider does not take.

    :raises InvalidValue: then.
    """
    currency = amount.currency
    if not chargeable.is_taken(amount_minor=amount.amount_minor, currency=currency):
        step = chargeable.step(currency)
        raise InvalidValue(
            f"from {chargeable.least(currency)} to {chargeable.MOST_MINOR} minor units"
            + (f", in steps of {step}" if step > 1 else ""),
            pointer=pointer,
        )


def _open(payment: Payment, *, wishes: Wishes, at: dt.datetime) -> Payment:
    parking.require_moving(organizations=[payment.organization])
    payer = Payer.objects.filter(organization=payment.organization).first()
    if wishes.with_saved_card and (payer is None or not payer.saved_card_id):
        raise NoSavedCard("pay once with a card and save it", pointer="/use_saved_card")
    payment.means = wishes.means
    payment.is_off_session = wishes.with_saved_card
    payment.saves_card = wishes.saves_card and not wishes.with_saved_card
    payment.created_at = at
    payment.read_due_at = at + dt.timedelta(seconds=READ_AGAIN_SECONDS)
    payment.save(force_insert=True)
    moves.note(payment, from_status="", reason="", at=at)
    if payer is not None:
        _ask_provider(payment, payer=payer, at=at)
        return payment
    intents.write(
        kind=IntentKind.CUSTOMER,
        subject_id=payment.organization_id,
        organization=payment.organization,
        params={
            "name": payment.organization.name,
            "metadata": {"tenant": payment.organization_id},
        },
        at=at,
    )
    return payment


def _ask_provider(payment: Payment, *, payer: Payer, at: dt.datetime) -> Intent:
    subject = payment.reservation_id or payment.invoice_id or payment.pk
    return intents.write(
        kind=IntentKind.PAYMENT,
        subject_id=payment.pk,
        organization=payment.organization,
        params={
            "customer_id": payer.customer_id,
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "means": payment.means,
            "is_held": payment.is_held,
            "saves_card": payment.saves_card,
            "saved_card_id": payer.saved_card_id if payment.is_off_session else "",
            "description": f"Headroom {subject}",
            "transfer_group": subject,
            "metadata": {"tenant": payment.organization_id, "payment": payment.pk},
        },
        at=at,
    )
