"""The way from a bare python3 to the installed requirements, and what stops it."""

import json
import signal
import subprocess
import sys

import pytest

from marketplace.management import bootstrap
from marketplace.management.bootstrap import (
    Ended,
    Progress,
    count_requirements,
    ensure_installed,
    follow,
    is_installed,
    read_marker,
)
from marketplace.management.errors import PlainError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own, with requirements and without a virtual environment."""
    (tmp_path / "requirements.txt").write_text("celery==5.7.0 \\\n    --hash=sha256:00\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/requirements.txt").write_text("pytest==9.2.0\n")
    venv = tmp_path / ".venv"
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "PYTHON", venv / "bin/python")
    monkeypatch.setattr(bootstrap, "MARKER", venv / "installed.json")
    monkeypatch.setattr(bootstrap, "INSTALL_LOG", venv / "install.log")
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """The commands that would have been run; each succeeds."""
    commands = []

    def pretend(command, **_):
        commands.append(list(command))
        if "venv" in command:
            python = bootstrap.PYTHON
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        return Ended(status=0, lines=[])

    monkeypatch.setattr(bootstrap, "follow", pretend)
    return commands


def silent(text):
    del text


class TestEnsureInstalled:
    def test_makes_the_environment_and_checks_every_hash(self, project, ran):
        ensure_installed(with_tests=False, say=silent)
        assert ran[0][1:3] == ["-m", "venv"]
        assert "--require-hashes" in ran[1]
        assert len(ran) == 2

    def test_does_nothing_the_second_time(self, project, ran):
        ensure_installed(with_tests=False, say=silent)
        ran.clear()
        ensure_installed(with_tests=False, say=silent)
        assert ran == []

    def test_adds_only_what_the_tests_need(self, project, ran, monkeypatch):
        ensure_installed(with_tests=False, say=silent)
        ran.clear()
        monkeypatch.setattr(bootstrap, "venv_is_usable", lambda: True)
        ensure_installed(with_tests=True, say=silent)
        assert [command[6] for command in ran] == [str(project / "tests/requirements.txt")]

    def test_installs_again_when_the_requirements_change(self, project, ran, monkeypatch):
        ensure_installed(with_tests=False, say=silent)
        ran.clear()
        (project / "requirements.txt").write_text("celery==5.8.0\n")
        monkeypatch.setattr(bootstrap, "venv_is_usable", lambda: True)
        ensure_installed(with_tests=False, say=silent)
        assert [command[6] for command in ran] == [str(project / "requirements.txt")]

    def test_makes_the_environment_anew_when_its_python_is_gone(self, project, ran):
        ensure_installed(with_tests=False, say=silent)
        bootstrap.PYTHON.unlink()
        bootstrap.PYTHON.parent.rmdir()
        ran.clear()
        ensure_installed(with_tests=False, say=silent)
        assert ran[0][1:3] == ["-m", "venv"]

    def test_marks_nothing_as_installed_when_pip_fails(self, project, ran, monkeypatch):
        good = bootstrap.follow

        def failing(command, **rest):
            if "pip" in command:
                return Ended(
                    status=1,
                    lines=["Collecting celery", "ERROR: No matching distribution found", "hint"],
                )
            return good(command, **rest)

        monkeypatch.setattr(bootstrap, "follow", failing)
        with pytest.raises(PlainError, match="No matching distribution found") as refusal:
            ensure_installed(with_tests=False, say=silent)
        assert "\n" not in str(refusal.value)
        assert not bootstrap.MARKER.exists()

    def test_says_in_one_line_that_the_project_cannot_be_written(self, project, ran, monkeypatch):
        monkeypatch.setattr(bootstrap.os, "access", lambda *_: False)
        with pytest.raises(PlainError, match=r"cannot be written by this user"):
            ensure_installed(with_tests=False, say=silent)
        assert ran == []


class TestMakeVenv:
    @pytest.fixture(autouse=True)
    def without_ensurepip(self, monkeypatch):
        """Debian's python3, as it comes."""
        monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda _: None)

    def test_tells_a_normal_user_the_exact_line(self, project, ran, monkeypatch):
        monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
        monkeypatch.setattr(bootstrap.shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
        line = r"run once as root:  apt-get update && apt-get install -y --no-install-recommends \S+-venv"
        with pytest.raises(PlainError, match=line):
            ensure_installed(with_tests=False, say=silent)
        assert ran == []

    def test_installs_the_missing_part_as_root(self, project, ran, monkeypatch):
        monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0)
        monkeypatch.setattr(bootstrap.shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
        with pytest.raises(PlainError, match=r"apt-get update .* failed"):
            ensure_installed(with_tests=False, say=silent)
        assert "apt-get install -y --no-install-recommends" in ran[0][2]

    def test_names_the_module_where_there_is_no_apt(self, project, ran, monkeypatch):
        monkeypatch.setattr(bootstrap.shutil, "which", lambda *_, **__: None)
        with pytest.raises(PlainError, match="has no `ensurepip` module"):
            ensure_installed(with_tests=False, say=silent)


class TestMarker:
    def test_is_empty_when_it_is_no_json(self, tmp_path):
        (tmp_path / "marker").write_text("{")
        assert read_marker(path=tmp_path / "marker") == {}
        (tmp_path / "marker").write_text("[1]")
        assert read_marker(path=tmp_path / "marker") == {}

    def test_fits_only_when_every_hash_fits(self, tmp_path):
        (tmp_path / "marker").write_text(json.dumps({"a": "1", "b": "2"}))
        marker = read_marker(path=tmp_path / "marker")
        assert is_installed(wanted={"a": "1"}, marker=marker)
        assert not is_installed(wanted={"a": "1", "b": "3"}, marker=marker)
        assert not is_installed(wanted={"c": "1"}, marker=marker)


class TestProgress:
    def test_counts_what_applies_to_this_machine(self, tmp_path):
        (tmp_path / "r").write_text(
            "a==1 \\\n    --hash=sha256:00\n    # via b\n"
            "b==2 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
            "c==3 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n"
        )
        assert count_requirements(path=tmp_path / "r") == 2

    @pytest.mark.parametrize(
        ("version", "applying"),
        [((3, 11, 2), 2), ((3, 11, 7), 1), ((3, 12, 1), 1), ((3, 13, 0), 1)],
    )
    def test_counts_what_applies_to_this_python(self, tmp_path, monkeypatch, version, applying):
        (tmp_path / "r").write_text(
            "a==1 ; python_full_version < '3.11.3' \\\n    --hash=sha256:00\n"
            "b==1 ; python_full_version < '3.12' \\\n    --hash=sha256:00\n"
            "b==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:00\n"
        )
        monkeypatch.setattr(bootstrap.sys, "version_info", version)
        assert count_requirements(path=tmp_path / "r") == applying

    def test_tells_how_far_it_is(self, monkeypatch, project):
        monkeypatch.setattr(bootstrap, "PROGRESS_EVERY_SECONDS", 0)
        said = []
        progress = Progress(total=3, say=said.append)
        progress.read("Requirement already satisfied: vine==5.1.0")
        progress.read("Collecting celery==5.7.0")
        progress.look()
        progress.read("Installing collected packages: celery")
        progress.look()
        assert said == [
            "  2/3 celery",
            "  2/3 waiting for pip",
            "  unpacking",
            "  unpacked 0 of 2",
        ]


class TestFollow:
    def test_keeps_the_last_lines_and_the_status(self):
        ended = follow(
            [sys.executable, "-c", "print('one'); print('two', end=''); raise SystemExit(4)"],
            on_line=None,
            on_wait=None,
        )
        assert ended.status == 4
        assert ended.reason() == "two"

    def test_explains_a_silent_end(self):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        ended = follow([sys.executable, "-c", code], on_line=None, on_wait=None)
        assert ended.reason() == "was killed by SIGKILL"

    def test_kills_the_program_when_it_is_interrupted(self, monkeypatch):
        started = []
        spawn = bootstrap.spawn

        def watched(**arguments):
            started.append(spawn(**arguments))
            return started[-1]

        def interrupt(line):
            raise KeyboardInterrupt

        monkeypatch.setattr(bootstrap, "spawn", watched)
        code = "import signal; print('busy', flush=True); signal.pause()"
        with pytest.raises(KeyboardInterrupt):
            follow([sys.executable, "-c", code], on_line=interrupt, on_wait=None)
        assert started[0].returncode == -signal.SIGKILL


class TestReason:
    RETRY = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("
        "'<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a"
        " new connection: [Errno -2] Name or service not known')': /simple/amqp/"
    )
    NOT_FOUND = "ERROR: Could not find a version that satisfies the requirement amqp"

    def test_is_the_lost_connection_and_not_what_pip_concludes_from_it(self):
        reason = Ended(status=1, lines=[self.RETRY, self.NOT_FOUND]).reason()
        assert reason.startswith("a download failed (Name or service not known)")

    def test_is_the_first_error_when_the_connection_came_back(self):
        lines = [self.RETRY, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "ERROR: second"]
        assert Ended(status=1, lines=lines).reason() == "THESE PACKAGES DO NOT MATCH THE HASHES"


class TestBareness:
    def test_needs_nothing_that_is_not_in_the_standard_library(self):
        """No site-packages and no environment: the machine's Python before the first start."""
        answer = subprocess.run(
            [sys.executable, "-ESs", "manage.py", "--help"],
            cwd=bootstrap.PROJECT,
            capture_output=True,
            check=False,
            text=True,
        )
        assert answer.stderr == ""
        assert "up [--port N]" in answer.stdout
