"""What tenants sent by bank and no payment has taken: too late, too much, or for what was given up.

The provider gives what arrives to the payments that wait for it, and keeps the rest on the tenant's cash
balance there. Nobody can spend it until a payment takes it, so a payment is made that does: for what it came
too late for, at the locked price, or else for the wallet.
"""

import datetime as dt
from collections.abc import Mapping

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from billing import chargeable, payments
from billing import stripe_gateway as gateway
from billing.models import Payer, Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans, PaymentPurpose, PaymentStatus
from billing.provider_values import GatewayError
from marketplace.core.money import Money
from scheduler.models import Reservation
from scheduler.states import ReservationStatus

log = structlog.get_logger(__name__)

# Events tell of it at once; who was told where to send money is asked after besides, while that may be used.
READ_AGAIN_SECONDS = 6 * 3600
WATCHED_SECONDS = 90 * 86_400
READS_PER_RUN_MAX = 25  # half of what the other readers may ask for
WISHES = Wishes(means=PaymentMeans.BANK_TRANSFER)


def read_due(*, at: dt.datetime) -> int:
    """Read the cash balances of those who were told where to send money; return how many were read.

    That is when a payment by bank has ended, when something was left the last time, and now and then.
    """
    told = Payment.objects.filter(
        means=PaymentMeans.BANK_TRANSFER,
        created_at__gt=at - dt.timedelta(seconds=WATCHED_SECONDS),
    )
    stale = at - dt.timedelta(seconds=READ_AGAIN_SECONDS)
    ended = told.filter(
        organization=OuterRef("organization"), closed_at__gte=OuterRef("cash_read_at")
    )
    due = Payer.objects.filter(
        Q(cash_read_at__isnull=True)
        | Q(cash_read_at__lte=stale)
        | Q(cash_minor__gt=0)
        | Exists(ended),
        organization__in=told.values("organization"),
    ).order_by(F("cash_read_at").asc(nulls_first=True))
    count = 0
    for customer_id in due.values_list("customer_id", flat=True)[:READS_PER_RUN_MAX]:
        try:
            count += read(customer_id=customer_id, at=at)
        except GatewayError as error:
            log.warning("a cash balance could not be read", customer=customer_id, error=str(error))
    return count


def read(*, customer_id: str, at: dt.datetime) -> bool:
    """Read one cash balance and ask for what is on it; say whether the customer is ours.

    :raises GatewayError: when the provider fails.
    """
    if not Payer.objects.filter(customer_id=customer_id).exists():
        return False
    available = gateway.read_cash(customer_id=customer_id)
    take(customer_id=customer_id, available=available, at=at)
    return True


@transaction.atomic
def take(*, customer_id: str, available: Mapping[str, int], at: dt.datetime) -> Payment | None:
    """Open a payment that takes what is on a cash balance; None where there is nothing to take.

    Nothing is taken while a payment by bank waits: what is there is that payment's, or a part of it. What is
    less than the provider takes stays until more comes.
    """
    payer = (
        Payer.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization")
        .get(customer_id=customer_id)
    )
    left = chargeable.rounded_down(
        amount_minor=available.get(settings.CURRENCY, 0), currency=settings.CURRENCY
    )
    payer.cash_minor, payer.cash_read_at = left, at
    payer.save(update_fields=["cash_minor", "cash_read_at"])
    waits = Payment.objects.filter(
        organization=payer.organization,
        means=PaymentMeans.BANK_TRANSFER,
        status__in=payments.OPEN_STATUSES,
    )
    if left < chargeable.least(settings.CURRENCY) or waits.exists():
        return None
    late = _late_for(payer, left_minor=left, at=at)
    if late is not None:
        return payments.open_for_reservation(reservation=late, wishes=WISHES, at=at)
    return payments.open_top_up(
        organization=payer.organization,
        amount=Money(min(left, chargeable.MOST_MINOR), settings.CURRENCY),
        wishes=WISHES,
        at=at,
    )


def _late_for(payer: Payer, *, left_minor: int, at: dt.datetime) -> Reservation | None:
    """Return the newest reservation that the money covers, came too late for, and that can still begin.

    One that a payment was made for is none: it was bought, or could not be, and then the money went back.
    """
    given_up = Payment.objects.filter(
        organization=payer.organization,
        means=PaymentMeans.BANK_TRANSFER,
        purpose=PaymentPurpose.RESERVATION,
        status__in=(PaymentStatus.CANCELLED, PaymentStatus.FAILED),
        amount_minor__lte=left_minor,
        reservation__status=ReservationStatus.EXPIRED,
        reservation__starts_at__gt=at,
    )
    paid = Payment.objects.filter(status=PaymentStatus.SUCCEEDED, reservation__isnull=False)
    newest = (
        given_up.exclude(reservation__in=paid.values("reservation"))
        .select_related("reservation__organization")
        .order_by("-pk")
        .first()
    )
    return None if newest is None else newest.reservation
