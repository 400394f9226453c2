"""Bookings in bulk: quotes, reservations with their history, and their places in the calendar."""

import datetime as dt
from decimal import Decimal
from typing import Any, TypeAlias

from django.conf import settings
from django.db import connection
from psycopg.types.range import Int4Range, TimestamptzRange

from agents.models import SLOTS_PER_NODE
from marketplace.core.money import currency_exponent
from marketplace.core.windows import Window, grid_ceiling
from marketplace.management.loading.drawing import FleetSize, Numbers, draw
from marketplace.management.loading.machines import (
    FLOOR_RATE,
    GPU_MODEL,
)
from marketplace.management.loading.rows import ID, id_of, multiply, quietly
from marketplace.management.loading.watch import Watch
from marketplace.models import Listing, Organization
from marketplace.states import Tier
from scheduler.lots import Lot, Lots
from scheduler.models import Allocation, Quote, Reservation, ReservationTransition
from scheduler.states import (
    PaymentMethod,
    QuoteStatus,
    ReservationReason,
    ReservationStatus,
    Spread,
)
from scheduler.tariffs import Tariff

ACTOR = "bench fleet"
HOUR = dt.timedelta(hours=1)
RATE = Decimal("2.352942")

_Booked: TypeAlias = (
    type[Quote] | type[Reservation] | type[Allocation] | type[ReservationTransition]
)

_PROMISED = {
    "gpus": "b.gpus",
    "starts_at": "b.starts_at",
    "ends_at": "b.ends_at",
    "region": "node.region",
    "total_minor": "round(b.gpus * extract(epoch FROM b.ends_at - b.starts_at)"
    " * t.rate * %(minor)s / 3600)::bigint",
    "lots": "jsonb_build_array(jsonb_build_object('gpus', b.gpus,"
    " 'listing_ids', jsonb_build_array(listing.id),"
    " 'floors', jsonb_build_array(jsonb_build_array(extract(epoch FROM b.starts_at)::bigint,"
    " extract(epoch FROM b.ends_at)::bigint, t.lots #> '{0,floors,0,2}')),"
    " 'tariff', jsonb_build_array(jsonb_build_array(extract(epoch FROM b.starts_at)::bigint,"
    " extract(epoch FROM b.ends_at)::bigint, (t.rate * 1000000)::bigint))))",
}
# What a booking `b` is made of, with the columns in which it differs from the first one.
_BOOKED: tuple[tuple[_Booked, dict[str, str]], ...] = (
    (Quote, {**_PROMISED, "id": ID.format("qte", "b.n")}),
    (
        Reservation,
        {**_PROMISED, "id": ID.format("rsv", "b.n"), "quote_id": ID.format("qte", "b.n")},
    ),
    (
        Allocation,
        {
            "node_id": "node.id",
            "listing_id": "listing.id",
            "reservation_id": ID.format("rsv", "b.n"),
            "slots": "int4range(b.slot, b.slot + b.gpus)",
            "period": "tstzrange(b.starts_at, b.ends_at)",
        },
    ),
    (ReservationTransition, {"reservation_id": ID.format("rsv", "b.n")}),
)


def book(
    *, size: FleetSize, tenant: Organization, listing: Listing, at: dt.datetime, watch: Watch
) -> None:
    first = grid_ceiling(at, grid_seconds=3600) + HOUR
    bookings = draw(size=size)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE bench_booking (n int, node int, slot int, gpus int,"
            " starts_at timestamptz, ends_at timestamptz) ON COMMIT DROP"
        )
        with cursor.copy(
            "COPY bench_booking (n, node, slot, gpus, starts_at, ends_at)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int4", "int4", "int4", "int4", "timestamptz", "timestamptz"])
            for n, (node, slot, gpus, starts, ends) in enumerate(bookings.tolist()):
                copy.write_row((n, node, slot, gpus, first + starts * HOUR, first + ends * HOUR))
        cursor.execute("ANALYZE bench_booking")
    watch.lap(f"{len(bookings)} bookings drawn")
    with quietly():
        _first_booking(bookings=bookings, tenant=tenant, listing=listing, first=first, at=at)
        for model, changes in _BOOKED:
            for template_id in model.objects.values_list("pk", flat=True):
                multiply(
                    model=model,
                    template_id=template_id,
                    source="bench_booking b"
                    " JOIN agents_node node ON node.slot_base = b.node * %(block)s"
                    " JOIN marketplace_listing listing"
                    " ON listing.organization_id = node.organization_id",
                    where="b.n > 0",
                    changes=changes,
                    parameters={
                        "minor": 10 ** currency_exponent(settings.CURRENCY),
                        "block": SLOTS_PER_NODE,
                    },
                )
            watch.lap(f"{model.__name__} rows")
    watch.lap("exclusion constraint")


def _first_booking(
    *,
    bookings: Numbers,
    tenant: Organization,
    listing: Listing,
    first: dt.datetime,
    at: dt.datetime,
) -> None:
    """Make the booking that the others are multiplied from, by the models; it is paid for by nobody."""
    node, slot, gpus, starts, ends = bookings[0].tolist()
    window = Window(first + starts * HOUR, first + ends * HOUR)
    lot = Lot(
        gpus=gpus,
        floors=Tariff.flat(window=window, rate=FLOOR_RATE),
        tariff=Tariff.flat(window=window, rate=RATE),
        listing_ids=(listing.pk,),
    )
    lots = Lots((lot,))
    shared: dict[str, Any] = {
        "organization": tenant,
        "gpu_model_id": GPU_MODEL,
        "gpus": gpus,
        "region": listing.region,
        "tier": Tier.FIRM,
        "spread": Spread.SAME_FABRIC,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
        "rate": RATE,
        "lots": lots.as_json(),
        "total_minor": lots.amount(window=window, currency=settings.CURRENCY).amount_minor,
        "currency": settings.CURRENCY,
        "fee_basis_points": settings.PLATFORM_FEE_BASIS_POINTS,
        "simulated": True,
        "created_at": at,
    }
    quote = Quote.objects.create(
        id=id_of("qte", 0),
        status=QuoteStatus.USED,
        price_breakdown={},
        expires_at=at,
        used_at=at,
        **shared,
    )
    reservation = Reservation.objects.create(
        id=id_of("rsv", 0),
        quote=quote,
        status=ReservationStatus.SCHEDULED,
        payment_method=PaymentMethod.INVOICE,
        payment_due_at=at,
        **shared,
    )
    for before, after, reason in (
        ("", ReservationStatus.PAYMENT_PENDING, ReservationReason.QUOTE_ACCEPTED),
        (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED, ReservationReason.PAID),
    ):
        ReservationTransition.objects.create(
            reservation=reservation,
            from_status=before,
            to_status=after,
            reason=reason,
            actor=ACTOR,
            at=at,
        )
    Allocation.objects.create(
        node_id=id_of("nde", node),
        listing=listing,
        reservation=reservation,
        slots=Int4Range(slot, slot + gpus),
        period=TimestamptzRange(window.starts_at, window.ends_at),
        created_at=at,
    )
