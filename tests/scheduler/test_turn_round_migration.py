"""The migration that gave every allocation a turn-round, on a database in which something was sold."""

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection

BEFORE, AFTER = "0018_price_versions_never_change", "0019_turn_round"
DATABASE = "before_the_turn_round"
# Two neighbours that touch, one that is over, and one whose hold was given up in their midst.
ROWS = """
SET session_replication_role = replica;
INSERT INTO scheduler_allocation
    (node_id, listing_id, reservation_id, slots, period, live, created_at)
VALUES
    ('nde_1', 'lst_1', 'rsv_1', '[16,24)', '[2027-03-28 00:00Z,2027-03-28 04:00Z)', true, now()),
    ('nde_1', 'lst_1', 'rsv_2', '[16,24)', '[2027-03-28 04:00Z,2027-03-28 09:00Z)', true, now()),
    ('nde_1', 'lst_1', 'rsv_3', '[16,20)', '[2027-03-28 02:00Z,2027-03-28 06:00Z)', false, now());
"""


@pytest.fixture
def url(db: None) -> Iterator[str]:
    """Return the address of an empty database on the suite's server."""
    parts = urlsplit(os.environ["DATABASE_URL"])
    server = urlunsplit(parts._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as session:
        session.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        session.execute(f"CREATE DATABASE {DATABASE}")
        yield urlunsplit(parts._replace(path=f"/{DATABASE}"))
        session.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def migrate(url: str, *, to: str) -> None:
    done = subprocess.run(
        [sys.executable, settings.BASE_DIR / "manage.py", "migrate", "scheduler", to, "-v", "0"],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(180)
class TestTurnRound:
    def test_leaves_what_is_sold_as_it_is_and_guards_it_from_then_on(self, url: str) -> None:
        migrate(url, to=BEFORE)
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(ROWS)
        migrate(url, to=AFTER)

        with psycopg.connect(url, autocommit=True) as session:
            rows = session.execute(
                "SELECT occupied = period, turnaround_seconds, free_at"
                " FROM scheduler_allocation ORDER BY id"
            ).fetchall()
            assert rows == [(True, 0, None), (True, 0, None), (None, 0, None)]
            with pytest.raises(psycopg.errors.ExclusionViolation):
                session.execute(
                    "UPDATE scheduler_allocation SET turnaround_seconds = 1 WHERE id = 1"
                )
            session.execute("DELETE FROM scheduler_calendarmark")
            session.execute("UPDATE scheduler_allocation SET turnaround_seconds = 60 WHERE id = 2")
            marks = session.execute(
                "SELECT period = '[2027-03-28 04:00Z,2027-03-28 09:01Z)'"
                " FROM scheduler_calendarmark ORDER BY id DESC LIMIT 1"
            ).fetchall()
            assert marks == [(True,)]
            session.execute("UPDATE scheduler_allocation SET turnaround_seconds = 0")

        migrate(url, to=BEFORE)
        with (
            psycopg.connect(url, autocommit=True) as session,
            pytest.raises(psycopg.errors.ExclusionViolation),
        ):
            session.execute("UPDATE scheduler_allocation SET live = true WHERE id = 3")

    def test_computes_the_same_in_every_time_zone(self, db: None) -> None:
        """A day of 23 hours lies in the turn-round."""
        with connection.cursor() as cursor:
            found = set()
            for zone in ("UTC", "Europe/Berlin", "America/New_York"):
                cursor.execute("SELECT set_config('TimeZone', %s, true)", [zone])
                cursor.execute(
                    "SELECT extract(epoch FROM upper(scheduler_occupied("
                    "'[2027-03-27 20:00Z,2027-03-27 22:00Z)', 86400, true, NULL)))"
                )
                found.add(cursor.fetchone()[0])
            assert len(found) == 1
