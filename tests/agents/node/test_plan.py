"""When which GPU is read: tables over the plan."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from agents.node import plan
from agents.node.plan import Listed, Look, Looked

MIB = 1024 * 1024
GPUS = ("own", "let")
LISTED = {uuid: Listed(at=0.0, memory_used_bytes=4 * MIB) for uuid in GPUS}
FRESH = Looked(unleased_at=0.0, leased_at=0.0, counters_at=0.0, inventory_at=0.0, listed=LISTED)


def choose(
    now: float,
    *,
    looked: Looked = FRESH,
    interval: int = 30,
    everything: bool = False,
    wants: Collection[str] = (),
    memory: int | None = 4 * MIB,
) -> Look:
    return plan.choose(
        looked=looked,
        now=now,
        gpu_uuids=GPUS,
        leased={"let"},
        interval_seconds=interval,
        everything=everything,
        wants_processes=wants,
        memories=dict.fromkeys(GPUS, memory),
    )


class TestChoose:
    @pytest.mark.parametrize(
        ("now", "interval", "read"),
        [
            (1.0, 30, ()),
            (15.0, 30, ("own",)),
            (30.0, 30, ("own", "let")),
            (29.5, 30, ("own", "let")),  # so near that it is read with this look
            (15.0, 15, ("own",)),
            (10.0, 10, ("own",)),
            (5.0, 5, ("own", "let")),  # a demonstration
            (1.0, 1, ("own", "let")),
            (15.0, 60, ("own",)),
        ],
    )
    def test_reads_leased_gpus_half_as_often(
        self, now: float, interval: int, read: tuple[str, ...]
    ) -> None:
        assert choose(now, interval=interval).gpu_uuids == set(read)

    def test_reads_everything_at_first(self) -> None:
        look = choose(0.0, looked=Looked())
        assert look == Look(
            gpu_uuids=frozenset(GPUS),
            with_processes=frozenset(GPUS),
            unleased=True,
            leased=True,
            counters=True,
            inventory=True,
        )

    def test_reads_everything_when_asked(self) -> None:
        assert choose(1.0, everything=True).gpu_uuids == set(GPUS)

    @pytest.mark.parametrize(
        ("now", "listed"), [(30.0, ()), (60.0, ("own",)), (299.0, ("own", "let"))]
    )
    def test_lists_processes_seldom(self, now: float, listed: tuple[str, ...]) -> None:
        assert choose(now).with_processes == set(listed)

    def test_lists_processes_for_who_waits_for_them(self) -> None:
        assert choose(30.0, wants=["let"]).with_processes == {"let"}

    @pytest.mark.parametrize(
        ("memory", "listed"),
        [(20 * MIB, ()), (20 * MIB + 1, GPUS), (None, ())],
    )
    def test_lists_processes_when_memory_moved(
        self, memory: int | None, listed: tuple[str, ...]
    ) -> None:
        assert choose(30.0, memory=memory).with_processes == set(listed)

    @pytest.mark.parametrize(
        ("now", "counters", "inventory"),
        [(45.0, False, False), (60.0, True, False), (24 * 3600.0, True, True)],
    )
    def test_reads_counters_by_the_minute_and_tells_the_inventory_daily(
        self, now: float, counters: object, inventory: object
    ) -> None:
        look = choose(now)
        assert (look.counters, look.inventory) == (counters, inventory)


class TestAfter:
    def after(self, now: float, look: Look, *, looked: Looked = FRESH) -> Looked:
        return plan.after(
            looked=looked, look=look, now=now, interval_seconds=30, memories={"own": 7}
        )

    def test_does_not_drift_with_a_loop_that_is_late(self) -> None:
        assert self.after(15.4, Look(unleased=True)).unleased_at == 15.0

    def test_begins_anew_after_a_look_out_of_turn_or_far_too_late(self) -> None:
        assert self.after(7.0, Look(unleased=True)).unleased_at == 7.0
        assert self.after(100.0, Look(leased=True)).leased_at == 100.0

    def test_remembers_at_which_memory_the_processes_were_listed(self) -> None:
        after = self.after(60.0, Look(with_processes=frozenset({"own"})))
        assert after.listed == {**LISTED, "own": Listed(at=60.0, memory_used_bytes=7)}

    def test_leaves_what_was_not_read(self) -> None:
        assert self.after(60.0, Look()) == FRESH


class TestDueAt:
    @pytest.mark.parametrize(
        ("unleased", "leased", "due"),
        [("own", "let", 15.0), ("own", "", 15.0), ("", "let", 30.0), ("", "", 15.0)],
    )
    def test_is_when_the_first_group_that_is_there_is_due(
        self, unleased: str, leased: str, due: float
    ) -> None:
        assert due == plan.due_at(
            looked=FRESH,
            any_unleased=bool(unleased),
            any_leased=bool(leased),
            interval_seconds=30,
        )

    def test_is_at_once_for_a_group_that_was_never_read(self) -> None:
        assert (
            plan.due_at(
                looked=Looked(unleased_at=100.0),
                any_unleased=True,
                any_leased=True,
                interval_seconds=30,
            )
            == 0.0
        )
