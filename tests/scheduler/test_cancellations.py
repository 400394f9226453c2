"""Leaving: what it costs is known before, and what is given back is on sale again."""

import datetime as dt

import pytest

from agents.models import Grant, Node
from agents.protocol import DesiredState
from marketplace.core.errors import NotFound, StateConflict
from marketplace.models import Event
from scheduler import cancellations, change_rules, changes, leases, replacements, reservations
from scheduler.change_rules import DAY_SECONDS
from scheduler.holds import QuoteExpired, QuoteUsed
from scheduler.lots import Lots
from scheduler.models import Allocation, Change, ChangeQuote, Lease, Reservation
from scheduler.quotas import LimitExceeded
from scheduler.states import ChangeKind, LeaseReason, LeaseStatus, ReservationStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    publish_ladder,
    reserve,
    say_failed,
    say_handed_over,
    say_returned,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db


def ask(reservation: Reservation, *, at: dt.datetime = NOW) -> ChangeQuote:
    return cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=at
    )


def leave(
    reservation: Reservation, *, quote: ChangeQuote | None = None, at: dt.datetime = NOW
) -> Change:
    return cancellations.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=(quote or ask(reservation, at=at)).pk,
        at=at,
        actor="key_test",
    )


def live(reservation: Reservation) -> int:
    return Allocation.objects.filter(reservation=reservation, live=True).count()


def active_lease(**wishes: object) -> Lease:
    """Return a lease that its tenant has."""
    lease = make_lease(**wishes)
    say_handed_over(lease)
    leases.advance(at=lease.starts_at + seconds(4))
    lease.refresh_from_db()
    assert lease.status == LeaseStatus.ACTIVE
    return lease


class TestQuoteBeforeTheStart:
    @pytest.mark.parametrize(
        ("days", "fee"),
        [(40, 1_000), (30, 1_000), (29, 2_500), (7, 2_500), (6, 5_000), (1, 5_000), (0.5, 10_000)],
    )
    def test_takes_the_fee_of_the_ladder(self, days: float, fee: int) -> None:
        make_pool()
        reservation = make_reservation(gpus=2, window=window_in(24 * days))
        quote = ask(reservation)
        assert (quote.kind, quote.fee_basis_points) == (ChangeKind.CANCELLATION, fee)
        assert quote.notice_seconds == days * DAY_SECONDS
        moved = change_rules.difference(
            before=reservation.total_minor, after=0, fee_basis_points=fee
        )
        assert (quote.refund_minor, quote.fee_minor) == (moved.refund, moved.fee)
        assert quote.refund_minor + quote.fee_minor == reservation.total_minor
        assert (quote.starts_at, quote.ends_at, quote.total_minor) == (None, None, 0)
        assert quote.expires_at == NOW + dt.timedelta(minutes=15)

    def test_changes_nothing(self) -> None:
        make_pool()
        reservation = make_reservation()
        ask(reservation)
        after = Reservation.objects.get(pk=reservation.pk)
        assert (after.status, live(after)) == (ReservationStatus.SCHEDULED, 1)
        assert not Change.objects.exists()

    def test_asks_nothing_before_the_payment(self) -> None:
        make_pool()
        quote = ask(reserve(make_quote()))
        assert (quote.fee_minor, quote.refund_minor, quote.from_total_minor) == (0, 0, 0)
        assert quote.fee_waived_because == "not_paid"

    def test_keeps_its_rule_when_a_new_one_is_published(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(48))
        quote = ask(reservation)
        publish_ladder((0, 0))
        change = leave(reservation, quote=quote, at=NOW + seconds(60))
        assert change.fee_minor == quote.fee_minor > 0
        assert change.quote.rule.version == 1

    def test_keeps_its_step_until_it_expires(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(24))
        quote = ask(reservation)
        assert quote.fee_basis_points == 5_000
        assert leave(reservation, quote=quote, at=NOW + seconds(899)).fee_minor == quote.fee_minor

    def test_is_refused_to_strangers(self) -> None:
        make_pool()
        reservation = make_reservation()
        with pytest.raises(NotFound):
            cancellations.quote(
                organization=make_organization(), reservation_id=reservation.pk, at=NOW
            )

    def test_is_refused_once_the_time_to_pay_is_over(self) -> None:
        make_pool()
        reservation = reserve(make_quote())
        with pytest.raises(StateConflict, match="had to be paid"):
            ask(reservation, at=reservation.payment_due_at)

    def test_is_refused_when_the_window_is_over_and_nobody_noticed(self) -> None:
        make_pool()
        reservation = make_reservation()
        with pytest.raises(StateConflict, match="ends at"):
            ask(reservation, at=reservation.ends_at)

    def test_is_refused_to_a_tenant_with_too_many_open(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pool()
        monkeypatch.setattr(changes, "OPEN_CHANGE_QUOTES_MAX", 1)
        reservation = make_reservation()
        ask(reservation)
        with pytest.raises(LimitExceeded):
            ask(reservation)
        assert ask(reservation, at=NOW + hours(1))


class TestCancel:
    def test_puts_the_gpus_back_on_sale_at_once(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=8)
        leave(reservation)
        reservation.refresh_from_db()
        assert (reservation.status, live(reservation)) == (ReservationStatus.CANCELLED, 0)
        assert make_reservation(gpus=8).gpus == 8

    def test_says_who_and_why(self) -> None:
        make_pool()
        reservation = make_reservation()
        change = leave(reservation)
        move = reservation.transitions.latest("id")
        assert (move.to_status, move.reason, move.actor) == (
            "cancelled",
            "tenant_cancelled",
            "key_test",
        )
        event = Event.objects.get(kind="reservation.cancelled")
        assert (event.organization, event.object_id) == (
            reservation.organization,
            reservation.pk,
        )
        assert event.data["change_id"] == change.pk
        assert change.gpu_seconds_released == reservation.gpus * reservation.window.seconds

    def test_frees_what_is_not_paid_without_a_fee(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=8))
        change = leave(reservation)
        assert (change.refunded_minor, change.fee_minor, change.gpu_seconds_released) == (0, 0, 0)
        assert live(reservation) == 0
        with pytest.raises(StateConflict):
            reservations.confirm(reservation_id=reservation.pk, at=NOW, actor="late payment")

    def test_names_the_owners_that_had_kept_the_gpus(self) -> None:
        first, second = make_pool(gpus=4), make_pool(gpus=4)
        change = leave(make_reservation(gpus=8, spread="any"))
        of_each = 4 * 2 * 3600 * 2_352_942
        assert change.given_back_by_owner == {first.pk: of_each, second.pk: of_each}

    def test_happens_once_per_quote(self) -> None:
        make_pool()
        reservation = make_reservation()
        quote = ask(reservation)
        leave(reservation, quote=quote)
        with pytest.raises(StateConflict, match="is cancelled"):
            leave(reservation, quote=quote)
        assert Change.objects.count() == 1

    def test_refuses_an_expired_quote(self) -> None:
        make_pool()
        reservation = make_reservation()
        quote = ask(reservation)
        with pytest.raises(QuoteExpired):
            leave(reservation, quote=quote, at=quote.expires_at)
        assert live(reservation) == 1

    def test_refuses_a_used_quote(self) -> None:
        make_pool()
        reservation = make_reservation()
        quote = ask(reservation)
        ChangeQuote.objects.update(used_at=NOW)
        with pytest.raises(QuoteUsed):
            leave(reservation, quote=quote)

    def test_refuses_the_quote_of_another_reservation(self) -> None:
        make_pool()
        one, other = make_reservation(), make_reservation()
        with pytest.raises(NotFound):
            leave(one, quote=ask(other))

    def test_refuses_a_quote_from_before_the_start(self) -> None:
        make_pool()
        reservation = make_reservation(window=window_in(1))
        quote = ask(reservation, at=reservation.starts_at - seconds(60))
        reservations.start_due(at=reservation.starts_at)
        with pytest.raises(StateConflict, match="changed since the quote"):
            leave(reservation, quote=quote, at=reservation.starts_at + seconds(1))

    def test_is_refused_when_it_is_over(self) -> None:
        make_pool()
        reservation = make_reservation()
        leave(reservation)
        with pytest.raises(StateConflict, match="is cancelled"):
            ask(reservation)


class TestEarlyReturn:
    def test_costs_all_that_is_left_by_the_first_rule(self) -> None:
        make_pool()
        lease = active_lease(gpus=2)
        quote = ask(lease.reservation, at=lease.starts_at + hours(1) - seconds(1))
        assert (quote.kind, quote.fee_basis_points, quote.notice_seconds) == (
            "early_return",
            10_000,
            0,
        )
        # Four GPU-hours cost 941; of the two that are left to the tenant 470.5884 are 471.
        assert (quote.from_total_minor, quote.total_minor) == (941, 471)
        assert (quote.refund_minor, quote.fee_minor) == (0, 470)

    def test_ends_the_leases_through_their_nodes(self) -> None:
        make_pool()
        lease = active_lease(gpus=2)
        at = lease.starts_at + hours(1)
        leave(lease.reservation, at=at)

        lease.refresh_from_db()
        assert (lease.status, lease.ends_at) == (LeaseStatus.RETURNING, at + seconds(1))
        assert lease.transitions.latest("id").reason == LeaseReason.TENANT_RETURNED
        assert Grant.objects.get(lease_id=lease.pk).desired_state == DesiredState.STOP
        assert live(lease.reservation) == 1, "the GPUs are not back yet"

        say_returned(lease, at=at + seconds(9))
        leases.advance(at=at + seconds(10))
        reservations.finish_due(at=at + seconds(10))
        lease.refresh_from_db()
        reservation = Reservation.objects.get(pk=lease.reservation_id)
        assert (lease.status, lease.returned_at) == (LeaseStatus.ENDED, at + seconds(1))
        assert (reservation.status, live(reservation)) == (ReservationStatus.COMPLETED, 0)

    def test_leaves_the_reservation_as_it_is_bought_now(self) -> None:
        make_pool()
        lease = active_lease(gpus=2)
        at = lease.starts_at + hours(1) - seconds(1)
        change = leave(lease.reservation, at=at)
        reservation = Reservation.objects.get(pk=lease.reservation_id)
        assert reservation.ends_at == lease.starts_at + hours(1)
        lots = Lots.from_json(reservation.lots)
        assert lots.window == reservation.window
        assert (
            reservation.total_minor
            == lots.amount(window=reservation.window, currency="usd").amount_minor
        )
        assert change.gpu_seconds_released == 2 * 3600
        assert (change.from_ends_at, change.ends_at) == (lease.ends_at, reservation.ends_at)

    def test_gives_nothing_back_twice(self) -> None:
        make_pool()
        lease = active_lease()
        at = lease.starts_at + hours(1)
        leave(lease.reservation, at=at)
        with pytest.raises(StateConflict, match="ends at"):
            ask(lease.reservation, at=at + seconds(1))

    def test_fails_what_was_not_handed_over_yet(self) -> None:
        make_pool()
        lease = make_lease(gpus=2)
        at = lease.starts_at + seconds(5)
        leave(lease.reservation, at=at)
        lease.refresh_from_db()
        assert (lease.status, lease.closed_at) == (LeaseStatus.FAILED, at)
        assert live(lease.reservation) == 0

    def test_ends_after_a_lease_that_took_anothers_place_in_this_second(self) -> None:
        make_pool(nodes=2)
        first = make_lease(gpus=2)
        say_failed(first)
        at = first.starts_at
        Node.objects.update(last_report_at=at)
        leases.advance(at=at)
        replacements.advance(at=at)
        second = Lease.objects.get(replaces=first)
        assert second.starts_at == at + seconds(1)
        leave(first.reservation, at=at)

        second.refresh_from_db()
        assert (second.status, second.ends_at) == (LeaseStatus.FAILED, at + seconds(2))
        assert Reservation.objects.get(pk=first.reservation_id).ends_at == at + seconds(2)
        assert live(first.reservation) == 0

    def test_is_free_where_a_node_failed(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=16)
        reservations.start_due(at=reservation.starts_at)
        one, other = Lease.objects.filter(reservation=reservation)
        say_handed_over(one)
        say_failed(other)
        at = reservation.starts_at + seconds(30)
        leases.advance(at=at)
        quote = ask(reservation, at=at)
        assert (quote.fee_minor, quote.fee_waived_because) == (0, "not_delivered")
        change = leave(reservation, quote=quote, at=at)
        assert (change.fee_minor, change.refunded_minor) == (0, quote.refund_minor)
        assert change.gpu_seconds_released == 16 * (2 * 3600 - 31)
        say_returned(one, at=at + seconds(5))
        leases.advance(at=at + seconds(6))
        # Nobody looks for other GPUs any more, though there are some.
        make_pool()
        replacements.advance(at=at + seconds(6))
        assert Lease.objects.filter(reservation=reservation).count() == 2
        reservations.finish_due(at=at + seconds(6))
        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.COMPLETED

    def test_is_refused_when_no_gpu_is_left(self) -> None:
        make_pool()
        lease = make_lease()
        say_failed(lease)
        at = lease.starts_at + seconds(30)
        leases.advance(at=at)
        with pytest.raises(StateConflict, match="no GPUs"):
            ask(lease.reservation, at=at)

    def test_is_refused_in_the_last_second(self) -> None:
        make_pool()
        lease = active_lease()
        with pytest.raises(StateConflict, match="ends at"):
            ask(lease.reservation, at=lease.ends_at - seconds(1))
