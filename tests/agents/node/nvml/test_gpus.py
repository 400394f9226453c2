"""What is read of GPUs, through the unmodified pynvml, on the stand-in library."""

from __future__ import annotations

import pytest

from agents.node import health
from agents.node.driver.counters import COUNTER_FIELDS
from agents.node.nvml import MISSING_SECONDS
from agents.node.reader import LOST, MEASURED_FIELDS, NOT_SUPPORTED, ReaderUnavailable
from agents.protocol import GpuIdentity, Health, MigDevice
from tests.agents.node.direct import DirectReader
from tests.agents.node.nvml.reading import AT, MIB, UUIDS
from tests.fakes.nvml import Journal


class TestIdentify:
    def test_names_each_gpu_as_nvml_does(self, reader: DirectReader, journal: Journal) -> None:
        journal.write("gpu 1 name NVIDIA H200", "gpu 1 mem_total 150754820096")
        journal.write("gpu 1 fabric_state 0")
        assert reader.identify()[1] == GpuIdentity(
            uuid=UUIDS[1],
            index=1,
            product_name="NVIDIA H200",
            memory_total_bytes=150754820096,
            serial="1650000000001",
            pci_bus_id="00000000:18:00.0",
            mig_enabled=False,
            board_part_number="692-2G520-0200-000",
            vbios_version="96.00.74.00.01",
            virtualization_mode="none",
        )

    def test_leaves_out_what_the_product_does_not_have(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetSerial", code=3)
        journal.refuse(0, function="nvmlDeviceGetMigMode", code=3)
        journal.refuse(0, function="nvmlDeviceGetVirtualizationMode", code=3)
        identity = reader.identify()[0]
        assert (identity.serial, identity.mig_enabled) == (None, None)
        assert identity.virtualization_mode is None

    def test_tells_the_parts_that_mig_has_cut(self, reader: DirectReader, journal: Journal) -> None:
        journal.write("gpu 0 mig 1")
        journal.mig_part(0, place=0, uuid="MIG-a", gpu_instance=7, memory_mebibytes=9856)
        journal.mig_part(0, place=2, uuid="MIG-b", gpu_instance=9, memory_mebibytes=9856)
        cut, whole = reader.identify()
        assert (cut.mig_enabled, whole.mig_enabled) == (True, False)
        assert cut.mig_devices == [
            MigDevice(
                uuid=uuid,
                gpu_instance_id=instance,
                compute_instance_id=0,
                memory_total_bytes=9856 * MIB,
            )
            for uuid, instance in (("MIG-a", 7), ("MIG-b", 9))
        ]

    def test_sees_mig_being_switched_on(self, reader: DirectReader, journal: Journal) -> None:
        reader.identify()
        journal.write("gpu 0 mig 1")
        assert [gpu.mig_enabled for gpu in reader.identify()] == [True, False]

    @pytest.mark.parametrize(
        ("mode", "word"), [(1, "passthrough"), (2, "vgpu"), (3, "host_vgpu"), (4, "host_vsga")]
    )
    def test_recognises_virtual_gpus(
        self, reader: DirectReader, journal: Journal, mode: int, word: str
    ) -> None:
        journal.write(f"gpu 0 virtualization {mode}")
        assert reader.identify()[0].virtualization_mode == word

    def test_goes_past_a_gpu_that_never_said_who_it_is(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.write("gpu 0 lost 1")
        assert [gpu.uuid for gpu in reader.identify()] == [UUIDS[1]]

    def test_keeps_a_known_gpu_that_is_lost_when_the_driver_is_taken_up_again(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        before = reader.identify()
        journal.write("gpu 0 lost 1")
        reader.close()
        assert reader.identify() == before
        dead, alive = reader.read(at=AT, with_processes=UUIDS)
        assert dead.unread == dict.fromkeys(MEASURED_FIELDS, LOST)
        assert alive.unread == {}
        assert reader.counters(gpu_uuids=UUIDS)[0].unread == dict.fromkeys(COUNTER_FIELDS, LOST)
        assert set(reader.settings(gpu_uuids=UUIDS)[0].unread.values()) == {LOST}
        assert list(reader.processes(gpu_uuids=UUIDS)) == [UUIDS[1]]

    def test_forgets_a_gpu_that_was_taken_out(self, reader: DirectReader, journal: Journal) -> None:
        reader.identify()
        journal.write("gpu 0 present 0")
        assert reader.read(at=AT)[0].unread == dict.fromkeys(MEASURED_FIELDS, LOST)
        reader.close()
        assert [gpu.uuid for gpu in reader.identify()] == [UUIDS[1]]

    @pytest.mark.parametrize("code", [9, 12, 18])
    def test_says_that_no_driver_answers(
        self, reader: DirectReader, journal: Journal, code: int
    ) -> None:
        journal.write(f"init_ret {code}")
        with pytest.raises(ReaderUnavailable, match="no NVIDIA driver answers"):
            reader.identify()

    def test_says_what_to_do_when_the_driver_was_renewed(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.write("init_ret 18")
        with pytest.raises(ReaderUnavailable, match="restart the machine"):
            reader.identify()


class TestFabric:
    def test_has_a_clique_once_the_fabric_is_complete(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.write(
            "gpu * fabric_state 3", "gpu * fabric_status 0", "gpu * fabric_clique 5",
            "gpu 0 fabric_uuid 0102030405060708090a0b0c0d0e0f10",
        )  # fmt: skip
        placed, alone = reader.identify()
        assert placed.fabric_clique == "0102030405060708090a0b0c0d0e0f10.5"
        assert alone.fabric_clique is None, "a cluster of zeros is no fabric of several nodes"

    @pytest.mark.parametrize(("state", "status"), [(0, 0), (1, 0), (2, 0), (3, 999)])
    def test_has_none_before(
        self, reader: DirectReader, journal: Journal, state: int, status: int
    ) -> None:
        journal.write(
            "gpu 0 fabric_uuid 0102030405060708090a0b0c0d0e0f10", f"gpu 0 fabric_state {state}",
            f"gpu 0 fabric_status {status}",
        )  # fmt: skip
        assert reader.identify()[0].fabric_clique is None
        counters = reader.counters(gpu_uuids=UUIDS)[0]
        assert (counters.fabric_state, counters.fabric_status) == (state, status)


class TestRead:
    def test_reads_every_value_in_its_unit(self, reader: DirectReader, journal: Journal) -> None:
        journal.write(
            "gpu 0 util 93", "gpu 0 mem_used 42949672960", "gpu 0 power 512345",
            "gpu 0 energy 987654321", "gpu 0 temp 64", "gpu 0 proc 4242 C", "gpu 0 proc 4242 G",
            "gpu 0 proc 4343 C",
        )  # fmt: skip
        sample, idle = reader.read(at=AT, with_processes=UUIDS)
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

    def test_reads_the_gpus_it_is_asked_for(self, reader: DirectReader) -> None:
        assert [sample.gpu_uuid for sample in reader.read(at=AT, gpu_uuids=[UUIDS[1]])] == [
            UUIDS[1]
        ]

    def test_takes_the_load_from_the_buffer_of_samples(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.samples(0, percents=[0, 90, 30])
        first = reader.read(at=AT)[0]
        assert (first.utilization_percent, first.utilization_max_percent) == (40, 90)
        journal.samples(0, percents=[10, 20])
        second = reader.read(at=AT)[0]
        assert (second.utilization_percent, second.utilization_max_percent) == (15, 20)

    @pytest.mark.parametrize("code", [0, 3, 6])
    def test_falls_back_to_the_point_value_where_the_buffer_gives_nothing(
        self, reader: DirectReader, journal: Journal, code: int
    ) -> None:
        journal.write("gpu 0 samples -", "gpu 0 util 7")
        journal.refuse(0, function="nvmlDeviceGetSamples", code=code)
        sample = reader.read(at=AT)[0]
        assert (sample.utilization_percent, sample.utilization_max_percent) == (7, 7)
        assert sample.unread == {}

    def test_has_no_load_under_mig(self, reader: DirectReader, journal: Journal) -> None:
        journal.write("gpu 0 mig 1", "gpu 0 samples -")
        sample = reader.read(at=AT)[0]
        assert sample.utilization_percent is None
        assert sample.unread == {"utilization_percent": NOT_SUPPORTED}

    def test_asks_again_after_an_hour_for_what_is_not_supported(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=3)
        assert reader.read(at=AT)[0].power_draw_milliwatts is None
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=0)
        reader.seconds = MISSING_SECONDS - 1
        sample, other = reader.read(at=AT)
        assert sample.unread == {"power_draw_milliwatts": NOT_SUPPORTED}
        assert other.power_draw_milliwatts is not None, "another GPU was never refused"
        reader.seconds = MISSING_SECONDS + 1
        assert reader.read(at=AT)[0].power_draw_milliwatts is not None

    def test_asks_again_at_once_for_what_failed(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=999)
        assert reader.read(at=AT)[0].unread == {"power_draw_milliwatts": "error(999)"}
        journal.refuse(0, function="nvmlDeviceGetPowerUsage", code=0)
        assert reader.read(at=AT)[0].unread == {}

    @pytest.mark.parametrize(
        ("function", "field"),
        [
            ("nvmlDeviceGetUtilizationRates", "utilization_percent"),
            ("nvmlDeviceGetMemoryInfo_v2", "memory_used_bytes"),
            ("nvmlDeviceGetPowerUsage", "power_draw_milliwatts"),
            ("nvmlDeviceGetTotalEnergyConsumption", "energy_millijoules"),
            ("nvmlDeviceGetTemperature", "temperature_celsius"),
            ("nvmlDeviceGetCurrentClocksEventReasons", "clocks_event_reasons"),
            ("nvmlDeviceGetComputeRunningProcesses_v3", "process_count"),
            ("nvmlDeviceGetGraphicsRunningProcesses_v3", "process_count"),
        ],
    )
    @pytest.mark.parametrize(
        ("code", "reason", "state"),
        [
            (3, NOT_SUPPORTED, Health.HEALTHY),
            (13, NOT_SUPPORTED, Health.HEALTHY),
            (999, "error(999)", Health.SUSPECT),
        ],
    )
    def test_gives_none_and_the_reason_for_what_fails(
        self,
        reader: DirectReader,
        journal: Journal,
        function: str,
        field: str,
        code: int,
        reason: str,
        state: Health,
    ) -> None:
        reader.identify()
        journal.write("gpu 0 samples -")
        journal.refuse(0, function=function, code=code)
        sample, other = reader.read(at=AT, with_processes=UUIDS)
        assert getattr(sample, field) is None
        assert sample.unread == {field: reason}
        assert other.unread == {}
        assert health.judge(sample=sample)[0] is state

    def test_a_dead_gpu_does_not_take_the_others_with_it(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        reader.identify()
        journal.write("gpu 0 lost 1", "gpu 1 util 12")
        dead, alive = reader.read(at=AT)
        assert dead.unread == dict.fromkeys(MEASURED_FIELDS, LOST)
        assert health.judge(sample=dead)[0] is Health.LOST
        assert alive.utilization_percent == 12
        assert health.judge(sample=alive) == (Health.HEALTHY, "")

    def test_says_that_the_driver_went_away(self, reader: DirectReader, journal: Journal) -> None:
        reader.identify()
        journal.refuse("*", function="nvmlDeviceGetPowerUsage", code=9)
        with pytest.raises(ReaderUnavailable, match="went away"):
            reader.read(at=AT)

    def test_says_how_long_each_call_took(self, reader: DirectReader) -> None:
        reader.read(at=AT)
        assert reader.call_milliseconds()["nvmlDeviceGetPowerUsage"] > 0
