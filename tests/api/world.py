"""A market to call: machines of an owner, a listing over them, and a tenant with money."""

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.utils import timezone

from agents.models import Node
from billing import wallet
from marketplace import listings
from marketplace.core.money import Money
from marketplace.core.windows import Window, format_instant, grid_ceiling
from marketplace.listings import ListingFields
from marketplace.models import Organization
from tests.agents.factories import make_node
from tests.conftest import ApiClient
from tests.factories import an_organization

MODEL = "h100-sxm-80gb"
_keys = itertools.count(1)


def a_fleet(*, gpus: int = 8, floor_rate: str = "2.00", **wishes: Any) -> Node:
    """Enrol a machine that has just reported, and list its GPUs for ever."""
    now = timezone.now()
    owner = an_organization()
    node = make_node(organization=owner, gpus=gpus, at=now)
    fields = ListingFields(
        name="everything",
        gpu_model=MODEL,
        starts_at=now - dt.timedelta(hours=1),
        floor_rate=Decimal(floor_rate),
        **wishes,
    )
    listing = listings.create(organization=owner, fields=fields, at=now, actor="test")
    listings.publish(listing=listing, at=now, actor="test")
    return node


def fund(organization: Organization, *, amount_minor: int = 1_000_000) -> None:
    wallet.record_deposit(
        organization=organization,
        amount=Money(amount_minor, settings.CURRENCY),
        idempotency_key=f"deposit {next(_keys)}",
        at=timezone.now(),
        actor="test",
    )


def a_window(*, in_hours: int = 2, hours: int = 1) -> Window:
    """Return a window on the grid that has not begun."""
    grid = grid_ceiling(timezone.now(), grid_seconds=settings.GRID_SECONDS)
    starts_at = grid + dt.timedelta(hours=in_hours)
    return Window(starts_at, starts_at + dt.timedelta(hours=hours))


def a_wish(*, window: Window | None = None, **changes: Any) -> dict[str, Any]:
    """Return the body of a quote."""
    window = window or a_window()
    wish = {
        "gpu_model": MODEL,
        "gpus": 2,
        "starts_at": format_instant(window.starts_at),
        "ends_at": format_instant(window.ends_at),
    }
    return {name: value for name, value in (wish | changes).items() if value is not ...}


def a_quote(api: ApiClient, **changes: Any) -> dict[str, Any]:
    answer = api.post("/v1/quotes", a_wish(**changes), key=a_new_key())
    assert answer.status == 201, answer.content
    quote: dict[str, Any] = answer.json
    return quote


def a_reservation(
    api: ApiClient, *, quote: dict[str, Any] | None = None, **body: Any
) -> dict[str, Any]:
    quote_id = (quote or a_quote(api))["id"]
    answer = api.post(
        "/v1/reservations",
        {"quote_id": quote_id, "payment_method": "wallet", **body},
        key=a_new_key(),
    )
    assert answer.status == 201, answer.content
    reservation: dict[str, Any] = answer.json
    return reservation


def a_new_key() -> str:
    return f"key {next(_keys)}"
