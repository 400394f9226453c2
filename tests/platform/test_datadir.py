"""The data directory: its lock, its private files, and what a killed run leaves in it."""

import fcntl
import os
import stat
import subprocess
import sys

import pytest

from marketplace.management import datadir
from marketplace.management.datadir import DataDirectory, RunRecord, write_private
from marketplace.management.errors import PlainError
from marketplace.management.processes import start_ticks


@pytest.fixture
def data(tmp_path):
    return DataDirectory(path=tmp_path / "var")


def record(**changes):
    values = {
        "base_url": "http://127.0.0.1:8000",
        "profile": "demo",
        "database_url": "postgres://postgres@/postgres?host=/tmp/headroom-x",
        "broker_url": "redis+socket:///tmp/headroom-x/v.sock",
        **changes,
    }
    return RunRecord(**values)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestCreate:
    def test_says_in_one_line_that_it_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(PlainError, match=r"cannot be written .*--data-dir") as refusal:
            DataDirectory(path=tmp_path / "file" / "var").create()
        assert "\n" not in str(refusal.value)


class TestLock:
    def test_refuses_a_second_holder_and_names_the_first_and_its_address(self, data):
        data.lock(purpose="up")
        data.write_record(record())
        with pytest.raises(PlainError) as refusal:
            DataDirectory(path=data.path).lock(purpose="up")
        assert "already running at http://127.0.0.1:8000" in str(refusal.value)
        assert f"(up, process {os.getpid()})" in str(refusal.value)

    def test_can_be_taken_again_after_it_was_given_back(self, data):
        data.lock(purpose="up")
        data.unlock()
        DataDirectory(path=data.path).lock(purpose="demo")
        assert data.is_locked()

    def test_waits_out_somebody_who_only_looks(self, data, monkeypatch):
        data.create()
        looker = os.open(data.path / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(looker, fcntl.LOCK_SH)
        monkeypatch.setattr(datadir.time, "sleep", lambda _: os.close(looker))
        data.lock(purpose="up")
        assert data.is_locked()

    def test_ends_with_the_process_that_held_it(self, data):
        code = (
            "import sys; from pathlib import Path;"
            "from marketplace.management.datadir import DataDirectory;"
            "DataDirectory(path=Path(sys.argv[1])).lock(purpose='up')"
        )
        subprocess.run([sys.executable, "-c", code, data.path], check=True)
        assert (data.path / "lock").exists()
        assert not data.is_locked()


class TestRecord:
    def test_comes_back_as_it_was_written(self, data):
        data.create()
        kept = record(pids={"web": 12}, start_ticks={"web": 34}, is_ready=True)
        data.write_record(kept)
        assert data.read_record() == kept
        assert mode(data.run_file) == 0o600

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"base_url": 1}'])
    def test_is_none_when_it_is_not_whole(self, data, text):
        data.create()
        data.run_file.write_text(text)
        assert data.read_record() is None

    def test_counts_as_running_only_while_the_lock_is_held(self, data):
        data.create()
        data.write_record(record())
        assert data.running() is None
        data.lock(purpose="up")
        assert data.running() is not None


class TestRecover:
    def test_ends_a_process_that_a_killed_run_left(self, data):
        left = subprocess.Popen(
            [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
        )
        ticks = start_ticks(pid=left.pid)
        data.create()
        data.write_record(record(pids={"web": left.pid}, start_ticks={"web": ticks}))
        data.recover(say=lambda _: None)
        assert left.wait() < 0
        assert data.read_record() is None

    def test_spares_a_stranger_with_the_same_number(self, data):
        stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        try:
            data.create()
            data.write_record(record(pids={"web": stranger.pid}, start_ticks={"web": 1}))
            data.recover(say=lambda _: None)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    def test_trusts_no_number_from_before_the_machine_started(self, data):
        stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        try:
            ticks = start_ticks(pid=stranger.pid)
            data.create()
            data.write_record(
                record(pids={"web": stranger.pid}, start_ticks={"web": ticks}, boot_id="another")
            )
            data.recover(say=lambda _: None)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    def test_removes_our_sockets_and_nothing_else(self, data, tmp_path):
        ours, theirs = tmp_path / "headroom-abc", tmp_path / "home"
        ours.mkdir()
        theirs.mkdir()
        data.create()
        for directory in (ours, theirs):
            data.write_record(record(socket_directory=str(directory)))
            data.recover(say=lambda _: None)
        assert not ours.exists()
        assert theirs.exists()

    def test_says_nothing_after_a_clean_end(self, data):
        data.create()
        said = []
        data.recover(say=said.append)
        assert said == []


class TestSecretKey:
    def test_is_made_once_and_private(self, data):
        data.create()
        first = data.secret_key()
        assert len(first) >= 50
        assert data.secret_key() == first
        assert mode(data.path / "secret_key") == 0o600

    def test_makes_the_directory_when_it_is_the_first_to_need_it(self, data):
        assert data.secret_key() == data.secret_key()
        assert mode(data.path / "secret_key") == 0o600

    def test_is_made_anew_when_the_file_is_empty(self, data):
        data.create()
        (data.path / "secret_key").touch()
        assert data.secret_key()


class TestWritePrivate:
    def test_leaves_the_old_file_when_the_new_one_fails(self, tmp_path):
        path = tmp_path / "kept"
        path.write_text("old")
        with pytest.raises(UnicodeEncodeError):
            write_private(path=path, text="\udcff")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]
