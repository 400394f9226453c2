"""A tariff prices every part of a window exactly, and the parts make up the whole."""

import datetime as dt
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.money import Money
from marketplace.core.windows import Window, to_instant
from scheduler.tariffs import Segment, Tariff

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def two_hours() -> Tariff:
    start = int(AT.timestamp())
    return Tariff(
        (Segment(start, start + 3600, 2_000_000), Segment(start + 3600, start + 7200, 3_000_000))
    )


def test_a_part_costs_what_its_own_hours_cost():
    tariff = two_hours()
    assert tariff.value(window=Window(AT, AT + HOUR)) == 2
    assert tariff.value(window=Window(AT + HOUR / 2, AT + 3 * HOUR / 2)) == Fraction(5, 2)
    assert tariff.value(window=Window(AT - HOUR, AT)) == 0
    assert tariff.amount(window=tariff.window, gpus=8, currency="usd") == Money(4000, "usd")
    assert tariff.amount(window=tariff.window, gpus=8, currency="jpy") == Money(40, "jpy")
    assert tariff.amount(window=tariff.window, gpus=8, currency="kwd") == Money(40_000, "kwd")


def test_the_mean_rate_is_rounded_up_so_that_it_never_understates():
    start = int(AT.timestamp())
    thirds = Tariff((Segment(start, start + 1, 1), Segment(start + 1, start + 3, 2)))
    assert thirds.mean_rate == Decimal("0.000002")
    assert two_hours().mean_rate == Decimal("2.500000")


def test_a_flat_tariff_costs_its_rate_and_survives_being_stored():
    flat = Tariff.flat(window=Window(AT, AT + 48 * HOUR), rate=Decimal("2.437500"))
    assert flat.mean_rate == Decimal("2.437500")
    assert Tariff.from_json(flat.as_json()) == flat


def test_neighbours_of_one_rate_become_one_segment_and_a_gap_is_refused():
    flat = Tariff.flat(window=Window(AT, AT + HOUR), rate=Decimal(2))
    later = Tariff.flat(window=Window(AT + HOUR, AT + 2 * HOUR), rate=Decimal(2))
    assert flat.followed_by(later) == Tariff.flat(window=Window(AT, AT + 2 * HOUR), rate=Decimal(2))
    with pytest.raises(AssertionError):
        later.followed_by(flat)


@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 10_000), st.integers(1, 10**9)), min_size=1, max_size=8
    ),
    cut=st.integers(1, 79_999),
)
def test_two_parts_cost_what_the_whole_costs(pieces: list[tuple[int, int]], cut: int):
    segments, at = [], 1_700_000_000
    for seconds, rate in pieces:
        segments.append(Segment(at, at + seconds, rate))
        at += seconds
    tariff = Tariff.of(segments)
    starts, ends = tariff.segments[0].starts, tariff.segments[-1].ends
    middle = starts + cut % (ends - starts)
    if middle in (starts, ends):
        return
    first = Window(to_instant(starts), to_instant(middle))
    second = Window(to_instant(middle), to_instant(ends))
    assert tariff.value(window=first) + tariff.value(window=second) == tariff.value(
        window=tariff.window
    )
    assert tariff.clipped(window=first).followed_by(tariff.clipped(window=second)) == tariff
