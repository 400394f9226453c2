"""Laws of what requests cost that may lie anywhere, with random owners: whole, in parts, sooner and later.

A request that is to lie on one node or in one fabric is another product than its parts, which may lie on
several; so is a request whose region is left open, and one whose window is cut in two.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django.db import transaction
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from scheduler.models import Allocation, Quote
from scheduler.prices import refresh
from tests.scheduler.factories import (
    NOW,
    lots_of,
    make_listing,
    make_node,
    make_organization,
    make_quote,
    make_reservation,
    reserve,
    window_in,
)

# What an owner asks, in cents, and how many GPUs it has: few floors, so that some are alike.
owners = st.lists(
    st.tuples(st.sampled_from((100, 150, 200, 201, 300)), st.integers(1, 8)), min_size=1, max_size=4
)
parts = st.lists(st.integers(1, 6), min_size=2, max_size=4)
EVERY = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def fleet(asked: Sequence[tuple[int, int]]) -> int:
    """Make a machine for each owner; return how many GPUs there are."""
    for cents, gpus in asked:
        owner = make_organization()
        make_node(owner=owner, gpus=gpus)
        make_listing(owner=owner, floor_rate=Decimal(cents) / 100)
    return sum(gpus for _, gpus in asked)


def quoted(gpus: int, **changes: Any) -> Quote:
    return make_quote(gpus=gpus, spread="any", window=window_in(24, length=3), **changes)


class TestAnywhere(TestCase):
    @EVERY
    @given(asked=owners, parts=parts, priced=st.booleans())
    def test_parts_bought_one_after_another_are_never_cheaper_than_the_whole(
        self, *, asked: list[tuple[int, int]], parts: list[int], priced: bool
    ) -> None:
        with transaction.atomic():
            assume(fleet(asked) >= sum(parts))
            if priced:
                refresh.refresh_due(at=NOW)
            whole = quoted(sum(parts))

            bought = [reserve(quoted(gpus)) for gpus in parts]

            # Each amount is rounded once: half a minor unit for each part, and for the whole.
            cheaper = whole.total_minor - sum(each.total_minor for each in bought)
            assert cheaper <= (len(parts) + 1) / 2
            transaction.set_rollback(True)

    @EVERY
    @given(asked=owners, parts=parts)
    def test_parts_that_are_quoted_together_are_never_cheaper_than_what_they_can_all_have(
        self, asked: list[tuple[int, int]], parts: list[int]
    ) -> None:
        with transaction.atomic():
            assume(fleet(asked) >= sum(parts))
            whole = quoted(sum(parts))

            held = [quoted(gpus, hold=True) for gpus in parts]

            cheaper = whole.total_minor - sum(each.total_minor for each in held)
            assert cheaper <= (len(parts) + 1) / 2
            transaction.set_rollback(True)

    @EVERY
    @given(asked=owners, more=st.tuples(st.sampled_from((50, 150, 400)), st.integers(1, 8)))
    def test_more_capacity_is_never_dearer(
        self, asked: list[tuple[int, int]], more: tuple[int, int]
    ) -> None:
        with transaction.atomic():
            gpus = max(1, fleet(asked) - 1)
            before = quoted(gpus)

            fleet([more])

            assert quoted(gpus).total_minor <= before.total_minor
            transaction.set_rollback(True)

    @EVERY
    @given(asked=owners, sold=st.integers(1, 8), gpus=st.integers(1, 8))
    def test_more_sold_is_never_cheaper(
        self, asked: list[tuple[int, int]], sold: int, gpus: int
    ) -> None:
        with transaction.atomic():
            assume(fleet(asked) >= sold + gpus)
            before = quoted(gpus)

            make_reservation(gpus=sold, spread="any", window=window_in(25, length=1))

            assert quoted(gpus).total_minor >= before.total_minor
            transaction.set_rollback(True)

    @EVERY
    @given(asked=owners, hold=st.booleans(), priced=st.booleans())
    def test_no_place_is_paid_less_than_its_owner_asks_and_cheap_ones_are_used_first(
        self, *, asked: list[tuple[int, int]], hold: bool, priced: bool
    ) -> None:
        with transaction.atomic():
            gpus = max(1, fleet(asked) - 2)
            if priced:
                refresh.refresh_due(at=NOW)
            quote = quoted(gpus, hold=hold)
            reservation = reserve(quote)

            lots = lots_of(reservation)
            fee = 10_000 - reservation.fee_basis_points
            used: list[Decimal] = []
            gpus_of = dict.fromkeys(range(len(lots)), 0)
            for place in Allocation.objects.filter(reservation=reservation, live=True):
                floor = place.listing.floor_rate
                lowest = min(s.rate_micros for s in lots[place.lot].tariff.segments)
                assert Decimal(lowest) * fee / 10_000 >= floor * 1_000_000
                count = place.slots.upper - place.slots.lower
                gpus_of[place.lot] += count
                used += [floor] * count
            assert gpus_of == {number: lot.gpus for number, lot in enumerate(lots)}
            cheapest = sorted(Decimal(c) / 100 for c, count in asked for _ in range(count))
            if not priced:
                assert sorted(used) == cheapest[:gpus]
            transaction.set_rollback(True)
