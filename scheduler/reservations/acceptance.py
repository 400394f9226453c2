"""The first arrow: a quote becomes a reservation."""

import datetime as dt

from django.db import transaction
from django.db.models import Min

from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import calendar, demand, holds, placement, quotas, quotes
from scheduler.details import ReservationDetails, check_details
from scheduler.models import Allocation, Quote, Reservation, ReservationTransition
from scheduler.states import RESERVATION_ARROWS, DemandKind, PaymentMethod, ReservationReason

# How long capacity is kept for a payment: a wallet answers at once, a person with a card needs minutes, a
# bank transfer half a day.
PAYMENT_WINDOW_SECONDS = {
    PaymentMethod.WALLET: 15 * 60,
    PaymentMethod.CARD: 15 * 60,
    PaymentMethod.BANK_TRANSFER: 12 * 3600,
    PaymentMethod.INVOICE: 12 * 3600,
}


@transaction.atomic(savepoint=False)
def reserve(
    *,
    organization: Organization,
    quote_id: str,
    payment_method: str,
    details: ReservationDetails,
    at: dt.datetime,
    actor: str,
) -> Reservation:
    """Make a reservation of a quote, all or nothing; it waits for its payment until `payment_due_at`.

    The placement is chosen now, unless the quote holds one. A refusal ends the caller's transaction, if
    there is one: it can only be rolled back.

    :raises NotFound: when the tenant has no such quote.
    :raises DomainError: whatever refuses it; see `accept`.
    """
    return accept(
        quote=quotes.get_for_use(organization=organization, quote_id=quote_id),
        payment_method=payment_method,
        details=details,
        at=at,
        actor=actor,
    )


@transaction.atomic(savepoint=False)
def accept(
    *,
    quote: Quote,
    payment_method: str,
    details: ReservationDetails,
    at: dt.datetime,
    actor: str,
    unpaid_minor: int = 0,
) -> Reservation:
    """Do what `reserve` does with a quote that `quotes.get_for_use` returned in this transaction.

    `unpaid_minor` is what of the total is paid only after the reservation was confirmed; until that is paid
    it does not begin.

    :raises InvalidValue: when the payment method or a detail makes no sense.
    :raises QuoteUsed: when a reservation was made of it already.
    :raises QuoteExpired: when its time is up.
    :raises LimitExceeded: when the tenant's limits do not allow it; the quote stays.
    :raises CapacityTaken: when a rival took the GPUs, and no others serve at this price; the quote stays.
    """
    if payment_method not in PaymentMethod.values:
        raise InvalidValue(
            f"must be one of {', '.join(PaymentMethod.values)}", pointer="/payment_method"
        )
    check_details(details)
    organization = quote.organization
    holds.require_usable(quote=quote, at=at)
    quotas.check(organization=organization, gpus=quote.gpus, window=quote.window, at=at)
    patience = dt.timedelta(seconds=PAYMENT_WINDOW_SECONDS[PaymentMethod(payment_method)])
    reservation = Reservation(
        organization=organization,
        quote=quote,
        status=RESERVATION_ARROWS.initial[0],
        gpu_model_id=quote.gpu_model_id,
        gpus=quote.gpus,
        region=quote.region,
        tier=quote.tier,
        spread=quote.spread,
        starts_at=quote.starts_at,
        ends_at=quote.ends_at,
        rate=quote.rate,
        total_minor=quote.total_minor,
        unpaid_minor=unpaid_minor,
        lots=quote.lots,
        currency=quote.currency,
        fee_basis_points=quote.fee_basis_points,
        payment_method=payment_method,
        simulated=quote.simulated,
        name=details.name,
        project=details.project,
        tags=details.tags,
        ssh_public_keys=details.ssh_public_keys,
        image=details.image,
        warn_before_seconds=sorted(details.warn_before_seconds),
        created_at=at,
        payment_due_at=min(at + patience, quote.ends_at),
    )
    # The place comes first: a loser of a race must not have written anything in vain. The foreign key of
    # the allocations is checked at commit. The quote is ours already: its row is locked.
    if quote.hold:
        slots = calendar.hand_hold_over(quote_id=quote.pk, reservation_id=reservation.pk)
        assert slots == quote.gpus, (slots, quote.pk)
    else:
        placement.assign(
            demand=quotes.demand_of(quote),
            take=lambda places: calendar.take_for_reservation(
                places=places, window=quote.window, reservation_id=reservation.pk, at=at
            ),
            at=at,
        )
    if reservation.tier == Tier.RECLAIMABLE:
        reservation.reclaim_notice_seconds = _shortest_notice(reservation_id=reservation.pk)
    holds.use(quote=quote, at=at)
    reservation.save(force_insert=True)
    demand.record(
        organization=organization,
        kind=DemandKind.RESERVATION,
        gpu_model_id=reservation.gpu_model_id,
        region=reservation.region,
        tier=Tier(reservation.tier),
        window=reservation.window,
        gpus=reservation.gpus,
        at=at,
        occasion=reservation.pk,
    )
    ReservationTransition.objects.create(
        reservation=reservation,
        from_status="",
        to_status=reservation.status,
        reason=ReservationReason.QUOTE_ACCEPTED,
        actor=actor,
        at=at,
    )
    return reservation


def _shortest_notice(*, reservation_id: str) -> int:
    """Return the shortest notice in seconds of the listings that serve a reservation now."""
    places = Allocation.objects.filter(reservation_id=reservation_id, live=True)
    shortest = places.aggregate(seconds=Min("listing__reclaim_notice_seconds"))["seconds"]
    assert shortest is not None, reservation_id
    return int(shortest)
