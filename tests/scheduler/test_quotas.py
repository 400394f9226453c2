"""Limits of tenants: GPU-hours that look forward, length, and horizon."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from agents.models import Node
from marketplace.models import Organization
from scheduler import calendar, cancellations, extensions, leases, quotas, reservations
from scheduler.extension_reach import ExtensionRefused
from scheduler.models import Lease, Quote, Reservation, TenantLimit
from scheduler.quotas import LimitExceeded
from scheduler.states import QuoteStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_handed_over,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenant() -> Organization:
    make_pool()
    return make_organization()


def limit(tenant: Organization | None, **columns: object) -> None:
    TenantLimit.objects.create(organization=tenant, **columns)


def book(tenant: Organization, *, at: dt.datetime = NOW, **wishes: object) -> Reservation:
    return make_reservation(tenant=tenant, at=at, **wishes)


class TestGpuHours:
    """Mithril's quota: 72 hours are 1 × 72 or 4 × 18, and half-way through 36 are free again."""

    def test_of_72_are_one_gpu_for_three_days(self, tenant: Organization) -> None:
        limit(tenant, gpu_hours_max=72)
        book(tenant, window=window_in(1, length=72))
        with pytest.raises(LimitExceeded) as refusal:
            book(tenant, window=window_in(1, length=1))
        assert refusal.value.extra == {
            "limit": "gpu_hours",
            "limit_gpu_seconds": 72 * 3600,
            "left_gpu_seconds": 0,
        }

    def test_of_72_are_four_gpus_for_18_hours(self, tenant: Organization) -> None:
        limit(tenant, gpu_hours_max=72)
        for _ in range(4):
            book(tenant, window=window_in(1, length=18))
        with pytest.raises(LimitExceeded):
            book(tenant, window=window_in(1, length=1))

    def test_of_72_have_36_free_again_half_way_through(self, tenant: Organization) -> None:
        limit(tenant, gpu_hours_max=72)
        book(tenant, window=window_in(1, length=72))
        half_way = NOW + hours(37)
        Node.objects.update(last_report_at=half_way)
        standing = quotas.standing_of(organization=tenant, at=half_way)
        assert standing.gpu_seconds_left == 36 * 3600
        with pytest.raises(LimitExceeded):
            book(tenant, at=half_way, window=window_in(40, length=37))
        assert book(tenant, at=half_way, window=window_in(40, length=36))

    def test_are_free_again_after_a_cancellation(self, tenant: Organization) -> None:
        limit(tenant, gpu_hours_max=2)
        reservation = book(tenant)
        quote = cancellations.quote(organization=tenant, reservation_id=reservation.pk, at=NOW)
        cancellations.cancel(
            organization=tenant,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        assert book(tenant)

    def test_are_counted_when_a_quote_is_accepted_and_the_quote_stays(
        self, tenant: Organization
    ) -> None:
        quotes = [make_quote(tenant=tenant) for _ in range(2)]
        limit(tenant, gpu_hours_max=3)
        reserve(quotes[0])
        with pytest.raises(LimitExceeded, match="2 GPU-hours are asked for, and 1 of 3"):
            reserve(quotes[1])
        assert Quote.objects.get(pk=quotes[1].pk).status == QuoteStatus.OPEN

    def test_of_one_tenant_are_not_another_ones(self, tenant: Organization) -> None:
        limit(tenant, gpu_hours_max=1)
        with pytest.raises(LimitExceeded):
            book(tenant)
        assert book(make_organization())

    def test_are_unlimited_unless_somebody_said_otherwise(self, tenant: Organization) -> None:
        assert quotas.standing_of(organization=tenant, at=NOW).gpu_seconds_left is None

    def test_never_go_below_zero_when_the_limit_is_lowered(self, tenant: Organization) -> None:
        book(tenant, gpus=4)
        limit(tenant, gpu_hours_max=1)
        assert quotas.standing_of(organization=tenant, at=NOW).gpu_seconds_left == 0


class TestLength:
    """Blazar's maximum length: from a reservation's own start, with an exempt list."""

    def test_refuses_one_grid_step_too_many(self, tenant: Organization) -> None:
        limit(None, duration_seconds_max=2 * 3600)
        assert book(tenant, window=window_in(1, length=2))
        with pytest.raises(LimitExceeded) as refusal:
            book(tenant, window=window_in(1, length=3))
        assert refusal.value.extra == {
            "limit": "duration",
            "limit_seconds": 7200,
            "left_seconds": 7200,
        }

    def test_lets_exempt_organizations_pass(self, tenant: Organization) -> None:
        limit(None, duration_seconds_max=3600)
        limit(tenant, is_duration_exempt=True)
        assert book(tenant, window=window_in(1, length=30))
        with pytest.raises(LimitExceeded):
            book(make_organization(), window=window_in(1, length=30))

    def test_of_a_tenant_goes_before_that_of_everybody(self, tenant: Organization) -> None:
        limit(None, duration_seconds_max=3600, gpu_hours_max=1)
        limit(tenant, duration_seconds_max=7200)
        with pytest.raises(LimitExceeded) as refusal:
            book(tenant, window=window_in(1, length=2))
        assert refusal.value.extra["limit"] == "gpu_hours", "what its own row does not say"


class TestHorizon:
    def test_ends_sooner_for_some(self, tenant: Organization) -> None:
        limit(tenant, horizon_days_max=7)
        assert book(tenant, window=window_in(24 * 7 - 2))
        with pytest.raises(LimitExceeded) as refusal:
            book(tenant, window=window_in(24 * 7 - 1))
        assert refusal.value.extra["limit"] == "horizon"

    def test_is_what_the_operator_sets(self, tenant: Organization, settings) -> None:
        settings.HORIZON_DAYS = 7
        limit(tenant, horizon_days_max=30)
        assert book(tenant, window=window_in(24 * 7 - 2))
        with pytest.raises(calendar.BeyondHorizon):
            book(tenant, window=window_in(24 * 7))
        assert quotas.standing_of(organization=tenant, at=NOW).limits.horizon_days == 7

    @pytest.mark.parametrize("days", [0, 181])
    def test_is_never_further_than_anything_is_sold(self, tenant: Organization, days: int) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            limit(tenant, horizon_days_max=days)


class TestRows:
    def test_are_one_per_tenant_and_one_for_everybody(self, tenant: Organization) -> None:
        for whom in (tenant, None):
            limit(whom)
            with pytest.raises(IntegrityError), transaction.atomic():
                limit(whom)

    def test_of_a_change_never_refuse_what_there_was(self, tenant: Organization) -> None:
        reservation = book(tenant, window=window_in(24, length=10))
        limit(tenant, gpu_hours_max=1, duration_seconds_max=3600, horizon_days_max=1)
        shorter = window_in(24, length=9)
        quotas.check(organization=tenant, gpus=1, window=shorter, at=NOW, instead_of=reservation)
        longer = window_in(24, length=11)
        with pytest.raises(LimitExceeded):
            quotas.check(organization=tenant, gpus=1, window=longer, at=NOW, instead_of=reservation)

    def test_let_nothing_grow_that_has_begun(self, tenant: Organization) -> None:
        reservation = book(tenant, window=window_in(1, length=4))
        limit(tenant, gpu_hours_max=4)
        at = NOW + hours(3) + seconds(1)
        assert quotas.latest_end(reservation=reservation, at=at) == (
            reservation.ends_at + hours(2) + seconds(1)
        )


class TestBlazarMaxLeaseDuration:
    """Blazar, test_max_lease_duration_filter: at most 60 minutes, from 01:23 to 02:23.

    Its minutes are hours here, because nothing is extended in the last hour before its end.
    """

    @pytest.fixture(autouse=True)
    def limited(self, tenant: Organization) -> None:
        limit(None, duration_seconds_max=60 * 3600)

    def extend(
        self, reservation: Reservation, *, to: dt.datetime, at: dt.datetime
    ) -> dt.datetime | str:
        """Return the new end, or what is in the way."""
        Node.objects.update(last_report_at=at)
        try:
            quote = extensions.quote(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                ends_at=to,
                max_rate=None,
                at=at,
            )
        except ExtensionRefused as refusal:
            return str(refusal.extra["reason"])
        extensions.extend(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=at,
            actor="test",
        )
        reservation.refresh_from_db()
        return reservation.ends_at

    def test_a_lease_of_just_the_limit_is_accepted_and_one_step_more_refused(
        self, tenant: Organization
    ) -> None:
        assert book(tenant, window=window_in(1, length=60))
        with pytest.raises(LimitExceeded) as refusal:
            book(tenant, window=window_in(1, length=61))
        assert refusal.value.extra["limit"] == "duration"

    def test_an_update_to_just_the_limit_is_accepted_and_one_step_more_refused(
        self, tenant: Organization
    ) -> None:
        reservation = book(tenant, window=window_in(1, length=59))
        assert self.extend(reservation, to=NOW + hours(62), at=NOW) == "tenant_limit"
        assert self.extend(reservation, to=NOW + hours(61), at=NOW) == NOW + hours(61)
        assert self.extend(reservation, to=NOW + hours(62), at=NOW) == "tenant_limit"

    def test_the_length_of_a_running_lease_counts_from_its_own_start(
        self, tenant: Organization
    ) -> None:
        reservation = book(tenant, window=window_in(1, length=30))
        at = NOW + hours(28)
        Node.objects.update(last_report_at=at)
        reservations.start_due(at=reservation.starts_at)
        say_handed_over(Lease.objects.get())
        leases.advance(at=reservation.starts_at + seconds(5))

        assert self.extend(reservation, to=NOW + hours(62), at=at) == "tenant_limit"
        assert self.extend(reservation, to=NOW + hours(61), at=at) == NOW + hours(61)
        assert Lease.objects.get().ends_at == NOW + hours(61)

    def test_an_exempt_project_creates_and_updates_beyond_the_limit(
        self, tenant: Organization
    ) -> None:
        limit(tenant, is_duration_exempt=True)
        reservation = book(tenant, window=window_in(1, length=61))
        assert self.extend(reservation, to=NOW + hours(80), at=NOW) == NOW + hours(80)
