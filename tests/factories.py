"""Plain functions that make what many tests begin with, through the verbs that make it in earnest."""

import datetime as dt
import itertools
from collections.abc import Sequence

from marketplace import organizations
from marketplace.models import ApiKey, Organization
from marketplace.states import Scope

LONG_AGO = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_numbers = itertools.count(1)


def an_organization(*, name: str | None = None) -> Organization:
    """Return a company that both sells and buys."""
    return organizations.create_organization(
        name=name or f"Company {next(_numbers)}", is_owner=True, is_tenant=True, at=LONG_AGO
    )


def a_key(
    *,
    organization: Organization,
    scopes: Sequence[Scope] = tuple(Scope),
    expires_at: dt.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Return a key of every scope, or of the scopes named, and its secret."""
    return organizations.issue_api_key(
        organization=organization,
        name=f"key {next(_numbers)}",
        scopes=scopes,
        at=LONG_AGO,
        expires_at=expires_at,
    )
