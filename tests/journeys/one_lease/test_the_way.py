"""One lease from the machine's enrolment to the owner's payout, and every way in which it can go wrong.

The sums are worked out by hand. The floor is 2.00 per GPU-hour and the fee 15 %, so a GPU-hour costs
2.00 / 0.85 = 2.352942, rounded up; four GPUs for two hours are 18.823536, that is 1882 cents.
"""

import datetime as dt

import pytest

from agents import protocol
from agents.models import Gpu
from billing.models import Settlement
from scheduler.models import Lease
from tests.journeys.one_lease.steps import (
    assert_settled,
    give_back,
    hand_over,
    minutes,
    seconds,
    started,
)
from tests.journeys.wire import MORNING, NOON, RETURN, TWO, Host, Market

pytestmark = pytest.mark.django_db


class TestTheWholeWay:
    def test_leads_from_the_enrolment_to_the_payout(self, market: Market, host: Host) -> None:
        search = {"gpu_model": "h100-sxm-80gb", "gpus": 4, "duration": "2h"}
        (offer,) = market.tenant_api.get("/v1/offerings", **search, limit=1).json["data"]
        assert (offer["rate"], offer["total"]["amount_minor"]) == ("2.352942", 1882)

        quote = market.quote(gpus=4, hold=True)
        assert quote["total"]["amount_minor"] == 1882
        body = {"quote_id": quote["id"], "payment_method": "wallet"}
        reservation = market.post(market.tenant_api, "/v1/reservations", body)
        assert reservation["status"] == "scheduled"
        assert market.wallet_minor() == 998_118
        market.assert_books_are_sound()

        market.tick_at(NOON - seconds(1))
        assert market.reservation(reservation)["status"] == "scheduled"
        (grant,) = started(market, host)
        assert (grant.not_before, grant.not_after) == (NOON, TWO)
        assert grant.desired_state is protocol.DesiredState.RUN
        assert market.reservation(reservation)["status"] == "active"

        # Handed over 36 seconds late: 7164 of 7200 seconds, 99.5 %.
        hand_over(market, host, grant, at=NOON + seconds(36))
        lease = market.tenant_api.get(f"/v1/leases/{grant.lease_id}").json
        assert (lease["status"], lease["access"]["port"]) == ("active", 2222)

        market.tick_at(TWO)
        (asked,) = host.report(at=TWO)
        assert asked.desired_state is protocol.DesiredState.STOP
        give_back(market, host, grant, since=NOON + seconds(36), heard_at=TWO + seconds(9))
        assert market.reservation(reservation)["status"] == "completed"
        assert host.report(at=TWO + seconds(9)) == []

        # 1882 × 28656 ÷ 28800 = 1872.59: earned 1873, fee 280.95 → 281, owner 1592, refund 9.
        settlement = Settlement.objects.get(lease_id=grant.lease_id)
        assert (settlement.gpu_seconds_delivered, settlement.gpu_seconds_busy) == (28_656, 14_328)
        assert (settlement.earned_minor, settlement.fee_minor) == (1873, 281)
        bill = market.bill(reservation)
        assert bill["meter_coverage"] == "1.0000"
        assert bill["gpu_seconds"]["undelivered"] == 144
        assert_settled(market, reservation, net=1873, refunded=9, owner=[1592])

    def test_changes_nothing_when_every_tick_comes_twice(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        market.tick()
        hand_over(market, host, grant, at=NOON)
        market.tick()
        market.tick_at(TWO)
        market.tick()
        give_back(market, host, grant)
        market.tick()
        # Everything delivered: fee 282.3 → 282.
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_bills_a_window_that_begins_now_by_the_second(self, market: Market, host: Host) -> None:
        market.go_to(MORNING + dt.timedelta(minutes=17, seconds=23, milliseconds=400))
        host.report(at=market.at)
        reservation = market.buy(gpus=1, starts_at="now", ends_at=NOON)
        starts_at = MORNING + dt.timedelta(minutes=17, seconds=24)
        assert reservation["starts_at"] == "2026-11-23T10:17:24Z"
        # 6156 seconds at 2.352942 an hour: 4.02353.
        assert reservation["total"]["amount_minor"] == 402
        (grant,) = started(market, host, at=starts_at)
        hand_over(market, host, grant, at=starts_at + seconds(66))
        market.tick_at(NOON)
        give_back(market, host, grant, since=starts_at + seconds(66), at=NOON)
        # 402 × 6090 ÷ 6156 = 397.69: earned 398, fee 59.7 → 60, owner 338.
        assert_settled(market, reservation, net=398, refunded=4, owner=[338])


class TestHandover:
    def test_that_comes_late_is_charged_from_then_on(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON + minutes(9))
        market.tick_at(TWO)
        give_back(market, host, grant, since=NOON + minutes(9))
        # 111 of 120 minutes: 1740.85 → 1741, fee 261.15 → 261.
        assert_settled(market, reservation, net=1741, refunded=141, owner=[1480])

    def test_that_never_comes_gives_everything_back(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        started(market, host)
        market.tick_at(NOON + minutes(10))
        assert market.reservation(reservation)["status"] == "failed"
        assert_settled(market, reservation, net=0, refunded=1882, owner=[])

    def test_that_the_machine_gives_up_gives_everything_back(
        self, market: Market, host: Host
    ) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        failed = protocol.LeaseStatus(
            lease_id=grant.lease_id, lease_epoch=1, state=protocol.LeaseState.FAILED, detail="no"
        )
        host.report(at=NOON, leases=[failed])
        market.tick_at(NOON + seconds(1))
        assert market.reservation(reservation)["status"] == "failed"
        assert_settled(market, reservation, net=0, refunded=1882, owner=[])

    def test_of_half_the_machines_costs_half(self, market: Market) -> None:
        hosts = {host.node_id: host for host in (market.add_host(gpus=4), market.add_host(gpus=4))}
        market.list_everything()
        reservation = market.buy(gpus=8)
        # 16 GPU-hours are 37.647072. The first lease's promise ends with its ten minutes: 156.9 → 157 of
        # 3765, and the two up to the second's end 2039.4 → 2039: the second bought 1882.
        assert reservation["total"]["amount_minor"] == 3765
        grants = {grant.lease_id: grant for grant in started(market, *hosts.values())}
        first, second = Lease.objects.order_by("pk")
        grant, machine = grants[second.pk], hosts[second.node_id]
        hand_over(market, machine, grant, at=NOON)
        market.tick_at(NOON + minutes(10))
        first.refresh_from_db()
        assert (first.status, market.reservation(reservation)["status"]) == ("failed", "active")
        market.tick_at(TWO)
        give_back(market, machine, grant)
        # The second lease earned 1882, fee 282.3 → 282.
        assert_settled(market, reservation, net=1882, refunded=1883, owner=[1600])

    def test_before_the_window_is_charged_from_its_start(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON - minutes(2), heard_at=NOON + seconds(5))
        market.tick_at(TWO)
        give_back(market, host, grant, since=NOON - minutes(2), at=TWO + minutes(3))
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_is_never_charged_before_the_machine_was_asked(
        self, market: Market, host: Host
    ) -> None:
        """Nobody ticked for ten minutes, and the machine's clock is four minutes behind."""
        reservation = market.buy(gpus=4)
        asked_at = NOON + minutes(12)
        (grant,) = started(market, host, at=asked_at)
        hand_over(market, host, grant, at=asked_at - minutes(4), heard_at=asked_at + seconds(5))
        market.tick_at(TWO)
        give_back(market, host, grant, since=asked_at)
        # 108 of 120 minutes: 1693.8 → 1694, fee 254.1 → 254.
        assert_settled(market, reservation, net=1694, refunded=188, owner=[1440])


class TestReturn:
    def test_that_nobody_confirms_is_not_settled_until_the_machine_tells(
        self, market: Market, host: Host
    ) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        half_past_one = NOON + minutes(90)
        market.go_to(half_past_one)
        host.report(at=half_past_one, meters=host.meters(grant, since=NOON, until=half_past_one))
        market.tick_at(TWO)
        market.tick_at(TWO + minutes(10) - seconds(1))
        assert Lease.objects.get().status == "returning"
        market.tick_at(TWO + minutes(10))
        assert Lease.objects.get().status == "ended"
        assert Gpu.objects.exclude(quarantined_by_market="").count() == 4

        # An hour later the machine is back, and the tenants of the market cannot buy its four GPUs ...
        market.go_to(TWO + minutes(70))
        market.tick()
        assert market.bill(reservation)["final"] is False
        host.report(at=market.at)
        shown = market.tenant_api.get("/v1/gpu-models").json["data"]
        assert {m["id"]: m["gpus_free_now"] for m in shown}["h100-sxm-80gb"] == 4
        # ... until it says that the tenant is gone and nothing is left of it.
        give_back(market, host, grant, since=half_past_one, heard_at=market.at)
        market.tick_at(market.at)
        shown = market.tenant_api.get("/v1/gpu-models").json["data"]
        assert {m["id"]: m["gpus_free_now"] for m in shown}["h100-sxm-80gb"] == 8

        # Its receipt and the minutes that came with it say that all of it was delivered.
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_that_was_said_an_hour_later_but_in_time_for_the_tick_counts_in_full(
        self, market: Market, host: Host
    ) -> None:
        """The market itself was away over the end: its first tick finds machine and receipt there."""
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        give_back(market, host, grant, heard_at=TWO + minutes(60))
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_before_the_handover_means_that_nothing_was_delivered(
        self, market: Market, host: Host
    ) -> None:
        """The clock of the machine was set back between its two receipts."""
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON + minutes(4))
        market.go_to(NOON + minutes(5))
        receipt = host.receipt(grant, RETURN, at=NOON + minutes(1))
        host.report(at=market.at, receipts=[receipt])
        market.tick_at(TWO)
        assert market.reservation(reservation)["status"] == "completed"
        assert_settled(market, reservation, net=0, refunded=1882, owner=[])

    def test_at_the_instant_of_the_handover_costs_nothing(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON + seconds(30))
        market.go_to(NOON + seconds(40))
        host.report(at=market.at, receipts=[host.receipt(grant, RETURN, at=NOON + seconds(30))])
        market.tick_at(TWO)
        assert_settled(market, reservation, net=0, refunded=1882, owner=[])

    def test_of_dirty_gpus_takes_them_off_the_market(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        market.tick_at(TWO)
        give_back(market, host, grant, clean=False)
        assert Gpu.objects.exclude(quarantined_by_market="").count() == 4
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])
