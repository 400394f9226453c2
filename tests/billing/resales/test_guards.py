"""What the database refuses of shares, and what the check of the books finds beside that."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from billing.models import Entry, FeeShare, Resale, ResalePart
from billing.states import EntryKind
from scheduler.models import Reservation
from tests.billing.bookings import leave
from tests.billing.resales import market as resold
from tests.billing.resales.market import buy, deliver, release
from tests.scheduler.factories import window_in

pytestmark = pytest.mark.django_db


class TestTheDatabase:
    @pytest.fixture
    def row(self, left: Reservation) -> Resale:
        deliver(buy())
        release()
        return Resale.objects.get()

    def test_refuses_to_share_one_second_of_a_gpu_twice(self, row: Resale) -> None:
        part = row.parts.get()
        part.pk = None
        with (
            pytest.raises(IntegrityError, match="resale_part_is_shared_once"),
            transaction.atomic(),
        ):
            part.save(force_insert=True)

    def test_refuses_a_slice_twice_and_one_above_what_was_double(self, row: Resale) -> None:
        entry = Entry.objects.filter(kind=EntryKind.DEPOSIT)[0]
        for changed, name in (
            ({}, "resale_is_unique"),
            ({"taken_minor": 1601, "fee_share": other_share(row)}, "resale_takes_what"),
            ({"share_minor": 1601, "fee_share": other_share(row)}, "resale_takes_what"),
            (
                {"taken_minor": 0, "share_minor": 0, "fee_share": other_share(row)},
                "resale_without_entry",
            ),
        ):
            copy = Resale.objects.get(pk=row.pk)
            copy.pk, copy.entry = f"rsl_{name}", entry
            for column, value in changed.items():
                setattr(copy, column, value)
            with pytest.raises(IntegrityError, match=name), transaction.atomic():
                copy.save(force_insert=True)

    def test_keeps_what_was_shared_and_left(self, row: Resale) -> None:
        place = row.fee_share.change.released_places.get()
        for each, column in (
            (row, "share_minor"),
            (row.parts.get(), "gpu_seconds"),
            (place, "lot"),
        ):
            with pytest.raises(IntegrityError), transaction.atomic():
                type(each).objects.filter(pk=each.pk).update(**{column: 1})
            with pytest.raises(IntegrityError), transaction.atomic():
                type(each).objects.filter(pk=each.pk)._raw_delete("default")

    @pytest.mark.parametrize(
        ("name", "plant"),
        [
            (
                "resales_equal_their_entries",
                lambda row: Resale.objects.filter(pk=row.pk).update(share_minor=1),
            ),
            (
                "resales_stay_within_their_fee",
                lambda row: FeeShare.objects.filter(pk=row.fee_share_id).update(amount_minor=1599),
            ),
            (
                "resales_stay_within_their_fee",
                lambda row: Reservation.objects.filter(
                    pk=row.settlement.lease.reservation_id
                ).update(organization=row.fee_share.change.reservation.organization),
            ),
            (
                "time_is_shared_once",
                lambda row: ResalePart.objects.filter(resale=row).update(gpu_seconds=1),
            ),
            (
                "time_is_shared_once",
                lambda row: row.fee_share.change.released_places.update(slots=(0, 4)),
            ),
        ],
    )
    def test_is_checked_beside_that(
        self, row: Resale, unguarded: Any, name: str, plant: Callable[[Resale], object]
    ) -> None:
        assert resold.breaches() == []
        with unguarded():
            plant(row)
        assert name in {found.split(":")[0] for found in resold.breaches()}

    def test_an_entry_without_a_slice_is_found(self, row: Resale, unguarded: Any) -> None:
        with unguarded():
            ResalePart.objects.all().delete()
            Resale.objects.all().delete()
        assert "resales_equal_their_entries" in {f.split(":")[0] for f in resold.breaches()}


def other_share(row: Resale) -> FeeShare:
    """Return an owner's part of another fee."""
    again = FeeShare.objects.exclude(pk=row.fee_share_id).first()
    if again is None:
        leave(buy(window=window_in(70)))
        again = FeeShare.objects.exclude(pk=row.fee_share_id).get()
    return again
