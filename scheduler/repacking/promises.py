"""The promises that may still move."""

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from psycopg.types.range import Int4Range, TimestamptzRange

from agents.models import SLOTS_PER_NODE
from marketplace.core.windows import Window, to_seconds
from marketplace.states import Tier
from scheduler import occupancy
from scheduler.placement.demand import Demand, asks_of, serves_every_lot
from scheduler.placement.supply import Supply
from scheduler.states import QuoteStatus, ReservationStatus, Spread

BINDING_SECONDS = 30 * 60  # before its start a promise's nodes are prepared: from then on it stays
MOVABLE_STATUSES = (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One allocation: a run of slots, half-open."""

    allocation_id: int
    slot_lower: int
    slot_upper: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A reservation, or a quote that holds, with all of its allocations."""

    id: str
    is_reservation: bool
    demand: Demand
    held: tuple[Held, ...]

    @property
    def slots(self) -> set[int]:
        return {slot for h in self.held for slot in range(h.slot_lower, h.slot_upper)}


def hours_of(window: Window) -> tuple[int, int]:
    """Return the hours since the Unix epoch that a window touches, half-open."""
    hour = occupancy.HOUR_SECONDS
    return to_seconds(window.starts_at) // hour, -(-to_seconds(window.ends_at) // hour)


def bound_from(*, at: dt.datetime) -> dt.datetime:
    """Return the instant up to which what starts is bound to its nodes."""
    return at + dt.timedelta(seconds=BINDING_SECONDS)


def movable(
    *, supply: Supply, rows: Sequence[int], window: Window, at: dt.datetime
) -> list[Promise]:
    """Return the promises on some nodes that touch a window and may go to any other of these nodes.

    That is: not bound yet, on no other node, on slots that are still offered, and served at their own price
    by every listing that covers one of the nodes. And sold with the longest turn-round of those listings, so
    that one length fits everywhere; what was sold with another stays where it is.
    """
    bases = [supply.slot_base(row) for row in rows]
    offered = dict(zip(bases, supply.offered_at_all[list(rows)].tolist(), strict=True))
    covering = [
        listing
        for listing, masks in zip(supply.listings, supply.offered[:, list(rows)], strict=True)
        if masks.any()
    ]
    return [
        promise
        for promise in _read(
            bases=bases,
            window=window.followed_by(seconds=supply.turnaround_seconds_max),
            turnaround_seconds=supply.turnaround_seconds_max,
            at=at,
        )
        if len(promise.slots) == promise.demand.gpus
        and all(_is_offered(slot, offered=offered) for slot in promise.slots)
        and all(serves_every_lot(listing, demand=promise.demand, at=at) for listing in covering)
    ]


def _is_offered(slot: int, *, offered: dict[int, int]) -> bool:
    base = slot // SLOTS_PER_NODE * SLOTS_PER_NODE
    return bool(offered.get(base, 0) >> (slot - base) & 1)


def _read(
    *, bases: list[int], window: Window, turnaround_seconds: int, at: dt.datetime
) -> list[Promise]:
    """Return what has not started and is not bound, with those of its allocations that are on some nodes."""
    parameters: dict[str, Any] = {
        "blocks": [Int4Range(base, base + SLOTS_PER_NODE) for base in bases],
        "window": TimestamptzRange(window.starts_at, window.ends_at),
        "turnaround": turnaround_seconds,
        "bound": bound_from(at=at),
        "at": at,
        "open": QuoteStatus.OPEN.value,
        "statuses": [status.value for status in MOVABLE_STATUSES],
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT a.id, lower(a.slots), upper(a.slots), lower(a.period), upper(a.period),
                   r.id, q.id, q.gpu_model_id, q.region, q.tier, q.spread,
                   (SELECT jsonb_agg(lot - 'tariff' ORDER BY number)
                      FROM jsonb_array_elements(coalesce(r.lots, q.lots))
                           WITH ORDINALITY AS l (lot, number))
              FROM unnest(%(blocks)s::int4range[]) AS pool (block)
              JOIN scheduler_allocation a
                ON a.slots && pool.block AND a.occupied && %(window)s AND a.live
               AND a.lease_id IS NULL AND a.turnaround_seconds = %(turnaround)s
              LEFT JOIN scheduler_reservation r ON r.id = a.reservation_id
              JOIN scheduler_quote q ON q.id = coalesce(r.quote_id, a.quote_id)
             WHERE lower(a.period) > %(bound)s
               AND CASE WHEN r.id IS NULL THEN q.status = %(open)s AND q.expires_at > %(at)s
                        ELSE r.status = ANY(%(statuses)s) END
             ORDER BY a.id
            """,
            parameters,
        )
        rows = cursor.fetchall()
    by_promise: dict[tuple[str, Window], list[tuple[Held, Demand, bool]]] = defaultdict(list)
    for pk, lower, upper, starts_at, ends_at, reservation, quote, *promised in rows:
        its_window = Window(starts_at, ends_at)
        model, region, tier, spread, lots = promised
        by_promise[reservation or quote, its_window].append(
            (
                Held(allocation_id=pk, slot_lower=lower, slot_upper=upper),
                Demand(
                    gpu_model_id=model,
                    region=region,
                    tier=Tier(tier),
                    spread=Spread(spread),
                    window=its_window,
                    asks=asks_of(json.loads(lots)),
                ),
                reservation is not None,
            )
        )
    return [
        Promise(
            id=promise_id,
            is_reservation=parts[0][2],
            demand=parts[0][1],
            held=tuple(held for held, _, _ in parts),
        )
        for (promise_id, _), parts in by_promise.items()
    ]
