"""Changes race with bookings, ticks and each other: exactly one legal outcome, nothing half done."""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from agents.models import Node
from billing import books, changes, wallet
from marketplace.core.errors import DomainError
from marketplace.models import Organization
from scheduler import (
    calendar,
    cancellations,
    extension_reach,
    extensions,
    rebookings,
    reservations,
)
from scheduler.models import Allocation, Change, ChangeQuote, Lease, Reservation, TenantLimit
from scheduler.rebookings import WindowWish
from tests.billing.bookings import a_tenant, purchase
from tests.races.test_last_gpus import at_once, sold_slots
from tests.scheduler.factories import (
    NOW,
    hours,
    make_pool,
    make_quote,
    seconds,
    window_in,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


def buy(tenant: Organization, **wishes: Any) -> Reservation:
    return purchase(make_quote(tenant=tenant, **wishes))


def outcome(action: Callable[[], object], *, name: str) -> Callable[[], str]:
    """Return what to run in a thread: it says its name, or the code of what refused it."""

    def run() -> str:
        try:
            with transaction.atomic():
                action()
        except DomainError as refusal:
            return f"{name}: {refusal.code}"
        return name

    return run


def leaving(reservation: Reservation, *, at: dt.datetime = NOW) -> Callable[[], str]:
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=at
    )
    return outcome(
        lambda: changes.cancel(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            at=at,
            actor="test",
        ),
        name="left",
    )


def extending(reservation: Reservation, *, by: int, at: dt.datetime = NOW) -> Callable[[], str]:
    quote = extensions.quote(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + hours(by),
        max_rate=None,
        at=at,
    )
    return outcome(
        lambda: changes.extend(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            payment_method="wallet",
            at=at,
            actor="test",
        ),
        name="extended",
    )


def nothing_overlaps() -> bool:
    starts = {a.period.lower for a in Allocation.objects.filter(live=True)}
    for instant in starts:
        here = Counter(
            slot
            for place in Allocation.objects.filter(live=True)
            if place.period.lower <= instant < place.period.upper
            for slot in range(place.slots.lower, place.slots.upper)
        )
        if any(count > 1 for count in here.values()):
            return False
    return True


def books_are_sound() -> bool:
    return books.check(at=NOW + dt.timedelta(days=60)).ok


class TestExtension:
    @pytest.mark.parametrize("seed", range(4))
    def test_and_a_booking_of_the_same_gpus_have_one_winner(self, seed: int) -> None:
        make_pool(gpus=2)
        tenant, rival = a_tenant(), a_tenant()
        reservation = buy(tenant, gpus=2, window=window_in(24))
        wanted = make_quote(tenant=rival, gpus=1 + seed % 2, window=window_in(27))
        actions = [
            extending(reservation, by=2),
            outcome(lambda: purchase(wanted), name="booked"),
        ]

        outcomes = at_once(actions if seed % 2 else actions[::-1])

        now = Reservation.objects.get(pk=reservation.pk)
        if outcomes["extended"]:
            assert outcomes == {"extended": 1, "booked: capacity_taken": 1}
            assert now.ends_at == reservation.ends_at + hours(2)
        else:
            assert outcomes == {"extended: capacity_taken": 1, "booked": 1}
            assert now.ends_at == reservation.ends_at
            assert now.total_minor == reservation.total_minor
            assert not Change.objects.exists()
        assert nothing_overlaps()
        assert books_are_sound()

    def test_of_one_quote_happens_once(self) -> None:
        make_pool()
        reservation = buy(a_tenant(), window=window_in(24))
        extend = extending(reservation, by=2)
        assert at_once([extend] * 5) == {"extended": 1, "extended: quote_used": 4}
        assert ChangeQuote.objects.filter(used_at__isnull=False).count() == 1

    def test_and_a_cancellation_have_one_winner(self) -> None:
        make_pool()
        reservation = buy(a_tenant(), window=window_in(48))
        outcomes = at_once([extending(reservation, by=2), leaving(reservation)])
        assert sum(outcomes.values()) == 2
        assert outcomes in (
            {"extended": 1, "left: state_conflict": 1},
            {"extended: state_conflict": 1, "left": 1},
        )
        assert books_are_sound()

    def test_without_the_constraint_would_sell_a_gpu_twice(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The twin: what sees no rival writes over it, if nothing in the database stands against it."""
        make_pool(gpus=1)
        tenant = a_tenant()
        reservation = buy(tenant, window=window_in(24))
        extend = extending(reservation, by=2)
        buy(a_tenant(), window=window_in(27))
        monkeypatch.setattr(extension_reach, "_next_booking", lambda **_: None)
        assert extend() == "extended: capacity_taken", "the constraint alone is enough"
        monkeypatch.setattr(calendar, "change_period", lambda **_: None)
        assert extend() == "extended"
        assert Reservation.objects.get(pk=reservation.pk).ends_at > NOW + hours(27)


class TestCancellation:
    def test_and_the_start_have_one_winner(self) -> None:
        make_pool()
        tenant = a_tenant()
        found = [buy(tenant, window=window_in(1)) for _ in range(6)]
        at = found[0].starts_at
        Node.objects.update(last_report_at=at)
        before = at - seconds(1)
        leavers = [leaving(each, at=before) for each in found]

        outcomes = at_once([*leavers, lambda: f"started {reservations.start_due(at=at)}"])

        assert outcomes["left"] + outcomes["left: state_conflict"] == 6
        reservations.start_due(at=at)  # what was locked meanwhile
        statuses = Counter(Reservation.objects.values_list("status", flat=True))
        assert statuses["cancelled"] == outcomes["left"]
        assert statuses["active"] == 6 - outcomes["left"]
        assert Lease.objects.count() == statuses["active"]
        assert len(sold_slots()) == statuses["active"]
        assert books_are_sound()

    def test_of_one_quote_refunds_once(self) -> None:
        make_pool()
        tenant = a_tenant()
        reservation = buy(tenant, window=window_in(48))
        leave = leaving(reservation)
        outcomes = at_once([leave] * 8)
        assert (outcomes["left"], sum(outcomes.values())) == (1, 8)
        change = Change.objects.get()
        assert wallet.balance(organization=tenant).amount_minor == (1_000_000 - change.fee_minor)
        assert books_are_sound()


class TestMove:
    def test_and_a_booking_of_the_last_room_have_one_winner(self) -> None:
        make_pool(gpus=2)
        reservation = buy(a_tenant(), gpus=2, window=window_in(48))
        quote = rebookings.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            wish=WindowWish(starts_at=NOW + hours(60), ends_at=NOW + hours(62)),
            at=NOW,
        )
        move = outcome(
            lambda: changes.rebook(
                organization=reservation.organization,
                reservation_id=reservation.pk,
                quote_id=quote.pk,
                payment_method="wallet",
                at=NOW,
                actor="test",
            ),
            name="moved",
        )
        wanted = make_quote(tenant=a_tenant(), gpus=1, window=window_in(60))
        outcomes = at_once([move, outcome(lambda: purchase(wanted), name="booked")])
        assert outcomes in (
            {"moved": 1, "booked: capacity_taken": 1},
            {"moved: capacity_taken": 1, "booked": 1},
        )
        places = Allocation.objects.filter(reservation=reservation, live=True)
        assert sum(a.slots.upper - a.slots.lower for a in places) == 2
        assert nothing_overlaps()
        assert books_are_sound()


class TestQuota:
    def test_is_not_passed_by_two_who_take_the_last_of_it_at_once(self) -> None:
        make_pool(gpus=8)
        tenant = a_tenant()
        wanted = [make_quote(tenant=tenant) for _ in range(8)]
        TenantLimit.objects.create(organization=tenant, gpu_hours_max=6)
        outcomes = at_once([outcome(lambda q=q: purchase(q), name="booked") for q in wanted])  # type: ignore[misc] # a default binds the loop's value
        assert outcomes == {"booked": 3, "booked: limit_exceeded": 5}

    def test_is_shared_by_bookings_and_extensions(self) -> None:
        make_pool(gpus=8)
        tenant = a_tenant()
        reservation = buy(tenant, window=window_in(24))
        wanted = make_quote(tenant=tenant)
        extend = extending(reservation, by=2)
        TenantLimit.objects.create(organization=tenant, gpu_hours_max=4)
        outcomes = at_once([extend, outcome(lambda: purchase(wanted), name="booked")])
        assert sum(outcomes.values()) == 2
        assert outcomes["extended"] + outcomes["booked"] == 1
        assert books_are_sound()
