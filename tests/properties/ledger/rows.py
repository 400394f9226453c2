"""Rows as the scheduler leaves them: a place in the calendar, a later window, hours kept behind one."""

import datetime as dt
from decimal import Decimal

from django.conf import settings

from agents.models import Gpu
from marketplace.core import ids
from marketplace.core.windows import Window
from marketplace.models import Listing, Organization
from marketplace.states import ListingStatus, Tier
from scheduler import change_rules
from scheduler.models import Allocation, ChangeQuote, ExtensionHold, Quote, Reservation
from scheduler.states import ChangeKind, PaymentMethod, QuoteStatus, ReservationStatus
from tests.billing import factories

PAYMENT_WINDOW = dt.timedelta(minutes=15)
QUOTED_FOR = dt.timedelta(minutes=10)


def waiting(
    *,
    buyer: Organization,
    price: int,
    gpus: int,
    hours: int,
    method: PaymentMethod,
    until: dt.datetime,
    unpaid: int = 0,
    tier: Tier = Tier.FIRM,
) -> Reservation:
    """Return a reservation that waits for its payment."""
    row = factories.reservation(
        buyer=buyer,
        gpus=gpus,
        hours=hours,
        total_minor=price,
        currency=settings.CURRENCY,
        status=ReservationStatus.PAYMENT_PENDING,
        paid=False,
    )
    row.payment_method, row.payment_due_at = method, until
    row.unpaid_minor, row.tier = unpaid, tier
    row.save(update_fields=["payment_method", "payment_due_at", "unpaid_minor", "tier"])
    return row


def postpone(row: Reservation, *, to: dt.datetime) -> None:
    """Let the window of what nobody has paid yet begin at another instant, with its quote's."""
    row.starts_at, row.ends_at = to, to + dt.timedelta(seconds=row.window.seconds)
    row.lots = factories.lots(
        window=row.window, gpus=row.gpus, rate=row.rate, fee_basis_points=row.fee_basis_points
    ).as_json()
    row.save(update_fields=["starts_at", "ends_at", "lots"])
    Quote.objects.filter(pk=row.quote_id).update(
        starts_at=row.starts_at, ends_at=row.ends_at, lots=row.lots
    )


def place(row: Reservation, *, kept: Quote | None = None) -> None:
    """Keep GPUs of a node of its own for a reservation, or for a quote that waits to become its window."""
    node = factories.node()
    listing, _ = Listing.objects.get_or_create(
        organization=node.organization,
        name="All of them",
        defaults={
            "status": ListingStatus.PUBLISHED,
            "gpu_model": row.gpu_model,
            "starts_at": factories.START,
            "floor_rate": Decimal("2.000000"),
            "currency": row.currency,
            "created_at": factories.START,
            "updated_at": factories.START,
        },
    )
    Gpu.objects.bulk_create(
        Gpu(
            uuid=f"GPU-{slot}",
            node=node,
            slot=slot,
            product_name="NVIDIA H100",
            memory_total_bytes=1,
            first_seen_at=factories.START,
        )
        for slot in range(node.slot_base, node.slot_base + row.gpus)
    )
    Allocation.objects.create(
        node=node,
        listing=listing,
        reservation=None if kept else row,
        quote=kept,
        slots=(node.slot_base, node.slot_base + row.gpus),
        period=(row.starts_at, row.ends_at) if kept is None else (kept.starts_at, kept.ends_at),
        created_at=factories.START,
    )


def asked(
    *, of: Reservation, kind: ChangeKind, window: Window, price: int, at: dt.datetime
) -> ChangeQuote:
    """Return the promise of another window, which nobody has ordered yet."""
    lots = factories.lots(
        window=window, gpus=of.gpus, rate=of.rate, fee_basis_points=of.fee_basis_points
    )
    return ChangeQuote.objects.create(
        organization=of.organization,
        reservation=of,
        kind=kind,
        rule=change_rules.current(at=factories.START),
        from_status=of.status,
        from_starts_at=of.starts_at,
        from_ends_at=of.ends_at,
        from_total_minor=of.total_minor,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        lots=lots.as_json(),
        notice_seconds=0,
        fee_basis_points=0,
        total_minor=of.total_minor + price,
        charge_minor=price,
        refund_minor=0,
        fee_minor=0,
        currency=of.currency,
        created_at=at,
        expires_at=at + QUOTED_FOR,
    )


def asked_hour(*, of: Reservation, price: int) -> ChangeQuote:
    """Return the promise of an hour more."""
    window = Window(of.starts_at, of.ends_at + dt.timedelta(hours=1))
    return asked(of=of, kind=ChangeKind.EXTENSION, window=window, price=price, at=factories.START)


def kept(used: ChangeQuote, *, at: dt.datetime, places: Quote | None = None) -> ExtensionHold:
    """Order what a quote promises; it is kept until it is paid for."""
    used.used_at = at
    used.save(update_fields=["used_at"])
    return ExtensionHold.objects.create(
        reservation=used.reservation,
        quote=used,
        kept=places,
        held_until=at + PAYMENT_WINDOW,
        actor="test",
        created_at=at,
    )


def kept_window(*, of: Reservation, price: int, hours: int, at: dt.datetime) -> ExtensionHold:
    """Return a later window whose places are kept beside those of a reservation until it is paid for."""
    later = dt.timedelta(hours=hours)
    window = Window(of.starts_at + later, of.ends_at + later)
    used = asked(of=of, kind=ChangeKind.MOVE, window=window, price=price, at=at)
    places = Quote.objects.get(pk=of.quote_id)
    places.pk, places.status, places.used_at = ids.new_quote_id(), QuoteStatus.OPEN, None
    places.starts_at, places.ends_at = window.starts_at, window.ends_at
    places.total_minor, places.lots = used.total_minor, used.lots
    places.created_at, places.expires_at = at, at + PAYMENT_WINDOW
    places.save(force_insert=True)
    place(of, kept=places)
    return kept(used, at=at, places=places)
