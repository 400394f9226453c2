"""The steps of a lease that its tests share, and the sums that must come out of it."""

import datetime as dt
from fractions import Fraction
from typing import Any

from agents import protocol
from billing.models import Settlement
from tests.journeys.wire import HANDOVER, NOON, RETURN, TWO, Host, Market


def seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)


def minutes(number: float) -> dt.timedelta:
    return dt.timedelta(minutes=number)


def started(market: Market, *hosts: Host, at: dt.datetime = NOON) -> list[protocol.Grant]:
    """Begin the window and return what each machine hears of it."""
    market.tick_at(at)
    return [grant for host in hosts for grant in host.report(at=at)]


def hand_over(
    market: Market, host: Host, grant: protocol.Grant, *, at: dt.datetime, heard_at: Any = None
) -> None:
    market.go_to(heard_at or at)
    host.report(at=market.at, receipts=[host.receipt(grant, HANDOVER, at=at)])
    market.tick()


def give_back(
    market: Market,
    host: Host,
    grant: protocol.Grant,
    *,
    since: dt.datetime = NOON,
    at: dt.datetime = TWO,
    heard_at: dt.datetime | None = None,
    clean: bool = True,
) -> None:
    """Meter a lease from one instant to another and return its GPUs, all in one report."""
    market.go_to(heard_at or at)
    host.report(
        at=market.at,
        meters=host.meters(grant, since=since, until=at),
        receipts=[host.receipt(grant, RETURN, at=at, clean=clean)],
    )
    market.tick()


def assert_settled(
    market: Market, reservation: dict[str, Any], *, net: int, refunded: int, owner: list[int]
) -> None:
    """Compare what everybody ends up with, in minor units, and that the books are sound."""
    market.tick_at(market.at + minutes(2))
    bill = market.bill(reservation)
    assert bill["final"] is True, bill
    assert (bill["net"]["amount_minor"], bill["refunded"]["amount_minor"]) == (net, refunded)
    assert market.wallet_minor() == 1_000_000 - net + _credited(refunded=refunded)
    assert market.payouts_minor() == owner
    market.assert_books_are_sound()


def _credited(*, refunded: int) -> int:
    """Return a tenth of every refund, rounded for each lease and for what no lease accounts for."""
    of_leases = list(Settlement.objects.values_list("refunded_minor", flat=True))
    parts = [*of_leases, refunded - sum(of_leases)]
    return sum(round(Fraction(part, 10)) for part in parts)
