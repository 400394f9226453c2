"""The kernel's log, as a file, a pipe, and a device that answers errors."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.node.kernel_log import KernelLog, KernelXid, pci_place

PLACE = (0, 0x18, 0)


def record(text: str, *, priority: int = 4, seconds: float = 90.0) -> str:
    return f"{priority},1234,{int(seconds * 1_000_000)},-;{text}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text(record("NVRM: Xid (PCI:0000:18:00): 13, from before the agent"))
    return path


@pytest.fixture
def log(path: Path) -> Iterator[KernelLog]:
    log = KernelLog(path=path, monotonic=lambda: 100.0)
    log.open()
    yield log
    log.close()


def append(path: Path, *records: str) -> None:
    with path.open("a") as file:
        file.write("".join(records))


class TestRead:
    @pytest.mark.parametrize(
        ("text", "xid", "pid", "name"),
        [
            (
                "NVRM: Xid (PCI:0000:18:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
                79, 1234, "python",
            ),
            (
                "NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen",
                79, None, "",
            ),
            ("NVRM: Xid (PCI:0000:18:00): 31, Ch 00000010, intr 10000000", 31, None, ""),
            ("NVRM: Xid (PCI:00000000:18:00.0): 13, pid='77', name=a b, Graphics", 13, 77, "a b"),
            ("NVRM: GPU0 Xid (0000:18:00): 8, pid=5", 8, 5, ""),
            ("NVRM: Xid (PCI:0000:18:00): 43", 43, None, ""),
        ],
    )  # fmt: skip
    def test_knows_the_line_in_each_of_its_forms(
        self, log: KernelLog, path: Path, text: str, xid: int, pid: int | None, name: str
    ) -> None:
        append(path, record(text))
        assert log.read() == [
            KernelXid(pci=PLACE, xid=xid, age_seconds=10.0, pid=pid, process_name=name)
        ]

    @pytest.mark.parametrize(
        "line",
        [
            record("nvidia-nvswitch3: SXid (PCI:0000:c3:00.0): 12028, Non-fatal, Link 32 egress"),
            record("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05"),
            record("a program says NVRM: Xid (PCI:0000:18:00): 79, pid=1, name=x"),
            record("NVRM: Xid (PCI:0000:18:00): 79, pid=1, name=x", priority=12),
            " SUBSYSTEM=pci\n",
            "NVRM: Xid (PCI:0000:18:00): 79, without the head of a record\n",
            "\xff\xfe\n",
        ],
        ids=["switch", "other", "quoted", "by a program", "continuation", "no record", "no text"],
    )
    def test_passes_over_what_is_no_error_of_a_gpu(
        self, log: KernelLog, path: Path, line: str
    ) -> None:
        append(path, line)
        assert log.read() == []

    def test_gives_each_line_once_and_none_from_before(self, log: KernelLog, path: Path) -> None:
        assert log.read() == []
        append(path, record("NVRM: Xid (PCI:0000:18:00): 13, pid=7, name=x"))
        assert [xid.xid for xid in log.read()] == [13]
        assert log.read() == []

    def test_waits_for_the_rest_of_a_line(self, log: KernelLog, path: Path) -> None:
        line = record("NVRM: Xid (PCI:0000:18:00): 13, pid=7, name=x")
        append(path, line[:40])
        assert log.read() == []
        append(path, line[40:])
        assert [xid.pid for xid in log.read()] == [7]

    def test_does_not_wait_on_an_empty_pipe(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        log = KernelLog(path=path, monotonic=lambda: 100.0)
        log.open()
        writer = os.open(path, os.O_WRONLY)
        assert log.read() == []
        os.write(writer, record("NVRM: Xid (PCI:0000:18:00): 13").encode())
        assert [xid.xid for xid in log.read()] == [13]
        os.close(writer)
        log.close()

    def test_goes_on_behind_records_that_the_kernel_overwrote(
        self, log: KernelLog, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append(path, record("NVRM: Xid (PCI:0000:18:00): 13"))
        whole, answers = os.read, [BrokenPipeError(errno.EPIPE, "overrun")]

        def overrun(descriptor: int, length: int) -> bytes:
            if answers:
                raise answers.pop()
            return whole(descriptor, length)

        monkeypatch.setattr(os, "read", overrun)
        assert [xid.xid for xid in log.read()] == [13]
        assert log.problem == ""


class TestProblem:
    def test_is_told_once_when_the_log_may_not_be_read(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "open", refuse)
        log = KernelLog(path=path)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                log.open()
                assert log.read() == []
        assert len(caplog.records) == 1
        assert "Operation not permitted" in log.problem

    def test_is_told_where_there_is_no_log(self, tmp_path: Path) -> None:
        log = KernelLog(path=tmp_path / "nothing")
        log.open()
        assert "No such file" in log.problem
        log.close()

    def test_of_a_log_that_breaks_ends_the_reading(
        self, log: KernelLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "read", fail)
        assert log.read() == []
        monkeypatch.undo()
        assert "Input/output error" in log.problem
        assert log.read() == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("00000000:18:00.0", PLACE),
        ("0000:18:00", PLACE),
        ("00010000:1A:00.0", (0x10000, 0x1A, 0)),
        ("0000:1a:02.0", (0, 0x1A, 2)),
        ("18:00.0", None),
        ("", None),
    ],
)
def test_a_place_has_many_spellings(text: str, place: tuple[int, int, int] | None) -> None:
    assert pci_place(bus_id=text) == place
