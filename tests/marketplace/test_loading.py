"""The loader of large fleets: all of it is there, nothing overlaps, and it drowns no market."""

from io import StringIO

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db.models import Sum
from django.test import override_settings
from django.utils import timezone

from agents.models import Gpu, Node
from marketplace.management import loading
from marketplace.management.loading.drawing import FleetSize, TooManyBookings, draw
from marketplace.models import Listing, Organization
from scheduler import availability, checks
from scheduler.availability import OfferingQuery
from scheduler.models import Allocation, Quote, Reservation, ReservationTransition
from tests.factories import an_organization
from tests.scheduler.factories import MODEL, hours

SMALL = FleetSize(
    nodes=12,
    gpus_per_node=8,
    pools=3,
    nodes_per_fabric=2,
    bookings=400,
    days=30,
    seed=5,
)


@pytest.mark.django_db(transaction=True)
class TestLoad:
    def test_makes_a_sound_market_that_can_be_searched(self) -> None:
        at = timezone.now()

        loaded = loading.load(size=SMALL, at=at, say=lambda _: None)

        assert (Node.objects.count(), Gpu.objects.count()) == (12, 96)
        assert Node.objects.values("region").distinct().count() == 3
        assert Node.objects.values("fabric").distinct().count() == 6
        for model in (Quote, Reservation, Allocation):
            assert model.objects.count() == 400
        assert ReservationTransition.objects.count() == 800
        assert Allocation.objects.values("node").distinct().count() == 12
        assert Reservation.objects.aggregate(Sum("gpus"))["gpus__sum"] == sum(
            place.slots.upper - place.slots.lower for place in Allocation.objects.all()
        )
        report = checks.check(at=at)
        assert report.ok, [check for check in report.checks if not check.ok]
        found = availability.search(
            query=OfferingQuery(
                gpu_model=MODEL,
                gpus=2,
                duration=hours(3),
                earliest_start=at,
                latest_end=at + hours(24 * 20),
                region=loaded.regions[1],
            ),
            at=at,
        )
        assert {offer.region for offer in found.offers} == {loaded.regions[1]}

    def test_refuses_a_market_that_has_data(self) -> None:
        an_organization()
        with pytest.raises(loading.NotEmpty):
            loading.load(size=SMALL, at=timezone.now(), say=lambda _: None)
        assert Organization.objects.count() == 1
        assert not Listing.objects.exists()


class TestDraw:
    def test_gives_each_gpu_to_one_booking_at_a_time(self) -> None:
        rows = draw(size=SMALL)
        taken = np.zeros((12 * 16, 30 * 24), dtype=int)
        for _, slot, gpus, starts, ends in rows.tolist():
            assert starts < ends
            taken[slot : slot + gpus, starts:ends] += 1
        assert len(rows) == 400
        assert taken.max() == 1
        assert (
            0.3 < taken[:, :].mean() * 2 < 0.7
        )  # half of the slots are GPUs, half of their time sold

    def test_is_the_same_for_the_same_seed(self) -> None:
        assert (draw(size=SMALL) == draw(size=SMALL)).all()

    def test_refuses_more_than_fits(self) -> None:
        too_many = FleetSize(
            nodes=1,
            gpus_per_node=1,
            pools=1,
            nodes_per_fabric=1,
            bookings=20,
            days=1,
            seed=1,
        )
        with pytest.raises(TooManyBookings):
            draw(size=too_many)


@pytest.mark.django_db
class TestCommand:
    @pytest.mark.parametrize(
        "options",
        [
            {"nodes": 0},
            {"gpus_per_node": 17},
            {"pools": 5, "nodes": 4},
            {"days": 181},
            {"bookings": -1},
        ],
    )
    def test_refuses_sizes_that_make_no_sense(self, options: dict[str, int]) -> None:
        with pytest.raises(CommandError):
            call_command("bench", "fleet", **options, stdout=StringIO())

    @override_settings(IS_PRODUCTION=True)
    def test_refuses_machines_that_do_not_exist_in_production(self) -> None:
        with pytest.raises(CommandError, match="production"):
            call_command("bench", "fleet", stdout=StringIO())
