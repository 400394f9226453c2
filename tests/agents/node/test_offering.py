"""Free is not offerable: MIG, vGPU, health and the owner's scheduler are asked first."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from agents.node import offering
from agents.node.idle import IdleTrack
from agents.node.jobs import InlineJobs
from agents.node.offering import Allocations, SchedulerHook, SchedulerUnsure
from agents.protocol import GpuIdentity, Health, IdleState

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
GPU = GpuIdentity(
    uuid="GPU-0",
    index=0,
    product_name="NVIDIA H100 80GB HBM3",
    memory_total_bytes=80 << 30,
    pci_bus_id="00000000:1B:00.0",
)
OTHER = replace(GPU, uuid="GPU-1", index=1, pci_bus_id="00000000:2B:00.0")
FREE = IdleTrack(state=IdleState.FREE, reason="quiet for 600 s and more", quiet_since=AT)
Result = TypeVar("Result")


def after(seconds: float) -> dt.datetime:
    return AT + dt.timedelta(seconds=seconds)


class Scheduler:
    """An owner's scheduler that says what a test tells it to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.busy: set[str] = set()
        self.complaint = ""
        self.asked: list[list[str]] = []

    def allocated(self, *, gpus: Sequence[GpuIdentity]) -> frozenset[str]:
        self.asked.append([gpu.uuid for gpu in gpus])
        if self.complaint:
            raise SchedulerUnsure(self.complaint)
        return frozenset(self.busy)


class HeldJobs:
    """Jobs that end when the test says so."""

    def __init__(self) -> None:
        self.ends: list[Callable[[], None]] = []

    def submit(self, *, work: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self.ends.append(lambda: future.set_result(work()))
        return future


def judged(
    *,
    track: IdleTrack = FREE,
    identity: GpuIdentity = GPU,
    health: Health = Health.HEALTHY,
    allocations: Allocations | None = None,
    at: dt.datetime = AT,
) -> tuple[IdleState, str]:
    return offering.judge(
        track=track,
        identity=identity,
        health=health,
        allocations=allocations or Allocations(scheduler=None, jobs=InlineJobs()),
        at=at,
    )


class TestJudge:
    def test_offers_a_free_gpu_where_the_owner_has_no_scheduler(self) -> None:
        assert judged() == (
            IdleState.OFFERABLE,
            "quiet for 600 s and more; no scheduler of the owner is asked",
        )

    @pytest.mark.parametrize(
        "state", [IdleState.UNKNOWN, IdleState.BUSY, IdleState.PARKED], ids=str
    )
    def test_leaves_what_is_not_free_as_it_is(self, state: IdleState) -> None:
        assert judged(track=IdleTrack(state=state, reason="why")) == (state, "why")

    @pytest.mark.parametrize(
        ("identity", "health", "words"),
        [
            (replace(GPU, mig_enabled=True), Health.HEALTHY, "MIG has cut it"),
            (replace(GPU, virtualization_mode="host_vgpu"), Health.HEALTHY, "vGPU"),
            (replace(GPU, virtualization_mode="host_vsga"), Health.HEALTHY, "vGPU"),
            (GPU, Health.SUSPECT, "free, but suspect"),
            (GPU, Health.QUARANTINED, "free, but quarantined"),
        ],
    )
    def test_offers_nothing_that_is_cut_or_unhealthy(
        self, identity: GpuIdentity, health: Health, words: str
    ) -> None:
        state, reason = judged(identity=identity, health=health)
        assert state is IdleState.FREE
        assert words in reason

    def test_offers_a_gpu_that_a_guest_has_whole(self) -> None:
        whole = replace(GPU, virtualization_mode="passthrough", mig_enabled=False)
        assert judged(identity=whole)[0] is IdleState.OFFERABLE


class TestOwnersScheduler:
    def test_is_waited_for(self) -> None:
        jobs, scheduler = HeldJobs(), Scheduler()
        allocations = Allocations(scheduler=scheduler, jobs=jobs)
        allocations.ask(gpus=[GPU], at=AT)
        state, reason = judged(allocations=allocations)
        assert (state, reason) == (
            IdleState.FREE,
            "free, but the owner's scheduler has not answered yet",
        )
        jobs.ends[0]()
        assert allocations.has_answer()
        allocations.take_answer()
        state, reason = judged(allocations=allocations)
        assert state is IdleState.OFFERABLE
        assert reason.endswith("the owner's scheduler does not want it")

    def test_keeps_what_it_has_allocated(self) -> None:
        scheduler = Scheduler()
        scheduler.busy = {"GPU-1"}
        allocations = Allocations(scheduler=scheduler, jobs=InlineJobs())
        allocations.ask(gpus=[GPU, OTHER], at=AT)
        allocations.take_answer()
        assert judged(allocations=allocations)[0] is IdleState.OFFERABLE
        assert judged(identity=OTHER, allocations=allocations) == (
            IdleState.FREE,
            "free, but the owner's scheduler has it allocated",
        )

    def test_that_cannot_tell_lets_nothing_go(self) -> None:
        scheduler = Scheduler()
        scheduler.complaint = "took longer than 10 s for allocated"
        allocations = Allocations(scheduler=scheduler, jobs=InlineJobs())
        allocations.ask(gpus=[GPU], at=AT)
        allocations.take_answer()
        assert judged(allocations=allocations) == (
            IdleState.FREE,
            "free, but the owner's scheduler took longer than 10 s for allocated",
        )

    def test_is_asked_again_before_its_answer_is_old_and_one_question_at_a_time(self) -> None:
        jobs, scheduler = HeldJobs(), Scheduler()
        allocations = Allocations(scheduler=scheduler, jobs=jobs)
        allocations.ask(gpus=[GPU], at=AT)
        allocations.ask(gpus=[GPU], at=after(15))
        assert len(jobs.ends) == 1
        jobs.ends[0]()
        allocations.take_answer()
        allocations.ask(gpus=[GPU], at=after(29))
        assert len(jobs.ends) == 1
        allocations.ask(gpus=[GPU], at=after(30))
        assert len(jobs.ends) == 2

    def test_is_believed_for_a_minute_from_its_question_on(self) -> None:
        allocations = Allocations(scheduler=Scheduler(), jobs=InlineJobs())
        allocations.ask(gpus=[GPU], at=AT)
        allocations.take_answer()
        assert judged(allocations=allocations, at=after(60))[0] is IdleState.OFFERABLE
        state, reason = judged(allocations=allocations, at=after(61))
        assert state is IdleState.FREE
        assert reason == "free, but the owner's scheduler was last heard 2026-11-23 00:00:00 UTC"

    def test_is_not_bothered_when_nothing_is_free(self) -> None:
        scheduler = Scheduler()
        Allocations(scheduler=scheduler, jobs=InlineJobs()).ask(gpus=[], at=AT)
        assert scheduler.asked == []


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "scheduler"


def hook(program: Path, script: str, *, seconds_max: float = 10.0) -> SchedulerHook:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return SchedulerHook(program=program, seconds_max=seconds_max)


class TestSchedulerHook:
    def test_gets_the_verb_and_the_gpus_and_no_secrets(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADROOM_TOKEN", "hush")
        script = f'cat > {tmp_path}/in; echo "$1 $HEADROOM_TOKEN" > {tmp_path}/argv; echo \'{{"free":[]}}\''
        hook(program, script).allocated(gpus=[GPU])
        assert (tmp_path / "argv").read_text() == "allocated \n"
        assert json.loads((tmp_path / "in").read_text()) == {
            "gpus": [{"uuid": "GPU-0", "index": 0, "pci_bus_id": "00000000:1B:00.0"}]
        }

    @pytest.mark.parametrize(
        ("answer", "allocated"),
        [
            ({"allocated": []}, set()),
            ({"allocated": ["GPU-1"]}, {"GPU-1"}),
            ({"allocated": ["GPU-1", "GPU-of-another-machine"]}, {"GPU-1"}),
            ({"free": ["GPU-0"]}, {"GPU-1"}),
            ({"free": []}, {"GPU-0", "GPU-1"}),
        ],
    )
    def test_answers_what_is_allocated_or_what_is_free(
        self, program: Path, answer: dict[str, list[str]], allocated: set[str]
    ) -> None:
        asked = hook(program, f"cat >/dev/null; echo '{json.dumps(answer)}'")
        assert asked.allocated(gpus=[GPU, OTHER]) == allocated

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("echo busy >&2; exit 75", "asks to try again: busy"),
            ("echo no slurm >&2; exit 1", "failed with status 1: no slurm"),
            ("exit 2", "failed with status 2"),
            ("echo '{'", "no JSON object"),
            ("echo '[]'", "no JSON object"),
            ("true", "must answer one list"),
            ('echo \'{"allocated": [], "free": []}\'', "must answer one list"),
            ('echo \'{"allocated": "GPU-0"}\'', "must answer one list"),
            ("echo '{\"allocated\": [0]}'", "must answer a list of UUIDs"),
        ],
    )
    def test_that_does_not_answer_as_agreed_is_unsure(
        self, program: Path, script: str, words: str
    ) -> None:
        with pytest.raises(SchedulerUnsure, match=words):
            hook(program, f"cat >/dev/null; {script}").allocated(gpus=[GPU])

    def test_that_takes_too_long_is_killed(self, program: Path) -> None:
        slow = hook(program, "sleep 60", seconds_max=0.3)
        with pytest.raises(SchedulerUnsure, match=r"longer than 0\.3 s for allocated"):
            slow.allocated(gpus=[GPU])

    def test_that_is_not_there_is_unsure(self, tmp_path: Path) -> None:
        missing = SchedulerHook(program=tmp_path / "nothing")
        with pytest.raises(SchedulerUnsure, match="cannot be run"):
            missing.allocated(gpus=[GPU])
