"""The newest migrations of billing, back and forth on a database whose books are full."""

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection

DATABASE = "books_of_a_month"
# The last one before prices in two parts, tax remittances, disputes that are set off, gifts and withdrawals.
BEFORE = "0020_guard_the_provider"
# What no migration may lose or change: all that stood in the books, and what was made of it.
FACTS = """
    SELECT md5(string_agg(row::text, ',' ORDER BY row::text)) FROM (
        SELECT e.id, e.idempotency_key, e.kind, e.subject_id, p.account_id, p.side, p.amount
        FROM billing_entry e JOIN billing_posting p ON p.entry_id = e.id
    ) row
    UNION ALL SELECT md5(string_agg(row::text, ',' ORDER BY row::text)) FROM (
        SELECT id, code, balance, organization_id FROM billing_account
    ) row
    UNION ALL SELECT md5(string_agg(row::text, ',' ORDER BY row::text)) FROM (
        SELECT id, lease_id, bought_minor, earned_minor, owner_minor, refunded_minor FROM billing_settlement
    ) row
    UNION ALL SELECT md5(string_agg(row::text, ',' ORDER BY row::text)) FROM (
        SELECT id, number, total_minor FROM billing_invoice
    ) row
    UNION ALL SELECT md5(string_agg(row::text, ',' ORDER BY row::text)) FROM (
        SELECT id, status, amount_minor FROM billing_dispute
    ) row
"""
# As a suspension left what it was about, when it took a hundred reservations and no more.
SUSPEND = """
    SET session_replication_role = replica;
    UPDATE billing_dunningcase SET status = 'suspended', act_due_at = NULL;
    UPDATE billing_dunningcase SET status = 'closed'
        WHERE sale_id = (SELECT min(sale_id) FROM billing_dunningcase);
"""


@pytest.fixture
def url(transactional_db: None) -> Iterator[str]:
    """Return the address of a copy of the suite's own database, in which nothing stands."""
    empty = connection.settings_dict["NAME"]
    connection.close()  # nobody may be connected to what is copied
    parts = urlsplit(os.environ["DATABASE_URL"])
    server = urlunsplit(parts._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as session:
        session.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        session.execute(f'CREATE DATABASE {DATABASE} TEMPLATE "{empty}"')
        yield urlunsplit(parts._replace(path=f"/{DATABASE}"))
        session.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def run(url: str, *arguments: str) -> str:
    """Run Python on a database; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "marketplace.settings"},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def migrate(url: str, *to: str) -> None:
    run(url, "manage.py", "migrate", "billing", *to, "-v", "0")


def facts(url: str) -> list[str]:
    with psycopg.connect(url) as session:
        return [digest for (digest,) in session.execute(FACTS).fetchall()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_migrations_keep_books_that_are_full(url: str) -> None:
    """What a market of before had is there afterwards, guarded, and adds up."""
    assert run(url, "-m", "tests.billing.books_of_a_month", "fill") == ""
    filled = facts(url)
    assert None not in filled

    migrate(url, BEFORE)
    assert facts(url) == filled
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(SUSPEND)
    migrate(url)

    assert facts(url) == filled
    assert run(url, "-m", "tests.billing.books_of_a_month", "check") == ""
    with psycopg.connect(url, autocommit=True) as session:
        found = session.execute(
            "SELECT status, act_due_at IS NOT NULL, count(*) FROM billing_dunningcase"
            " GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
        assert found == [("closed", False, 1), ("suspended", True, 2)]
        for table in ("billing_entry", "billing_posting", "billing_taxline", "billing_dispute"):
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
                session.execute(f"DELETE FROM {table}")
