"""One command in a directory where nothing was ever started: its database lives as long as it does."""

import os
import subprocess
import sys

import pytest

from marketplace.management.bootstrap import PROJECT
from marketplace.management.datadir import DataDirectory

pytestmark = pytest.mark.slow

GIVEN_BY_THE_SUITE = {"DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY", "HEADROOM_PROFILE"}


@pytest.fixture
def data(tmp_path):
    return DataDirectory(path=tmp_path / "var")


def manage(*arguments, data):
    environment = {n: v for n, v in os.environ.items() if n not in GIVEN_BY_THE_SUITE}
    return subprocess.run(
        [sys.executable, PROJECT / "manage.py", *arguments, "--data-dir", data.path],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


class TestBorrowedStores:
    def test_serve_one_command_and_are_gone(self, data):
        migrated = manage("migrate", "--verbosity", "0", data=data)
        assert (migrated.returncode, migrated.stdout, migrated.stderr) == (0, "", "")
        checked = manage("check_books", data=data)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "invariants hold" in checked.stdout
        assert not data.run_file.exists()
        assert not data.is_locked()

    def test_say_in_one_line_that_nothing_is_there_yet(self, data):
        result = manage("check_books", data=data)
        assert result.returncode == 1
        assert result.stderr == (
            "manage.py: this database has no tables yet:"
            " `python3 manage.py up` or `migrate` makes them\n"
        )
