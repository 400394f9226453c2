"""What the peers' own tests and their users' complaints ask of the life of a reservation, by their source."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

import pytest
from django.db import OperationalError

from agents import inventory
from agents.models import Gpu, Grant, Node
from agents.protocol import DesiredState
from marketplace import listings
from marketplace.models import Event
from marketplace.states import EventKind
from scheduler import extensions, leases, openings, replacements, reservations, warnings
from scheduler.details import ReservationDetails
from scheduler.leases import HANDOVER_DEADLINE_SECONDS
from scheduler.models import Allocation, Lease, Reservation
from scheduler.states import LeaseStatus, ReservationReason, ReservationStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_handed_over,
    say_returned,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


def tick(at: dt.datetime) -> None:
    Node.objects.update(last_report_at=at)
    leases.advance(at=at)
    replacements.advance(at=at)
    reservations.finish_due(at=at)
    reservations.start_due(at=at)


class TestBlazarManagerRetryThenError:
    """Blazar, test_manager `test_exec_event_retry`, `…_no_more_retry`, `test_event_pass`."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> list[type[Exception]]:
        """Let every start raise the first error of the list while there is one."""
        errors: list[type[Exception]] = [RuntimeError]
        open_all = openings.open_all

        def fragile(*, reservations: Sequence[Reservation], at: dt.datetime) -> list[Lease]:
            if errors:
                raise errors[0]("a bug")
            return open_all(reservations=reservations, at=at)

        monkeypatch.setattr(openings, "open_all", fragile)
        return errors

    def test_a_start_that_fails_a_second_after_it_was_due_is_tried_again(
        self, broken: list[type[Exception]]
    ) -> None:
        make_pool()
        reservation = make_reservation()

        assert reservations.start_due(at=reservation.starts_at + seconds(1)) == 0
        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.SCHEDULED

        broken.clear()
        assert reservations.start_due(at=reservation.starts_at + seconds(2)) == 1

    @pytest.mark.usefixtures("broken")
    def test_a_start_that_fails_for_as_long_as_a_handover_may_take_releases_the_tenant(
        self,
    ) -> None:
        make_pool()
        reservation = make_reservation()

        reservations.start_due(at=reservation.starts_at + seconds(HANDOVER_DEADLINE_SECONDS))

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.FAILED
        moved = reservation.transitions.get(to_status=ReservationStatus.FAILED)
        assert moved.reason == ReservationReason.NOT_STARTED
        assert not Allocation.objects.filter(live=True).exists()

    def test_an_error_of_the_database_is_tried_again_for_the_whole_window(
        self, broken: list[type[Exception]]
    ) -> None:
        broken[:] = [OperationalError]
        make_pool()
        reservation = make_reservation()

        reservations.start_due(at=reservation.ends_at - seconds(1))

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.SCHEDULED

    def test_what_is_not_paid_yet_is_left_alone(self) -> None:
        make_pool()
        reservation = reserve(make_quote())

        assert reservations.start_due(at=reservation.starts_at) == 0
        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.PAYMENT_PENDING


class TestBlazarTempestExpiryEndToEnd:
    """Blazar, scenario `test_host_reservation`: after the end nothing runs and the host is free again."""

    def test_the_machine_is_empty_and_back_in_the_pool_and_the_reservation_is_over(self) -> None:
        make_pool()
        lease = make_lease(gpus=8)
        say_handed_over(lease)
        tick(lease.starts_at + seconds(5))
        tick(lease.ends_at)
        assert Grant.objects.get(lease_id=lease.pk).desired_state == DesiredState.STOP
        say_returned(lease, at=lease.ends_at + seconds(20))
        after = lease.ends_at + seconds(21)
        tick(after)

        assert Reservation.objects.get().status == ReservationStatus.COMPLETED
        assert inventory.sellable_gpus(at=after).count() == 8
        window = window_in((lease.ends_at - NOW) / hours(1) + 1)
        assert make_quote(at=after, gpus=8, window=window).gpus == 8


class TestVastHostingTermsAreFrozen:
    """Vast.ai, hosting guide: relisting changes nothing for contracts that stand."""

    def test_an_earlier_tenant_keeps_its_price_and_the_machine_stays_for_the_last_one(self) -> None:
        owner = make_organization()
        make_node(owner=owner, gpus=4)
        listing = make_listing(owner=owner, floor_rate=Decimal("2.00"), ends_at=NOW + hours(90))
        first = make_reservation(gpus=2, window=window_in(24, length=48))

        listings.update(
            listing=listing,
            changes={"floor_rate": Decimal("2.50"), "ends_at": NOW + hours(180)},
            at=NOW + hours(1),
            actor="owner",
        )
        Node.objects.update(last_report_at=NOW + hours(2))
        second = make_reservation(at=NOW + hours(2), gpus=2, window=window_in(100, length=48))

        was = (first.rate, first.total_minor, first.lots)
        first.refresh_from_db()
        assert (first.rate, first.total_minor, first.lots) == was
        assert second.rate > first.rate
        tick(first.starts_at)
        assert Lease.objects.get().ends_at == first.ends_at


class TestEc2CapacityBlocksEnd:
    """EC2 Capacity Blocks, user guide: a warning, then the end at its hour; nothing launches before."""

    def test_a_warning_comes_half_an_hour_before_and_the_gpus_go_at_the_end(self) -> None:
        make_pool()
        lease = make_lease(gpus=8)
        say_handed_over(lease)
        tick(lease.starts_at + seconds(5))

        warnings.warn_due(at=lease.ends_at - seconds(1_800))
        tick(lease.ends_at - seconds(1))
        assert Grant.objects.get().desired_state == DesiredState.RUN
        tick(lease.ends_at)

        assert Grant.objects.get().desired_state == DesiredState.STOP
        assert Event.objects.filter(kind=EventKind.RESERVATION_END_ANNOUNCED).count() == 1

    def test_nothing_is_granted_before_the_start(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=8)

        tick(reservation.starts_at - seconds(1))

        assert not Grant.objects.exists()


class TestEc2CapacityBlocksPayment:
    """EC2 Capacity Blocks, user guide: what is not paid in twelve hours is released."""

    def test_a_purchase_that_is_not_paid_for_twelve_hours_gives_the_gpus_back(self) -> None:
        make_pool()
        quote = make_quote(gpus=8, window=window_in(48))
        bought = reservations.reserve(
            organization=quote.organization,
            quote_id=quote.pk,
            payment_method="bank_transfer",
            details=ReservationDetails(),
            at=NOW,
            actor="test",
        )
        due_at = NOW + hours(12)

        assert reservations.expire_unpaid(at=due_at - seconds(1)) == 0
        assert reservations.expire_unpaid(at=due_at) == 1

        bought.refresh_from_db()
        assert bought.status == ReservationStatus.EXPIRED
        Node.objects.update(last_report_at=due_at)
        assert make_reservation(gpus=8, window=window_in(48), at=due_at)

    def test_an_extension_may_be_asked_from_56_days_to_an_hour_before_the_end(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24 * 60, length=2))
        for before, is_possible in (
            (hours(24 * 56) + seconds(1), False),
            (hours(24 * 56), True),
            (hours(1), True),
            (hours(1) - seconds(1), False),
        ):
            at = reservation.ends_at - before
            Node.objects.update(last_report_at=at)
            try:
                extensions.quote(
                    organization=reservation.organization,
                    reservation_id=reservation.pk,
                    ends_at=reservation.ends_at + hours(1),
                    max_rate=None,
                    at=at,
                )
            except (extensions.ExtensionTooEarly, extensions.ExtensionTooLate):
                assert not is_possible
            else:
                assert is_possible


class TestRackspaceSpotUsersPayFromUsable:
    """rackerlabs/spot #15 and #178: paid for machines that never joined, or died and read Ready."""

    def test_what_was_never_usable_is_not_charged_and_ends_with_a_reason(self) -> None:
        make_pool()
        lease = make_lease(gpus=8)

        tick(lease.starts_at + seconds(HANDOVER_DEADLINE_SECONDS))

        lease.refresh_from_db()
        assert (lease.status, lease.handed_over_at) == (LeaseStatus.FAILED, None)
        moved = Reservation.objects.get().transitions.get(to_status=ReservationStatus.FAILED)
        assert moved.reason == ReservationReason.NOTHING_DELIVERED


class TestAkashSupportSilenceEndsNoLease:
    """akash-network/support #270 and #403: a restart, or one node's network, closed many leases."""

    def test_a_machine_that_is_silent_for_hours_keeps_its_lease_to_the_end(self) -> None:
        make_pool(nodes=2)
        lease = make_lease(gpus=2)
        say_handed_over(lease)
        tick(lease.starts_at + seconds(5))
        silent_since = lease.starts_at + seconds(60)
        for minute in range(1, 119):
            at = silent_since + seconds(60 * minute)
            leases.advance(at=at)
            replacements.advance(at=at)
            reservations.finish_due(at=at)

        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE
        assert Lease.objects.count() == 1

    def test_gpus_are_not_locked_for_ever_after_a_cleanup(self) -> None:
        """akash-network/support #430: available stayed at 0 after the lease was gone."""
        make_pool()
        lease = make_lease(gpus=8)
        say_handed_over(lease)
        tick(lease.starts_at + seconds(5))
        tick(lease.ends_at)
        late = lease.ends_at + hours(2)
        tick(late)
        assert Gpu.objects.exclude(quarantined_by_market="").count() == 8

        say_returned(lease, at=late)
        tick(late + seconds(1))

        assert inventory.sellable_gpus(at=late + seconds(1)).count() == 8
