"""Reports that are lost, repeated, held up and cut otherwise: the bill is that of an orderly machine."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
import time_machine
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import protocol
from agents.models import MeterReading, Receipt
from billing.models import Settlement
from tests.journeys.wire import HANDOVER, MORNING, NOON, RETURN, TWO, Host, Market

pytestmark = pytest.mark.django_db

GPUS = 2
GIVEN = NOON + dt.timedelta(seconds=36)
BACK = TWO - dt.timedelta(seconds=100)
PART_METERS = 4  # readings that a machine sends or loses together


class Fate(StrEnum):
    """What becomes of a report."""

    ARRIVES = "arrives"
    ARRIVES_TWICE = "arrives_twice"
    IS_LOST = "is_lost"
    ANSWER_IS_LOST = "answer_is_lost"
    IS_HELD_UP = "is_held_up"  # and arrives after all others


@dataclass(frozen=True)
class Part:
    """Some of what a machine has to say; it stays in the spool until the market has acknowledged it."""

    meters: tuple[protocol.MeterReading, ...] = ()
    receipts: tuple[protocol.Receipt, ...] = ()


@dataclass
class Ended:
    """A lease of two GPUs that has ended on the machine, of which the market has not heard a word."""

    market: Market
    host: Host
    reservation: dict[str, Any]
    parts: list[Part]

    def say(self, parts: list[Part]) -> bytes:
        self.host.sequence += 1
        return self.host.body(
            at=self.market.at,
            sequence=self.host.sequence,
            meters=[meter for part in parts for meter in part.meters],
            receipts=[receipt for part in parts for receipt in part.receipts],
        )

    def send(self, body: bytes) -> int:
        status: int = self.host.send(body=body, at=self.market.at).status_code
        assert status in (200, 409)
        return status

    def result(self) -> dict[str, Any]:
        """Settle, and return all that the market makes of the lease."""
        self.market.tick()
        self.market.tick_at(self.market.at + dt.timedelta(minutes=2))
        self.market.assert_books_are_sound()
        settled = Settlement.objects.get()
        meters = MeterReading.objects.order_by("sequence")
        bill = self.market.bill(self.reservation)
        bill.pop("issued_at", None)
        return {
            "delivered": settled.gpu_seconds_delivered,
            "busy": settled.gpu_seconds_busy,
            "earned": settled.earned_minor,
            "wallet": self.market.wallet_minor(),
            "meters": list(meters.values_list("sequence", "gpu_uuid", "up_seconds")),
            "receipts": sorted(Receipt.objects.values_list("kind", "at")),
            "net": bill["net"],
        }


def rolled_back(story: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Live through a story and forget it; return what it came to."""
    savepoint = transaction.savepoint()
    try:
        return story()
    finally:
        transaction.savepoint_rollback(savepoint)


@pytest.fixture
def ended() -> Any:
    with time_machine.travel(MORNING, tick=False) as clock:
        market = Market(clock=clock)
        host = market.add_host(gpus=GPUS)
        market.list_everything()
        reservation = market.buy(gpus=GPUS)
        market.tick_at(NOON)
        (grant,) = host.report(at=NOON)
        market.go_to(TWO)  # the market has not looked since
        meters = host.meters(grant, since=GIVEN, until=BACK)
        parts = [
            Part(meters=tuple(meters[i : i + PART_METERS]))
            for i in range(0, len(meters), PART_METERS)
        ]
        parts.insert(0, Part(receipts=(host.receipt(grant, HANDOVER, at=GIVEN),)))
        parts.append(Part(receipts=(host.receipt(grant, RETURN, at=BACK),)))
        yield Ended(market=market, host=host, reservation=reservation, parts=parts)


SENDINGS = st.lists(
    st.tuples(st.sets(st.integers(0, 7), min_size=1), st.sampled_from(Fate)), max_size=12
)


class TestDisorder:
    def test_never_changes_a_bill(self, ended: Ended) -> None:
        at = ended.market.at

        def orderly() -> dict[str, Any]:
            for part in ended.parts:
                assert ended.send(ended.say([part])) == 200
            return ended.result()

        expected = rolled_back(orderly)
        assert expected["delivered"] == GPUS * (BACK - GIVEN).total_seconds()
        assert len(expected["receipts"]) == 2

        @settings(
            max_examples=30, deadline=None, database=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )  # fmt: skip
        @given(sendings=SENDINGS)
        def try_out(sendings: list[tuple[set[int], Fate]]) -> None:
            def disorderly() -> dict[str, Any]:
                spool, held_up = list(ended.parts), []
                for numbers, fate in sendings:
                    parts = [p for n, p in enumerate(ended.parts) if n in numbers and p in spool]
                    body = ended.say(parts)
                    if fate is Fate.IS_HELD_UP:
                        held_up.append(body)
                    if fate in (Fate.IS_HELD_UP, Fate.IS_LOST):
                        continue
                    assert ended.send(body) == 200
                    if fate is Fate.ARRIVES_TWICE:
                        assert ended.send(body) == 409
                    if fate is not Fate.ANSWER_IS_LOST:
                        spool = [part for part in spool if part not in parts]
                assert ended.send(ended.say(spool)) == 200
                for body in reversed(held_up):
                    assert ended.send(body) == 409
                return ended.result()

            ended.market.go_to(at)
            assert rolled_back(disorderly) == expected

        try_out()
