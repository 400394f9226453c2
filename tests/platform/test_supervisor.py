"""The supervisor, with a real PostgreSQL and a real broker under it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from marketplace.management import supervisor as supervisor_module
from marketplace.management.bootstrap import PROJECT
from marketplace.management.datadir import DataDirectory, RunRecord, living
from marketplace.management.errors import PlainError, StopRequested
from marketplace.management.stream import LogStream
from marketplace.management.supervisor import Program, Supervisor
from tests.platform.waiting import read_until, wait_for_end


def python(code: str, name: str = "child") -> Program:
    return Program(name=name, command=[sys.executable, "-c", code], environment={})


class TestRun:
    def test_passes_lines_on_under_the_name_of_the_program(self):
        output = StringIO()
        with Supervisor(log=LogStream(output=output)) as supervisor:
            supervisor.run(program=python("print('hello')"), limit_seconds=30)
        assert "child        | hello" in output.getvalue()

    def test_says_the_last_lines_of_a_program_that_fails(self):
        with (
            Supervisor(log=LogStream(output=StringIO())) as supervisor,
            pytest.raises(
                PlainError, match="child failed: no such table / it ended with exit code 3"
            ),
        ):
            supervisor.run(
                program=python("print('no such table'); raise SystemExit(3)"), limit_seconds=30
            )

    def test_stops_what_takes_longer_than_its_limit(self):
        supervisor = Supervisor(log=LogStream(output=StringIO()))
        with pytest.raises(PlainError, match="child took longer than 0 s"), supervisor:
            supervisor.run(program=python("import signal; signal.pause()"), limit_seconds=0)
        assert supervisor.process_ids() == {}


class TestStart:
    def test_says_in_one_line_that_a_program_cannot_be_run(self):
        program = Program(name="web", command=["/no/such/program"], environment={})
        with (
            Supervisor(log=LogStream(output=StringIO())) as supervisor,
            pytest.raises(PlainError, match=r"web cannot be started: .*No such file"),
        ):
            supervisor.start(program=program)

    def test_gives_up_on_a_program_that_ends_before_it_is_ready(self):
        program = Program(
            name="web",
            command=[sys.executable, "-c", "print('the port is taken'); raise SystemExit(1)"],
            environment={},
            is_ready=lambda: False,
        )
        with Supervisor(log=LogStream(output=StringIO())) as supervisor:
            supervisor.start(program=program)
            with pytest.raises(PlainError, match="web did not start: the port is taken"):
                supervisor.wait_until_ready(name="web", limit_seconds=30)


class TestStopping:
    def test_a_signal_ends_any_wait(self):
        with Supervisor(log=LogStream(output=StringIO())) as supervisor:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(StopRequested):
                supervisor.supervise()

    def test_asks_lower_ranks_first(self):
        output = StringIO()
        with Supervisor(log=LogStream(output=output)) as supervisor:
            for name, rank in (("database", 9), ("beat", 1), ("web", 3)):
                supervisor.start(
                    program=Program(
                        name=name,
                        command=[sys.executable, "-c", "import signal; signal.pause()"],
                        environment={},
                        stop_rank=rank,
                    )
                )
        ended = [line.split()[3] for line in output.getvalue().splitlines() if "killed by" in line]
        assert ended == ["beat", "web", "database"]

    def test_kills_what_does_not_listen(self):
        output = StringIO()
        deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf'); signal.pause()"
        program = Program(
            name="deaf",
            command=[sys.executable, "-u", "-c", deaf],
            environment={},
            stop_limit_seconds=0,
        )
        with Supervisor(log=LogStream(output=output)) as supervisor:
            supervisor.start(program=program)
            while "| deaf" not in output.getvalue():
                supervisor.pump()
        assert "deaf did not stop in time and is killed" in output.getvalue()

    @pytest.mark.parametrize(("seconds", "killed"), [(0, False), (60, True)])
    def test_kills_at_once_when_asked_again_later_and_not_when_asked_twice(
        self, monkeypatch, seconds, killed
    ):
        output = StringIO()
        # It ends a moment after it is asked; until then somebody asks us for a second time.
        code = (
            "import os, signal;"
            "signal.signal(15, lambda *_: (os.kill(os.getppid(), 15), signal.alarm(1)));"
            "signal.signal(14, lambda *_: os._exit(0));"
            "print('ready');"
            "[signal.pause() for _ in range(2)]"
        )
        program = Program(name="slow", command=[sys.executable, "-u", "-c", code], environment={})
        supervisor = Supervisor(log=LogStream(output=output))
        with supervisor:
            supervisor.start(program=program)
            while "| ready" not in output.getvalue():
                supervisor.pump()
            monkeypatch.setattr(supervisor_module, "IMPATIENT_AFTER_SECONDS", 30 - seconds)
            supervisor.stop_all()
        assert ("slow was killed by SIGKILL" in output.getvalue()) is killed
        assert ("slow ended with exit code 0" in output.getvalue()) is not killed

    def test_restores_the_handlers_it_found(self):
        before = signal.getsignal(signal.SIGTERM)
        with Supervisor(log=LogStream(output=StringIO())):
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before


class TestRestart:
    def test_starts_a_killed_program_again_with_its_children_gone(self):
        output = StringIO()
        # The grandchild would hold the output open and go on without its master.
        code = (
            "import subprocess, sys, signal;"
            "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
            "print('grandchild', child.pid, flush=True); signal.pause()"
        )
        with Supervisor(log=LogStream(output=output)) as supervisor:
            supervisor.start(program=python(code, name="master"))
            while "grandchild" not in output.getvalue():
                supervisor.pump()
            first = supervisor.process_ids()["master"]
            os.kill(first, signal.SIGKILL)
            while supervisor.process_ids().get("master", first) == first:
                supervisor.pump()
            grandchild = int(output.getvalue().partition("grandchild ")[2].split()[0])
            wait_for_end([grandchild])
        assert f"master (process {first}) was killed by SIGKILL" in output.getvalue()
        assert "master starts again in 0.5 s" in output.getvalue()


@pytest.fixture
def data() -> Iterator[DataDirectory]:
    """A data directory that `nobody` reaches; pytest's own ones are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="headroom-suite-"))
    path.chmod(0o755)
    yield DataDirectory(path=path)
    shutil.rmtree(path)


def start_market(data: DataDirectory) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.platform.small_market", str(data.path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def known(data: DataDirectory) -> RunRecord:
    record = data.read_record()
    assert record is not None
    return record


@pytest.mark.slow
class TestWholeLife:
    def test_heals_what_is_killed_and_orphans_nothing_when_it_is_killed_itself(self, data):
        market = start_market(data)
        read_until(market, "all there")
        for name in ("dummy", "broker", "postgres"):
            before = known(data).pids[name]
            os.kill(before, signal.SIGKILL)
            lines = read_until(market, f"{name} is back")
            assert any(f"{name} (process {before}) was killed by SIGKILL" in x for x in lines)
            assert known(data).pids[name] != before

        left = known(data)
        market.kill()
        market.wait()
        wait_for_end(list(left.pids.values()))
        assert living(record=left) == []
        assert Path(left.socket_directory).is_dir()

        again = start_market(data)
        lines = read_until(again, "all there")
        assert any("the last run was killed" in line for line in lines)
        assert not Path(left.socket_directory).exists()

        again.send_signal(signal.SIGTERM)
        lines = read_until(again, "all gone")
        again.wait()
        ended = [x.split()[3] for x in lines if "killed by" in x or "ended with exit code 0" in x]
        assert ended == ["dummy", "broker", "postgres"]
        assert data.read_record() is None
        assert not data.is_locked()
