"""What a person gets for a command, and one clear line for each that cannot work."""

import socket
import sys

import psycopg
import pytest
from django.db import OperationalError, ProgrammingError

import manage
from marketplace.management import bootstrap, entry, suite, up
from marketplace.management.bootstrap import PROJECT
from marketplace.management.datadir import DataDirectory
from marketplace.management.entry import main
from marketplace.management.errors import PlainError, StopRequested


@pytest.fixture
def prepared(monkeypatch):
    """Everything is installed, and this is the project's own Python."""
    monkeypatch.setattr(bootstrap, "ensure_installed", lambda **_: None)
    monkeypatch.setattr(bootstrap, "is_inside_venv", lambda: True)
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("manage.py: ")
    return captured.err


class TestHelp:
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
    def test_lists_every_command(self, prepared, arguments, capsys):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        for name in entry.COMMANDS:
            assert f"\n  {name} " in text

    def test_names_our_own_django_commands(self, prepared, capsys):
        main(["--help"])
        assert "prepare" in capsys.readouterr().out


class TestUnknown:
    def test_is_one_line_with_the_nearest_name(self, prepared, capsys):
        assert main(["verfy"]) == 1
        assert "unknown command `verfy`; did you mean `verify`?" in one_line(capsys)

    def test_installs_nothing_first(self, monkeypatch, capsys):
        monkeypatch.setattr(entry.signal, "signal", lambda *_: None)

        def never(**_):
            raise AssertionError

        monkeypatch.setattr(bootstrap, "ensure_installed", never)
        assert main(["xyzzy"]) == 1
        one_line(capsys)


class TestUp:
    def test_refuses_a_taken_port_in_one_line(self, prepared, taken_port, tmp_path, capsys):
        assert main(["up", "--port", str(taken_port), "--data-dir", str(tmp_path)]) == 1
        assert f"port {taken_port} cannot be used: Address already in use" in one_line(capsys)

    def test_refuses_a_taken_port_before_anything_is_downloaded(
        self, prepared, taken_port, tmp_path, monkeypatch, capsys
    ):
        def never(**_):
            raise AssertionError

        monkeypatch.setattr(bootstrap, "ensure_installed", never)
        monkeypatch.setattr(bootstrap, "is_inside_venv", lambda: False)
        assert main(["up", "--port", str(taken_port), "--data-dir", str(tmp_path)]) == 1
        one_line(capsys)

    def test_names_the_market_that_has_the_directory(self, prepared, tmp_path, capsys):
        data = DataDirectory(path=tmp_path)
        data.lock(purpose="up")
        assert main(["up", "--data-dir", str(tmp_path)]) == 1
        assert "already running (up, process" in one_line(capsys)

    def test_refuses_a_directory_that_cannot_be_made(self, prepared, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert main(["up", "--data-dir", str(tmp_path / "file/var")]) == 1
        assert "cannot be written" in one_line(capsys)

    @pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8000.0", "٨٠٠٠"])
    def test_refuses_what_is_no_port(self, prepared, port, capsys):
        with pytest.raises(SystemExit) as refusal:
            main(["up", f"--port={port}"])
        assert refusal.value.code == 2
        assert "a port is a whole number from 1 to 65535" in capsys.readouterr().err


class TestEnds:
    @pytest.mark.parametrize(
        ("raised", "status"),
        [(KeyboardInterrupt(), 130), (StopRequested(signal_number=15), 143)],
    )
    def test_a_signal_ends_without_a_traceback(self, prepared, monkeypatch, raised, status, capsys):
        def interrupted(_):
            raise raised

        monkeypatch.setattr(entry, "dispatch", interrupted)
        assert main(["up"]) == status
        assert capsys.readouterr().err == ""


class TestDjangoCommand:
    @pytest.fixture(autouse=True)
    def somewhere(self, prepared, tmp_path, monkeypatch):
        for name in ("DATABASE_URL", "CELERY_BROKER_URL"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HEADROOM_DATA_DIR", str(tmp_path))
        self.data = DataDirectory(path=tmp_path)
        self.ran = []
        monkeypatch.setattr(up, "run_django", self.pretend)

    def pretend(self, arguments):
        self.ran.append((arguments, up.os.environ.get("DATABASE_URL")))
        return 0

    def test_joins_the_running_market(self, monkeypatch):
        self.data.lock(purpose="up")
        self.data.write_record(
            up.RunRecord(
                base_url="http://127.0.0.1:8000",
                profile="demo",
                database_url="postgres://postgres@/postgres?host=/x",
                broker_url="redis+socket:///x/v.sock",
            )
        )
        monkeypatch.setattr(up.os, "environ", dict(up.os.environ))
        assert main(["showmigrations"]) == 0
        assert self.ran == [(["showmigrations"], "postgres://postgres@/postgres?host=/x")]

    def test_joins_the_market_of_the_directory_that_was_named(self, tmp_path, monkeypatch):
        named = DataDirectory(path=tmp_path / "other")
        named.lock(purpose="up")
        named.write_record(
            up.RunRecord(base_url="", profile="demo", database_url="postgres://y", broker_url="z")
        )
        monkeypatch.setattr(up.os, "environ", dict(up.os.environ))
        assert main(["showmigrations", "--data-dir", str(named.path), "--plan"]) == 0
        assert self.ran == [(["showmigrations", "--plan"], "postgres://y")]
        assert up.os.environ["HEADROOM_DATA_DIR"] == str(named.path)

    def test_waits_for_nothing_that_is_still_starting(self, capsys):
        self.data.lock(purpose="up")
        assert main(["showmigrations"]) == 1
        assert "already running" in one_line(capsys)

    def test_uses_the_database_that_the_operator_named(self, monkeypatch):
        monkeypatch.setattr(up.os, "environ", dict(up.os.environ))
        up.os.environ["DATABASE_URL"] = "postgres://u@db/x"
        up.os.environ["CELERY_BROKER_URL"] = "redis://broker"
        main(["showmigrations"])
        assert self.ran == [(["showmigrations"], "postgres://u@db/x")]

    def test_needs_no_data_directory_beside_real_stores(self, tmp_path, monkeypatch):
        monkeypatch.setattr(up.os, "environ", dict(up.os.environ))
        up.os.environ["DATABASE_URL"] = "postgres://u@db/x"
        up.os.environ["CELERY_BROKER_URL"] = "redis://broker"
        del up.os.environ["SECRET_KEY"]
        assert main(["check", "--data-dir", str(tmp_path / "not" / "yet")]) == 0
        assert up.os.environ["SECRET_KEY"]


class TestRunDjango:
    """What a command meets in the database is one line, not a traceback."""

    @pytest.fixture
    def raising(self, prepared, monkeypatch):
        def with_error(error):
            def execute(_):
                raise error

            monkeypatch.setattr("django.core.management.execute_from_command_line", execute)

        return with_error

    def test_says_that_there_are_no_tables_yet(self, raising):
        error = ProgrammingError('relation "billing_entry" does not exist')
        error.__cause__ = psycopg.errors.UndefinedTable()
        raising(error)
        with pytest.raises(PlainError, match=r"has no tables yet: `python3 manage.py up`"):
            up.run_django(["check_books"])

    def test_says_that_the_database_does_not_answer(self, raising):
        raising(OperationalError("connection refused\n\tIs the server running?"))
        with pytest.raises(PlainError, match=r"^the database does not answer: connection refused$"):
            up.run_django(["check_books"])

    def test_hides_no_mistake_of_ours(self, raising):
        raising(ProgrammingError("syntax error"))
        with pytest.raises(ProgrammingError):
            up.run_django(["check_books"])


class TestDemo:
    def test_waits_for_a_market_that_is_still_starting(self, prepared, tmp_path, capsys):
        data = DataDirectory(path=tmp_path)
        data.lock(purpose="up")
        data.write_record(
            up.RunRecord(
                base_url="http://127.0.0.1:8000", profile="demo", database_url="x", broker_url="y"
            )
        )
        assert main(["demo", "--data-dir", str(tmp_path)]) == 1
        assert "still starting" in one_line(capsys)


class TestPythonVersion:
    @pytest.fixture
    def executed(self, monkeypatch):
        calls = []

        def pretend(path, arguments):
            calls.append((path, arguments))
            raise SystemExit(0)

        monkeypatch.setattr(manage.os, "execv", pretend)
        monkeypatch.delenv("HEADROOM_PYTHON", raising=False)
        return calls

    @pytest.mark.parametrize("version", [(3, 11, 2), (3, 12, 0), (3, 13, 9)])
    def test_stays_with_one_we_support(self, executed, monkeypatch, version):
        monkeypatch.setattr(manage.sys, "version_info", version)
        manage.use_a_suitable_python()
        assert executed == []

    @pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
    def test_goes_on_with_the_first_that_fits(self, executed, monkeypatch, version):
        monkeypatch.setattr(manage.sys, "version_info", version)
        monkeypatch.setattr(manage.sys, "argv", ["manage.py", "up"])
        found = {"python3.12": "/usr/bin/python3.12", "python3.13": "/usr/bin/python3.13"}
        monkeypatch.setattr(manage.shutil, "which", found.get)
        monkeypatch.setattr(manage.os, "environ", {})
        with pytest.raises(SystemExit):
            manage.use_a_suitable_python()
        assert executed == [("/usr/bin/python3.12", ["/usr/bin/python3.12", "manage.py", "up"])]

    def test_says_in_one_line_that_there_is_none(self, executed, monkeypatch):
        monkeypatch.setattr(manage.sys, "version_info", (3, 9, 18))
        monkeypatch.setattr(manage.shutil, "which", lambda _: None)
        with pytest.raises(SystemExit, match=r"needs Python 3.11, 3.12 or 3.13; this is 3.9"):
            manage.use_a_suitable_python()

    def test_is_written_so_that_an_old_python_can_read_it(self):
        compile((PROJECT / "manage.py").read_text(), "manage.py", "exec", _feature_version=6)


class TestSuite:
    @pytest.fixture
    def became(self, monkeypatch):
        calls = []
        monkeypatch.setattr(suite.os, "execv", lambda path, arguments: calls.append(arguments))
        monkeypatch.setattr(suite.os, "chdir", lambda _: None)
        return calls

    def test_leaves_the_slow_ones_out(self, became):
        suite.test(["-k", "ledger"])
        assert became == [[sys.executable, "-m", "pytest", "-m", "not slow", "-k", "ledger"]]

    def test_takes_all_when_asked(self, became):
        suite.test(["--all", "tests/billing"])
        assert became == [[sys.executable, "-m", "pytest", "tests/billing"]]

    @pytest.mark.parametrize(
        ("processors", "spread"), [(1, []), (2, ["-n", "2"]), (64, ["-n", "4"])]
    )
    def test_spreads_the_fast_suite_over_the_processors(
        self, became, monkeypatch, processors, spread
    ):
        monkeypatch.setattr(suite.os, "sched_getaffinity", lambda _: set(range(processors)))
        suite.test([])
        assert became == [[sys.executable, "-m", "pytest", "-m", "not slow", *spread]]

    def test_runs_the_slow_ones_alone(self, became):
        suite.test(["--all"])
        assert became == [[sys.executable, "-m", "pytest"]]

    def test_verify_runs_every_check_although_one_failed(self, monkeypatch, capsys):
        steps = {"one": ["-c", "raise SystemExit('no')"], "two": ["-c", "print('fine')"]}
        monkeypatch.setattr(suite, "STEPS", steps)

        class Server:
            url = "postgres://x/y"

            def stop(self):
                pass

        monkeypatch.setattr(suite, "ThrowAwayPostgres", Server)
        assert suite.verify([]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("one         FAILED")
        assert lines[1] == "no"
        assert lines[2].startswith("two         ok")
        assert lines[3] == "verify: one failed"

    def test_verify_refuses_a_check_that_there_is_not(self):
        with pytest.raises(PlainError, match="no check named `spelling`"):
            suite.verify(["spelling"])
