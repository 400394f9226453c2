"""Boards: every start of every node, against a model that looks at one GPU and one window at a time."""

import itertools
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from agents.models import Gpu
from marketplace.core.errors import DomainError
from marketplace.core.windows import Window, format_instant, to_instant, to_seconds
from marketplace.models import Listing
from scheduler import board, merit, offerings, pools, reindexing
from scheduler.models import Allocation
from scheduler.pools import Pool
from scheduler.states import Spread
from tests.scheduler.factories import (
    MODEL,
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    seconds,
    window_in,
)

HOUR = 3600
HOURS = 36
bookings = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=30),  # start
        st.integers(min_value=1, max_value=12),  # length
        st.integers(min_value=1, max_value=7),  # GPUs
        st.booleans(),  # a hold that has expired
    ),
    max_size=8,
)


def sells(listing: Listing, gpu: Gpu, window: Window, gpus: int) -> bool:
    """Say by the words of a listing whether it sells a GPU for a window."""
    node = gpu.node
    return (
        listing.organization_id == node.organization_id
        and listing.fabric in ("", node.fabric)
        and listing.starts_at <= window.starts_at
        and (listing.ends_at is None or window.ends_at <= listing.ends_at)
        and listing.gpus_min <= gpus
        and listing.duration_seconds_min <= window.seconds
        and not any(
            window.starts_at < ends_at and starts_at < window.ends_at
            for starts_at, ends_at in pools.blackouts(listing)
        )
    )


def floors_by_hand(
    window: Window, *, gpus: int, spread: Spread, at: Any
) -> list[tuple[Decimal, ...]]:
    """Return the floors of the cheapest GPUs on each ground where a request fits, one GPU after the other."""
    booked = [
        place
        for place in Allocation.objects.filter(live=True).select_related("quote")
        if not (place.quote and place.quote.status == "open" and place.quote.expires_at <= at)
    ]

    def is_free(gpu: Gpu, listing: Listing) -> bool:
        return not any(
            place.period.lower < window.ends_at + seconds(listing.turnaround_seconds)
            and window.starts_at < place.period.upper + seconds(place.turnaround_seconds)
            and place.slots.lower <= gpu.slot < place.slots.upper
            for place in booked
        )

    listings = list(Listing.objects.order_by("floor_rate"))
    floors: dict[Any, list[Decimal]] = {}
    for gpu in Gpu.objects.select_related("node"):
        its = [
            each.floor_rate
            for each in listings
            if sells(each, gpu, window, gpus) and is_free(gpu, each)
        ]
        if its:
            group = {
                Spread.ANY: "all",
                Spread.SINGLE_NODE: gpu.node_id,
                Spread.SAME_FABRIC: gpu.node.fabric or gpu.node_id,
            }[spread]
            floors.setdefault(group, []).append(min(its))
    return [tuple(sorted(each)[:gpus]) for each in floors.values() if len(each) >= gpus]


def the_pool() -> Pool:
    (pool,) = pools.read(gpu_model_id=MODEL, region=None, tier=None, at=NOW)
    return pool


class TestLevels(TestCase):
    """Every start that a search looks at, each spread, before and after the index is folded."""

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        bookings=bookings,
        gpus=st.integers(min_value=1, max_value=12),
        length=st.integers(min_value=1, max_value=10),
        fold=st.integers(min_value=0, max_value=1),
        turnarounds=st.lists(st.sampled_from([0, 0, 60, 3600, 5400]), min_size=3, max_size=3),
    )
    def test_are_those_of_a_look_at_each_gpu(
        self,
        bookings: list[tuple[int, int, int, bool]],
        gpus: int,
        length: int,
        fold: int,
        turnarounds: list[int],
    ) -> None:
        with transaction.atomic():
            self.fill(bookings, turnarounds=turnarounds)
            if fold:
                reindexing.fold()
            self.compare(gpus=gpus, length=length)
            transaction.set_rollback(True)

    def fill(self, bookings: list[tuple[int, int, int, bool]], *, turnarounds: list[int]) -> None:
        owner = make_organization()
        for fabric in ("ib-1", "ib-1", "ib-2", ""):
            make_node(owner=owner, gpus=4, fabric=fabric)
        make_listing(owner=owner, floor_rate=Decimal(3), turnaround_seconds=turnarounds[0])
        make_listing(
            owner=owner,
            floor_rate=Decimal(2),
            fabric="ib-1",
            gpus_min=3,
            turnaround_seconds=turnarounds[1],
        )
        make_listing(
            owner=owner,
            floor_rate=Decimal(1),
            fabric="ib-2",
            starts_at=NOW + hours(5),
            ends_at=NOW + hours(30),
            duration_seconds_min=2 * HOUR,
            blackouts=[[format_instant(NOW + hours(n)) for n in (12, 14)]],
            turnaround_seconds=turnarounds[2],
        )
        for start, duration, size, lapses in bookings:
            window = window_in(start + 1, length=duration)
            try:
                if lapses:
                    make_quote(gpus=size, window=window, hold=True, at=NOW - seconds(3000))
                else:
                    make_reservation(gpus=size, window=window)
            except DomainError:
                continue

    def compare(self, *, gpus: int, length: int) -> None:
        pool = the_pool()
        first = to_seconds(NOW)
        every = board.over_grid(
            pool=pool,
            prices=offerings.tables([pool], at=NOW)[pool],
            first=first,
            last=first + (HOURS - length) * HOUR,
            seconds=length * HOUR,
            step=HOUR,
            at=NOW,
        )
        fine = board.over_grid(
            pool=pool,
            prices=offerings.tables([pool], at=NOW)[pool],
            first=first,
            last=first + (HOURS - length) * HOUR,
            seconds=length * HOUR,
            step=HOUR // 2,
            at=NOW,
        )
        for spread in Spread:
            listings = every.admitted(gpus=gpus)
            levels = every.levels(listings=listings, gpus=gpus, spread=spread).tolist()
            halves = fine.levels(listings=listings, gpus=gpus, spread=spread).tolist()
            assert halves[::2] == levels
            costs = merit.rates(every, listings=listings, gpus=gpus, spread=spread).tolist()
            for start, level, micros in zip(every.starts.tolist(), levels, costs, strict=True):
                window = Window(to_instant(start), to_instant(start + length * HOUR))
                fitting = floors_by_hand(window, gpus=gpus, spread=spread, at=NOW)
                found = pool.floors[level] if level < len(pool.floors) else None
                assert found == min((floors[-1] for floors in fitting), default=None)
                means = [
                    -(-sum(map(every.prices.gross_micros, floors)) // gpus) for floors in fitting
                ]
                assert micros == min(means, default=merit.UNPRICED), (window, spread)


@pytest.mark.django_db
class TestWindow:
    """One window, on the grid or not, by what its hours and its ends say."""

    @pytest.mark.parametrize(
        ("starts_in", "ends_in", "free"),
        [
            (0, 3600, 8),
            (3600, 3601, 3),
            (0, 3601, 3),
            (5399, 5400, 3),
            (5400, 7200, 8),
            (5400, 14_400, 8),
            (5399, 14_400, 3),
            (1800, 10_800, 3),
            (14_399, 14_401, 8),
            (20_000, 21_601, 0),
            (20_000, 21_600, 8),
        ],
    )
    def test_is_free_where_nothing_of_it_is_taken(
        self, starts_in: int, ends_in: int, free: int
    ) -> None:
        make_pool()
        make_reservation(gpus=5, window=window_in(1, length=1))
        Allocation.objects.update(period=(NOW + seconds(3600), NOW + seconds(5400)))
        make_reservation(gpus=8, window=window_in(6, length=2))
        pool = the_pool()
        window = Window(NOW + seconds(starts_in), NOW + seconds(ends_in))

        one = board.of_window(
            pool=pool, prices=offerings.tables([pool], at=NOW)[pool], window=window, at=NOW
        )

        assert one.rooms(listings=pool.listings, spread=Spread.ANY).tolist() == [free]


class TestSlidingOr:
    @pytest.mark.parametrize("length", range(1, 20))
    def test_joins_as_many_neighbours_as_told(self, length: int) -> None:
        dice = np.random.default_rng(length)
        masks = (1 << dice.integers(0, 16, size=(3, 20))).astype(np.uint16)

        joined = board.sliding_or(masks, length=length)

        assert joined.shape == (3, 21 - length)
        for row, column in itertools.product(range(3), range(21 - length)):
            assert joined[row, column] == np.bitwise_or.reduce(masks[row, column : column + length])
