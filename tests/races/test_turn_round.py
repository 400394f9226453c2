"""Rivals race into each other's turn-round: one of them has the GPUs, and they are ready for the other."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from django.db import transaction
from django.test import override_settings

from marketplace.core.errors import DomainError
from marketplace.models import Listing
from scheduler import checks, extensions
from scheduler.models import Allocation, Quote, Reservation
from tests.races.test_last_gpus import at_once, buying, no_guards
from tests.scheduler.factories import (
    NOW,
    hours,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    window_in,
)

__all__ = ["no_guards"]
ROUNDS = 6
MINUTE = 1 / 60

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def minutes() -> Iterator[None]:
    """Let windows lie on minutes."""
    with override_settings(GRID_SECONDS=60):
        yield


def an_owner_who_cleans(*, gpus: int = 8) -> None:
    make_pool(gpus=gpus)
    Listing.objects.update(turnaround_seconds=3600)


def extending(reservation: Reservation, quote_id: str) -> Callable[[], str]:
    def extend() -> str:
        try:
            with transaction.atomic():
                extensions.extend(
                    organization=reservation.organization,
                    reservation_id=reservation.pk,
                    quote_id=quote_id,
                    at=NOW,
                    actor="test",
                )
        except DomainError as refusal:
            return refusal.code
        return "extended"

    return extend


class TestTurnRound:
    @pytest.mark.parametrize("seed", range(ROUNDS))
    def test_lets_a_rival_lose_who_is_one_minute_inside_of_it(self, seed: int) -> None:
        an_owner_who_cleans()
        tenant = make_organization()
        first = make_quote(tenant=tenant, gpus=8, window=window_in(10, length=2))
        inside = make_quote(tenant=tenant, gpus=8, window=window_in(13 - MINUTE, length=1))
        buyers = [buying(quote) for quote in (first, inside)]
        random.Random(seed).shuffle(buyers)

        assert at_once(buyers) == {"sold": 1, "taken": 1}
        assert Allocation.objects.filter(live=True).count() == 1
        assert checks.check(at=NOW).ok

    def test_lets_both_win_who_leave_it_to_the_minute(self) -> None:
        an_owner_who_cleans()
        first = make_quote(gpus=8, window=window_in(10, length=2))
        behind = make_quote(gpus=8, window=window_in(13, length=1))

        assert at_once([buying(first), buying(behind)]) == {"sold": 2}
        assert checks.check(at=NOW).ok

    @pytest.mark.parametrize("seed", range(ROUNDS))
    def test_of_an_extension_and_a_booking_go_to_one_of_them(self, seed: int) -> None:
        an_owner_who_cleans()
        reservation = make_reservation(gpus=8, window=window_in(10, length=2))
        longer = extensions.quote(
            organization=reservation.organization,
            reservation_id=reservation.pk,
            ends_at=NOW + hours(14),
            max_rate=None,
            at=NOW,
        )
        rival = make_quote(gpus=8, window=window_in(15 - MINUTE, length=1))
        actions = [extending(reservation, longer.pk), buying(rival)]
        random.Random(seed).shuffle(actions)

        outcomes = at_once(actions)

        assert outcomes in (
            Counter({"extended": 1, "taken": 1}),
            Counter({"capacity_taken": 1, "sold": 1}),
        )
        assert checks.check(at=NOW).ok


class TestTwin:
    @pytest.mark.usefixtures("no_guards")
    def test_sells_the_turn_round_without_the_guards(self) -> None:
        an_owner_who_cleans(gpus=1)
        quotes = [
            make_quote(window=window_in(10, length=2)),
            make_quote(window=window_in(13 - MINUTE, length=1)),
        ]

        assert at_once([buying(Quote.objects.get(pk=quote.pk)) for quote in quotes]) == {"sold": 2}
        broken = [check.name for check in checks.check(at=NOW).checks if not check.ok]
        assert "gpus_are_promised_once" in broken
