"""One lease from the machine's enrolment to the owner's payout, and every way in which it can go wrong.

The sums are worked out by hand. The floor is 2.00 per GPU-hour and the fee 15 %, so a GPU-hour costs
2.00 / 0.85 = 2.352942, rounded up; four GPUs for two hours are 18.823536, that is 1882 cents.
"""

import datetime as dt
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import time_machine

from agents import protocol
from agents.models import Gpu, MeterReading, Receipt
from billing.models import Settlement
from scheduler.models import Lease, Reservation
from tests.journeys.wire import HANDOVER, MORNING, NOON, RETURN, TWO, Host, Market

pytestmark = pytest.mark.django_db


def seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)


def minutes(number: float) -> dt.timedelta:
    return dt.timedelta(minutes=number)


@pytest.fixture
def market() -> Iterator[Market]:
    with time_machine.travel(MORNING, tick=False) as clock:
        yield Market(clock=clock)


@pytest.fixture
def host(market: Market) -> Host:
    """Return the only machine, with eight GPUs, all listed."""
    host = market.add_host(gpus=8)
    market.list_everything()
    return host


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
    def test_that_nobody_confirms_is_charged_as_far_as_the_meters_go(
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
        host.report(at=market.at)
        shown = market.tenant_api.get("/v1/gpu-models").json["data"]
        assert {m["id"]: m["gpus_free_now"] for m in shown}["h100-sxm-80gb"] == 4
        # ... until it says that the tenant is gone and nothing is left of it.
        give_back(market, host, grant, since=half_past_one, heard_at=market.at)
        market.tick_at(market.at)
        shown = market.tenant_api.get("/v1/gpu-models").json["data"]
        assert {m["id"]: m["gpus_free_now"] for m in shown}["h100-sxm-80gb"] == 8

        # 90 of 120 minutes: 1411.5 → 1412, fee 211.8 → 212. The late receipt changes nothing.
        assert_settled(market, reservation, net=1412, refunded=470, owner=[1200])

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


class TestMeters:
    def test_of_a_gpu_that_was_lost_are_not_paid_for(self, market: Market, host: Host) -> None:
        """One of four GPUs fell off the bus at one o'clock: 3 × 7200 + 3600 of 28800 seconds."""
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        market.tick_at(TWO)
        lost, one = grant.gpu_uuids[:1], NOON + minutes(60)
        host.report(
            at=TWO,
            meters=[
                *host.meters(grant, since=NOON, until=TWO, gpu_uuids=grant.gpu_uuids[1:]),
                *host.meters(grant, since=NOON, until=one, gpu_uuids=lost),
                *host.meters(grant, since=one, until=TWO, gpu_uuids=lost, is_up=False),
            ],
            receipts=[host.receipt(grant, RETURN, at=TWO)],
        )
        market.tick()
        assert Settlement.objects.get().gpu_seconds_delivered == 25_200
        # 1882 × 7 ÷ 8 = 1646.75 → 1647, fee 247.05 → 247.
        assert_settled(market, reservation, net=1647, refunded=235, owner=[1400])

    def test_beyond_the_receipts_count_for_nothing(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON + minutes(6))
        market.tick_at(TWO)
        give_back(market, host, grant, since=NOON, at=TWO + minutes(4))
        # 114 of 120 minutes: 1787.9 → 1788, fee 268.2 → 268; half of 4 × 6840 seconds was busy.
        settlement = Settlement.objects.get()
        assert (settlement.gpu_seconds_delivered, settlement.gpu_seconds_busy) == (27_360, 13_680)
        assert_settled(market, reservation, net=1788, refunded=94, owner=[1520])

    def test_are_waited_for_but_not_for_ever(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        market.tick_at(TWO)
        host.report(at=TWO, receipts=[host.receipt(grant, RETURN, at=TWO)])
        market.tick()
        assert not Settlement.objects.exists()
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])


class TestRepetition:
    def test_of_reports_and_receipts_counts_once(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        early = host.body(at=NOON, sequence=host.sequence + 1)
        host.sequence += 1
        hand_over(market, host, grant, at=NOON)
        sent = host.last_body
        for body in (sent, early, sent):
            answer = host.send(body=body, at=market.at)
            assert (answer.status_code, answer.json()["code"]) == (409, "report_replayed")
        # The machine does not know that it was heard and says it again, with another instant.
        again = host.receipt(grant, HANDOVER, at=NOON + minutes(30))
        market.go_to(NOON + minutes(30))
        host.report(at=market.at, receipts=[again, again])
        market.tick()

        market.tick_at(TWO)
        meters = host.meters(grant, since=NOON, until=TWO)
        final = host.receipt(grant, RETURN, at=TWO)
        for _ in range(3):
            host.report(at=TWO, meters=meters, receipts=[final])
        market.tick()

        assert (Receipt.objects.count(), MeterReading.objects.count()) == (2, 48)
        assert Settlement.objects.get().gpu_seconds_busy == 14_400
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])


class TestNobodyTicked:
    def test_for_the_whole_window_gives_everything_back(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        market.tick_at(TWO + minutes(10))
        assert market.reservation(reservation)["status"] == "failed"
        assert not Lease.objects.exists()
        assert host.report(at=market.at) == []
        assert_settled(market, reservation, net=0, refunded=1882, owner=[])

    def test_after_the_handover_ends_and_settles_in_one_go(
        self, market: Market, host: Host
    ) -> None:
        reservation = market.buy(gpus=4)
        (grant,) = started(market, host)
        market.go_to(NOON + seconds(5))
        host.report(at=market.at, receipts=[host.receipt(grant, HANDOVER, at=NOON)])
        give_back(market, host, grant, heard_at=TWO + minutes(11))
        market.tick_at(TWO + minutes(11) + seconds(1))
        market.tick_at(TWO + minutes(11) + seconds(2))
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])


class TestTheNextTenant:
    def test_begins_on_the_same_gpus_at_the_instant_the_last_one_ends(
        self, market: Market, host: Host
    ) -> None:
        first = market.buy(gpus=8)
        second = market.buy(gpus=8, starts_at=TWO, ends_at=TWO + minutes(60))
        # 16 and 8 GPU-hours; the price counts what is booked in the same window, which is nothing.
        assert [r["total"]["amount_minor"] for r in (first, second)] == [3765, 1882]
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)

        market.go_to(TWO)
        market.start()
        assert [lease.status for lease in Lease.objects.order_by("starts_at")] == [
            "returning",
            "provisioning",
        ]
        old, new = host.report(at=TWO)
        assert (old.lease_id, old.desired_state) == (grant.lease_id, protocol.DesiredState.STOP)
        assert new.desired_state is protocol.DesiredState.RUN
        assert sorted(new.gpu_uuids) == sorted(old.gpu_uuids)

        give_back(market, host, grant, heard_at=TWO + seconds(20))
        hand_over(market, host, new, at=TWO + seconds(45))
        three = TWO + minutes(60)
        market.tick_at(three)
        give_back(market, host, new, since=TWO + seconds(45), at=three)
        market.tick_at(three + minutes(2))
        assert market.bill(first)["net"]["amount_minor"] == 3765
        # 3555 of 3600 seconds: 1858.475 → 1858, fee 278.7 → 279; the first fee is 564.75 → 565.
        assert market.bill(second)["net"]["amount_minor"] == 1858
        # The refund of 24 comes with a tenth of it.
        assert market.wallet_minor() == 1_000_000 - 3765 - 1858 + 2
        # 7.9 GPU-hours at the floor are 1580: the fee gives way by the half cent that rounding took.
        assert market.payouts_minor() == [1580, 3200]
        market.assert_books_are_sound()


class TestPromises:
    def test_are_kept_by_a_machine_that_drains(self, market: Market, host: Host) -> None:
        reservation = market.buy(gpus=4)
        market.post(market.owner_api, f"/v1/nodes/{host.node_id}/drain")
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        market.tick_at(TWO)
        give_back(market, host, grant)
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_outlive_the_listing_that_made_them(self, market: Market) -> None:
        host = market.add_host(gpus=8)
        listing = market.list_everything()
        held, plain = market.quote(gpus=4, hold=True), market.quote(gpus=4)
        market.post(market.owner_api, f"/v1/listings/{listing['id']}/retire")
        body = {"quote_id": held["id"], "payment_method": "wallet"}
        reservation = market.post(market.tenant_api, "/v1/reservations", body)
        refused = market.tenant_api.post(
            "/v1/reservations", {**body, "quote_id": plain["id"]}, key="plain"
        )
        assert (refused.status, refused.code) == (409, "capacity_taken")
        (grant,) = started(market, host)
        hand_over(market, host, grant, at=NOON)
        market.tick_at(TWO)
        give_back(market, host, grant)
        assert_settled(market, reservation, net=1882, refunded=0, owner=[1600])

    def test_of_a_hold_end_with_it(self, market: Market, host: Host) -> None:
        quote = market.quote(gpus=8, hold=True)
        market.go_to(MORNING + minutes(10))
        host.report(at=market.at)
        body = {"quote_id": quote["id"], "payment_method": "wallet"}
        late = market.tenant_api.post("/v1/reservations", body, key="late")
        assert (late.status, late.code) == (410, "quote_expired")
        # The sweep has not run: the next buyer ends the hold itself.
        assert market.buy(gpus=8)["status"] == "scheduled"
        assert Reservation.objects.count() == 1
        market.assert_books_are_sound()
