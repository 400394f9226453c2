"""What counts as sold again: which GPUs, which time, bought when and by whom, and delivered."""

import datetime as dt
from typing import Any

import pytest

from agents.models import Gpu, Node
from billing import changes
from billing.models import FeeShare, Resale, ResalePart, Settlement
from billing.states import AccountKind
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import cancellations, extensions, leases, reclaims, reservations
from scheduler.models import Allocation, Reservation
from tests.billing import bookings
from tests.billing.bookings import leave
from tests.billing.readings import purse
from tests.billing.resales import market as resold
from tests.billing.resales.market import KEPT, buy, deliver, holds, release, slices
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, window_in

pytestmark = pytest.mark.django_db


def margin() -> int:
    return resold.shared(AccountKind.RESALE_MARGIN)


class TestWhatWasSoldAgain:
    def test_is_nothing_where_nobody_bought_it(self, left: Reservation) -> None:
        deliver(buy(window=window_in(60)))
        release()
        assert slices() == []
        assert purse(left.organization) == KEPT

    def test_is_the_part_of_it_that_another_window_and_fewer_gpus_have(
        self, left: Reservation
    ) -> None:
        settled = deliver(buy(gpus=4, window=window_in(49)))
        release()
        part = ResalePart.objects.get()
        assert (part.gpu_seconds, part.slots.upper - part.slots.lower) == (4 * 3600, 4)
        assert (part.period.lower, part.period.upper) == (NOW + hours(49), NOW + hours(50))
        # A quarter of 1600, and half of what the four GPUs earned.
        assert slices() == [(settled.owner_minor // 2, 400, 400, 320)]
        holds()

    def test_is_divided_over_two_buyers_without_rest(self, left: Reservation) -> None:
        for gpus in (3, 5):
            deliver_at = buy(gpus=gpus)
            resold.start(deliver_at)
        for reservation in Reservation.objects.filter(status="active"):
            resold.finish(reservation)
        release()
        assert sorted(each[1] for each in slices()) == [600, 1000]
        assert sum(each[2] for each in slices()) == 1600
        assert purse(left.organization) == KEPT + 1280
        assert margin() == 320
        holds()

    def test_is_divided_to_the_yen_over_many_buyers(self, settings: Any) -> None:
        settings.CURRENCY = "jpy"
        resold.a_node(currency="jpy")
        window = window_in(8 * 24, length=3)
        leave(buy(by=bookings.a_tenant(currency="jpy"), window=window))
        assert FeeShare.objects.get().amount_minor == 12  # for 8 GPUs: one and a half for each
        sold = [
            buy(by=bookings.a_tenant(currency="jpy"), gpus=gpus, window=window)
            for gpus in (1, 1, 1, 1, 4)
        ]
        for reservation in sold:
            resold.start(reservation)
        for reservation in sold:
            resold.finish(reservation)
        release()
        assert len(slices()) == 5
        assert sum(each[1] for each in slices()) == 12
        assert sum(each[3] for each in slices()) == 10
        assert resold.shared(AccountKind.RESALE_MARGIN, currency="jpy") == 2
        holds()

    def test_is_divided_over_two_who_left_parts_of_it(self, owner: Organization) -> None:
        first, second = buy(gpus=3), buy(gpus=5)
        leave(first)
        leave(second)
        of_fee = {row.change.reservation_id: row.amount_minor for row in FeeShare.objects.all()}
        deliver(buy())
        release()
        taken = {
            row.fee_share.change.reservation_id: row.taken_minor for row in Resale.objects.all()
        }
        assert taken == of_fee
        assert len(taken) == 2
        assert sum(each[0] for each in slices()) == 3200
        holds()

    def test_counts_for_the_last_who_left_it(self, left: Reservation) -> None:
        again = buy()
        leave(again)
        deliver(buy())
        release()
        assert Resale.objects.get().fee_share.change.reservation == again
        assert purse(left.organization) == KEPT
        assert purse(again.organization) == KEPT + 1280
        holds()

    def test_counts_for_the_one_before_where_the_last_left_for_nothing(
        self, left: Reservation
    ) -> None:
        again = buy()
        quote = cancellations.quote(
            organization=again.organization,
            reservation_id=again.pk,
            at=NOW,
            fee_basis_points=0,
        )
        changes.cancel(
            organization=again.organization,
            reservation_id=again.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        deliver(buy())
        release()
        assert Resale.objects.get().fee_share.change.reservation == left

    def test_is_no_share_of_what_its_tenant_bought_again_itself(self, left: Reservation) -> None:
        deliver(buy(by=left.organization))
        release()
        assert slices() == []
        assert margin() == 0

    def test_is_nothing_of_what_had_been_bought_before_it_was_left(
        self, owner: Organization
    ) -> None:
        reservation, sold = buy(gpus=4), buy(gpus=4)
        change = leave(reservation, at=NOW + hours(1))
        # Whoever had its hours already is moved onto the GPUs that were left: nothing was sold again.
        place = change.released_places.get()
        Allocation.objects.filter(reservation=sold, live=True).update(slots=place.slots)
        (lease,) = resold.start(sold)
        slots = Gpu.objects.filter(uuid__in=lease.gpu_uuids).values_list("slot", flat=True)
        assert set(slots) == set(range(place.slots.lower, place.slots.upper))
        resold.finish(sold)
        release()
        assert slices() == []

    def test_has_hours_that_an_extension_bought(self, owner: Organization) -> None:
        later = buy(window=window_in(50))
        sold = buy()
        leave(later, at=NOW + hours(1))
        at = NOW + hours(46)
        Node.objects.update(last_report_at=at)
        quote = extensions.quote(
            organization=sold.organization,
            reservation_id=sold.pk,
            ends_at=NOW + hours(51),
            max_rate=None,
            at=at,
        )
        changes.extend(
            organization=sold.organization,
            reservation_id=sold.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=at,
            actor="test",
        )
        sold.refresh_from_db()
        deliver(sold)
        release()
        part = ResalePart.objects.get()
        assert (part.period.lower, part.period.upper) == (NOW + hours(50), NOW + hours(51))
        assert slices()[0][1:] == (800, 800, 640)
        holds()


class TestWhatWasDeliveredAgain:
    def test_is_what_counts(self, left: Reservation) -> None:
        sold = buy()
        (lease,) = resold.start(sold)
        resold.lose_a_gpu(lease, seconds=3600)
        resold.finish(sold)
        release()
        assert ResalePart.objects.get().gpu_seconds == 15 * 3600
        assert slices()[0][1:] == (1500, 1500, 1200)
        holds()

    def test_is_nothing_of_a_lease_that_was_never_handed_over(self, left: Reservation) -> None:
        sold = buy()
        Node.objects.update(last_report_at=sold.starts_at)
        reservations.start_due(at=sold.starts_at)
        leases.advance(at=sold.starts_at + hours(1))
        resold.finish(sold)
        release()
        assert Settlement.objects.get().gpu_seconds_delivered == 0
        assert slices() == []

    def test_ends_where_the_next_tenant_leaves_too(self, left: Reservation) -> None:
        sold = buy()
        resold.start(sold)
        early = leave(sold, at=NOW + hours(49))
        resold.finish(sold, at=NOW + hours(49) + dt.timedelta(seconds=1))
        # The rest of the time was left by the second tenant, at the price of all of it.
        assert [p.period.upper for p in early.released_places.all()] == [NOW + hours(50)]
        release()
        (found,) = slices()
        assert Resale.objects.get().gpu_seconds == 8 * 3601
        assert found[1:3] == (800, 800)
        assert purse(left.organization) == KEPT + 640
        holds()

    def test_is_sold_a_third_time_after_an_early_return(self, owner: Organization) -> None:
        first = buy(window=window_in(48, length=6))
        resold.start(first)
        early = leave(first, at=NOW + hours(49))
        resold.finish(first, at=NOW + hours(49) + dt.timedelta(seconds=1))
        share = FeeShare.objects.get(change=early)
        sold = buy(window=window_in(50, length=2), at=NOW + hours(49.5))
        deliver(sold)
        release()
        row = Resale.objects.get()
        assert row.fee_share == share
        assert row.gpu_seconds == 8 * 7200
        part = share.amount_minor * row.worth_micro_seconds / early.given_back_by_owner[owner.pk]
        assert row.fee_part_minor == round(part)
        holds()

    def test_of_a_shortened_window_is_what_was_cut_off(self, owner: Organization) -> None:
        first = buy(window=window_in(48, length=4))
        bookings.rebook(first, window=window_in(48, length=2))
        deliver(buy(window=window_in(50, length=2)))
        release()
        row = Resale.objects.get()
        assert row.fee_part_minor == FeeShare.objects.get().amount_minor == row.taken_minor
        assert row.gpu_seconds == 8 * 7200
        holds()

    def test_of_a_moved_window_is_the_old_one(self, owner: Organization) -> None:
        first = buy(window=window_in(48, length=4))
        bookings.rebook(first, window=window_in(60, length=2))
        assert FeeShare.objects.get().amount_minor > 0
        deliver(buy(window=window_in(48, length=4)))
        release()
        row = Resale.objects.get()
        assert row.fee_part_minor == FeeShare.objects.get().amount_minor
        assert row.gpu_seconds == 8 * 4 * 3600
        holds()


class TestWhatItsBuyerLostAgain:
    """Nothing is owed for time that was bought again and not delivered to the end."""

    @pytest.fixture
    def reclaimable(self, owner: Organization) -> Reservation:
        """Return what bought again, from 48 hours on, the two hours that a tenant had left for a fee."""
        leave(buy())
        factories.make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=600)
        sold = buy(tier=Tier.RECLAIMABLE)
        resold.start(sold)
        return sold

    def leaver(self) -> Reservation:
        return FeeShare.objects.get().change.reservation

    def test_is_no_part_of_it_where_the_owner_took_the_lease_back(
        self, owner: Organization, reclaimable: Reservation
    ) -> None:
        lease = reclaimable.leases.get()
        at = lease.starts_at + dt.timedelta(seconds=3000)
        taken = reclaims.reclaim(owner=owner, lease_id=lease.pk, at=at, actor="test")
        assert taken.due_at == lease.starts_at + hours(1)
        reclaims.enforce_due(at=taken.due_at)
        resold.finish(reclaimable, at=taken.due_at)
        settled = Settlement.objects.get()
        assert settled.lease.reservation.status == "reclaimed"
        assert settled.gpu_seconds_delivered == 8 * 3600
        release()
        (found,) = slices()
        # Half of the time, and of what the owner earned by it what it owes who was sent away is out.
        assert found == (settled.owner_minor - settled.credit_of_owner_minor, 800, 800, 640)
        part = ResalePart.objects.get()
        assert (part.period.lower, part.period.upper) == (lease.starts_at, taken.due_at)
        assert purse(self.leaver().organization) == KEPT + 640
        holds()

    def test_is_nothing_where_its_node_did_not_hand_it_over(self, left: Reservation) -> None:
        sold = buy()
        Node.objects.update(last_report_at=sold.starts_at)
        reservations.start_due(at=sold.starts_at)
        factories.say_failed(sold.leases.get())
        leases.advance(at=sold.starts_at + hours(1))
        resold.finish(sold)
        release()
        assert (Settlement.objects.get().owner_minor, slices()) == (0, [])
        assert purse(left.organization) == KEPT
        holds()

    def test_is_nothing_where_all_of_it_was_lost(self, left: Reservation) -> None:
        sold = buy()
        (lease,) = resold.start(sold)
        for uuid in lease.gpu_uuids:
            resold.lose_a_gpu(lease, seconds=7200, uuid=uuid)
        resold.finish(sold)
        release()
        assert Settlement.objects.get().gpu_seconds_delivered == 0
        assert slices() == []
        assert (purse(left.organization), purse(sold.organization) > KEPT) == (KEPT, True)
        holds()

    def test_can_be_bought_a_third_time_and_counts_then(
        self, owner: Organization, reclaimable: Reservation
    ) -> None:
        lease = reclaimable.leases.get()
        at = lease.starts_at + dt.timedelta(seconds=1200)
        taken = reclaims.reclaim(owner=owner, lease_id=lease.pk, at=at, actor="test")
        reclaims.enforce_due(at=taken.due_at)
        resold.finish(reclaimable, at=taken.due_at)
        again = buy(window=window_in(49, length=1), at=NOW + hours(48.75))
        deliver(again)
        release()
        counted = sorted(
            Resale.objects.values_list("settlement__lease__reservation_id", "gpu_seconds")
        )
        assert counted == sorted([(reclaimable.pk, 8 * 1800), (again.pk, 8 * 3600)])
        # A quarter of the time, in which the owner earned 800 and owes 706 for the rest; and all of a half.
        assert slices() == [(94, 400, 94, 75), (1600, 800, 800, 640)]
        assert purse(self.leaver().organization) == KEPT + 715
        holds()
