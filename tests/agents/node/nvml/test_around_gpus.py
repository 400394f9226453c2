"""What is read around GPUs: their processes, counters and host; and what is put back."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node.driver.counters import COUNTER_FIELDS
from agents.node.reader import LOST, NOT_SUPPORTED
from agents.protocol import GpuSettings, HostFacts
from tests.agents.node.direct import DirectReader
from tests.agents.node.nvml.reading import AT, UUIDS, write_proc
from tests.fakes.nvml import Journal


class TestProcesses:
    def test_are_listed_when_asked_for_and_remembered(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        never = reader.read(at=AT)[0]
        assert (never.process_count, never.processes_at) == (None, None)
        journal.write("gpu 0 proc 4242 C")
        assert reader.read(at=AT, with_processes=[UUIDS[0]])[0].process_count == 1
        journal.write("gpu 0 proc- *")
        later = AT + dt.timedelta(seconds=15)
        remembered = reader.read(at=later)[0]
        assert (remembered.process_count, remembered.processes_at) == (1, AT)
        again = reader.read(at=later, with_processes=UUIDS)[0]
        assert (again.process_count, again.processes_at) == (0, later)

    def test_do_not_count_the_services_of_the_machine(
        self, reader: DirectReader, journal: Journal, tmp_path: Path
    ) -> None:
        for pid, name in ((11, "Xorg"), (12, "nvidia-persiste"), (13, "nv-hostengine"), (14, "p")):
            journal.start_process(0, pid=pid, kind="G" if name == "Xorg" else "C")
            write_proc(tmp_path, f"{pid}/comm", f"{name}\n")
        assert reader.read(at=AT, with_processes=UUIDS)[0].process_count == 1
        assert len(reader.processes(gpu_uuids=UUIDS)[UUIDS[0]]) == 4, "but they are listed"

    def test_have_their_name_kind_and_memory(
        self, reader: DirectReader, journal: Journal, tmp_path: Path
    ) -> None:
        journal.start_process(0, pid=4242, memory_bytes=3 << 30)
        journal.start_process(0, pid=4343, kind="M")
        write_proc(tmp_path, "4242/comm", "python3\n")
        listed = reader.processes(gpu_uuids=UUIDS)
        assert listed[UUIDS[1]] == []
        known, ended = listed[UUIDS[0]]
        assert (known.pid, known.name, known.kind) == (4242, "python3", "compute")
        assert known.used_memory_bytes == 3 << 30
        assert (ended.name, ended.kind, ended.used_memory_bytes) == ("", "mps", None)

    def test_need_no_list_of_mps(self, reader: DirectReader, journal: Journal) -> None:
        journal.refuse(0, function="nvmlDeviceGetMPSComputeRunningProcesses_v3", code=3)
        journal.write("gpu 0 proc 4242 C")
        assert reader.read(at=AT, with_processes=UUIDS)[0].process_count == 1

    def test_are_missing_for_a_gpu_that_cannot_tell(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetComputeRunningProcesses_v3", code=4)
        assert list(reader.processes(gpu_uuids=UUIDS)) == [UUIDS[1]]
        assert reader.read(at=AT, with_processes=UUIDS)[0].unread == {"process_count": "error(4)"}


class TestCounters:
    def test_are_read_with_one_reason_each(self, reader: DirectReader, journal: Journal) -> None:
        journal.field(0, field_id=3, value=5)
        journal.field(0, field_id=4, value=1)
        journal.field(0, field_id=94, value=None)
        journal.field(0, field_id=38, value=2)
        journal.field(0, field_id=52, value=3)
        journal.field(0, field_id=230, value=2)
        journal.nvlink(0, link=4, up=False)
        journal.write("gpu 0 remap_unc 7", "gpu 0 remap_pending 1", "gpu 0 pcie_width 8")
        sick, sound = reader.counters(gpu_uuids=UUIDS)
        assert (sick.ecc_corrected, sick.ecc_uncorrected) == (5, 1)
        assert sick.pcie_replay_count is None
        assert sick.unread == {"pcie_replay_count": NOT_SUPPORTED}
        assert sick.nvlink_error_count == 5
        assert sick.recovery_action == 2
        assert (sick.nvlinks_active, sick.nvlinks_inactive) == (17, 1)
        assert (sick.remapped_rows_uncorrected, sick.row_remap_pending) == (7, True)
        assert (sick.pcie_width, sick.pcie_width_max) == (8, 16)
        assert (sick.ecc_enabled, sick.row_remap_failed) == (True, False)
        assert (sound.ecc_corrected, sound.nvlinks_inactive, sound.unread) == (0, 0, {})

    def test_of_a_card_without_ecc_links_and_fabric_say_so(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        for number in (1, 2, 3, 4, 38, 52, 59, 91):
            journal.field(0, field_id=number, value=None)
        for function in (
            "nvmlDeviceGetNvLinkState", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetGpuFabricInfoV",
            "nvmlDeviceGetMemoryErrorCounter",
        ):  # fmt: skip
            journal.refuse(0, function=function, code=3)
        for _ in range(2):  # also from memory
            bare = reader.counters(gpu_uuids=[UUIDS[0]])[0]
            values = {name: getattr(bare, name) for name in COUNTER_FIELDS}
            assert set(bare.unread.values()) == {NOT_SUPPORTED}
            assert {name for name, value in values.items() if value is None} == set(bare.unread)
            assert bare.ecc_enabled is None
            assert bare.nvlinks_active is None
            assert bare.pcie_width == 16

    def test_of_a_gpu_whose_batch_fails_leave_the_other_calls(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(0, function="nvmlDeviceGetFieldValues", code=999)
        counters = reader.counters(gpu_uuids=[UUIDS[0]])[0]
        assert counters.unread["ecc_uncorrected"] == "error(999)"
        assert counters.pcie_width == 16


class TestHost:
    def test_tells_versions_and_the_state_of_the_machine(
        self, reader: DirectReader, journal: Journal, tmp_path: Path
    ) -> None:
        journal.write("driver 580.95.05", "cuda 13000", "cc_feature 0")
        write_proc(tmp_path, "driver/nvidia/params", 'EnableMSI: 1\nRegistryDwords: ""\n')
        facts = reader.host()
        assert replace(facts, kernel_version=None) == HostFacts(
            driver_version="580.95.05",
            nvml_version="13.580.95.05",
            cuda_driver_version="13.0",
            confidential_computing="off",
            scrubs_memory_on_free=True,
        )
        assert facts.kernel_version

    @pytest.mark.parametrize(("devtools", "word"), [(0, "on"), (1, "devtools")])
    def test_recognises_confidential_computing(
        self, reader: DirectReader, journal: Journal, devtools: int, word: str
    ) -> None:
        journal.write("cc_feature 1", f"cc_devtools {devtools}")
        assert reader.host().confidential_computing == word

    def test_does_not_know_confidential_computing_of_an_old_driver(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        journal.refuse(None, function="nvmlSystemGetConfComputeState", code=13)
        assert reader.host().confidential_computing is None

    @pytest.mark.parametrize(
        ("words", "answer"),
        [
            ("RMDisableScrubOnFree=1", "no"),
            ("Foo=2;RMDisableScrubOnFree=0x1", "no"),
            ("RMDisableScrubOnFree=0x0;Bar=1", "yes"),
        ],
    )
    def test_reads_the_switch_that_ends_scrubbing(
        self, reader: DirectReader, tmp_path: Path, words: str, answer: str
    ) -> None:
        write_proc(tmp_path, "driver/nvidia/params", f'RegistryDwords: "{words}"\nOther: 1\n')
        assert reader.host().scrubs_memory_on_free is (answer == "yes")

    def test_does_not_know_of_scrubbing_without_the_drivers_parameters(
        self, reader: DirectReader
    ) -> None:
        assert reader.host().scrubs_memory_on_free is None


class TestRestore:
    def test_puts_back_what_a_tenant_changed(self, reader: DirectReader, journal: Journal) -> None:
        before = reader.settings(gpu_uuids=UUIDS)
        assert before[0].power_limit_milliwatts == 700_000
        journal.write("gpu 0 power_limit 300000", "gpu 0 compute_mode 3", "gpu 0 persistence 0")
        changed = reader.settings(gpu_uuids=UUIDS)[0]
        assert (changed.power_limit_milliwatts, changed.compute_mode) == (300_000, 3)
        assert reader.restore(settings=before) == {}
        assert reader.settings(gpu_uuids=UUIDS) == before

    def test_unlocks_the_clocks(self, reader: DirectReader, journal: Journal) -> None:
        reader.restore(settings=reader.settings(gpu_uuids=[UUIDS[0]]))
        calls = reader.call_milliseconds()
        assert {"nvmlDeviceResetGpuLockedClocks", "nvmlDeviceResetMemoryLockedClocks"} <= set(calls)
        assert "nvmlDeviceClearAccountingPids" in calls
        assert "nvmlDeviceSetMigMode" not in calls, "what is as it should be is not set"

    def test_says_what_it_may_not_set(self, reader: DirectReader, journal: Journal) -> None:
        before = reader.settings(gpu_uuids=[UUIDS[0]])
        journal.write("gpu 0 compute_mode 3", "root 0")
        failed = reader.restore(settings=before)
        assert "compute_mode: error(4)" in failed[UUIDS[0]]

    def test_leaves_alone_what_was_not_known(self, reader: DirectReader, journal: Journal) -> None:
        journal.write("gpu 0 compute_mode 3")
        assert reader.restore(settings=[GpuSettings(gpu_uuid=UUIDS[0])]) == {}
        assert reader.settings(gpu_uuids=UUIDS)[0].compute_mode == 3

    def test_tells_of_a_gpu_that_is_lost_or_was_never_here(
        self, reader: DirectReader, journal: Journal
    ) -> None:
        reader.identify()
        journal.write("gpu 0 lost 1")
        wanted = [GpuSettings(gpu_uuid=uuid, compute_mode=0) for uuid in (UUIDS[0], "GPU-x")]
        assert reader.restore(settings=wanted) == {UUIDS[0]: LOST, "GPU-x": "no such GPU here"}
