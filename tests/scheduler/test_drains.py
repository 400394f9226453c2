"""Owners take machines off the market: what is sold moves or is honoured, and is never broken silently."""

import datetime as dt

import pytest

from agents import inventory
from agents.models import Gpu, Node
from marketplace import listings
from marketplace.core.windows import Window
from marketplace.models import Listing
from marketplace.states import ListingStatus
from scheduler import drains, leases, relocations, reservations
from scheduler.drains import MOVES_PER_REQUEST_MAX
from scheduler.models import Allocation, Lease, Relocation, Reservation
from scheduler.relocations import OVERRUN_SECONDS, PROTECT_AHEAD_SECONDS
from scheduler.sold import sales_of
from scheduler.states import LeaseStatus, RelocationReason, ReservationStatus
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


def nodes_of(reservation: Reservation) -> set[str]:
    return set(reservation.allocations.filter(live=True).values_list("node_id", flat=True))


def node_of(reservation: Reservation) -> Node:
    (node_id,) = nodes_of(reservation)
    return Node.objects.get(pk=node_id)


def drain(node: Node, *, at: dt.datetime = NOW) -> drains.Drained:
    return drains.drain(node=node, at=at, actor="owner")


class TestDrain:
    def test_moves_what_has_not_begun_to_another_owners_node(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=4)
        node = node_of(reservation)
        make_pool()

        found = drain(node)

        assert nodes_of(reservation).isdisjoint({node.pk})
        assert [(sold.window, sold.gpus) for sold in found.moved] == [(reservation.window, 4)]
        assert (found.running, found.kept, found.free_at) == ((), (), None)
        moved = Relocation.objects.get()
        assert (moved.reason, moved.actor) == (RelocationReason.NODE_DRAINED, "owner")

    def test_honours_what_no_other_node_can_serve(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=4)
        node = node_of(reservation)

        found = drain(node)

        assert [(sold.window, sold.gpus) for sold in found.kept] == [(reservation.window, 4)]
        assert found.free_at == reservation.ends_at
        reservations.start_due(at=reservation.starts_at)
        lease = Lease.objects.get()
        assert lease.node_id == node.pk
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE

    def test_says_what_runs_until_when_and_lets_it_run(self) -> None:
        make_pool(nodes=2)
        lease = make_lease(gpus=2)
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))
        Node.objects.update(last_report_at=lease.starts_at + seconds(6))

        found = drain(lease.node, at=lease.starts_at + seconds(6))

        assert [row.pk for row in found.running] == [lease.pk]
        assert found.free_at == lease.ends_at
        lease.refresh_from_db()
        assert lease.status == LeaseStatus.ACTIVE

    def test_keeps_a_block_in_its_fabric(self) -> None:
        owner = make_pool(nodes=2)
        reservation = make_reservation(gpus=16, spread="same_fabric")
        make_node(owner=owner, fabric="ib-2")
        node = Node.objects.filter(fabric="ib-1").earliest("pk")

        assert drain(node).moved == ()

        spare = make_node(owner=owner)
        assert drains.sweep(at=NOW) == 1
        assert spare.pk in nodes_of(reservation)
        assert node.pk not in nodes_of(reservation)

    def test_moves_no_more_in_one_request_than_it_has_time_for(self) -> None:
        make_pool()
        tenant = make_organization()
        for number in range(MOVES_PER_REQUEST_MAX + 2):
            make_reservation(tenant=tenant, gpus=8, window=window_in(24 + number, length=1))
        node = Node.objects.get()
        make_pool()

        found = drain(node)

        assert (len(found.moved), len(found.kept)) == (MOVES_PER_REQUEST_MAX, 2)
        assert drains.sweep(at=NOW) == 2
        assert not Allocation.objects.filter(live=True, node=node).exists()

    def test_moves_what_still_waits_for_its_payment(self) -> None:
        make_pool()
        reservation = reserve(make_quote(gpus=2))
        node = node_of(reservation)
        make_pool()

        assert len(drain(node).moved) == 1
        assert node.pk not in nodes_of(reservation)

    def test_that_is_taken_back_sells_again(self) -> None:
        make_pool()
        node = Node.objects.get()
        drain(node)

        inventory.resume(node=node, at=NOW, actor="owner")

        assert node_of(make_reservation(gpus=8)).pk == node.pk

    def test_moves_nothing_that_has_started(self) -> None:
        make_pool(nodes=2)
        lease = make_lease(gpus=2)

        assert not relocations.move(
            reservation_id=lease.reservation_id,
            node_id=lease.node_id,
            reason=RelocationReason.NODE_DRAINED,
            at=lease.starts_at,
            actor="test",
        )
        assert not Relocation.objects.exists()


class TestProtection:
    def test_moves_what_starts_soon_off_a_gpu_that_was_withdrawn(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=2)
        node = node_of(reservation)
        Gpu.objects.filter(node=node).update(quarantined_by_market="not clean")
        soon = reservation.starts_at - seconds(PROTECT_AHEAD_SECONDS)
        Node.objects.update(last_report_at=soon)
        assert relocations.protect_due(at=soon - seconds(1)) == 0

        assert relocations.protect_due(at=soon) == 1

        assert node.pk not in nodes_of(reservation)
        assert Relocation.objects.get().reason == RelocationReason.GPU_UNFIT

    def test_leaves_what_stands_on_other_gpus_of_the_node(self) -> None:
        make_pool(nodes=2)
        reservation = make_reservation(gpus=2)
        place = reservation.allocations.get()
        others = Gpu.objects.filter(node=place.node, slot__gte=place.slots.upper)
        others.update(quarantined_by_market="not clean")
        at = reservation.starts_at - seconds(60)
        Node.objects.update(last_report_at=at)

        assert relocations.protect_due(at=at) == 0

    def test_saves_the_next_tenant_from_a_lease_that_overruns(self) -> None:
        make_pool(nodes=2)
        lease = make_lease(gpus=8)
        say_handed_over(lease)
        leases.advance(at=lease.starts_at + seconds(5))
        other = next(n for n in Node.objects.all() if n.pk != lease.node_id)
        gap = Window(lease.ends_at + hours(1), lease.ends_at + hours(3))
        Node.objects.filter(pk=other.pk).update(last_report_at=None)
        next_up = make_reservation(at=NOW + seconds(1), gpus=8, window=gap)
        assert nodes_of(next_up) == {lease.node_id}
        at = lease.ends_at
        leases.advance(at=at)
        at = gap.starts_at - seconds(60)
        Node.objects.update(last_report_at=at)

        assert relocations.protect_due(at=lease.ends_at + seconds(OVERRUN_SECONDS - 1)) == 0
        assert relocations.protect_due(at=at) == 1

        assert nodes_of(next_up) == {other.pk}
        assert Relocation.objects.get().reason == RelocationReason.OVERRUN

    def test_leaves_it_where_it_is_when_there_is_no_other_place(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2)
        Gpu.objects.update(quarantined_by_market="not clean")
        at = reservation.starts_at - seconds(60)
        Node.objects.update(last_report_at=at)

        assert relocations.protect_due(at=at) == 0
        assert len(nodes_of(reservation)) == 1


class TestListings:
    def test_say_until_when_what_is_sold_binds_the_machines(self) -> None:
        """Vast.ai, hosting terms: a machine must stay until the last contract under it ends."""
        owner = make_organization()
        make_node(owner=owner)
        listing = make_listing(owner=owner)
        early, late = make_reservation(gpus=2), make_reservation(gpus=2, window=window_in(48))
        for status in (ListingStatus.PAUSED, ListingStatus.RETIRED):
            verb = {ListingStatus.PAUSED: listings.pause, ListingStatus.RETIRED: listings.retire}
            verb[status](listing=listing, at=NOW, actor="owner")
            sales = sales_of(rows=[listing], at=NOW)[listing.pk]
            assert sales.until == late.ends_at

        reservations.start_due(at=early.starts_at)

        early.refresh_from_db()
        assert early.status == ReservationStatus.ACTIVE

    def test_name_what_is_sold_in_a_blackout_and_honour_it(self) -> None:
        owner = make_organization()
        make_node(owner=owner)
        listing = make_listing(owner=owner)
        inside, outside = make_reservation(gpus=2), make_reservation(gpus=2, window=window_in(72))
        blackout = Window(inside.starts_at + hours(1), inside.starts_at + hours(5))

        listing = listings.update(
            listing=listing, changes={"blackouts": (blackout,)}, at=NOW, actor="owner"
        )

        sales = sales_of(rows=[listing], at=NOW)[listing.pk]
        assert [hit.window for hit in sales.in_blackouts] == [inside.window]
        assert (sales.in_blackouts_total, sales.until) == (1, outside.ends_at)
        reservations.start_due(at=inside.starts_at)
        inside.refresh_from_db()
        assert inside.status == ReservationStatus.ACTIVE

    def test_forget_what_is_over(self) -> None:
        owner = make_organization()
        make_node(owner=owner)
        listing = make_listing(owner=owner)
        lease = make_lease(gpus=2)
        say_handed_over(lease)
        say_returned(lease)
        leases.advance(at=lease.starts_at + seconds(1))
        leases.advance(at=lease.ends_at)

        assert Listing.objects.get() == listing
        assert sales_of(rows=[listing], at=lease.ends_at)[listing.pk].until is None
