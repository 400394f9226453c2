"""Reclaim: notice, deadline, compensation, and who may leave when."""

import datetime as dt
from typing import Any

import pytest

from agents.models import Gpu, Grant, Node
from agents.protocol import DesiredState
from marketplace import listings
from marketplace.core.errors import NotFound, StateConflict
from marketplace.core.money import Money
from marketplace.core.windows import Window
from marketplace.listings import ListingFields, ReclaimNoticeRefused
from marketplace.models import Event, Organization
from marketplace.states import EventKind, Tier
from scheduler import cancellations, leases, reclaims, replacements, reservations
from scheduler.compensation import compensation_for
from scheduler.leases import RETURN_GRACE_SECONDS
from scheduler.lots import Lots
from scheduler.models import Allocation, Lease, Reclaim, Reservation
from scheduler.reclaims import REMINDER_SECONDS, NotReclaimable, ReclaimTooLate
from scheduler.states import LeaseReason, LeaseStatus, ReservationReason, ReservationStatus
from tests.scheduler.factories import (
    MODEL,
    NOW,
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    say_handed_over,
    say_returned,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


def make_reclaimable(*, notice: float = 24) -> Organization:
    owner = make_organization()
    make_node(owner=owner)
    make_listing(owner=owner, tier=Tier.RECLAIMABLE, reclaim_notice_seconds=round(notice * 3600))
    return owner


def an_active_lease(*, length: float = 72, **changes: Any) -> Lease:
    lease = make_lease(
        gpus=2, window=window_in(24, length=length), tier=Tier.RECLAIMABLE, **changes
    )
    say_handed_over(lease)
    tick(lease.starts_at + seconds(5))
    lease.refresh_from_db()
    assert lease.status == LeaseStatus.ACTIVE
    return lease


def tick(at: dt.datetime) -> None:
    Node.objects.update(last_report_at=at)
    reclaims.advance(at=at)
    leases.advance(at=at)
    replacements.advance(at=at)
    reservations.finish_due(at=at)


def reclaim(lease: Lease, *, at: dt.datetime, owner: Organization | None = None) -> Reclaim:
    return reclaims.reclaim(
        owner=owner or lease.node.organization, lease_id=lease.pk, at=at, actor="owner"
    )


class TestAkashScenarioReclaimNotice:
    """Akash, x/market reclamation tests: the deadline is noticed, kept, and enforced by the market itself."""

    def test_a_notice_of_a_day_ends_the_lease_a_day_later_though_nobody_calls_again(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        at = lease.starts_at + hours(10)

        made = reclaim(lease, at=at)

        assert made.due_at == at + hours(24)
        tick(made.due_at - seconds(1))
        assert Grant.objects.get().desired_state == DesiredState.RUN
        tick(made.due_at)
        assert Grant.objects.get().desired_state == DesiredState.STOP
        say_returned(lease, at=made.due_at + seconds(3))
        tick(made.due_at + seconds(4))
        lease.refresh_from_db()
        assert (lease.status, lease.returned_at) == (LeaseStatus.ENDED, made.due_at)
        moved = Reservation.objects.get().transitions.get(to_status=ReservationStatus.RECLAIMED)
        assert moved.reason == ReservationReason.OWNER_RECLAIMED
        assert not Allocation.objects.filter(live=True).exists()

    def test_the_owner_cannot_end_it_before_the_deadline(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))

        with pytest.raises(StateConflict):
            reclaim(lease, at=made.notice_at + hours(12))

        lease.refresh_from_db()
        assert (lease.status, lease.ends_at) == (LeaseStatus.RECLAIMING, made.due_at)
        assert Reclaim.objects.get().due_at == made.due_at

    def test_a_machine_that_gives_the_gpus_back_before_the_deadline_interrupts_it(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))
        say_returned(lease, at=made.notice_at + hours(12))

        tick(made.notice_at + hours(12) + seconds(1))

        assert lease.transitions.latest("pk").reason == LeaseReason.RETURNED_UNASKED

    @pytest.mark.parametrize("notice", [dt.timedelta(seconds=1), dt.timedelta(hours=10_000)])
    def test_a_notice_is_an_hour_at_least_and_a_month_at_most(self, notice: dt.timedelta) -> None:
        owner = make_reclaimable()
        fields = ListingFields(
            name="too short or too long",
            gpu_model=MODEL,
            starts_at=NOW,
            floor_rate=owner.listings.get().floor_rate,
            tier=Tier.RECLAIMABLE,
            reclaim_notice=notice,
        )
        with pytest.raises(ReclaimNoticeRefused):
            listings.create(organization=owner, fields=fields, at=NOW, actor="owner")

    def test_the_full_price_runs_during_the_notice(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))

        tick(made.due_at)
        say_returned(lease, at=made.due_at)
        tick(made.due_at + seconds(1))

        lease.refresh_from_db()
        assert lease.gpu_seconds_bought == 2 * 34 * 3600


class TestReclaim:
    def test_is_refused_for_a_firm_lease(self) -> None:
        owner = make_organization()
        make_node(owner=owner)
        make_listing(owner=owner)
        lease = make_lease(gpus=2)
        say_handed_over(lease)
        tick(lease.starts_at + seconds(5))

        with pytest.raises(NotReclaimable):
            reclaim(lease, at=lease.starts_at + hours(1))

    def test_is_refused_to_a_stranger_as_if_there_were_no_lease(self) -> None:
        make_reclaimable()
        lease = an_active_lease()

        with pytest.raises(NotFound):
            reclaim(lease, at=lease.starts_at + hours(1), owner=make_organization())

    def test_is_refused_before_the_handover(self) -> None:
        make_reclaimable()
        lease = make_lease(gpus=2, tier=Tier.RECLAIMABLE, window=window_in(24, length=72))

        with pytest.raises(StateConflict):
            reclaim(lease, at=lease.starts_at + seconds(1))

    def test_is_refused_when_the_lease_ends_by_itself_before(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease(length=24)

        with pytest.raises(ReclaimTooLate):
            reclaim(lease, at=lease.starts_at + hours(1))

    def test_keeps_the_notice_that_was_promised_when_it_was_sold(self) -> None:
        owner = make_reclaimable(notice=24)
        lease = an_active_lease()
        listings.update(
            listing=owner.listings.get(),
            changes={"reclaim_notice": hours(1)},
            at=NOW,
            actor="owner",
        )

        made = reclaim(lease, at=lease.starts_at + hours(10))

        assert made.due_at - made.notice_at == hours(24)

    def test_tells_the_tenant_once_of_the_notice_and_once_of_the_end(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))
        told = Event.objects.filter(organization=lease.reservation.organization)

        for minute in range(0, 24 * 60 + 30, 10):
            tick(made.notice_at + seconds(60 * minute))

        announced = told.get(kind=EventKind.LEASE_RECLAIM_ANNOUNCED)
        assert announced.object_id == lease.pk
        ending = told.get(kind=EventKind.LEASE_END_ANNOUNCED)
        assert ending.at == made.due_at - seconds(REMINDER_SECONDS)

    def test_computes_what_the_owner_owes_of_what_is_left(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))

        rest = Window(made.due_at, lease.ends_at)
        lots = Lots.from_json(lease.reservation.lots)
        left = lots.amount(window=rest, currency="usd")
        assert rest.seconds == 38 * 3600
        assert made.remaining_minor == left.amount_minor > 0
        assert (
            made.compensation_minor
            == compensation_for(remaining=left, basis_points=2_500).amount_minor
        )

    def test_withdraws_gpus_that_do_not_come_back(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))
        tick(made.due_at)
        tick(made.due_at + seconds(RETURN_GRACE_SECONDS - 1))
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.RECLAIMING

        tick(made.due_at + seconds(RETURN_GRACE_SECONDS))

        assert lease.transitions.latest("pk").reason == LeaseReason.RETURN_UNCONFIRMED
        withdrawn = Gpu.objects.exclude(quarantined_by_market="").values_list("uuid", flat=True)
        assert sorted(withdrawn) == sorted(lease.gpu_uuids)

    def test_is_enforced_once_though_the_tick_runs_again(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))

        assert reclaims.enforce_due(at=made.due_at) == 1
        assert reclaims.enforce_due(at=made.due_at) == 0
        assert reclaims.enforce_due(at=made.due_at + hours(5)) == 0

    def test_is_enforced_late_when_the_market_was_away(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))

        tick(lease.ends_at + hours(50))

        assert Grant.objects.get().desired_state == DesiredState.STOP
        say_returned(lease, at=made.due_at)
        tick(lease.ends_at + hours(51))
        assert Reservation.objects.get().status == ReservationStatus.RECLAIMED


class TestTenant:
    def test_may_leave_at_once_and_keeps_its_compensation(self) -> None:
        make_reclaimable(notice=24)
        lease = an_active_lease()
        made = reclaim(lease, at=lease.starts_at + hours(10))
        tenant, reservation_id = lease.reservation.organization, lease.reservation_id
        at = made.notice_at + seconds(60)
        quote = cancellations.quote(organization=tenant, reservation_id=reservation_id, at=at)
        assert quote.fee_minor == 0

        cancellations.cancel(
            organization=tenant,
            reservation_id=reservation_id,
            quote_id=quote.pk,
            at=at,
            actor="tenant",
        )

        assert Grant.objects.get().desired_state == DesiredState.STOP
        say_returned(lease, at=at + seconds(5))
        tick(at + seconds(6))
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ENDED
        assert lease.returned_at is not None
        assert at <= lease.returned_at <= at + seconds(5)
        assert lease.transitions.latest("pk").reason == LeaseReason.RETURNED
        assert Reclaim.objects.get().compensation_minor == made.compensation_minor
        assert Reservation.objects.get().status == ReservationStatus.RECLAIMED


@pytest.mark.parametrize(("remaining", "owed"), [(0, 0), (1, 0), (2, 0), (3, 1), (10_000, 2_500)])
def test_a_quarter_of_what_is_left_is_owed_to_the_minor_unit(remaining: int, owed: int) -> None:
    assert compensation_for(remaining=Money(remaining, "usd"), basis_points=2_500) == Money(
        owed, "usd"
    )
