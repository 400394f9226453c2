"""A later end on the same GPUs: how far, at which price, and what stands in the way."""

import datetime as dt
from decimal import Decimal

import pytest

from agents.models import Gpu, Grant, Node
from marketplace.core.errors import NotFound, StateConflict
from marketplace.core.windows import format_instant
from marketplace.models import Event, Listing, Organization
from marketplace.states import ListingMode, ListingStatus
from scheduler import cancellations, extensions, leases, reservations
from scheduler.calendar import BeyondHorizon, CapacityTaken, WindowOffGrid, WindowUpsideDown
from scheduler.extension_reach import ExtensionRefused
from scheduler.extensions import ExtensionTooEarly, ExtensionTooLate
from scheduler.holds import QuoteExpired, QuoteUsed
from scheduler.lots import Lots
from scheduler.models import Allocation, Change, ChangeQuote, Lease, Quote, Reservation, TenantLimit
from scheduler.quotas import LimitExceeded
from scheduler.quotes import PriceAboveMax
from scheduler.states import ExtensionLimit, LeaseStatus, QuoteStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    lots_of,
    make_lease,
    make_listing,
    make_node,
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


def ask(
    reservation: Reservation,
    *,
    by: float = 2,
    max_rate: str | None = None,
    at: dt.datetime = NOW,
    ends_at: dt.datetime | None = None,
) -> ChangeQuote:
    """Ask for an end that is so many hours later, while all nodes report."""
    Node.objects.update(last_report_at=at)
    return extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=ends_at or reservation.ends_at + hours(by),
        max_rate=Decimal(max_rate) if max_rate else None,
        at=at,
    )


def extend(
    reservation: Reservation, *, quote: ChangeQuote | None = None, at: dt.datetime = NOW
) -> Change:
    return extensions.extend(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=(quote or ask(reservation, at=at)).pk,
        at=at,
        actor="key_test",
    )


def as_it_was(reservation: Reservation) -> bool:
    """Say whether nothing of a reservation has changed since it was read."""
    now = Reservation.objects.get(pk=reservation.pk)
    columns = ("status", "starts_at", "ends_at", "lots", "rate", "total_minor")
    periods = {(a.period.lower, a.period.upper) for a in places(reservation)}
    return all(getattr(now, c) == getattr(reservation, c) for c in columns) and periods == {
        (reservation.starts_at, reservation.ends_at)
    }


def places(reservation: Reservation) -> list[Allocation]:
    return list(Allocation.objects.filter(reservation=reservation, live=True))


def limits(**columns: object) -> None:
    Listing.objects.update(**columns)


class TestQuote:
    def test_prices_what_is_added_and_keeps_the_price_of_the_rest(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2)
        quote = ask(reservation, by=3)
        assert (quote.kind, quote.refund_minor, quote.fee_minor) == ("extension", 0, 0)
        lots = Lots.from_json(quote.lots)
        assert lots.window == quote.window
        assert lots.clipped(window=reservation.window) == Lots.from_json(reservation.lots)
        whole = lots.amount(window=lots.window, currency="usd").amount_minor
        assert quote.total_minor == whole
        assert quote.charge_minor == whole - reservation.total_minor > 0

    def test_asks_the_floors_of_today_for_what_is_added(self) -> None:
        make_pool()
        reservation = make_reservation()
        limits(floor_rate=Decimal("4.000000"))
        quote = ask(reservation, by=2)
        # 4 / (1 - 15 %) = 4.705883 per hour for two hours, beside 2 × 2.352942.
        assert quote.added_rate == Decimal("4.705883")
        assert (reservation.total_minor, quote.total_minor) == (471, 1412)

    def test_locks_the_price_for_ten_minutes(self) -> None:
        make_pool()
        reservation = make_reservation()
        quote = ask(reservation)
        limits(floor_rate=Decimal("40.000000"))
        assert quote.expires_at == NOW + seconds(600)
        Node.objects.update(last_report_at=NOW + seconds(599))
        change = extend(reservation, quote=quote, at=NOW + seconds(599))
        assert change.charged_minor == quote.charge_minor

    def test_refuses_a_rate_above_the_maximum(self) -> None:
        make_pool()
        reservation = make_reservation()
        assert ask(reservation, max_rate="2.352942")
        with pytest.raises(PriceAboveMax) as refusal:
            ask(reservation, max_rate="2.352941")
        assert refusal.value.extra == {"rate": "2.352942"}

    def test_changes_nothing(self) -> None:
        make_pool()
        reservation = make_reservation()
        ask(reservation)
        assert as_it_was(reservation)

    def test_is_refused_to_strangers(self) -> None:
        make_pool()
        reservation = make_reservation()
        reservation.organization = make_organization()
        with pytest.raises(NotFound):
            ask(reservation)

    def test_is_refused_before_the_payment_and_after_the_end(self) -> None:
        make_pool()
        with pytest.raises(StateConflict, match="payment_pending"):
            ask(reserve(make_quote()))
        reservation = make_reservation()
        quote = cancellations.quote(
            organization=reservation.organization, reservation_id=reservation.pk, at=NOW
        )
        cancellations.cancel(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=NOW,
            actor="test",
        )
        with pytest.raises(StateConflict, match="cancelled"):
            ask(reservation)

    def test_is_possible_from_56_days_to_one_hour_before_the_end(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24 * 60))
        opens_at = reservation.ends_at - dt.timedelta(days=56)
        closes_at = reservation.ends_at - hours(1)
        with pytest.raises(ExtensionTooEarly) as early:
            ask(reservation, at=opens_at - seconds(1))
        assert early.value.extra == {"opens_at": format_instant(opens_at)}
        assert ask(reservation, at=opens_at)
        assert ask(reservation, at=closes_at)
        with pytest.raises(ExtensionTooLate) as late:
            ask(reservation, at=closes_at + seconds(1))
        assert late.value.extra == {"closed_at": format_instant(closes_at)}

    @pytest.mark.parametrize("later", [hours(0), -hours(1)])
    def test_refuses_an_end_that_is_not_later(self, later: dt.timedelta) -> None:
        make_pool()
        reservation = make_reservation()
        with pytest.raises(WindowUpsideDown):
            ask(reservation, ends_at=reservation.ends_at + later)

    def test_refuses_an_end_off_the_grid_and_one_beyond_the_horizon(self) -> None:
        make_pool()
        reservation = make_reservation()
        with pytest.raises(WindowOffGrid):
            ask(reservation, ends_at=reservation.ends_at + seconds(1))
        with pytest.raises(BeyondHorizon):
            ask(reservation, ends_at=NOW + dt.timedelta(days=181))

    def test_may_cross_a_change_of_clocks_a_month_and_a_leap_day(self) -> None:
        at = dt.datetime(2028, 2, 28, 12, tzinfo=dt.UTC)
        make_pool()
        Node.objects.update(last_report_at=at)
        reservation = make_reservation(
            at=at, window=type(window_in(1))(at + hours(1), at + hours(2))
        )
        end = dt.datetime(2028, 3, 27, 0, tzinfo=dt.UTC)  # past Europe's change on 26 March
        quote = ask(reservation, ends_at=end, at=at)
        added = Lots.from_json(quote.lots).window.seconds - 3600
        assert added == (end - reservation.ends_at) / seconds(1) == 3600 * (9 + 27 * 24 + 1)


class TestReach:
    def refused(self, reservation: Reservation, *, by: float = 24) -> tuple[object, object]:
        with pytest.raises(ExtensionRefused) as refusal:
            ask(reservation, by=by)
        return refusal.value.extra["reason"], refusal.value.extra["longest_ends_at"]

    def test_ends_at_the_next_booking_of_one_of_the_gpus(self) -> None:
        make_pool(gpus=2)
        reservation = make_reservation(gpus=2, window=window_in(24))
        make_reservation(gpus=1, window=window_in(30))
        assert self.refused(reservation) == ("next_booking", format_instant(NOW + hours(30)))
        assert ask(reservation, by=4).longest_ends_at == NOW + hours(30)

    def test_is_nothing_when_the_next_booking_follows_at_once(self) -> None:
        make_pool(gpus=1)
        reservation = make_reservation(window=window_in(24))
        make_reservation(window=window_in(26))
        assert self.refused(reservation, by=1) == ("next_booking", None)

    def test_does_not_end_at_bookings_of_neighbours(self) -> None:
        make_pool(gpus=2)
        reservation = make_reservation(window=window_in(24))
        make_reservation(window=window_in(25))
        assert ask(reservation).longest_limited_by == ExtensionLimit.HORIZON

    def test_ends_at_a_hold_but_not_at_one_that_has_lapsed(self) -> None:
        make_pool(gpus=1)
        reservation = make_reservation(window=window_in(24))
        make_quote(window=window_in(26), hold=True)
        assert self.refused(reservation, by=1) == ("next_booking", None)
        at = NOW + seconds(601)
        quote = ask(reservation, by=1, at=at)
        extend(reservation, quote=quote, at=at)
        assert Quote.objects.filter(status=QuoteStatus.EXPIRED).count() == 1

    def test_ends_with_the_listing(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        limits(ends_at=NOW + hours(30) + seconds(1800))
        assert self.refused(reservation) == ("listing_period", format_instant(NOW + hours(30)))

    def test_ends_at_a_blackout_and_not_at_one_that_is_over(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        past = [format_instant(NOW + hours(1)), format_instant(NOW + hours(3))]
        ahead = [format_instant(NOW + hours(40)), format_instant(NOW + hours(50))]
        limits(blackouts=[past, ahead])
        assert self.refused(reservation) == ("blackout", format_instant(NOW + hours(40)))

    def test_ends_with_the_longest_window_from_its_own_start(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        limits(duration_seconds_max=10 * 3600)
        assert self.refused(reservation) == ("max_duration", format_instant(NOW + hours(34)))
        assert ask(reservation, by=8)

    def test_ends_at_the_horizon(self) -> None:
        make_pool()
        quote = ask(make_reservation())
        assert quote.longest_limited_by == ExtensionLimit.HORIZON
        assert quote.longest_ends_at == NOW + dt.timedelta(days=180)

    @pytest.mark.parametrize("status", [ListingStatus.PAUSED, ListingStatus.RETIRED])
    def test_is_nothing_when_the_listing_is_withdrawn(self, status: ListingStatus) -> None:
        make_pool()
        reservation = make_reservation()
        limits(status=status)
        assert self.refused(reservation) == ("listing_withdrawn", None)

    def test_is_nothing_beyond_the_reach_of_idle_gpus(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        limits(mode=ListingMode.WHEN_IDLE, idle_for_seconds=60, rolling_seconds=3600)
        assert self.refused(reservation) == ("listing_period", None)

    def test_is_nothing_while_the_node_is_silent(self) -> None:
        make_pool()
        reservation = make_reservation()
        Node.objects.update(last_report_at=NOW - hours(1))
        with pytest.raises(ExtensionRefused) as refusal:
            extensions.quote(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                ends_at=reservation.ends_at + hours(1),
                max_rate=None,
                at=NOW,
            )
        assert refusal.value.extra == {"reason": "health", "longest_ends_at": None}

    def test_is_nothing_while_a_gpu_is_not_healthy(self) -> None:
        make_pool(gpus=2)
        reservation = make_reservation(gpus=2)
        gpu = Gpu.objects.first()
        assert gpu is not None
        Gpu.objects.filter(pk=gpu.pk).update(health="quarantined")
        assert self.refused(reservation) == ("health", None)

    def test_is_nothing_while_the_owner_takes_the_gpus_back(self) -> None:
        make_pool()
        lease = make_lease(window=window_in(1, length=6))
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(4))
        Lease.objects.filter(pk=lease.pk).update(status=LeaseStatus.RECLAIMING)
        with pytest.raises(ExtensionRefused) as refusal:
            ask(lease.reservation, at=lease.starts_at)
        assert refusal.value.extra["reason"] == "reclaim_pending"

    def test_ends_with_what_the_tenant_may_book(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(24))
        TenantLimit.objects.create(organization=reservation.organization, gpu_hours_max=10)
        assert self.refused(reservation) == ("tenant_limit", format_instant(NOW + hours(29)))


class TestExtend:
    def test_moves_the_end_of_all_places_and_of_the_price(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=16)
        quote = ask(reservation, by=3)
        change = extend(reservation, quote=quote)
        now = Reservation.objects.get(pk=reservation.pk)
        assert now.window == quote.window
        assert (now.total_minor, now.lots) == (quote.total_minor, quote.lots)
        assert {(a.period.lower, a.period.upper) for a in places(now)} == {
            (now.starts_at, now.ends_at)
        }
        assert change.pk.startswith("ext_")
        assert (change.charged_minor, change.gpu_seconds_added) == (
            quote.charge_minor,
            16 * 3 * 3600,
        )
        event = Event.objects.get(kind="reservation.extended")
        assert event.data["ends_at"] == format_instant(now.ends_at)

    def test_keeps_the_same_gpus(self) -> None:
        """Blazar, `test_update_reservation_extend`: the host stays, and nothing is allocated anew."""
        make_pool(nodes=2)
        reservation = make_reservation(gpus=3)
        before = [(a.pk, a.node_id, a.slots) for a in places(reservation)]
        extend(reservation)
        assert [(a.pk, a.node_id, a.slots) for a in places(reservation)] == before

    def test_may_happen_again(self) -> None:
        make_pool()
        reservation = make_reservation()
        extend(reservation)
        again = Reservation.objects.get(pk=reservation.pk)
        extend(again)
        assert Reservation.objects.get(pk=reservation.pk).ends_at == (
            reservation.ends_at + hours(4)
        )

    def test_tells_the_node_of_the_new_end(self) -> None:
        make_pool()
        lease = make_lease(window=window_in(1, length=4))
        at = lease.starts_at + seconds(10)
        say_handed_over(lease)
        leases.advance(at=at)
        extend(lease.reservation, at=at)
        lease.refresh_from_db()
        end = lease.starts_at + hours(6)
        assert lease.ends_at == Grant.objects.get(lease_id=lease.pk).not_after == end
        assert leases.end_due(at=end - seconds(1)) == 0
        assert leases.end_due(at=end) == 1

    def test_reaches_a_lease_that_is_just_being_handed_over(self) -> None:
        make_pool()
        lease = make_lease(window=window_in(1, length=4))
        extend(lease.reservation, at=lease.starts_at)
        lease.refresh_from_db()
        assert (lease.status, lease.ends_at) == (
            LeaseStatus.PROVISIONING,
            lease.starts_at + hours(6),
        )

    def test_refuses_when_somebody_has_booked_the_gpus_since(self) -> None:
        make_pool(gpus=1)
        reservation = make_reservation(window=window_in(24))
        quote = ask(reservation)
        make_reservation(window=window_in(27))
        with pytest.raises(CapacityTaken):
            extend(reservation, quote=quote)
        assert as_it_was(reservation)
        assert ChangeQuote.objects.get(pk=quote.pk).used_at is None

    def test_refuses_when_anything_else_came_in_the_way(self) -> None:
        make_pool()
        reservation = make_reservation()
        quote = ask(reservation)
        limits(status=ListingStatus.PAUSED)
        with pytest.raises(ExtensionRefused):
            extend(reservation, quote=quote)
        assert as_it_was(reservation)

    def test_refuses_more_than_the_tenant_may_book(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2)
        quote = ask(reservation)
        TenantLimit.objects.create(organization=reservation.organization, gpu_hours_max=7)
        with pytest.raises(LimitExceeded) as refusal:
            extend(reservation, quote=quote)
        assert refusal.value.extra["left_gpu_seconds"] == 7 * 3600
        assert as_it_was(reservation)

    def test_refuses_a_quote_of_another_kind_used_or_expired(self) -> None:
        make_pool()
        reservation = make_reservation()
        leaving = cancellations.quote(
            organization=reservation.organization, reservation_id=reservation.pk, at=NOW
        )
        with pytest.raises(NotFound):
            extend(reservation, quote=leaving)
        quote = ask(reservation)
        with pytest.raises(QuoteExpired):
            extend(reservation, quote=quote, at=quote.expires_at)
        extend(reservation, quote=quote)
        with pytest.raises(QuoteUsed):
            extend(reservation, quote=quote)

    def test_refuses_a_quote_from_before_another_change(self) -> None:
        make_pool()
        reservation = make_reservation()
        first, second = ask(reservation), ask(reservation)
        extend(reservation, quote=first)
        with pytest.raises(StateConflict, match="changed since the quote"):
            extend(reservation, quote=second)

    def test_goes_on_across_the_start(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(1, length=4))
        extend(reservation)
        reservations.start_due(at=reservation.starts_at)
        lease = Lease.objects.get(reservation=reservation)
        assert lease.window == Reservation.objects.get(pk=reservation.pk).window

    def test_of_two_owners_gpus_asks_each_floor_for_its_own(
        self, organization: Organization
    ) -> None:
        cheap = make_organization()
        make_node(owner=cheap, gpus=1)
        make_listing(owner=cheap)
        dear = make_organization()
        make_node(owner=dear, gpus=1)
        make_listing(owner=dear, floor_rate=Decimal("3.000000"))
        quote = ask(make_reservation(gpus=2, spread="any"))
        assert [lot.floors.segments[-1].rate_micros for lot in lots_of(quote)] == [
            2_000_000,
            3_000_000,
        ]
