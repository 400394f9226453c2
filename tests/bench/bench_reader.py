"""What one full look at eight GPUs costs on the stand-in NVML, beside as many bare calls of it in one run.

    python -m tests.bench.bench_reader [--reads 100]

A full look is identify, read with process lists, counters and settings. Between two looks the driver's buffer
of utilisation samples fills up, as it does in the fifteen seconds between two looks of the agent. Prints CPU
and wall time in the reader's own process and through the child (parent and child together), and the ratio to
a loop of the same number of ctypes calls. The bar is 5 ms of CPU; above it the exit status is 1.
"""

import argparse
import ctypes
import datetime as dt
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import nvml

GPU_COUNT = 8
BAR_CPU_MILLISECONDS = 5.0
PAUSE_SECONDS = 0.13  # the buffer holds 120 samples, and the journal says one a millisecond
WARM_UP_READS = 5


@dataclass
class Costs:
    """CPU and wall time of each turn, in milliseconds."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def line(self, name: str) -> str:
        return (
            f"{name:24s} CPU {statistics.median(self.cpu):6.2f} ms median {_p99(self.cpu):6.2f} ms p99"
            f"   wall {statistics.median(self.wall):6.2f} ms median {_p99(self.wall):6.2f} ms p99"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        journal = nvml.Journal(path=directory / "journal", library=nvml.build(directory=directory))
        busy_machine(journal)
        os.environ.update(journal.environment)
        ctypes.CDLL(str(journal.library))  # then pynvml finds it by its name
        return _bench(reads=options.reads, library=journal.library)


def busy_machine(journal: nvml.Journal) -> None:
    """Show eight GPUs that work: two processes each, a full sample buffer, a counter that grows."""
    journal.write(f"gpus {GPU_COUNT}")
    journal.set("*", util=93, mem_used=40 << 30, power=512_000, temp=64, sampling=1)
    journal.energy_rate("*", milliwatts=512_000)
    for index in range(GPU_COUNT):
        for pid in (1, os.getpid()):
            journal.start_process(index, pid=pid, memory_bytes=20 << 30, sm_percent=45)


def _bench(*, reads: int, library: Path) -> int:
    from agents.node.answers import AnsweringReader
    from agents.node.child import ChildReader
    from agents.node.driver.service import Service
    from agents.node.nvml import Driver

    class OwnReader(AnsweringReader):
        """The child's work done here, so that its cost is seen without the pipe."""

        def __init__(self) -> None:
            self._service = Service(driver=Driver(), write_event=lambda _line: None)

        def _ask(self, **request: object) -> Any:
            return self._service.answer(request=request)["ok"]

    own = OwnReader()
    _full_look(own)
    calls = _count_calls(lambda: _full_look(own))
    bare = _measure(_bare_calls(library=library, calls=calls), reads=reads, cpu=_own_cpu)
    inside = _measure(lambda: _full_look(own), reads=reads, cpu=_own_cpu)
    child = ChildReader(boottime_seconds=time.monotonic)
    try:
        _full_look(child)
        (pid,) = _children()
        through = _measure(
            lambda: _full_look(child), reads=reads, cpu=lambda: _own_cpu() + _process_cpu(pid)
        )
    finally:
        child.close()
    base = statistics.median(bare.cpu)
    ratios = [statistics.median(costs.cpu) / base for costs in (inside, through)]
    lines = (
        f"{GPU_COUNT} GPUs, {calls} calls of the library a look, {reads} looks",
        bare.line("as many bare calls"),
        inside.line("in process"),
        through.line("through the child"),
        "ratio to the bare calls  {:6.1f} in process, {:.1f} through the child".format(*ratios),
        f"bar                      {BAR_CPU_MILLISECONDS:6.1f} ms CPU",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return int(statistics.median(through.cpu) > BAR_CPU_MILLISECONDS)


def _full_look(reader: Any) -> None:
    uuids = [gpu.uuid for gpu in reader.identify()]
    samples = reader.read(at=dt.datetime.now(tz=dt.UTC), with_processes=uuids)
    counters = reader.counters(gpu_uuids=uuids)
    settings = reader.settings(gpu_uuids=uuids)
    assert len(samples) == len(counters) == len(settings) == GPU_COUNT
    assert all(sample.process_count for sample in samples), "the processes were not seen"


def _measure(turn: Callable[[], None], *, reads: int, cpu: Callable[[], float]) -> Costs:
    costs = Costs()
    for number in range(WARM_UP_READS + reads):
        time.sleep(PAUSE_SECONDS)
        wall_before, cpu_before = time.perf_counter(), cpu()
        turn()
        cpu_after, wall_after = cpu(), time.perf_counter()
        if number >= WARM_UP_READS:
            costs.cpu.append((cpu_after - cpu_before) * 1000)
            costs.wall.append((wall_after - wall_before) * 1000)
    return costs


def _count_calls(look: Callable[[], None]) -> int:
    """Return how many functions of the library one look calls."""
    import pynvml

    count = 0
    find = pynvml._nvmlGetFunctionPointer

    def counting(name: str) -> Callable[..., Any]:
        function = find(name)

        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return function(*arguments)

        return call

    pynvml._nvmlGetFunctionPointer = counting
    try:
        look()
    finally:
        pynvml._nvmlGetFunctionPointer = find
    return count


def _bare_calls(*, library: Path, calls: int) -> Callable[[], None]:
    """Return a loop of so many of the cheapest call that reads something."""
    function = ctypes.CDLL(str(library)).nvmlDeviceGetPowerUsage
    handle, value = ctypes.c_void_p(), ctypes.c_uint()
    ctypes.CDLL(str(library)).nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))

    def loop() -> None:
        for _ in range(calls):
            assert function(handle, ctypes.byref(value)) == 0

    return loop


def _own_cpu() -> float:
    return time.thread_time()


def _process_cpu(pid: int) -> float:
    """Return the CPU seconds of all threads of a process."""
    return (
        sum(
            int(task.joinpath("schedstat").read_text().split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
    )


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
