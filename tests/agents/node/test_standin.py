"""The stand-in NVML, driven by the unmodified pynvml: what the other tests take on trust."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.agents.node.conftest import standin_library as library_fixture
from tests.fakes import nvml
from tests.fakes.nvml import Journal

XID_EVENT = pynvml.nvmlEventTypeXidCriticalError
GIBIBYTE = 1 << 30


@pytest.fixture
def handles(journal: Journal) -> Iterator[list[Any]]:
    """Two GPUs, as pynvml hands them out."""
    ctypes.CDLL(str(journal.library))
    pynvml.nvmlInit()
    yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(2)]
    pynvml.nvmlShutdown()


def code_of(call: Callable[..., object], *arguments: object) -> int:
    """Return the NVML code with which a call fails."""
    with pytest.raises(pynvml.NVMLError) as failure:
        call(*arguments)
    return int(failure.value.value)


class TestJournal:
    def test_shows_processes_by_kind_with_their_memory_and_load(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        journal.start_process(0, pid=41, memory_bytes=5 * GIBIBYTE, sm_percent=90)
        journal.start_process(0, pid=42, kind="G")
        journal.start_process(0, pid=43, kind="M", memory_bytes=GIBIBYTE)
        (compute,) = pynvml.nvmlDeviceGetComputeRunningProcesses(handles[0])
        (graphics,) = pynvml.nvmlDeviceGetGraphicsRunningProcesses(handles[0])
        (mps,) = pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handles[0])
        assert (compute.pid, compute.usedGpuMemory) == (41, 5 * GIBIBYTE)
        assert (graphics.pid, graphics.usedGpuMemory) == (42, None)
        assert (mps.pid, mps.usedGpuMemory) == (43, GIBIBYTE)
        load = pynvml.nvmlDeviceGetProcessUtilization(handles[0], 0)
        assert [(sample.pid, sample.smUtil) for sample in load] == [(41, 90)]
        journal.end_process(0)
        not_found = code_of(pynvml.nvmlDeviceGetProcessUtilization, handles[0], 0)
        assert not_found == pynvml.NVML_ERROR_NOT_FOUND

    def test_fills_the_sample_buffer_once(self, journal: Journal, handles: list[Any]) -> None:
        kind = pynvml.NVML_GPU_UTILIZATION_SAMPLES
        empty = code_of(pynvml.nvmlDeviceGetSamples, handles[0], kind, 0)
        assert empty == pynvml.NVML_ERROR_NOT_FOUND
        journal.samples(0, percents=[10, 20, 93])
        _, samples = pynvml.nvmlDeviceGetSamples(handles[0], kind, 0)
        assert [sample.sampleValue.uiVal for sample in samples] == [10, 20, 93]
        later = code_of(pynvml.nvmlDeviceGetSamples, handles[0], kind, samples[-1].timeStamp)
        assert later == pynvml.NVML_ERROR_NOT_FOUND
        journal.samples(0, percents=[7])
        _, newer = pynvml.nvmlDeviceGetSamples(handles[0], kind, samples[-1].timeStamp)
        assert [sample.sampleValue.uiVal for sample in newer] == [7]

    def test_lets_the_energy_counter_grow_and_start_again(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        energy = pynvml.nvmlDeviceGetTotalEnergyConsumption
        journal.energy(0, millijoules=5_000_000)
        assert energy(handles[0]) == 5_000_000
        journal.energy_rate(0, milliwatts=10_000_000)
        time.sleep(0.25)
        assert 2_000_000 <= energy(handles[0]) - 5_000_000 < 60_000_000
        journal.energy(0, millijoules=0)
        assert energy(handles[0]) < 5_000_000

    def test_keeps_a_removed_gpu_until_the_next_init(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        journal.set(0, present=0)
        assert pynvml.nvmlDeviceGetCount() == 2
        lost = code_of(pynvml.nvmlDeviceGetPowerUsage, handles[0])
        assert lost == code_of(pynvml.nvmlDeviceGetHandleByIndex, 0) == nvml.GPU_LOST
        pynvml.nvmlShutdown()
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 1
        (left,) = [pynvml.nvmlDeviceGetHandleByIndex(0)]
        assert pynvml.nvmlDeviceGetUUID(left).endswith("1"), "indices move up, the UUID stays"

    @pytest.mark.parametrize("code", [3, 15, 999])
    def test_refuses_what_it_is_told_to_until_that_is_cleared(
        self, journal: Journal, handles: list[Any], code: int
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=code)
        assert code_of(pynvml.nvmlDeviceGetPowerUsage, handles[0]) == code
        assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) == 70_000
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=0)
        assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 70_000

    def test_gives_each_field_value_its_own_return_code(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        recovery = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        memory_temperature = pynvml.NVML_FI_DEV_MEMORY_TEMP
        journal.field(0, field_id=recovery, value=2)
        journal.field(0, field_id=memory_temperature, value=None)
        told, hidden = pynvml.nvmlDeviceGetFieldValues(handles[0], [recovery, memory_temperature])
        assert (told.nvmlReturn, told.value.uiVal) == (0, 2)
        assert hidden.nvmlReturn == nvml.NOT_SUPPORTED

    def test_releases_a_call_that_hangs(self, journal: Journal, handles: list[Any]) -> None:
        journal.hang(function="nvmlDeviceGetPowerUsage", seconds=60)
        threading.Timer(0.1, journal.hang, kwargs={
            "function": "nvmlDeviceGetPowerUsage", "seconds": 0}).start()  # fmt: skip
        started = time.monotonic()
        assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 70_000
        assert 0.05 < time.monotonic() - started < 10

    def test_reads_on_while_others_write(self, journal: Journal, handles: list[Any]) -> None:
        rounds, ended = [0], threading.Event()

        def read() -> None:
            while not ended.is_set():
                utilization = pynvml.nvmlDeviceGetUtilizationRates(handles[0])
                assert 0 <= utilization.gpu <= 100
                assert len(pynvml.nvmlDeviceGetComputeRunningProcesses(handles[1])) <= 1
                rounds[0] += 1

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(300):
            journal.write(f"gpu * util {turn % 101}", f"gpu 1 proc {turn + 1} C", "gpu 1 proc- *")
        ended.set()
        for thread in threads:
            thread.join()
        assert rounds[0] > 0
        assert pynvml.nvmlDeviceGetUtilizationRates(handles[0]).gpu == 299 % 101


class TestEvents:
    def test_come_once_and_in_order_to_sets_registered_before(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        journal.xid(1, xid=13)  # before the registration: never told
        events = pynvml.nvmlEventSetCreate()
        for handle in handles:
            pynvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, events)
        journal.xid(1, xid=79)
        journal.xid(0, xid=31)
        journal.event(0, event_type=2)  # double bit error: not asked for
        told = [pynvml.nvmlEventSetWait_v2(events, 1000) for _ in range(2)]
        assert [event.eventData for event in told] == [79, 31]
        assert pynvml.nvmlDeviceGetUUID(told[0].device).endswith("1")
        nothing = code_of(pynvml.nvmlEventSetWait_v2, events, 20)
        assert nothing == pynvml.NVML_ERROR_TIMEOUT
        pynvml.nvmlEventSetFree(events)

    def test_end_the_wait(self, journal: Journal, handles: list[Any]) -> None:
        events = pynvml.nvmlEventSetCreate()
        pynvml.nvmlDeviceRegisterEvents(handles[0], XID_EVENT, events)
        threading.Timer(0.1, journal.xid, args=(0,), kwargs={"xid": 48}).start()
        started = time.monotonic()
        assert pynvml.nvmlEventSetWait_v2(events, 30_000).eventData == 48
        assert time.monotonic() - started < 10
        pynvml.nvmlEventSetFree(events)

    def test_say_that_a_gpu_of_the_set_is_lost(self, journal: Journal, handles: list[Any]) -> None:
        events = pynvml.nvmlEventSetCreate()
        for handle in handles:
            pynvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, events)
        journal.xid(0, xid=79)
        journal.set(0, lost=1)
        assert pynvml.nvmlEventSetWait_v2(events, 1000).eventData == 79
        assert code_of(pynvml.nvmlEventSetWait_v2, events, 30_000) == nvml.GPU_LOST
        pynvml.nvmlEventSetFree(events)


class TestSettings:
    def test_are_seen_by_every_process(self, journal: Journal, handles: list[Any]) -> None:
        pynvml.nvmlDeviceSetPowerManagementLimit(handles[0], 300_000)
        pynvml.nvmlDeviceSetComputeMode(handles[0], pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
        pynvml.nvmlDeviceSetPersistenceMode(handles[0], 0)
        program = (
            "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0);"
            "print(n.nvmlDeviceGetPowerManagementLimit(h), n.nvmlDeviceGetComputeMode(h),"
            "n.nvmlDeviceGetPersistenceMode(h))"
        )
        told = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **journal.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == ["300000", "3", "0"]

    def test_are_for_root(self, journal: Journal, handles: list[Any]) -> None:
        journal.write("root 0")
        for call, value in (
            (pynvml.nvmlDeviceSetPowerManagementLimit, 300_000),
            (pynvml.nvmlDeviceSetComputeMode, 0),
            (pynvml.nvmlDeviceSetAccountingMode, 1),
            (pynvml.nvmlDeviceSetMigMode, 1),
        ):
            assert code_of(call, handles[0], value) == nvml.NO_PERMISSION
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handles[0]) == 700_000

    def test_keep_the_clocks_within_what_is_locked(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        journal.set(0, clock_sm=1980)
        pynvml.nvmlDeviceSetGpuLockedClocks(handles[0], 1000, 1200)
        assert pynvml.nvmlDeviceGetClockInfo(handles[0], pynvml.NVML_CLOCK_SM) == 1200
        pynvml.nvmlDeviceResetGpuLockedClocks(handles[0])
        assert pynvml.nvmlDeviceGetClockInfo(handles[0], pynvml.NVML_CLOCK_SM) == 1980

    def test_leave_mig_pending_while_somebody_is_on_the_gpu(
        self, journal: Journal, handles: list[Any]
    ) -> None:
        journal.start_process(0, pid=41)
        pynvml.nvmlDeviceSetMigMode(handles[0], 1)
        assert pynvml.nvmlDeviceGetMigMode(handles[0]) == [0, 1]
        pynvml.nvmlDeviceSetMigMode(handles[1], 1)
        assert pynvml.nvmlDeviceGetMigMode(handles[1]) == [1, 1]


class TestMig:
    def test_shows_the_parts_of_a_gpu(self, journal: Journal, handles: list[Any]) -> None:
        journal.set(0, mig=1)
        journal.mig_part(0, place=0, uuid="MIG-a", gpu_instance=7, memory_mebibytes=9856)
        journal.start_process(0, pid=41, memory_bytes=GIBIBYTE, part=(7, 0))
        part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], 0)
        assert pynvml.nvmlDeviceGetUUID(part) == "MIG-a"
        assert pynvml.nvmlDeviceGetGpuInstanceId(part) == 7
        memory = pynvml.nvmlDeviceGetMemoryInfo(part, version=pynvml.nvmlMemory_v2)
        assert (memory.total >> 20, memory.used) == (9856, GIBIBYTE)
        assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(part)] == [41]
        refused = code_of(pynvml.nvmlDeviceGetUtilizationRates, handles[0])
        assert refused == nvml.NOT_SUPPORTED, "with MIG on the driver tells no utilisation"

    def test_ends_a_part_with_its_handle(self, journal: Journal, handles: list[Any]) -> None:
        journal.set(0, mig=1)
        journal.mig_part(0, place=0, uuid="MIG-a", gpu_instance=7, memory_mebibytes=9856)
        part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], 0)
        journal.write("gpu 0 migdev- *")
        assert code_of(pynvml.nvmlDeviceGetUUID, part) == pynvml.NVML_ERROR_INVALID_ARGUMENT


class TestCuda:
    @pytest.mark.parametrize("residue", [0, 1])
    def test_hands_out_what_was_left_until_it_is_set_to_zero(
        self, journal: Journal, residue: int
    ) -> None:
        journal.set(1, residue=residue, ghost=1)
        cuda = ctypes.CDLL(str(journal.cuda_library))
        device, context, at = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert cuda.cuInit(0) == 0
        assert cuda.cuDeviceGetByPCIBusId(ctypes.byref(device), b"0000:18:00.0") == 0
        assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
        assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        assert cuda.cuMemAlloc_v2(ctypes.byref(at), total) == 2, "more than is free"
        assert cuda.cuMemAlloc_v2(ctypes.byref(at), free) == 0
        assert self._first_byte(cuda, at) == (0xA5 if residue else 0)
        assert cuda.cuMemsetD8_v2(at, ctypes.c_ubyte(0), free) == 0
        assert self._first_byte(cuda, at) == 0
        assert cuda.cuMemFree_v2(at) == 0
        assert cuda.cuCtxDestroy_v2(context) == 0
        written = journal.path.read_text().splitlines()
        assert ("gpu 1 residue 0" in written[-2:]) is bool(residue)
        assert written[-1] == "gpu 1 ghost 0", "a context that was closed ends the false load"

    def _first_byte(self, cuda: ctypes.CDLL, at: ctypes.c_uint64) -> int:
        buffer = (ctypes.c_ubyte * 64)()
        assert cuda.cuMemcpyDtoH_v2(buffer, at, ctypes.c_size_t(64)) == 0
        return int(buffer[0])


class TestBuild:
    def test_agrees_with_the_header_of_the_vendor(self) -> None:
        include = _header_or_skip()
        assert nvml.compare_with_header(include=include) == ""

    def test_is_told_apart_from_another_interface(self, tmp_path: Path) -> None:
        include = _header_or_skip()
        sources = tmp_path / "sources"
        shutil.copytree(nvml.HERE, sources)
        changed = sources / "library.c"
        text = changed.read_text()
        assert "nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)" in text
        changed.write_text(
            text.replace(
                "nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)",
                "nvmlDeviceGetIndex(nvmlDevice_t device, int *index)",
            )
        )
        assert "nvmlDeviceGetIndex" in nvml.compare_with_header(include=include, sources=sources)

    @pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
    def test_without_a_compiler_is_skipped_and_in_ci_fails(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
        ci: str,
        outcome: str,
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("CI", ci)
        with pytest.raises(BaseException, match="no C compiler") as ended:
            library_fixture.__wrapped__(tmp_path_factory)  # type: ignore[attr-defined]
        assert type(ended.value).__name__ == outcome


def _header_or_skip() -> Path:
    include = nvml.real_header_directory()
    if include is None:
        pytest.skip("the package nvidia-nvml-dev, which brings NVIDIA's nvml.h, is not installed")
    return include
