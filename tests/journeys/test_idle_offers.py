"""A listing that sells idle GPUs alone grows and shrinks with what its owner does, over the real wire."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine

from agents.protocol import IdleState, Reading
from marketplace.core.windows import format_instant
from tests.agents import factories as make
from tests.journeys.wire import FLOOR, MODEL, MORNING, Host, Market

pytestmark = pytest.mark.django_db
MINUTE = dt.timedelta(minutes=1)
IDLE_FOR = "10m"


@pytest.fixture
def market() -> Iterator[Market]:
    with time_machine.travel(MORNING, tick=False) as clock:
        yield Market(clock=clock)


@pytest.fixture
def host(market: Market) -> Host:
    """Return a machine with four GPUs, of which nothing is known, listed when idle for ten minutes."""
    host = market.add_host(gpus=4, readings=[])
    body = {
        "name": "nights",
        "selector": {"gpu_model": MODEL},
        "starts_at": "now",
        "floor_rate": FLOOR,
        "mode": {"when_idle": {"idle_for": IDLE_FOR, "rolling": "24h"}},
    }
    listing = market.post(market.owner_api, "/v1/listings", body)
    market.post(market.owner_api, f"/v1/listings/{listing['id']}/publish")
    return host


def look(
    market: Market, host: Host, *, idle: dict[int, dt.datetime], words: str = "a load of 97 %"
) -> None:
    """Report the GPUs at the market's time: those in `idle` are offerable since then, the others busy."""
    readings: list[Reading] = []
    for index, gpu in enumerate(host.inventory):
        since = idle.get(index)
        readings.append(
            make.reading(
                gpu_uuid=gpu.uuid,
                measured_at=market.at,
                idle_state=IdleState.BUSY if since is None else IdleState.OFFERABLE,
                idle_since=since,
                idle_reason=words if since is None else "quiet for 600 s and more",
            )
        )
    host.report(at=market.at, readings=readings)


def sellable(market: Market) -> int:
    """Return how many GPUs a tenant can get now."""
    found = 0
    for gpus in range(1, 5):
        answer = market.tenant_api.get(
            "/v1/offerings",
            gpu_model=MODEL,
            gpus=gpus,
            duration="2h",
            earliest_start=format_instant(market.at.replace(minute=0) + 60 * MINUTE),
            latest_end=format_instant(market.at.replace(minute=0) + 360 * MINUTE),
        )
        assert answer.status == 200, answer.content
        found = gpus if answer.json["data"] else found
    return found


def on_offer(market: Market) -> list[Any]:
    """Return what the owner reads of each GPU, in the order of their slots."""
    rows = market.owner_api.get("/v1/gpus").json["data"]
    return [row["offer"] for row in sorted(rows, key=lambda row: row["id"])]


def reasons(market: Market) -> list[str]:
    return sorted(r["code"] for offer in on_offer(market) for r in offer["reasons"])


class TestAListingThatSellsIdleGpus:
    def test_grows_as_gpus_become_idle_and_shrinks_at_once(
        self, market: Market, host: Host
    ) -> None:
        look(market, host, idle={})
        assert (sellable(market), reasons(market)) == (0, ["busy"] * 4)

        market.go_to(MORNING + 5 * MINUTE)
        since = MORNING + 1 * MINUTE
        look(market, host, idle={0: since})
        assert sellable(market) == 0
        assert reasons(market) == ["busy", "busy", "busy", "not_idle_long_enough"]

        market.go_to(MORNING + 11 * MINUTE)
        look(market, host, idle={0: since})
        assert sellable(market) == 1

        market.go_to(MORNING + 20 * MINUTE)
        look(market, host, idle={0: since, 1: since, 2: since})
        assert sellable(market) == 3
        assert reasons(market) == ["busy"]

        market.go_to(MORNING + 21 * MINUTE)
        look(market, host, idle={0: since}, words="1 process holds 40.0 GiB")
        assert sellable(market) == 1
        assert reasons(market) == ["busy"] * 3
        details = [r["detail"] for offer in on_offer(market) for r in offer["reasons"]]
        assert details.count("1 process holds 40.0 GiB") == 2, (
            "the words of those that were taken back"
        )

    def test_takes_a_gpu_back_only_after_a_while(self, market: Market, host: Host) -> None:
        quiet = dict.fromkeys(range(4), MORNING - 60 * MINUTE)
        look(market, host, idle=quiet)
        assert sellable(market) == 4

        market.go_to(MORNING + 1 * MINUTE)
        del quiet[3]
        look(market, host, idle=quiet)
        assert sellable(market) == 3

        market.go_to(MORNING + 13 * MINUTE)
        quiet[3] = MORNING + 2 * MINUTE
        look(market, host, idle=quiet)
        assert (sellable(market), reasons(market)) == (3, ["cooling_down"])

        market.go_to(MORNING + 28 * MINUTE)
        look(market, host, idle=quiet)
        assert sellable(market) == 4

    def test_takes_no_lease_for_the_owners_work(self, market: Market, host: Host) -> None:
        quiet = dict.fromkeys(range(4), MORNING - 60 * MINUTE)
        look(market, host, idle=quiet)
        noon = MORNING + 60 * MINUTE
        market.buy(gpus=1, starts_at=noon, ends_at=noon + 60 * MINUTE)
        market.tick_at(noon)
        (grant,) = host.report(at=noon)
        leased = next(i for i, gpu in enumerate(host.inventory) if gpu.uuid in grant.gpu_uuids)
        market.go_to(noon + MINUTE)
        look(market, host, idle={i: s for i, s in quiet.items() if i != leased})
        assert reasons(market) == ["leased"]
        rows = market.owner_api.get("/v1/gpus", leased="true").json["data"]
        assert [row["idle_state"] for row in rows] == ["busy"]
        market.go_to(noon + 2 * MINUTE)
        look(market, host, idle=quiet)
        assert reasons(market) == ["leased"], "it waits for its lease alone"
