"""Another window that is paid by card: its places are held beside the old ones until the money is there.

While it waits the reservation has the old window, and stands in it for good where the payment fails. So the
new places are found with the old ones taken: where the two windows overlap they are on other GPUs, and where
there are none a move cannot wait for a payment, though it could be made at once. They are held by a quote of
the market's own, so that whatever is known of held places holds of these. Money that comes after they were
given back takes places again, at the promised price, if there are any.
"""

import datetime as dt

from django.db import transaction

from marketplace.core import ids
from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.models import Organization
from scheduler import (
    calendar,
    changes,
    extension_holds,
    given_back,
    holds,
    placement,
    quotas,
    rebookings,
)
from scheduler.holds import QuoteExpired
from scheduler.lots import Lots
from scheduler.models import Change, ChangeQuote, ExtensionHold, Quote, Reservation
from scheduler.rebookings import MoveTooLate

KINDS = rebookings.KINDS
# Nothing waits for money when one of the two windows begins: late money has time to be sent back before.
CLOSES_BEFORE_START_SECONDS = 5 * 60


@transaction.atomic
def hold(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> ExtensionHold:
    """Hold the places of another window until they are paid for, or its time is up.

    The reservation stays as it is: whoever takes the money calls `make`, or `extensions.drop_held`.

    :raises MoveTooLate: when one of the two windows begins too soon for a payment.
    :raises CapacityTaken: when there is no room for the new window beside the old one.
    :raises StateConflict: when the reservation waits for another payment already.
    :raises DomainError: whatever refuses the move; see `rebookings.rebook`.
    """
    reservation = changes.locked(organization=organization, reservation_id=reservation_id)
    rebookings.check_status(reservation, at=at)
    extension_holds.require_none(reservation=reservation)
    used = changes.use(reservation=reservation, quote_id=quote_id, kinds=KINDS, at=at)
    window = used.window
    assert window is not None
    rebookings.check_start(reservation, window=window, at=at)
    held_until = _held_until(reservation, window=window, at=at)
    if held_until <= at:
        raise MoveTooLate(
            f"{reservation.pk} begins too soon for a payment that takes minutes",
            extra={"closed_at": format_instant(held_until)},
        )
    quotas.check(
        organization=organization,
        gpus=reservation.gpus,
        window=window,
        at=at,
        instead_of=reservation,
    )
    kept = _quote_of(reservation, used=used, window=window, held_until=held_until, at=at)
    placement.assign(
        demand=rebookings.demand_of(reservation, lots=Lots.from_json(used.lots), window=window),
        take=lambda places: calendar.take_for_quote(
            places=places, window=window, quote_id=kept.pk, at=at
        ),
        at=at,
    )
    return ExtensionHold.objects.create(
        id=ids.new_change_id(),
        reservation=reservation,
        quote=used,
        kept=kept,
        held_until=held_until,
        actor=actor,
        created_at=at,
    )


@transaction.atomic
def make(*, hold_id: str, at: dt.datetime) -> Change:
    """Give a reservation the window that was held for it and is paid for now, whenever that is.

    Places that were given back meanwhile are looked for again, at the price that was promised.

    :raises StateConflict: when the reservation has begun, is over, or has changed since; or it was made.
    :raises CapacityTaken: when there is no room in the new window any more.
    :raises LimitExceeded: when the tenant's limits do not allow it any more.
    """
    known = ExtensionHold.objects.select_related("reservation__organization", "quote", "kept")
    held = known.get(pk=hold_id)
    organization = held.reservation.organization
    reservation = changes.locked(organization=organization, reservation_id=held.reservation_id)
    held.refresh_from_db(fields=["dropped_at", "made_at"])
    rebookings.check_status(reservation, at=at)
    window, old = held.window, reservation.window
    was = (held.quote.from_starts_at, held.quote.from_ends_at)
    if was != (old.starts_at, old.ends_at):
        raise StateConflict(f"{reservation.pk} has changed since the move was ordered")
    if held.dropped_at is not None and extension_holds.open_of(reservation=reservation):
        raise StateConflict(f"another change of {reservation.pk} waits for its payment")
    rebookings.check_start(reservation, window=window, at=at)
    if not ExtensionHold.objects.filter(pk=held.pk, made_at__isnull=True).update(made_at=at):
        raise StateConflict(f"{held.pk} was made already")
    released = given_back.places(reservation=reservation, parts=rebookings.added_parts(window, old))
    if not _take_kept(held, reservation=reservation, at=at):
        quotas.check(
            organization=organization,
            gpus=reservation.gpus,
            window=window,
            at=at,
            instead_of=reservation,
        )
        rebookings.place(reservation, lots=Lots.from_json(held.quote.lots), window=window, at=at)
    return rebookings.write(
        reservation, used=held.quote, released=released, change_id=held.pk, at=at, actor=held.actor
    )


def _take_kept(held: ExtensionHold, *, reservation: Reservation, at: dt.datetime) -> bool:
    """Give a reservation the places that are held for it instead of its own; False: none are any more."""
    assert held.kept is not None, held.pk
    try:
        holds.use(quote=held.kept, at=at)
    except QuoteExpired:
        holds.release(quote_id=held.kept.pk)
        return False
    calendar.free_reservation(reservation_id=reservation.pk)
    calendar.hand_hold_over(quote_id=held.kept.pk, reservation_id=reservation.pk)
    return True


def _held_until(reservation: Reservation, *, window: Window, at: dt.datetime) -> dt.datetime:
    first = min(reservation.starts_at, window.starts_at)
    return min(
        at + dt.timedelta(seconds=extension_holds.HELD_SECONDS),
        first - dt.timedelta(seconds=CLOSES_BEFORE_START_SECONDS),
    )


def _quote_of(
    reservation: Reservation,
    *,
    used: ChangeQuote,
    window: Window,
    held_until: dt.datetime,
    at: dt.datetime,
) -> Quote:
    """Make the quote that holds the places; its id is told to nobody, so that nobody orders it."""
    lots = Lots.from_json(used.lots)
    return Quote.objects.create(
        organization=reservation.organization,
        gpu_model_id=reservation.gpu_model_id,
        gpus=reservation.gpus,
        region=reservation.region,
        tier=reservation.tier,
        spread=reservation.spread,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        rate=lots.mean_rate,
        total_minor=used.total_minor,
        lots=used.lots,
        currency=reservation.currency,
        fee_basis_points=reservation.fee_basis_points,
        price_breakdown={},
        hold=True,
        simulated=reservation.simulated,
        created_at=at,
        expires_at=held_until,
    )
