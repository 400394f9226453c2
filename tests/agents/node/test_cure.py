"""A context that is opened and closed in a fresh process, against a libcuda of a few lines of C."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from agents.node import cure
from agents.node.child import ChildReader
from agents.node.cure import NotCured
from tests.fakes import nvml

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)

GPU_UUID = f"GPU-{uuid.UUID(int=0x2A)}"

# It writes down each call; NAME_FAILS in the environment makes one answer 999, HANG makes cuInit wait.
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int told(const char *name) {
    FILE *file = fopen(getenv("CURE_CALLS"), "a");
    fprintf(file, "%s %s\n", name, getenv("CUDA_VISIBLE_DEVICES"));
    fclose(file);
    const char *fails = getenv("CURE_FAILS");
    return fails && !strcmp(fails, name) ? 999 : 0;
}
int cuInit(unsigned flags) { if (getenv("CURE_HANGS")) pause(); return told("cuInit"); }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return told("cuDeviceGet"); }
int cuDeviceGetCount(int *count) { *count = 1; return told("cuDeviceGetCount"); }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    memset(uuid, 0, 16);
    uuid[15] = getenv("CURE_OTHER") ? 0x2B : 0x2A;
    return told("cuDeviceGetUuid_v2");
}
int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    *context = malloc(1);
    return told("cuCtxCreate_v2");
}
#ifndef WITHOUT_DESTROY
int cuCtxDestroy_v2(void *context) { free(context); return told("cuCtxDestroy_v2"); }
#endif
"""


def build(directory: Path, *options: str) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = directory / "cuda.c", directory / "libcuda-of-the-test.so"
    source.write_text(SOURCE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), *options, str(source)], check=True
    )
    return str(library)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURE_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


class TestCure:
    def test_opens_and_closes_a_context_on_that_gpu_alone(self, library: str, calls: Path) -> None:
        cure.cure(gpu_uuid=GPU_UUID, library=library)
        names = [line.split()[0] for line in calls.read_text().splitlines()]
        assert names == [
            "cuInit",
            "cuDeviceGetCount",
            "cuDeviceGet",
            "cuDeviceGetUuid_v2",
            "cuCtxCreate_v2",
            "cuCtxDestroy_v2",
        ]
        assert {line.split()[1] for line in calls.read_text().splitlines()} == {GPU_UUID}

    def test_touches_nothing_when_cuda_shows_another_gpu(
        self, library: str, calls: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CURE_OTHER", "1")
        with pytest.raises(NotCured, match=f"CUDA does not show {GPU_UUID}"):
            cure.cure(gpu_uuid=GPU_UUID, library=library)
        assert "cuCtxCreate_v2" not in calls.read_text()

    @pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuCtxCreate_v2", "cuCtxDestroy_v2"])
    def test_says_which_call_was_refused(
        self, library: str, calls: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("CURE_FAILS", name)
        with pytest.raises(NotCured, match=f"^{name} answered 999$"):
            cure.cure(gpu_uuid=GPU_UUID, library=library)
        assert calls.exists()

    def test_says_that_there_is_no_libcuda(self, tmp_path: Path) -> None:
        with pytest.raises(NotCured, match="is not on this machine"):
            cure.cure(gpu_uuid=GPU_UUID, library=str(tmp_path / "libcuda.so.1"))

    def test_says_which_function_a_libcuda_has_not(self, tmp_path: Path, calls: Path) -> None:
        library = build(tmp_path, "-DWITHOUT_DESTROY")
        with pytest.raises(NotCured, match="this libcuda has no cuCtxDestroy_v2"):
            cure.cure(gpu_uuid=GPU_UUID, library=library)
        assert calls.exists()

    def test_does_not_wait_for_a_driver_that_hangs(
        self, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CURE_HANGS", "1")
        with pytest.raises(NotCured, match=r"took longer than 0\.5 s"):
            cure.cure(gpu_uuid=GPU_UUID, library=library, seconds_max=0.5)


class TestOnTheStandIn:
    def test_ends_the_latch_of_that_gpu_alone(self, journal: nvml.Journal) -> None:
        reader = ChildReader(boottime_seconds=time.monotonic, now=lambda: AT)
        try:
            first, second = (gpu.uuid for gpu in reader.identify())

            def loads() -> dict[str, int | None]:
                samples = reader.read(at=AT)
                return {sample.gpu_uuid: sample.utilization_percent for sample in samples}

            journal.set("*", ghost=1)
            assert loads() == {first: 100, second: 100}
            cure.cure(gpu_uuid=second, library=str(journal.cuda_library))
            assert loads() == {first: 100, second: 0}
        finally:
            reader.close()
