"""What may befall a lease on its way: odd meters, repetition, nobody awake, the next tenant, promises."""

import pytest

from agents import protocol
from agents.models import MeterReading, Receipt
from billing.models import Settlement
from scheduler.models import Lease, Reservation
from tests.journeys.one_lease.steps import (
    assert_settled,
    give_back,
    hand_over,
    minutes,
    seconds,
    started,
)
from tests.journeys.wire import HANDOVER, MORNING, NOON, RETURN, TWO, Host, Market

pytestmark = pytest.mark.django_db


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
