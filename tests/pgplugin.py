"""Give the suite a real PostgreSQL before Django reads its settings.

Loaded with `-p`, ahead of pytest-django. The processes of pytest-xdist inherit DATABASE_URL from
the first one and start nothing; pytest-django gives each its own database in the one server.
"""

import os

import pytest

from marketplace.management.errors import PlainError
from marketplace.management.postgres import ThrowAwayPostgres
from marketplace.management.suite import TEST_ENVIRONMENT


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start the server, unless the caller or the first process of this run named one."""
    for name, value in TEST_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("DATABASE_URL"):
        return
    try:
        server = ThrowAwayPostgres()
    except PlainError as error:
        raise pytest.UsageError(str(error)) from error
    early_config.add_cleanup(server.stop)
    os.environ["DATABASE_URL"] = server.url
