"""GPUs that fail over the wire: they leave the market at once, and who pays is who caused it.

Four GPUs for two hours are 1882 cents (see `one_lease`), 28,800 GPU-seconds. Half an hour of one GPU is
1,800 of them: 1882 × 27,000 / 28,800 = 1764 cents are earned, of which 15 % are 265.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import time_machine

from agents import protocol
from agents.protocol import Cause, Health
from billing.models import Settlement
from tests.agents import factories as make
from tests.journeys.one_lease.steps import assert_settled, give_back, hand_over, minutes, started
from tests.journeys.wire import MORNING, NOON, Host, Market

pytestmark = pytest.mark.django_db
SEARCH = {"gpu_model": "h100-sxm-80gb", "duration": "2h", "limit": 1}


@pytest.fixture
def market() -> Iterator[Market]:
    with time_machine.travel(MORNING, tick=False) as clock:
        yield Market(clock=clock)


@pytest.fixture
def host(market: Market) -> Host:
    host = market.add_host(gpus=8)
    market.list_everything()
    return host


def fail(
    market: Market,
    host: Host,
    *,
    gpu_uuid: str,
    health: Health = Health.QUARANTINED,
    cause: Cause = Cause.HARDWARE,
    grant: protocol.Grant | None = None,
) -> None:
    """Report that a GPU is from now on what `health` says, by an event and a reading."""
    event = make.event(
        gpu_uuid=gpu_uuid,
        at=market.at,
        health=health,
        cause=cause,
        lease_id=None if grant is None else grant.lease_id,
        lease_epoch=None if grant is None else grant.lease_epoch,
    )
    readings = [
        make.reading(
            gpu_uuid=gpu.uuid,
            measured_at=market.at,
            idle_since=market.at - minutes(1),
            health=health if gpu.uuid == gpu_uuid else Health.HEALTHY,
        )
        for gpu in host.inventory
    ]
    host.report(at=market.at, events=[event], readings=readings)


def offers(market: Market, *, gpus: int) -> int:
    return len(market.tenant_api.get("/v1/offerings", **SEARCH, gpus=gpus).json["data"])


class TestAQuarantinedGpu:
    @pytest.mark.parametrize("health", [Health.SUSPECT, Health.QUARANTINED, Health.LOST])
    def test_is_not_in_the_next_search(self, market: Market, host: Host, health: Health) -> None:
        assert offers(market, gpus=8) == 1
        fail(market, host, gpu_uuid=host.inventory[0].uuid, health=health)
        assert offers(market, gpus=8) == 0
        assert offers(market, gpus=7) == 1
        fail(market, host, gpu_uuid=host.inventory[0].uuid, health=Health.HEALTHY)
        assert offers(market, gpus=8) == 1


class TestAFaultUnderALease:
    def run(self, market: Market, host: Host, *, cause: Cause) -> dict[str, Any]:
        """Lose one of four GPUs from half past twelve to one, and let the lease end as promised."""
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        broken = grant.gpu_uuids[0]
        market.go_to(NOON + minutes(30))
        fail(market, host, gpu_uuid=broken, health=Health.LOST, cause=cause, grant=grant)
        (lease,) = market.tenant_api.get("/v1/leases").json["data"]
        assert lease["health"] == "lost"
        market.go_to(NOON + minutes(60))
        fail(market, host, gpu_uuid=broken, health=Health.HEALTHY, cause=Cause.UNKNOWN)
        give_back(market, host, grant)
        return reservation

    @pytest.mark.parametrize("cause", [Cause.HARDWARE, Cause.UNKNOWN])
    def test_is_refunded_when_the_tenant_did_not_cause_it(
        self, market: Market, host: Host, cause: Cause
    ) -> None:
        reservation = self.run(market, host, cause=cause)
        # 7.5 GPU-hours at the floor are 1500, though 15 % of 1764 round to more; of the tenant's credit, a
        # tenth of 118, the owner of broken hardware bears all.
        owner = 1500 - 12 if cause is Cause.HARDWARE else 1500
        assert_settled(market, reservation, net=1764, refunded=118, owner=[owner])
        (outage,) = Settlement.objects.get().evidence["outages"]
        assert (outage["cause"], outage["refunded"]) == (cause, True)

    def test_leaves_the_owner_the_rent_when_the_tenant_caused_it(
        self, market: Market, host: Host
    ) -> None:
        reservation = self.run(market, host, cause=Cause.TENANT)
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])
