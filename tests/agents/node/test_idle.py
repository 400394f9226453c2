"""The idle rule, one table of samples after the other."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from agents.node import idle
from agents.node.reader import LOST, MEASURED_FIELDS, NOT_SUPPORTED, Sample, lost_sample
from agents.node.simulated import SimulatedReader, parse_fleet
from agents.protocol import IdlePolicy, IdleState

START = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
STEP_SECONDS = 15
POLICY = IdlePolicy()
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
FALLEN_OFF = lost_sample(gpu_uuid="GPU-0", measured_at=START)

GHOST = replace(QUIET, utilization_percent=100, power_draw_milliwatts=110_000)
CUT = replace(
    QUIET,
    utilization_percent=None,
    unread={"utilization_percent": NOT_SUPPORTED, "energy_millijoules": NOT_SUPPORTED},
)

QUIET_STEPS = 600 // STEP_SECONDS + 1
PARKED_STEPS = 3600 // STEP_SECONDS + 1


def run(
    *phases: tuple[Sample, int],
    product: str = H100,
    policy: IdlePolicy = POLICY,
) -> idle.IdleTrack:
    """Step through samples 15 s apart; each brings its own list of processes unless it has an older one."""
    track = idle.begin(product_name=product)
    samples = [sample for sample, count in phases for _ in range(count)]
    for number, sample in enumerate(samples):
        track = idle.step(track=track, sample=stamped(sample, number), policy=policy)
    return track


def stamped(sample: Sample, number: int) -> Sample:
    at = START + dt.timedelta(seconds=number * STEP_SECONDS)
    return replace(sample, measured_at=at, processes_at=sample.processes_at or at)


def at_step(number: int) -> dt.datetime:
    return START + dt.timedelta(seconds=number * STEP_SECONDS)


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
    "a lost GPU is unknown": ([(QUIET, 100), (FALLEN_OFF, 4)], IdleState.UNKNOWN),
    "load without a process is work (ghost latch)": ([(GHOST, 500)], IdleState.BUSY),
    "a burst that only the sample buffer saw is work": (
        [(QUIET, 100), (replace(QUIET, utilization_max_percent=40), 1)],
        IdleState.BUSY,
    ),
    "memory without a process is held": (
        [(QUIET, 100), (replace(QUIET, memory_used_bytes=65 << 20), 1)],
        IdleState.BUSY,
    ),
    "a process without memory is held": (
        [(QUIET, 100), (replace(QUIET, process_count=1), 1)],
        IdleState.BUSY,
    ),
    "what an idle card shows as used is quiet": (
        [(replace(QUIET, memory_used_bytes=64 << 20), QUIET_STEPS)],
        IdleState.FREE,
    ),
    "power without load is work": (
        [(replace(QUIET, power_draw_milliwatts=300_000), 5)],
        IdleState.BUSY,
    ),
    "no utilisation (MIG) is judged by processes, memory and power": (
        [(CUT, QUIET_STEPS)],
        IdleState.FREE,
    ),
    "no utilisation and power above the rest is work": (
        [(CUT, QUIET_STEPS), (replace(CUT, power_draw_milliwatts=300_000), 1)],
        IdleState.BUSY,
    ),
    "no utilisation and no power is never free": (
        [
            (
                replace(
                    CUT,
                    power_draw_milliwatts=None,
                    unread=dict.fromkeys(
                        ("utilization_percent", "power_draw_milliwatts", "energy_millijoules"),
                        NOT_SUPPORTED,
                    ),
                ),
                500,
            )
        ],
        IdleState.UNKNOWN,
    ),
    "utilisation that cannot be read is not quiet": (
        [(replace(CUT, unread={"utilization_percent": "error(999)"}), 500)],
        IdleState.UNKNOWN,
    ),
    "memory that cannot be read is not quiet": (
        [(replace(QUIET, memory_used_bytes=None, unread={"memory_used_bytes": LOST}), 500)],
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
        track = run((QUIET, 3), policy=IdlePolicy(free_after_seconds=20))
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


class TestReasons:
    """Each state says why it is what it is."""

    @pytest.mark.parametrize(
        ("phases", "reason"),
        [
            ([], "it has not been looked at yet"),
            ([(QUIET, 15)], "quiet for 210 of 600 s"),
            ([(QUIET, QUIET_STEPS)], "quiet for 600 s and more"),
            ([(WORKING, 1)], "a load of 97 %"),
            ([(PARKED, 1)], "1 process holds 60.0 GiB"),
            ([(replace(PARKED, process_count=3), 1)], "3 processes hold 60.0 GiB"),
            (
                [(replace(PARKED, process_count=0), 1)],
                "60.0 GiB are held by a process that cannot be seen",
            ),
            ([(PARKED, PARKED_STEPS)], "1 process holds 60.0 GiB without work for 60 min"),
            (
                [(replace(QUIET, power_draw_milliwatts=300_000), 1)],
                "it draws 300 W, at rest 75 W",
            ),
            ([(MISSED, 1)], "could not read process_count: error(999)"),
            ([(MISSED, 4)], "could not read process_count: error(999), 4 times in a row"),
            ([(GHOST, 2)], "100 % load with no process and no memory"),
        ],
    )
    def test_are_words(self, phases: list[tuple[Sample, int]], reason: str) -> None:
        assert run(*phases).reason == reason


class TestLists:
    """Lists of processes hold the driver's lock: they are wanted seldom, and never too late."""

    def test_is_wanted_at_first(self) -> None:
        assert idle.begin(product_name=H100).wants_processes(at=START)

    def test_is_wanted_once_a_minute(self) -> None:
        track = run((QUIET, 1))
        wanted = [n for n in range(1, 6) if track.wants_processes(at=at_step(n))]
        assert wanted == [4, 5]

    def test_is_wanted_for_the_sample_that_makes_the_gpu_free(self) -> None:
        track = run((QUIET, 39))  # quiet from 0 s to 570 s, the last list is of 570 s
        assert not track.wants_processes(at=at_step(39))
        assert track.wants_processes(at=at_step(40))

    def test_older_than_ninety_seconds_is_not_believed(self) -> None:
        old = replace(QUIET, processes_at=START)
        track = run((QUIET, 1), (old, 6))
        assert track.missed_samples == 0
        track = run((QUIET, 1), (old, 7))
        assert track.missed_samples == 1
        assert track.reason == "its processes were not listed for 90 s"

    def test_from_before_the_quiet_time_was_over_makes_nothing_free(self) -> None:
        listed = at_step(QUIET_STEPS - 2)
        stale = replace(QUIET, processes_at=listed)
        track = run((QUIET, QUIET_STEPS - 1), (stale, 1))
        assert track.state is IdleState.UNKNOWN
        track = idle.step(track=track, sample=stamped(QUIET, QUIET_STEPS), policy=POLICY)
        assert track.state is IdleState.FREE

    def test_is_wanted_with_the_very_sample_in_which_memory_moved(self) -> None:
        track = run((QUIET, QUIET_STEPS))
        moved = replace(
            QUIET,
            memory_used_bytes=40 << 20,
            processes_at=at_step(QUIET_STEPS - 1),
            measured_at=at_step(QUIET_STEPS),
        )
        assert track.wants_processes_with(sample=moved)
        unlisted = idle.step(track=track, sample=moved, policy=POLICY)
        assert unlisted.missed_samples == 1
        listed = replace(moved, processes_at=moved.measured_at)
        assert not track.wants_processes_with(sample=listed)
        assert idle.step(track=track, sample=listed, policy=POLICY).state is IdleState.FREE
        somebody = replace(listed, process_count=1)
        assert idle.step(track=track, sample=somebody, policy=POLICY).state is IdleState.BUSY

    def test_is_not_wanted_again_for_memory_that_stays_where_it_moved_to(self) -> None:
        track = run((QUIET, 4), (replace(QUIET, memory_used_bytes=40 << 20), 1))
        later = replace(QUIET, memory_used_bytes=40 << 20, processes_at=at_step(4))
        assert not track.wants_processes_with(sample=replace(later, measured_at=at_step(5)))


class TestGhostLatch:
    """Full load with nobody on the GPU."""

    LATCHED_STEPS = 600 // STEP_SECONDS + 1

    def test_is_believed_after_ten_minutes(self) -> None:
        assert not run((GHOST, self.LATCHED_STEPS - 1)).latched
        track = run((GHOST, self.LATCHED_STEPS))
        assert (track.latched, track.state, track.ghost_since) == (True, IdleState.BUSY, START)
        assert track.reason == (
            "suspect: latched, 100 % load with no process and no memory since 2026-11-23 00:00 UTC"
        )
        assert track.wants_cure(at=at_step(self.LATCHED_STEPS))

    @pytest.mark.parametrize(
        "somebody",
        [
            replace(GHOST, process_count=1),
            replace(GHOST, memory_used_bytes=1 << 30),
            replace(GHOST, utilization_percent=98, utilization_max_percent=100),
        ],
        ids=["a process", "memory", "less than full load"],
    )
    def test_is_none_with_a_sign_of_somebody(self, somebody: Sample) -> None:
        track = run((GHOST, 30), (somebody, 1), (GHOST, 30))
        assert not track.latched
        assert track.ghost_since == at_step(31)

    def test_is_none_while_nobody_can_list_the_processes(self) -> None:
        assert not run((replace(GHOST, process_count=None), 100)).latched

    def test_becomes_free_after_its_cure_although_the_power_is_still_high(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        track = idle.cured(track=track, at=at_step(self.LATCHED_STEPS), succeeded=True)
        warm = replace(QUIET, power_draw_milliwatts=110_000)
        track = go_on(track, (warm, self.LATCHED_STEPS), since=self.LATCHED_STEPS)
        assert (track.state, track.latched) == (IdleState.FREE, False)

    def test_is_judged_by_its_power_again_once_that_was_at_rest(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        track = idle.cured(track=track, at=at_step(self.LATCHED_STEPS), succeeded=True)
        warm = replace(QUIET, power_draw_milliwatts=110_000)
        track = go_on(track, (warm, 2), (QUIET, 1), (warm, 1), since=self.LATCHED_STEPS)
        assert track.state is IdleState.BUSY
        assert track.reason == "it draws 110 W, at rest 75 W"

    def test_does_not_teach_a_floor_while_it_cools_down(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        track = idle.cured(track=track, at=at_step(self.LATCHED_STEPS), succeeded=True)
        warm = replace(QUIET, power_draw_milliwatts=110_000)
        track = go_on(track, (warm, 200), since=self.LATCHED_STEPS)
        assert idle.power_floor_milliwatts(track=track) == 75_000

    def test_that_was_not_cured_waives_nothing(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        track = idle.cured(track=track, at=at_step(self.LATCHED_STEPS), succeeded=False)
        warm = replace(QUIET, power_draw_milliwatts=110_000)
        assert go_on(track, (warm, 1), since=self.LATCHED_STEPS).state is IdleState.BUSY

    def test_is_not_cured_again_at_once_nor_without_end(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        steps, tries = self.LATCHED_STEPS, []
        for number in range(steps, steps + 1000):
            if track.wants_cure(at=at_step(number)):
                tries.append(number)
                track = idle.cured(track=track, at=at_step(number), succeeded=True)
            track = idle.step(track=track, sample=stamped(GHOST, number), policy=POLICY)
        assert tries == [steps, steps + 40, steps + 80]
        assert len(tries) == idle.CURES_MAX
        assert track.reason.endswith("3 contexts did not cure it, reset the GPU")

    def test_that_returns_after_the_gpu_was_free_is_cured_again(self) -> None:
        track = run((GHOST, self.LATCHED_STEPS))
        for _ in range(idle.CURES_MAX):
            track = idle.cured(track=track, at=at_step(self.LATCHED_STEPS), succeeded=True)
        track = go_on(track, (QUIET, 50), since=self.LATCHED_STEPS)
        assert (track.state, track.cures) == (IdleState.FREE, 0)


def go_on(track: idle.IdleTrack, *phases: tuple[Sample, int], since: int) -> idle.IdleTrack:
    """Step on from the sample of that number."""
    samples = [sample for sample, count in phases for _ in range(count)]
    for number, sample in enumerate(samples, start=since):
        track = idle.step(track=track, sample=stamped(sample, number), policy=POLICY)
    return track


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
            track = idle.step(track=track, sample=sample, policy=POLICY)
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
