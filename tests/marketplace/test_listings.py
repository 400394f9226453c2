"""The owner's standing wish, and every way in which it can make no sense."""

import datetime as dt
from decimal import Decimal
from typing import Any, cast

import pytest
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models.expressions import RawSQL

from marketplace import listings
from marketplace.catalog import NoSuchModel
from marketplace.core.errors import InvalidValue, NotFound, StateConflict
from marketplace.core.windows import Window
from marketplace.listings import (
    BlackoutsRefused,
    DurationsRefused,
    FloorRateRefused,
    GpusMinRefused,
    ListingChanges,
    ListingRefused,
    ModeRefused,
    NotAnOwner,
    PeriodRefused,
    ReclaimNoticeRefused,
    TurnaroundRefused,
)
from marketplace.models import AuditEvent, Listing, ListingTransition
from marketplace.states import LISTING_ARROWS, ListingMode, ListingStatus, Tier
from tests.marketplace.factories import (
    NOON,
    a_listing,
    a_published_listing,
    a_tenant,
    a_wish,
    an_owner,
    hours,
)

pytestmark = pytest.mark.django_db
MOVES = {
    ListingStatus.PUBLISHED: listings.publish,
    ListingStatus.PAUSED: listings.pause,
    ListingStatus.RETIRED: listings.retire,
}
WAYS = {
    ListingStatus.DRAFT: [],
    ListingStatus.PUBLISHED: [listings.publish],
    ListingStatus.PAUSED: [listings.publish, listings.pause],
    ListingStatus.RETIRED: [listings.retire],
}
# Each nonsensical part of a wish, with the refusal and the place it points to.
NONSENSE = [
    ({"floor_rate": Decimal(0)}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("-1")}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("NaN")}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("sNaN")}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("Infinity")}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("100000")}, FloorRateRefused, "/floor_rate"),
    ({"floor_rate": Decimal("1e-7")}, FloorRateRefused, "/floor_rate"),
    ({"ends_at": NOON}, PeriodRefused, "/ends_at"),
    ({"ends_at": NOON - hours(1)}, PeriodRefused, "/ends_at"),
    ({"starts_at": NOON - hours(9), "ends_at": NOON - hours(1)}, PeriodRefused, "/ends_at"),
    ({"reclaim_notice": hours(1)}, ReclaimNoticeRefused, "/reclaim_notice"),
    ({"tier": Tier.RECLAIMABLE}, ReclaimNoticeRefused, "/reclaim_notice"),
    (
        {"tier": Tier.RECLAIMABLE, "reclaim_notice": -hours(1)},
        ReclaimNoticeRefused,
        "/reclaim_notice",
    ),
    (
        {"tier": Tier.RECLAIMABLE, "reclaim_notice": hours(721)},
        ReclaimNoticeRefused,
        "/reclaim_notice",
    ),
    ({"duration_min": hours(2), "duration_max": hours(1)}, DurationsRefused, "/max_duration"),
    ({"duration_max": hours(0)}, DurationsRefused, "/max_duration"),
    ({"duration_min": -hours(1)}, DurationsRefused, "/min_duration"),
    ({"duration_min": hours(24 * 181)}, DurationsRefused, "/min_duration"),
    ({"duration_max": hours(24 * 181)}, DurationsRefused, "/max_duration"),
    ({"gpus_min": 0}, GpusMinRefused, "/min_gpus"),
    ({"turnaround": -hours(1)}, TurnaroundRefused, "/turnaround"),
    ({"turnaround": hours(25)}, TurnaroundRefused, "/turnaround"),
    ({"turnaround": dt.timedelta(milliseconds=1500)}, TurnaroundRefused, "/turnaround"),
    ({"gpus_min": 100_001}, GpusMinRefused, "/min_gpus"),
    (
        {"blackouts": (Window(NOON, NOON + hours(1)),) * 101},
        BlackoutsRefused,
        "/blackouts",
    ),
    ({"idle_for": hours(1)}, ModeRefused, "/mode"),
    ({"rolling": hours(1)}, ModeRefused, "/mode"),
    (
        {"mode": ListingMode.WHEN_IDLE, "rolling": hours(24)},
        ModeRefused,
        "/mode/when_idle/idle_for",
    ),
    ({"mode": ListingMode.WHEN_IDLE, "idle_for": hours(1)}, ModeRefused, "/mode/when_idle/rolling"),
    (
        {"mode": ListingMode.WHEN_IDLE, "idle_for": hours(24 * 8), "rolling": hours(24)},
        ModeRefused,
        "/mode/when_idle/idle_for",
    ),
    (
        {"mode": ListingMode.WHEN_IDLE, "idle_for": hours(1), "rolling": hours(24 * 181)},
        ModeRefused,
        "/mode/when_idle/rolling",
    ),
    ({"gpu_model": "h900"}, NoSuchModel, "/selector/gpu_model"),
    ({"name": " "}, InvalidValue, "/name"),
    ({"region": "x" * 61}, InvalidValue, "/selector/region"),
    ({"fabric": "a\x00"}, InvalidValue, "/selector/fabric"),
    ({"labels": {"rack": 7}}, InvalidValue, "/selector/labels/rack"),
    ({"labels": {"": "x"}}, InvalidValue, "/selector/labels"),
    ({"labels": {str(n): "x" for n in range(65)}}, InvalidValue, "/selector/labels"),
]


class TestCreate:
    def test_writes_a_draft_with_its_beginning_and_its_trail(self) -> None:
        listing = a_listing()
        assert listing.status == ListingStatus.DRAFT
        moves = ListingTransition.objects.values_list("from_status", "to_status", "actor")
        assert list(moves) == [("", "draft", "test")]
        event = AuditEvent.objects.get(object_id=listing.id)
        assert event.action == "listing.created"
        assert event.detail["floor_rate"] == "2.000000"

    @pytest.mark.parametrize(("part", "refusal", "pointer"), NONSENSE)
    def test_refuses_nonsense_and_points_at_it(
        self, part: dict[str, Any], refusal: type[ListingRefused], pointer: str
    ) -> None:
        with pytest.raises(refusal) as caught:
            a_listing(**part)
        assert caught.value.pointer == pointer
        assert not Listing.objects.exists()

    def test_refuses_a_tenant(self) -> None:
        with pytest.raises(NotAnOwner):
            a_listing(owner=a_tenant())

    def test_keeps_the_whole_wish_even_off_the_grid(self) -> None:
        wish = a_wish(
            starts_at=NOON + dt.timedelta(seconds=1, microseconds=1),
            ends_at=NOON + hours(99.5),
            region="eu-west",
            fabric="ib-1",
            labels={"rack": "7"},
            tier=Tier.RECLAIMABLE,
            reclaim_notice=dt.timedelta(hours=1),
            duration_min=hours(1),
            duration_max=hours(24),
            gpus_min=8,
            blackouts=(Window(NOON + hours(2), NOON + hours(3)),),
            mode=ListingMode.WHEN_IDLE,
            idle_for=dt.timedelta(minutes=30),
            rolling=hours(48),
            floor_rate=Decimal("1.234567"),
        )
        listing = listings.create(organization=an_owner(), fields=wish, at=NOON, actor="test")
        assert listings.fields_of(listing=Listing.objects.get(pk=listing.pk)) == wish


class TestUpdate:
    def test_changes_what_it_is_given_and_tells_the_trail_both_values(self) -> None:
        listing = a_published_listing()
        later = NOON + hours(1)
        changed = listings.update(
            listing=listing, changes={"floor_rate": Decimal("2.5")}, at=later, actor="key_1"
        )
        assert (changed.floor_rate, changed.name) == (Decimal("2.5"), listing.name)
        assert changed.status == ListingStatus.PUBLISHED
        assert changed.updated_at == later
        event = AuditEvent.objects.get(action="listing.changed")
        assert event.detail == {"floor_rate": {"from": "2.000000", "to": "2.500000"}}

    @pytest.mark.parametrize(("part", "refusal", "pointer"), NONSENSE)
    def test_refuses_nonsense_and_keeps_the_old_wish(
        self, part: dict[str, Any], refusal: type[ListingRefused], pointer: str
    ) -> None:
        listing = a_listing()
        before = listings.fields_of(listing=listing)
        with pytest.raises(refusal) as caught:
            listings.update(
                listing=listing, changes=cast("ListingChanges", part), at=NOON, actor="test"
            )
        assert caught.value.pointer == pointer
        assert listings.fields_of(listing=Listing.objects.get()) == before

    def test_refuses_two_parts_that_only_together_make_no_sense(self) -> None:
        listing = a_listing(duration_max=hours(4))
        with pytest.raises(DurationsRefused):
            listings.update(
                listing=listing, changes={"duration_min": hours(5)}, at=NOON, actor="test"
            )

    def test_does_not_undo_what_another_writer_changed_meanwhile(self) -> None:
        stale = a_listing()
        listings.update(
            listing=Listing.objects.get(), changes={"region": "eu-west"}, at=NOON, actor="a"
        )
        listings.update(listing=stale, changes={"gpus_min": 4}, at=NOON, actor="b")
        listing = Listing.objects.get()
        assert (listing.region, listing.gpus_min) == ("eu-west", 4)

    def test_refuses_a_retired_listing(self) -> None:
        listing = listings.retire(listing=a_listing(), at=NOON, actor="test")
        with pytest.raises(StateConflict):
            listings.update(listing=listing, changes={"gpus_min": 2}, at=NOON, actor="test")


class TestMoves:
    @pytest.mark.parametrize("source", ListingStatus)
    @pytest.mark.parametrize("target", MOVES)
    def test_go_where_the_table_of_arrows_allows_and_nowhere_else(
        self, source: ListingStatus, target: ListingStatus
    ) -> None:
        listing = a_listing()
        for step in WAYS[source]:
            listing = step(listing=listing, at=NOON, actor="test")
        if LISTING_ARROWS.allows(source, target):
            assert MOVES[target](listing=listing, at=NOON, actor="test").status == target
            last = ListingTransition.objects.order_by("-id").first()
            assert last is not None
            assert (last.from_status, last.to_status) == (source, target)
        else:
            with pytest.raises(StateConflict):
                MOVES[target](listing=listing, at=NOON, actor="test")
            assert Listing.objects.get().status == source

    def test_refuse_the_slower_of_two_writers(self) -> None:
        stale = a_published_listing()
        listings.retire(listing=Listing.objects.get(), at=NOON, actor="fast")
        before = ListingTransition.objects.count()
        with pytest.raises(StateConflict):
            listings.pause(listing=stale, at=NOON, actor="slow")
        assert Listing.objects.get().status == ListingStatus.RETIRED
        assert ListingTransition.objects.count() == before

    def test_refuse_to_publish_a_period_that_is_over(self) -> None:
        listing = a_listing(ends_at=NOON + hours(1))
        with pytest.raises(PeriodRefused):
            listings.publish(listing=listing, at=NOON + hours(1), actor="test")


class TestGet:
    def test_refuses_a_stranger_with_the_words_for_a_listing_that_does_not_exist(self) -> None:
        listing = a_listing()
        assert listings.get(organization=listing.organization, listing_id=listing.id) == listing
        with pytest.raises(NotFound) as stranger:
            listings.get(organization=an_owner(), listing_id=listing.id)
        assert stranger.value.detail == f"there is no listing {listing.id}"


class TestTables:
    @pytest.mark.parametrize(
        ("column", "value", "constraint"),
        [
            ("floor_rate", RawSQL("'NaN'::numeric", ()), "listing_floor_is_a_price"),
            ("floor_rate", Decimal(0), "listing_floor_is_a_price"),
            ("ends_at", NOON, "listing_ends_after_start"),
            ("duration_seconds_max", 0, None),
            ("reclaim_notice_seconds", 60, "listing_notice_fits_tier"),
            ("gpus_min", 0, "listing_gpus_min_is_positive"),
            ("turnaround_seconds", 86_401, "listing_turnaround_is_bounded"),
            ("rolling_seconds", 60, "listing_durations_fit_mode"),
        ],
    )
    def test_refuse_what_no_verb_would_write(
        self, column: str, value: object, constraint: str | None
    ) -> None:
        listing = a_listing(duration_min=dt.timedelta(0) if constraint else hours(1))
        with (
            pytest.raises(IntegrityError, match=constraint or "listing_durations_are_ordered"),
            transaction.atomic(),
        ):
            Listing.objects.filter(pk=listing.pk).update(**{column: value})

    def test_refuse_a_move_that_is_no_arrow(self) -> None:
        listing = a_listing()
        with (
            pytest.raises(IntegrityError, match="listing_transition_is_legal"),
            transaction.atomic(),
        ):
            ListingTransition.objects.create(
                listing=listing, from_status="retired", to_status="draft", actor="test", at=NOON
            )

    @pytest.mark.parametrize("history", [ListingTransition, AuditEvent])
    def test_refuse_to_rewrite_history(self, history: type[ListingTransition | AuditEvent]) -> None:
        a_listing()
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            history.objects.update(actor="somebody else")
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            history.objects.all().delete()
