"""`--check` and `--once`: what a person reads of a machine."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from pathlib import Path

import pytest

from agents.node import doctor, host, look
from agents.node.__main__ import EXIT_WRONG, main
from agents.node.config import Settings, parse_settings
from agents.node.doctor import Finding
from agents.node.spool import Spool
from tests.agents.node.rig import FakeClock
from tests.agents.node.servers import OK, Server, certificate, saying, tls_of
from tests.fakes.market import FakeMarket
from tests.fakes.nvml import Journal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def settings(state: Path, *arguments: str, check: bool = True) -> Settings:
    return parse_settings(
        arguments=["--state-dir", str(state), *arguments, *(["--check"] if check else ["--once"])],
        environment={},
        default_file=Path("/nonexistent"),
    )


def examine(state: Path, *arguments: str, **more: object) -> dict[str, Finding]:
    found = doctor.examine(settings=settings(state, *arguments), **more)  # type: ignore[arg-type]
    return {finding.result.name: finding for finding in found}


def passed(found: dict[str, Finding], name: str) -> bool | None:
    return found[name].result.passed


class TestGpus:
    @pytest.fixture
    def kernel_log(self, tmp_path: Path) -> Path:
        path = tmp_path / "kmsg"
        path.touch()
        return path

    def test_are_fine_on_a_machine_without_faults(
        self, journal: Journal, state: Path, kernel_log: Path
    ) -> None:
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log)
        assert passed(found, "driver") is True
        assert found["gpus"].result.detail == "2 are listed"
        wrong = [name for name, finding in found.items() if finding.result.passed is False]
        assert wrong == ["enrolment"]

    @pytest.mark.parametrize(
        ("line", "name", "words"),
        [
            ("gpu 1 mig 1", "mig mode", "cut by MIG"),
            ("gpu 1 field 230 1", "recovery action", "recovery action 1"),
            ("gpu 1 err nvmlDeviceGetPowerUsage 999", "readings", "error(999)"),
        ],
    )
    def test_that_are_not_fit_are_named_with_what_to_do(
        self, journal: Journal, state: Path, kernel_log: Path, line: str, name: str, words: str
    ) -> None:
        journal.write(line)
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log)
        assert passed(found, name) is False, found
        assert words in found[name].result.detail
        assert found[name].advice

    def test_that_fell_off_the_bus_are_missed(
        self, journal: Journal, state: Path, kernel_log: Path, tmp_path: Path
    ) -> None:
        seen = look.look(settings=settings(state, check=False))
        places = [gpu["identity"]["pci_bus_id"].lower()[4:] for gpu in seen["gpus"]]
        drivers, bus = tmp_path / "drivers", tmp_path / "bus"
        audio, passed_through = "0000:99:00.1", "0000:98:00.0"
        for place in [*places, audio, passed_through]:
            driver = "vfio-pci" if place == passed_through else "nvidia"
            (drivers / driver).mkdir(parents=True, exist_ok=True)
            (bus / place).mkdir(parents=True)
            (bus / place / "class").write_text("0x040300\n" if place == audio else "0x030200\n")
            (bus / place / "driver").symlink_to(drivers / driver)
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log, pci_devices=bus)
        assert passed(found, "gpus") is True
        journal.write("gpu 1 lost 1")
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log, pci_devices=bus)
        assert passed(found, "gpus") is False
        assert found["gpus"].result.detail == f"the driver does not list {places[1]}"

    def test_at_the_owners_work_are_not_called_wrong(
        self, journal: Journal, state: Path, kernel_log: Path
    ) -> None:
        journal.write("gpu 0 proc 4242 C 42949672960")
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log)
        assert passed(found, "processes") is None
        assert "4242" in found["processes"].result.detail

    def test_without_persistence_are_slow_and_not_wrong(
        self, journal: Journal, state: Path, kernel_log: Path
    ) -> None:
        journal.write("gpu * persistence 0")
        found = examine(state, "--hook", "/bin/true", kernel_log=kernel_log)
        assert passed(found, "persistence") is None
        assert "nvidia-persistenced" in found["persistence"].advice

    def test_without_a_driver_leave_the_rest_to_be_checked(
        self, state: Path, kernel_log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # An empty file cannot be loaded: the machine looks as if it had no driver, whatever it has.
        (tmp_path / "libnvidia-ml.so.1").write_text("")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        found = examine(state, kernel_log=kernel_log)
        assert passed(found, "driver") is False
        assert "nvidia-smi" in found["driver"].advice
        assert passed(found, "provisioner") is False
        assert passed(found, "state directory") is True

    def test_need_a_hook_that_can_be_run(
        self, journal: Journal, state: Path, kernel_log: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "hook").write_text("#!/bin/sh\n")
        found = examine(state, "--hook", str(tmp_path / "hook"), kernel_log=kernel_log)
        assert passed(found, "hook") is False
        assert "chmod +x" in found["hook"].advice

    def test_need_a_kernel_log(self, journal: Journal, state: Path, tmp_path: Path) -> None:
        found = examine(state, "--hook", "/bin/true", kernel_log=tmp_path / "nowhere")
        assert passed(found, "kernel log") is False


class TestMachine:
    def test_is_fine_from_the_driver_to_the_market(
        self, state: Path, market: FakeMarket, clock: FakeClock
    ) -> None:
        host.load_key(directory=_made(state))
        spool = Spool(path=state / "spool.sqlite3")
        spool.commit(values={"node_id": "node-7"})
        spool.close()
        fleet = ["--simulate", "h100x2"]
        with Server(saying(_dated(clock.wall()))) as server:
            url = f"http://127.0.0.1:{server.port}"
            found = doctor.examine(
                settings=settings(state, "--server", url, *fleet), now=clock.wall
            )
        assert doctor.is_fine(found)
        text = doctor.as_text(found)
        assert text.endswith("all fine\n")
        assert "enrolled as node node-7" in text
        assert "clock: within 1 s of the market's" in text

    def test_without_a_token_says_where_to_get_one(self, state: Path) -> None:
        found = examine(state, "--simulate", "h100x1")
        assert passed(found, "enrolment") is False
        assert "token" in found["enrolment"].advice
        assert passed(examine(state, "--simulate", "h100x1", "--token", "t"), "enrolment") is True
        assert not state.exists(), "a check changes nothing"

    def test_with_a_key_that_others_can_read_is_told_so(self, state: Path) -> None:
        host.load_key(directory=_made(state))
        (state / "node.key").chmod(0o644)
        found = examine(state, "--simulate", "h100x1", "--token", "t")
        assert passed(found, "key") is False
        assert found["key"].advice == f"chmod 600 {state / 'node.key'}"

    def test_with_a_broken_key_or_spool_is_told_so(self, state: Path) -> None:
        (_made(state) / "node.key").write_text("no key")
        assert passed(examine(state, "--simulate", "h100x1"), "key") is False
        (state / "node.key").unlink()
        host.load_key(directory=state)
        (state / "spool.sqlite3").write_text("no database, but long enough to be read as one" * 9)
        assert passed(examine(state, "--simulate", "h100x1"), "enrolment") is False

    def test_is_looked_at_while_its_agent_runs(self, state: Path) -> None:
        lock = host.open_state(directory=_made(state))
        host.load_key(directory=state)
        busy = sqlite3.connect(state / "spool.sqlite3", isolation_level=None)
        Spool(path=state / "spool.sqlite3").commit(values={"node_id": "node-7"})
        busy.execute("BEGIN IMMEDIATE")
        found = examine(state, "--simulate", "h100x1")
        assert found["enrolment"].result.detail == "enrolled as node node-7"
        busy.close()
        lock.close()

    def test_with_too_small_a_disk_is_told_so(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = type("Usage", (), {"free": 100 << 20})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        found = examine(state, "--simulate", "h100x1")
        assert passed(found, "state directory") is False
        assert "100 MiB are free" in found["state directory"].result.detail

    def test_whose_state_cannot_be_written_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        found = examine(tmp_path / "file" / "state", "--simulate", "h100x1")
        assert passed(found, "state directory") is False


class TestMarket:
    def test_that_does_not_answer_is_told_with_the_reason(
        self, state: Path, tmp_path: Path
    ) -> None:
        found = examine(state, "--simulate", "h100x1", "--server", "http://127.0.0.1:9")
        assert passed(found, "market") is False
        assert "refused" in found["market"].result.detail
        pem = certificate(directory=tmp_path, name="127.0.0.1")
        with Server(saying(OK), tls=tls_of(pem)) as server:
            url = f"https://127.0.0.1:{server.port}"
            found = examine(state, "--simulate", "h100x1", "--server", url)
        assert "certificate is not accepted" in found["market"].result.detail

    def test_says_until_when_its_certificate_holds(
        self, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pem = certificate(directory=tmp_path, name="127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with Server(saying(OK), tls=tls_of(pem)) as server:
            url = f"https://127.0.0.1:{server.port}"
            found = examine(state, "--simulate", "h100x1", "--server", url)
        assert passed(found, "market") is True
        assert "certificate until" in found["market"].result.detail
        assert passed(found, "clock") is None, "its answer had no date"

    @pytest.mark.parametrize(
        ("seconds", "fine"), [(50, True), (-50, True), (70, False), (-70, False)]
    )
    def test_tells_how_far_the_clock_is_off(
        self, state: Path, clock: FakeClock, seconds: int, *, fine: bool
    ) -> None:
        there = clock.wall() + dt.timedelta(seconds=seconds)
        with Server(saying(_dated(there))) as server:
            url = f"http://127.0.0.1:{server.port}"
            found = examine(state, "--simulate", "h100x1", "--server", url, now=clock.wall)
        assert passed(found, "clock") is fine


class TestCommand:
    def test_ends_with_one_when_something_is_wrong(
        self, state: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = [
            "--check",
            "--simulate",
            "h100x2",
            "--state-dir",
            str(state),
            "--config",
            "/dev/null",
        ]
        assert main(asked) == EXIT_WRONG
        said = capsys.readouterr().out
        assert "WRONG enrolment" in said
        assert "-> make a token" in said
        assert said.endswith("checks found something wrong\n")
        assert main([*asked, "--token", "t"]) == 0

    def test_warns_of_settings_that_work_and_should_be_otherwise(
        self, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "token").write_text("hush")
        (tmp_path / "token").chmod(0o644)
        asked = [
            "--check",
            "--simulate",
            "h100x2",
            "--state-dir",
            str(state),
            "--config",
            "/dev/null",
        ]
        assert main([*asked, "--token-file", str(tmp_path / "token")]) == EXIT_WRONG
        said = capsys.readouterr().out
        assert "WRONG configuration" in said
        assert "hush" not in said


class TestLook:
    def test_is_one_document_of_all_that_is_seen(self, journal: Journal, tmp_path: Path) -> None:
        journal.write("gpu 0 proc 4242 C 42949672960", "gpu 1 err nvmlDeviceGetPowerUsage 3")
        seen = look.look(settings=settings(tmp_path / "state", check=False))
        assert json.loads(look.as_json(seen)) == seen
        assert seen["simulated"] is False
        assert seen["host"]["driver_version"]
        first, second = seen["gpus"]
        assert set(first) == {
            "identity", "sample", "processes", "counters", "settings", "health", "health_reason",
            "idle_state",
            "idle_reason",
        }  # fmt: skip
        assert [process["pid"] for process in first["processes"]] == [4242]
        assert first["sample"]["process_count"] == 1
        assert first["counters"]["gpu_uuid"] == first["identity"]["uuid"]
        assert first["settings"]["persistence_enabled"] is not None
        assert first["idle_state"] == "busy"
        assert second["idle_state"] == "unknown", "one quiet look shows nothing"
        assert second["sample"]["power_draw_milliwatts"] is None
        assert second["sample"]["unread"]["power_draw_milliwatts"] == "not_supported"
        assert seen["call_milliseconds"]

    def test_says_simulated_where_it_is(self, tmp_path: Path) -> None:
        seen = look.look(settings=settings(tmp_path / "s", "--simulate", "h100x1", check=False))
        assert seen["simulated"] is True
        assert "(simulated)" in look.as_text(seen)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


def _dated(at: dt.datetime) -> bytes:
    date = f"{at:%a, %d %b %Y %H:%M:%S} GMT"
    return f"HTTP/1.1 405 No\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode()
