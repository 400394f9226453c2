"""The reader through the unmodified pynvml, on the stand-in library."""

from __future__ import annotations

import ctypes
import datetime as dt
from collections.abc import Iterator

import pytest

from agents.node import health
from agents.node.nvml import NvmlReader
from agents.node.reader import LOST, MEASURED_FIELDS, NOT_SUPPORTED, ReaderUnavailable
from agents.protocol import GpuIdentity, Health
from tests.fakes.nvml import Journal

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
UUIDS = [f"GPU-00000000-0000-4000-8000-{index:012d}" for index in range(2)]


@pytest.fixture
def reader(journal: Journal) -> Iterator[NvmlReader]:
    # pynvml asks for the library by name; one that is already loaded under that name is taken.
    ctypes.CDLL(str(journal.library))
    reader = NvmlReader()
    yield reader
    reader.close()


class TestIdentify:
    def test_names_each_gpu_as_nvml_does(self, reader: NvmlReader, journal: Journal) -> None:
        journal.write("gpu 1 name NVIDIA H200", "gpu 1 mem_total 150754820096")
        assert reader.identify()[1] == GpuIdentity(
            uuid=UUIDS[1],
            index=1,
            product_name="NVIDIA H200",
            memory_total_bytes=150754820096,
            serial="1650000000001",
            pci_bus_id="00000000:18:00.0",
            mig_enabled=False,
        )

    def test_leaves_out_what_the_product_does_not_have(
        self, reader: NvmlReader, journal: Journal
    ) -> None:
        journal.write("gpu 0 err nvmlDeviceGetSerial 3", "gpu 0 err nvmlDeviceGetMigMode 3")
        identity = reader.identify()[0]
        assert (identity.serial, identity.mig_enabled) == (None, None)

    def test_recognises_mig(self, reader: NvmlReader, journal: Journal) -> None:
        journal.write("gpu 0 mig 1")
        assert [gpu.mig_enabled for gpu in reader.identify()] == [True, False]

    def test_goes_past_a_gpu_that_fell_off_the_bus(
        self, reader: NvmlReader, journal: Journal
    ) -> None:
        journal.write("gpu 0 lost 1")
        assert [gpu.uuid for gpu in reader.identify()] == [UUIDS[1]]

    @pytest.mark.parametrize("code", [9, 12, 18])
    def test_says_that_no_driver_answers(
        self, reader: NvmlReader, journal: Journal, code: int
    ) -> None:
        journal.write(f"init_ret {code}")
        with pytest.raises(ReaderUnavailable, match="no NVIDIA driver answers"):
            reader.identify()


class TestRead:
    def test_reads_every_value_in_its_unit(self, reader: NvmlReader, journal: Journal) -> None:
        journal.write(
            "gpu 0 util 93", "gpu 0 mem_used 42949672960", "gpu 0 power 512345",
            "gpu 0 energy 987654321", "gpu 0 temp 64", "gpu 0 proc 4242 C", "gpu 0 proc 4242 G",
            "gpu 0 proc 4343 C",
        )  # fmt: skip
        sample, idle = reader.read(at=AT)
        assert sample.gpu_uuid == UUIDS[0]
        assert sample.measured_at == AT
        assert sample.utilization_percent == 93
        assert sample.memory_used_bytes == 42949672960, "the v2 call leaves out what is reserved"
        assert sample.power_draw_milliwatts == 512345
        assert sample.energy_millijoules == 987654321
        assert sample.temperature_celsius == 64
        assert sample.process_count == 2, "a process with two contexts is one process"
        assert sample.unread == {}
        assert idle.process_count == 0

    def test_sees_a_process_end(self, reader: NvmlReader, journal: Journal) -> None:
        journal.write("gpu 0 proc 4242 C")
        assert reader.read(at=AT)[0].process_count == 1
        journal.write("gpu 0 proc- *")
        assert reader.read(at=AT)[0].process_count == 0

    @pytest.mark.parametrize(
        ("function", "field"),
        [
            ("nvmlDeviceGetUtilizationRates", "utilization_percent"),
            ("nvmlDeviceGetMemoryInfo_v2", "memory_used_bytes"),
            ("nvmlDeviceGetPowerUsage", "power_draw_milliwatts"),
            ("nvmlDeviceGetTotalEnergyConsumption", "energy_millijoules"),
            ("nvmlDeviceGetTemperature", "temperature_celsius"),
            ("nvmlDeviceGetComputeRunningProcesses_v3", "process_count"),
            ("nvmlDeviceGetGraphicsRunningProcesses_v3", "process_count"),
        ],
    )
    @pytest.mark.parametrize(
        ("code", "reason", "state"),
        [(3, NOT_SUPPORTED, Health.HEALTHY), (999, "error(999)", Health.SUSPECT)],
    )
    def test_gives_none_and_the_reason_for_what_fails(
        self,
        reader: NvmlReader,
        journal: Journal,
        function: str,
        field: str,
        code: int,
        reason: str,
        state: Health,
    ) -> None:
        reader.identify()
        journal.write(f"gpu 0 err {function} {code}")
        sample, other = reader.read(at=AT)
        assert getattr(sample, field) is None
        assert sample.unread == {field: reason}
        assert other.unread == {}
        assert health.judge(sample=sample)[0] is state

    def test_a_dead_gpu_does_not_take_the_others_with_it(
        self, reader: NvmlReader, journal: Journal
    ) -> None:
        reader.identify()
        journal.write("gpu 0 lost 1", "gpu 1 util 12")
        dead, alive = reader.read(at=AT)
        assert dead.unread == dict.fromkeys(MEASURED_FIELDS, LOST)
        assert health.judge(sample=dead)[0] is Health.LOST
        assert alive.utilization_percent == 12
        assert health.judge(sample=alive) == (Health.HEALTHY, "")

    def test_says_how_long_each_call_took(self, reader: NvmlReader) -> None:
        reader.read(at=AT)
        assert reader.call_milliseconds["nvmlDeviceGetPowerUsage"] > 0
