"""The idle rule, one table of samples after the other."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from agents.node import idle
from agents.node.reader import MEASURED_FIELDS, NOT_SUPPORTED, Sample, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import IdleState

START = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
STEP_SECONDS = 15
THRESHOLDS = idle.Thresholds()
H100 = "NVIDIA H100 80GB HBM3"

QUIET = Sample(
    gpu_uuid="GPU-0",
    measured_at=START,
    utilization_percent=0,
    memory_used_bytes=4 << 20,
    power_draw_milliwatts=70_000,
    temperature_celsius=30,
    process_count=0,
    unread={"energy_millijoules": NOT_SUPPORTED},
)
WORKING = replace(
    QUIET,
    utilization_percent=97,
    memory_used_bytes=60 << 30,
    power_draw_milliwatts=650_000,
    process_count=1,
)
PARKED = replace(QUIET, memory_used_bytes=60 << 30, process_count=1)
MISSED = replace(QUIET, process_count=None, unread={"process_count": "error(999)"})
LOST = lost_sample(gpu_uuid="GPU-0", measured_at=START)

QUIET_STEPS = 600 // STEP_SECONDS + 1
PARKED_STEPS = 3600 // STEP_SECONDS + 1


def run(
    *phases: tuple[Sample, int],
    product: str = H100,
    thresholds: idle.Thresholds = THRESHOLDS,
) -> idle.IdleTrack:
    track = idle.begin(product_name=product)
    samples = [sample for sample, count in phases for _ in range(count)]
    for number, sample in enumerate(samples):
        at = START + dt.timedelta(seconds=number * STEP_SECONDS)
        track = idle.step(
            track=track, sample=replace(sample, measured_at=at), thresholds=thresholds
        )
    return track


CASES = {
    "nothing is known at first": ([(QUIET, 1)], IdleState.UNKNOWN),
    "not free one sample too early": ([(QUIET, QUIET_STEPS - 1)], IdleState.UNKNOWN),
    "free after ten quiet minutes": ([(QUIET, QUIET_STEPS)], IdleState.FREE),
    "busy at once": ([(WORKING, 1)], IdleState.BUSY),
    "busy at once although free before": ([(QUIET, 100), (WORKING, 1)], IdleState.BUSY),
    "still busy in a gap": ([(WORKING, 1), (QUIET, QUIET_STEPS - 1)], IdleState.BUSY),
    "free after a long gap": ([(WORKING, 1), (QUIET, QUIET_STEPS)], IdleState.FREE),
    "one noisy sample starts the count anew": (
        [(QUIET, QUIET_STEPS - 1), (WORKING, 1), (QUIET, QUIET_STEPS - 1)],
        IdleState.BUSY,
    ),
    "held memory is busy at first": ([(PARKED, PARKED_STEPS - 1)], IdleState.BUSY),
    "held memory is parked after an hour": ([(PARKED, PARKED_STEPS)], IdleState.PARKED),
    "parked is not free, however long": ([(PARKED, 5 * PARKED_STEPS)], IdleState.PARKED),
    "parked turns busy at work": ([(PARKED, PARKED_STEPS), (WORKING, 1)], IdleState.BUSY),
    "let go of, it is busy until a quiet while has passed": (
        [(PARKED, PARKED_STEPS), (QUIET, 2)],
        IdleState.BUSY,
    ),
    "a few missed samples leave it free": ([(QUIET, 100), (MISSED, 3)], IdleState.FREE),
    "more missed samples make it unknown": ([(QUIET, 100), (MISSED, 4)], IdleState.UNKNOWN),
    "a missed sample is not quiet": (
        [(QUIET, QUIET_STEPS - 1), (MISSED, 1), (QUIET, 1)],
        IdleState.UNKNOWN,
    ),
    "a lost GPU is unknown": ([(QUIET, 100), (LOST, 4)], IdleState.UNKNOWN),
    "load without a process is work (ghost latch)": (
        [(replace(QUIET, utilization_percent=100), 500)],
        IdleState.BUSY,
    ),
    "power without load is work": (
        [(replace(QUIET, power_draw_milliwatts=300_000), 5)],
        IdleState.BUSY,
    ),
    "no utilisation at all (MIG) is never free": (
        [
            (
                replace(
                    QUIET, utilization_percent=None, unread={"utilization_percent": NOT_SUPPORTED}
                ),
                500,
            )
        ],
        IdleState.UNKNOWN,
    ),
    "a product without power figures can be free": (
        [
            (
                replace(
                    QUIET,
                    power_draw_milliwatts=None,
                    unread={
                        "power_draw_milliwatts": NOT_SUPPORTED,
                        "energy_millijoules": NOT_SUPPORTED,
                    },
                ),
                QUIET_STEPS,
            )
        ],
        IdleState.FREE,
    ),
    "power that cannot be read is not quiet": (
        [
            (
                replace(
                    QUIET,
                    power_draw_milliwatts=None,
                    unread=dict.fromkeys(
                        ("power_draw_milliwatts", "energy_millijoules"), "error(999)"
                    ),
                ),
                500,
            )
        ],
        IdleState.UNKNOWN,
    ),
}


class TestStep:
    @pytest.mark.parametrize(("phases", "expected"), CASES.values(), ids=CASES.keys())
    def test_follows_the_table(self, phases: list[tuple[Sample, int]], expected: IdleState) -> None:
        assert run(*phases).state is expected

    def test_says_since_when_a_gpu_is_free(self) -> None:
        track = run((WORKING, 4), (QUIET, 100))
        assert track.idle_since == START + dt.timedelta(seconds=4 * STEP_SECONDS)

    def test_says_since_when_a_gpu_is_parked(self) -> None:
        assert run((PARKED, PARKED_STEPS)).idle_since == START

    def test_says_nothing_of_a_busy_gpu(self) -> None:
        assert run((QUIET, 100), (WORKING, 1)).idle_since is None

    def test_keeps_the_owners_threshold(self) -> None:
        track = run((QUIET, 3), thresholds=idle.Thresholds(free_after_seconds=20))
        assert track.state is IdleState.FREE

    def test_catches_a_burst_between_two_samples_by_the_energy_counter(self) -> None:
        calm = [replace(QUIET, energy_millijoules=n * 15 * 70_000, unread={}) for n in range(60)]
        burst = replace(QUIET, energy_millijoules=60 * 15 * 70_000 + 3_000_000, unread={})
        assert run(*((sample, 1) for sample in calm)).state is IdleState.FREE
        assert run(*((s, 1) for s in calm), (burst, 1)).state is IdleState.BUSY

    def test_takes_a_counter_that_starts_again_for_no_burst(self) -> None:
        calm = [
            replace(QUIET, energy_millijoules=10**9 + n * 15 * 70_000, unread={}) for n in range(60)
        ]
        reloaded = replace(QUIET, energy_millijoules=5, unread={})
        assert run(*((s, 1) for s in calm), (reloaded, 1)).state is IdleState.FREE

    def test_learns_the_floor_of_a_card_that_draws_more_than_its_product(self) -> None:
        warm = replace(QUIET, power_draw_milliwatts=120_000)
        assert run((warm, idle.POWER_SAMPLES_NEEDED - 1)).state is IdleState.BUSY
        assert run((warm, 100)).state is IdleState.FREE

    def test_learns_the_floor_of_an_unknown_product_from_its_first_sample(self) -> None:
        assert run((QUIET, QUIET_STEPS), product="NVIDIA X").state is IdleState.FREE

    def test_forgets_the_tenants_time(self) -> None:
        track = idle.restart(track=run((QUIET, 100)))
        assert (track.state, track.idle_since) == (IdleState.UNKNOWN, None)


class TestOnScriptedWork:
    """A whole day at 15 s: what the rule says against what the script does."""

    @staticmethod
    def day(workload: str) -> tuple[int, int, int]:
        reader = SimulatedReader(
            fleet=parse_fleet(text=f"h100x1:{workload}"),
            node_name="n",
            machine_id="m",
            tenancies=lambda _: [],
        )
        track = idle.begin(product_name=H100)
        free_while_held = free = idle_steps = 0
        for number in range(86_400 // STEP_SECONDS):
            at = START + dt.timedelta(seconds=number * STEP_SECONDS)
            (sample,) = reader.read(at=at)
            assert set(sample.unread) <= set(MEASURED_FIELDS)
            track = idle.step(track=track, sample=sample, thresholds=THRESHOLDS)
            held = sample.process_count != 0
            idle_steps += not held
            free += track.state is IdleState.FREE
            free_while_held += held and track.state is IdleState.FREE
        return free_while_held, free, idle_steps

    @pytest.mark.parametrize("workload", ["training", "inference"])
    def test_a_held_gpu_is_never_free(self, workload: str) -> None:
        assert self.day(workload) == (0, 0, 0)

    def test_most_of_a_batch_queues_idle_time_is_found(self) -> None:
        free_while_held, free, idle_steps = self.day("batch")
        assert free_while_held == 0
        assert 0.5 <= free / idle_steps < 1

    def test_an_unused_gpu_is_free_but_for_the_first_minutes(self) -> None:
        _, free, idle_steps = self.day("idle")
        assert free == idle_steps - QUIET_STEPS + 1
