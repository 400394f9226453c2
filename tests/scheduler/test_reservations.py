"""Reservations: all or nothing, once per quote, and back on sale when nobody pays."""

from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.models import Listing
from marketplace.states import ListingStatus
from scheduler import reservations
from scheduler.calendar import CapacityTaken
from scheduler.details import DetailChanges, ReservationDetails
from scheduler.models import Allocation, Lease, Reservation
from scheduler.states import QuoteStatus, ReservationReason, ReservationStatus
from tests.scheduler.factories import (
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    seconds,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqkYmFzZTY0a2V5 ada@example"
pytestmark = pytest.mark.django_db


def slots_of(reservation: Reservation) -> list[int]:
    return sorted(
        slot
        for place in reservation.allocations.filter(live=True)
        for slot in range(place.slots.lower, place.slots.upper)
    )


class TestReserve:
    def test_takes_the_place_and_waits_for_the_payment(self) -> None:
        make_pool()
        quote = make_quote(gpus=3)

        reservation = reserve(quote, name="run 7", ssh_public_keys=[KEY], tags={"team": "nlp"})

        assert reservation.status == ReservationStatus.PAYMENT_PENDING
        assert reservation.payment_due_at == NOW + seconds(900)
        assert len(slots_of(reservation)) == 3
        assert (reservation.rate, reservation.total_minor) == (quote.rate, quote.total_minor)
        quote.refresh_from_db()
        assert (quote.status, quote.used_at) == (QuoteStatus.USED, NOW)

    def test_takes_what_the_quote_holds(self) -> None:
        make_pool()
        quote = make_quote(gpus=3, hold=True)
        held = set(quote.allocations.values_list("pk", flat=True))

        reservation = reserve(quote)

        assert set(reservation.allocations.values_list("pk", flat=True)) == held
        assert Allocation.objects.count() == len(held)

    def test_uses_a_quote_once(self) -> None:
        make_pool()
        quote = make_quote()
        reserve(quote)

        with pytest.raises(DomainError) as refusal:
            reserve(quote)

        assert refusal.value.code == "quote_used"
        assert Reservation.objects.count() == 1

    def test_refuses_a_strangers_quote(self) -> None:
        make_pool()
        quote = make_quote()

        with pytest.raises(NotFound), transaction.atomic():
            reservations.reserve(
                organization=make_organization(),
                quote_id=quote.pk,
                payment_method="wallet",
                details=ReservationDetails(),
                at=NOW,
                actor="test",
            )

    def test_says_that_the_capacity_is_gone_and_keeps_the_quote(self) -> None:
        make_pool()
        slower, faster = make_quote(gpus=8), make_quote(gpus=1)
        reserve(faster)

        with pytest.raises(CapacityTaken):
            reserve(slower)

        slower.refresh_from_db()
        assert slower.status == QuoteStatus.OPEN
        assert Reservation.objects.count() == 1

    def test_never_serves_from_a_listing_above_the_quoted_floor(self) -> None:
        make_pool()
        quote = make_quote(gpus=8)
        reserve(make_quote(gpus=8))
        dearer = make_organization()
        make_node(owner=dearer)
        make_listing(owner=dearer, floor_rate=Decimal(3))

        with pytest.raises(CapacityTaken):
            reserve(quote)

    def test_moves_to_other_gpus_when_rivals_took_the_first(self) -> None:
        make_pool(nodes=2)
        first, second = make_quote(gpus=8), make_quote(gpus=8)

        assert not set(slots_of(reserve(first))) & set(slots_of(reserve(second)))

    def test_honours_a_held_quote_whatever_becomes_of_the_listing(self) -> None:
        make_pool()
        quote = make_quote(gpus=2, hold=True)
        Listing.objects.update(floor_rate=Decimal(9), status=ListingStatus.RETIRED)

        assert reserve(quote).rate == quote.rate == Decimal("2.352942")

    def test_honours_a_plain_quote_after_the_floor_was_raised(self) -> None:
        make_pool()
        quote = make_quote(gpus=2)
        Listing.objects.update(floor_rate=Decimal(9))

        assert reserve(quote).rate == quote.rate == Decimal("2.352942")

    def test_sells_nothing_more_of_a_listing_that_was_retired(self) -> None:
        make_pool()
        quote = make_quote(gpus=2)
        Listing.objects.update(status=ListingStatus.RETIRED)

        with pytest.raises(CapacityTaken):
            reserve(quote)

    def test_leaves_what_is_sold_alone_when_a_listing_changes(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2)
        Listing.objects.update(floor_rate=Decimal(9))

        reservation.refresh_from_db()
        assert reservation.rate == Decimal("2.352942")

    @pytest.mark.parametrize(
        ("details", "pointer"),
        [
            ({"name": "x" * 201}, "/name"),
            ({"name": "a\x00b"}, "/name"),
            ({"project": "line\nbreak"}, "/project"),
            ({"image": "x" * 501}, "/image"),
            ({"tags": {f"t{n}": "" for n in range(51)}}, "/tags"),
            ({"tags": {"": "x"}}, "/tags"),
            ({"tags": {"k": "a\x00"}}, "/tags"),
            ({"ssh_public_keys": [KEY] * 21}, "/ssh_public_keys"),
            ({"ssh_public_keys": [KEY, "nonsense"]}, "/ssh_public_keys/1"),
            ({"ssh_public_keys": [KEY + "\n" + KEY]}, "/ssh_public_keys/0"),
            ({"ssh_public_keys": ['command="rm" ' + KEY]}, "/ssh_public_keys/0"),
            ({"ssh_public_keys": ["ssh-rsa " + "A" * 17_000]}, "/ssh_public_keys/0"),
        ],
    )
    def test_refuses_details_that_make_no_sense(
        self, details: dict[str, Any], pointer: str
    ) -> None:
        make_pool()
        quote = make_quote()

        with pytest.raises(DomainError) as refusal:
            reserve(quote, **details)

        assert (refusal.value.code, refusal.value.pointer) == ("invalid_value", pointer)
        assert not Allocation.objects.exists()

    def test_refuses_an_unknown_way_to_pay(self) -> None:
        make_pool()
        quote = make_quote()

        with pytest.raises(DomainError, match="must be one of"), transaction.atomic():
            reservations.reserve(
                organization=quote.organization,
                quote_id=quote.pk,
                payment_method="shells",
                details=ReservationDetails(),
                at=NOW,
                actor="test",
            )

    def test_takes_few_queries_however_much_is_booked(
        self, django_assert_max_num_queries: Any
    ) -> None:
        make_pool(nodes=3)
        for _ in range(12):
            make_reservation()
        quote = make_quote()

        with django_assert_max_num_queries(18):
            reserve(quote)


class TestPlacement:
    def test_fills_started_nodes_and_keeps_whole_nodes_whole(self) -> None:
        make_pool(nodes=2)
        make_reservation(gpus=3)
        make_reservation(gpus=4)

        assert len(slots_of(make_reservation(gpus=8))) == 8

    def test_stays_on_one_node_where_one_has_room(self) -> None:
        make_pool(nodes=3)
        make_reservation(gpus=6)

        small = make_reservation(gpus=2)

        assert small.allocations.values("node").distinct().count() == 1
        assert make_reservation(gpus=16)

    def test_stays_in_one_fabric_unless_told_otherwise(self) -> None:
        owner = make_organization()
        make_node(owner=owner, fabric="ib-1")
        make_node(owner=owner, fabric="ib-2")
        make_listing(owner=owner)

        with pytest.raises(DomainError):
            make_quote(gpus=16)
        assert len(slots_of(make_reservation(gpus=16, spread="any"))) == 16

    def test_takes_nodes_without_a_fabric_for_islands(self) -> None:
        owner = make_organization()
        make_node(owner=owner, fabric="")
        make_node(owner=owner, fabric="")
        make_listing(owner=owner)

        with pytest.raises(DomainError):
            make_quote(gpus=16)

    def test_does_not_join_two_owners_by_the_name_of_a_fabric(self) -> None:
        make_pool()
        make_pool()

        with pytest.raises(DomainError):
            make_quote(gpus=16)

    def test_serves_from_the_cheapest_listing(self) -> None:
        make_pool()
        cheap = make_organization()
        node = make_node(owner=cheap)
        make_listing(owner=cheap, floor_rate=Decimal("1.5"))

        reservation = make_reservation(gpus=4)

        assert {place.node_id for place in reservation.allocations.all()} == {node.pk}


class TestPayment:
    def test_schedules_what_is_paid(self) -> None:
        make_pool()

        assert make_reservation().status == ReservationStatus.SCHEDULED

    def test_comes_too_late_after_its_time(self) -> None:
        make_pool()
        reservation = reserve(make_quote())

        with pytest.raises(StateConflict):
            reservations.confirm(
                reservation_id=reservation.pk, at=reservation.payment_due_at, actor="test"
            )

    def test_frees_the_gpus_when_it_fails(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=8))

        reservations.fail_payment(reservation_id=reservation.pk, at=NOW, actor="test")

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.PAYMENT_FAILED
        assert make_quote(gpus=8)

    def test_of_what_has_expired_confirms_nothing(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=8))
        reservations.expire_unpaid(at=reservation.payment_due_at)

        with pytest.raises(StateConflict, match="had to be paid by"):
            reservations.confirm(
                reservation_id=reservation.pk, at=reservation.payment_due_at, actor="test"
            )

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.EXPIRED
        assert make_quote(gpus=8), "its GPUs are somebody else's to buy"

    def test_frees_the_gpus_when_it_never_comes(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=8))

        assert reservations.expire_unpaid(at=reservation.payment_due_at - seconds(1)) == 0
        assert reservations.expire_unpaid(at=reservation.payment_due_at) == 1
        assert reservations.expire_unpaid(at=reservation.payment_due_at) == 0

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.EXPIRED
        assert not Allocation.objects.filter(live=True).exists()

    def test_that_is_only_held_schedules_and_does_not_start(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=8))
        reservations.confirm_held(reservation_id=reservation.pk, at=NOW, actor="test")
        reservation.refresh_from_db()
        assert (reservation.status, reservation.is_paid) == (ReservationStatus.SCHEDULED, False)

        assert reservations.start_due(at=reservation.starts_at) == 1

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.PAYMENT_FAILED
        assert reservation.transitions.latest("id").reason == ReservationReason.PAYMENT_NOT_TAKEN
        assert not Lease.objects.exists()
        assert not Allocation.objects.filter(live=True).exists()

    def test_that_was_held_and_is_taken_starts(self) -> None:
        make_pool()
        reservation = reserve(make_quote())
        reservations.confirm_held(reservation_id=reservation.pk, at=NOW, actor="test")
        reservations.take_held(reservation_id=reservation.pk)

        assert reservations.start_due(at=reservation.starts_at) == 1

        reservation.refresh_from_db()
        assert (reservation.status, reservation.is_paid) == (ReservationStatus.ACTIVE, True)

    def test_is_taken_once_and_of_nothing_that_is_over(self) -> None:
        make_pool()
        taken, over = (reserve(make_quote()) for _ in range(2))
        for reservation in (taken, over):
            reservations.confirm_held(reservation_id=reservation.pk, at=NOW, actor="test")
        reservations.take_held(reservation_id=taken.pk)
        reservations.fail_payment(reservation_id=over.pk, at=NOW, actor="test")

        for reservation in (taken, over):
            with pytest.raises(StateConflict, match="waits for no price"):
                reservations.take_held(reservation_id=reservation.pk)

    def test_that_is_only_held_begins_nothing_whoever_asks(self) -> None:
        make_pool()
        reservation = reserve(make_quote())
        reservations.confirm_held(reservation_id=reservation.pk, at=NOW, actor="test")

        with pytest.raises(IntegrityError, match="reservation_is_taken_before_it_begins"):
            Reservation.objects.update(status=ReservationStatus.ACTIVE)

    def test_of_nothing_is_not_found(self) -> None:
        with pytest.raises(NotFound):
            reservations.confirm(reservation_id="rsv_nothing", at=NOW, actor="test")


class TestChangeDetails:
    def test_changes_what_is_given_and_nothing_else(self) -> None:
        make_pool()
        reservation = reserve(make_quote(), name="old", project="p", tags={"a": "b"})

        changed = reservations.change_details(
            reservation=reservation, changes=DetailChanges(name="new", tags={}), at=NOW
        )

        assert (changed.name, changed.project, changed.tags) == ("new", "p", {})
        assert changed.status == ReservationStatus.PAYMENT_PENDING

    def test_refuses_a_bad_key_and_leaves_all_as_it_was(self) -> None:
        make_pool()
        reservation = reserve(make_quote(), name="old")

        with pytest.raises(DomainError):
            reservations.change_details(
                reservation=reservation,
                changes=DetailChanges(name="new", ssh_public_keys=["x"]),
                at=NOW,
            )

        reservation.refresh_from_db()
        assert reservation.name == "old"

    def test_refuses_a_reservation_that_is_over(self) -> None:
        make_pool()
        reservation = reserve(make_quote())
        reservations.expire_unpaid(at=NOW + hours(1))

        with pytest.raises(StateConflict):
            reservations.change_details(
                reservation=reservation, changes=DetailChanges(name="x"), at=NOW
            )


class TestGet:
    def test_hides_other_tenants_reservations(self) -> None:
        make_pool()
        reservation = make_reservation()

        assert reservations.get(
            organization=reservation.organization, reservation_id=reservation.pk
        )
        for stranger, key in (
            (make_organization(), reservation.pk),
            (reservation.organization, "\x00"),
        ):
            with pytest.raises(NotFound):
                reservations.get(organization=stranger, reservation_id=key)
