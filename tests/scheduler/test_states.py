"""Only the arrows of the tables are possible: PostgreSQL refuses the others, and of two movers one wins."""

import itertools
import re
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction
from django.db.models import TextChoices

from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.states import Arrows
from scheduler import holds, reservations, states
from scheduler.models import (
    LeaseTransition,
    Quote,
    Reservation,
    ReservationTransition,
)
from scheduler.reservations import moves
from scheduler.states import (
    LEASE_ARROWS,
    QUOTE_ARROWS,
    RESERVATION_ARROWS,
    LeaseReason,
    LeaseStatus,
    QuoteStatus,
    ReservationReason,
    ReservationStatus,
)
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
)

README = Path(__file__).parents[2] / "scheduler" / "README.md"


def every_move(kind: type[TextChoices]) -> list[tuple[str, str]]:
    return list(itertools.product(["", *kind.values], kind.values))


def is_legal(arrows: Arrows[TextChoices], move: tuple[str, str]) -> bool:
    came_from, to = move
    if not came_from:
        return to in arrows.initial
    kind = type(arrows.initial[0])
    return arrows.allows(kind(came_from), kind(to))


@pytest.mark.django_db
class TestTransitions:
    def test_of_reservations_are_those_of_the_table(self) -> None:
        make_pool()
        reservation = reserve(make_quote())

        for move in every_move(ReservationStatus):
            row = ReservationTransition(
                reservation=reservation,
                from_status=move[0],
                to_status=move[1],
                reason=ReservationReason.PAID,
                actor="test",
                at=NOW,
            )
            assert _is_stored(row) == is_legal(RESERVATION_ARROWS, move), move  # type: ignore[arg-type]  # TextChoices is invariant here

    def test_of_leases_are_those_of_the_table(self) -> None:
        make_pool()
        lease = make_lease()

        for move in every_move(LeaseStatus):
            row = LeaseTransition(
                lease=lease,
                from_status=move[0],
                to_status=move[1],
                reason=LeaseReason.RETURNED,
                actor="test",
                at=NOW,
            )
            assert _is_stored(row) == is_legal(LEASE_ARROWS, move), move  # type: ignore[arg-type]  # TextChoices is invariant here


def _is_stored(row: ReservationTransition | LeaseTransition) -> bool:
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        return "transition_is_legal" not in str(error)
    return True


@pytest.mark.django_db
class TestMove:
    def test_is_refused_from_every_status_that_has_no_such_arrow(self) -> None:
        make_pool()
        reservation = reserve(make_quote())

        for status in ReservationStatus:
            if not RESERVATION_ARROWS.allows(status, ReservationStatus.SCHEDULED):
                Reservation.objects.update(status=status)
                with pytest.raises(StateConflict):
                    reservations.confirm(reservation_id=reservation.pk, at=NOW, actor="test")
                reservation.refresh_from_db()
                assert reservation.status == status
        assert reservation.transitions.count() == 1

    def test_is_lost_by_the_slower_of_two(self) -> None:
        make_pool()
        faster = reserve(make_quote())
        slower = Reservation.objects.get(pk=faster.pk)
        reservations.confirm(reservation_id=faster.pk, at=NOW, actor="test")

        with pytest.raises(StateConflict):
            moves.move(
                slower,
                to=ReservationStatus.PAYMENT_FAILED,
                reason=ReservationReason.PAYMENT_DECLINED,
                at=NOW,
                actor="test",
            )

        slower.refresh_from_db()
        assert slower.status == ReservationStatus.SCHEDULED
        assert [t.to_status for t in slower.transitions.all()] == ["payment_pending", "scheduled"]

    def test_writes_one_row_each(self) -> None:
        make_pool()
        reservation = make_reservation()

        rows = reservation.transitions.values_list("from_status", "to_status", "reason", "actor")

        assert list(rows) == [
            ("", "payment_pending", "quote_accepted", "test"),
            ("payment_pending", "scheduled", "paid", "test"),
        ]

    def test_of_a_quote_happens_once(self) -> None:
        make_pool()
        quote = make_quote()
        stale = Quote.objects.get(pk=quote.pk)
        holds.use(quote=quote, at=NOW)

        with pytest.raises(DomainError, match="was used"):
            holds.use(quote=stale, at=NOW)

        assert holds.expire(quote_ids=[quote.pk], at=NOW + hours(1)) == 0
        assert Quote.objects.get().status == QuoteStatus.USED

    def test_of_a_quote_to_used_needs_an_instant(self) -> None:
        make_pool()
        make_quote()

        with pytest.raises(IntegrityError, match="quote_is_used_at_an_instant"):
            Quote.objects.update(status=QuoteStatus.USED)


class TestReadme:
    @pytest.mark.parametrize("name", ["QUOTE_ARROWS", "RESERVATION_ARROWS", "LEASE_ARROWS"])
    def test_draws_the_machine_as_it_is(self, name: str) -> None:
        drawn = re.search(
            rf"<!-- arrows: {name} -->\n```mermaid\n(.*?)\n```", README.read_text(), flags=re.DOTALL
        )

        assert drawn is not None
        assert drawn[1] == getattr(states, name).as_diagram()

    def test_names_every_status(self) -> None:
        for arrows in (QUOTE_ARROWS, RESERVATION_ARROWS, LEASE_ARROWS):
            reached = set(arrows.initial) | {to for _, to in arrows}
            assert reached == set(type(arrows.initial[0]))
