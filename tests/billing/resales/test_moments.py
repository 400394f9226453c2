"""When a share is given: with the release, once, whatever breaks off, waits or comes later."""

import pytest

from billing import (
    bills,
    corrections,
    month_movements,
    owner_statements,
    parking,
    releases,
    steps,
)
from billing.models import Entry, FeeShare, Settlement
from billing.owner_statements import LineKind
from marketplace.models import Organization
from scheduler.models import Reservation
from tests.billing.bookings import LONG_AFTER
from tests.billing.readings import purse
from tests.billing.resales import market as resold
from tests.billing.resales.market import KEPT, buy, deliver, holds, release, slices
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db

RELEASED_AT = NOW + LONG_AFTER


class TestTheMoment:
    def test_does_it_once_however_often_it_is_called(self, left: Reservation) -> None:
        settled = deliver(buy())
        release()
        release()
        assert not releases.release(settlement_id=settled.pk, at=RELEASED_AT)
        assert len(slices()) == 1

    @pytest.mark.parametrize("step", ["resale.posted", "resale.stored", "release.posted"])
    def test_that_is_broken_off_leaves_nothing_and_is_made_up_for(
        self, left: Reservation, step: str
    ) -> None:
        deliver(buy())
        before = Entry.objects.count()

        def die(name: str) -> None:
            if name == step:
                raise RuntimeError("killed")

        forget = steps.listen(die)
        try:
            release()
        finally:
            forget()
        assert (Entry.objects.count(), slices()) == (before, [])
        release()
        assert slices() == [(3200, 1600, 1600, 1280)]
        assert purse(left.organization) == KEPT + 1280
        holds()

    def test_waits_while_the_money_of_who_left_is_parked(self, left: Reservation) -> None:
        settled = deliver(buy())
        parking.park(breaches={left.organization_id: "looked into"}, at=NOW)
        release()
        settled.refresh_from_db()
        assert (settled.released_at, slices()) == (None, [])
        parking.end(organization=left.organization, at=NOW, actor="anna, bert")
        release()
        assert slices() == [(3200, 1600, 1600, 1280)]

    def test_waits_while_the_money_of_the_owner_is_parked(
        self, owner: Organization, left: Reservation
    ) -> None:
        deliver(buy())
        parking.park(breaches={owner.pk: "looked into"}, at=NOW)
        release()
        assert slices() == []

    def test_has_seen_evidence_that_came_late(self, left: Reservation) -> None:
        settled = deliver(buy())
        resold.lose_a_gpu(settled.lease, seconds=3600)
        assert settled.review_due_at is not None
        corrections.review_due(at=settled.review_due_at)
        release()
        assert slices()[0][1:] == (1500, 1500, 1200)
        holds()

    def test_stands_when_evidence_comes_later_still(self, left: Reservation) -> None:
        settled = deliver(buy())
        release(at=RELEASED_AT)
        resold.lose_a_gpu(settled.lease, seconds=7200)
        assert settled.review_due_at is not None
        corrections.review_due(at=settled.review_due_at)
        correction = settled.corrections.get()
        assert correction.owner_minor < 0
        assert purse(left.organization) == KEPT + 1280
        holds()

    def test_an_owner_never_has_less_than_what_was_delivered_earned_it(
        self, owner: Organization, left: Reservation
    ) -> None:
        settled = deliver(buy())
        release()
        income = FeeShare.objects.get().amount_minor + settled.owner_minor
        taken = sum(each[2] for each in slices())
        assert income - taken >= settled.owner_minor


class TestWhatIsTold:
    @pytest.fixture
    def shared(self, left: Reservation) -> Settlement:
        settled = deliver(buy())
        release()
        return settled

    def test_by_the_bill_of_what_was_left(self, left: Reservation, shared: Settlement) -> None:
        left.refresh_from_db()
        bill = bills.reservation_bill(reservation=left, at=RELEASED_AT)
        assert bill.credits.amount_minor == 1280
        assert bill.net.amount_minor == 1882

    def test_by_no_bill_of_who_bought_it(self, shared: Settlement) -> None:
        sold = shared.lease.reservation
        bill = bills.reservation_bill(reservation=sold, at=RELEASED_AT)
        assert bill.credits.amount_minor == 0
        moved = month_movements.in_month(
            organization=sold.organization,
            window=month_movements.month_window(month="2027-01"),
            currency="usd",
        )
        assert all(each.credits == 0 for each in moved.values())

    def test_by_the_month_in_which_it_came(self, left: Reservation, shared: Settlement) -> None:
        for month, credited in (("2026-11", 0), ("2027-01", 1280)):
            moved = month_movements.in_month(
                organization=left.organization,
                window=month_movements.month_window(month=month),
                currency="usd",
            )
            assert moved[left.pk].credits == credited

    def test_by_the_statement_of_the_owner(self, owner: Organization, shared: Settlement) -> None:
        found = owner_statements.statement(owner=owner, month="2027-01", at=RELEASED_AT)
        (line,) = found.lines
        assert (line.kind, line.amount) == (LineKind.RESALE, -1600)
        assert line.reference == shared.lease_id
        assert found.totals[LineKind.RESALE] == -1600
        change = owner_statements.change_of(found)
        assert found.closing.total - found.opening.total == change == -1600
