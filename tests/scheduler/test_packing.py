"""The packing: where requests go, who moves for them, and how close to the ideal that comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.packing import Layout, Packer, Piece, Placement, Request
from scheduler.packing.choice import choose
from scheduler.packing.colouring import recolour
from scheduler.states import Spread
from tests.bench.bench_placement import (
    SIZES,
    count_reference,
    first_fit,
    read_trace,
    score,
    two_level,
    workload,
)

DAY = 24
SMALL = {"nodes": 16, "islands": 2, "hours": 20 * DAY}


def packer(*, nodes: int = 4, islands: int = 1, hours: int = 100) -> Packer:
    return Packer(nodes=nodes, islands=islands, hours=hours)


def put(
    pool: Packer,
    name: str,
    *,
    gpus: int,
    start: int = 0,
    end: int = 10,
    spread: Spread = Spread.SAME_FABRIC,
) -> Placement | None:
    return pool.place(name, gpus=gpus, start_hour=start, hours=end - start, spread=spread)


def rows(placement: Placement | None) -> list[int]:
    assert placement is not None
    return [piece.row for piece in placement.pieces]


class TestChoice:
    def test_fills_a_started_node_before_it_starts_another(self) -> None:
        pool = packer()

        assert rows(put(pool, "a", gpus=2)) == rows(put(pool, "b", gpus=4))

    def test_leaves_the_least_over(self) -> None:
        pool = packer()
        (loose,) = rows(put(pool, "three", gpus=3))
        (tight,) = rows(put(pool, "six", gpus=6))
        assert loose != tight

        assert rows(put(pool, "two", gpus=2)) == [tight]

    def test_adds_the_fewest_node_hours(self) -> None:
        pool = packer()
        (brief,) = rows(put(pool, "brief and full", gpus=5, end=2))
        (lasting,) = rows(put(pool, "lasting and loose", gpus=4, end=10))
        assert brief != lasting

        assert rows(put(pool, "long", gpus=2)) == [lasting]

    def test_starts_a_node_on_the_fullest_island(self) -> None:
        pool = packer(nodes=8, islands=2)
        block = rows(put(pool, "block", gpus=24))

        (small,) = rows(put(pool, "small", gpus=1))

        assert small // 4 == block[0] // 4

    def test_puts_a_block_on_the_tightest_island_that_fits(self) -> None:
        pool = packer(nodes=8, islands=2)
        (first,) = rows(put(pool, "one", gpus=8))

        assert {row // 4 for row in rows(put(pool, "three", gpus=24))} == {first // 4}
        assert {row // 4 for row in rows(put(pool, "four", gpus=32))} == {1 - first // 4}

    def test_never_lets_a_block_leave_its_island(self) -> None:
        pool = packer(nodes=4, islands=2)
        put(pool, "half of one", gpus=8)
        put(pool, "half of the other", gpus=8, spread=Spread.ANY)
        put(pool, "a quarter of the other", gpus=9, spread=Spread.SAME_FABRIC)

        assert put(pool, "too much for either", gpus=16) is None

    def test_scatters_what_may_be_scattered(self) -> None:
        pool = packer(nodes=4, islands=2)
        assert put(pool, "twelve here", gpus=12) is not None
        assert put(pool, "twelve there", gpus=12) is not None
        assert put(pool, "together", gpus=8) is None

        assert len(rows(put(pool, "anywhere", gpus=8, spread=Spread.ANY))) == 2

    def test_gives_a_block_that_is_no_multiple_a_share_of_one_more_node(self) -> None:
        pool = packer()

        placed = put(pool, "twelve", gpus=12)

        assert placed is not None
        assert sorted(piece.gpus for piece in placed.pieces) == [4, 8]

    def test_keeps_a_single_node_on_one(self) -> None:
        pool = packer()

        assert put(pool, "nine", gpus=9, spread=Spread.SINGLE_NODE) is None
        assert len(rows(put(pool, "eight", gpus=8, spread=Spread.SINGLE_NODE))) == 1


class TestRecolouring:
    def test_frees_a_node_by_exchanging_what_has_not_started(self) -> None:
        layout = Layout(islands=[2], gpus_per_node=8, hours=30)
        for name, row, start, end in (("a", 0, 2, 5), ("b", 1, 5, 9)):
            request = Request(
                id=name, gpus=8, start_hour=start, end_hour=end, spread=Spread.SINGLE_NODE
            )
            layout.put(Placement(request=request, pieces=(Piece(row, 8),)))
        wanted = Request(id="c", gpus=8, start_hour=2, end_hour=9, spread=Spread.SINGLE_NODE)
        assert choose(layout, wanted) is None

        found = recolour(layout, island=0, start_hour=2, end_hour=9, nodes=1, now_hour=0)

        assert found is not None
        layout.put(Placement(request=wanted, pieces=(Piece(found[0], 8),)))
        layout.check()

    def test_leaves_what_has_started_where_it_is(self) -> None:
        layout = Layout(islands=[2], gpus_per_node=8, hours=30)
        for name, row, start, end in (("a", 0, 2, 5), ("b", 1, 5, 9)):
            request = Request(
                id=name, gpus=8, start_hour=start, end_hour=end, spread=Spread.SINGLE_NODE
            )
            layout.put(Placement(request=request, pieces=(Piece(row, 8),)))

        assert recolour(layout, island=0, start_hour=5, end_hour=12, nodes=1, now_hour=3) == [0]
        assert layout.placements["a"].pieces == (Piece(0, 8),)

    def test_says_nothing_of_an_hour_that_is_full(self) -> None:
        pool = packer(nodes=2)
        put(pool, "both", gpus=16, start=5, end=6)
        before = dict(pool.layout.placements)

        assert (
            recolour(pool.layout, island=0, start_hour=0, end_hour=9, nodes=1, now_hour=-1) is None
        )
        assert pool.layout.placements == before


class TestRepacking:
    def test_moves_what_has_not_started_to_let_a_request_in(self) -> None:
        pool = packer(nodes=2)
        for name, start, end in (("a", 1, 5), ("b", 1, 9), ("c", 1, 5), ("d", 5, 9)):
            put(pool, name, gpus=4, start=start, end=end)
        pool.release("b", from_hour=1)
        put(pool, "e", gpus=4, start=1, end=9)

        assert put(pool, "f", gpus=4, start=5, end=9) is not None
        pool.layout.check()

    def test_changes_nothing_when_it_fails(self) -> None:
        pool = packer(nodes=2)
        for name, gpus in (("a", 5), ("b", 5)):
            put(pool, name, gpus=gpus, start=2)
        before = dict(pool.layout.placements)

        assert put(pool, "five of the six that are left", gpus=5, start=2) is None
        assert pool.layout.placements == before
        pool.layout.check()

    def test_never_moves_what_has_started(self) -> None:
        pool = packer(nodes=2)
        put(pool, "a", gpus=4, end=10)
        put(pool, "b", gpus=5, end=10)
        pool.advance(0)
        (before,) = rows(pool.layout.placements["a"])

        assert put(pool, "c", gpus=5, start=1, end=4) is None
        assert rows(pool.layout.placements["a"]) == [before]

    def test_gives_up_when_its_time_is_over(self) -> None:
        pool = packer(nodes=2)
        pool._tries = 0

        assert put(pool, "a", gpus=8) is not None
        assert pool.repacks_tried == 0


class TestShareOfTheCountBound:
    """Small versions of the benchmark; the whole one is `python -m tests.bench.bench_placement`."""

    @pytest.mark.parametrize("mix", ["trace", "market"])
    def test_is_high_and_above_first_fit(self, mix: str) -> None:
        ours, theirs = [], []
        for seed in (1, 2, 3):
            submitted = workload(
                mix=mix, load=1.3, seed=seed, sizes=SIZES[:5], nodes=16, hours=20 * DAY
            )
            ours.append(score(submitted, accept=two_level, **SMALL))
            theirs.append(score(submitted, accept=first_fit, **SMALL))

        assert np.mean([s.gpu_hours for s in ours]) >= 0.93  # pools this small lose more
        assert np.mean([s.gpu_hours for s in ours]) > np.mean([s.gpu_hours for s in theirs]) + 0.01

    @pytest.mark.parametrize("load", [0.9, 1.3, 2.0])
    def test_is_all_of_it_for_whole_nodes_of_one_island(self, load: float) -> None:
        for seed in (1, 2):
            submitted = workload(
                mix="market", load=load, seed=seed, sizes=(8,), nodes=16, hours=40 * DAY
            )
            pool = {"nodes": 16, "hours": 40 * DAY}

            accepted = two_level(submitted, islands=1, **pool)

            assert accepted == count_reference(submitted, **pool)

    def test_is_measured_on_a_trace_with_its_outliers_cut(self, tmp_path) -> None:
        path = tmp_path / "hourly.csv"
        path.write_text("submit_hour,jobs\n0,10\n1,20\n2,4000\n")

        assert read_trace(path).tolist() == [10, 20, 100]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "place", "release", "advance"]),
        st.integers(min_value=0, max_value=50),
        st.sampled_from([1, 2, 3, 4, 5, 8, 8, 12, 16, 24, 32]),
        st.integers(min_value=1, max_value=12),
        st.sampled_from(list(Spread)),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_nothing_overlaps_and_nothing_started_moves_whatever_happens(steps) -> None:
    pool = packer(nodes=6, islands=2, hours=80)
    now = -1
    started: dict[str, tuple[Piece, ...]] = {}
    accepted: dict[str, tuple[int, int]] = {}
    for number, (verb, draw, gpus, length, spread) in enumerate(steps):
        if verb == "place":
            start = now + 1 + draw % 12
            before = dict(pool.layout.placements)
            placed = put(
                pool, str(number), gpus=gpus, start=start, end=start + length, spread=spread
            )
            if placed is None:
                assert pool.layout.placements == before
            else:
                accepted[str(number)] = (gpus, start)
        elif verb == "release" and pool.layout.placements:
            name = sorted(pool.layout.placements)[draw % len(pool.layout.placements)]
            pool.release(name, from_hour=now + 1)
            accepted.pop(name, None)  # what had started stays until its hour is over
            started.pop(name, None)
        elif verb == "advance":
            now = min(now + draw % 4, 60)
            pool.advance(now)
            over = {n for n in accepted if n not in pool.layout.placements}
            accepted = {n: v for n, v in accepted.items() if n not in over}
            started = {
                n: p.pieces
                for n, p in pool.layout.placements.items()
                if p.request.start_hour <= now
            }
        pool.layout.check()
        for name, pieces in started.items():
            assert pool.layout.placements[name].pieces == pieces
        for name, (its_gpus, its_start) in accepted.items():
            request = pool.layout.placements[name].request
            assert (request.gpus, request.start_hour) == (its_gpus, its_start)
