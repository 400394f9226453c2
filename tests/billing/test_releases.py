import datetime as dt

import pytest

from billing import corrections, ledger, releases, settlements
from billing.models import Entry, Payout, PayoutTransition
from billing.states import AccountKind
from scheduler.states import LeaseStatus
from tests.billing import factories
from tests.billing.owner_market import MUCH_LATER, released_settlement, settled

pytestmark = pytest.mark.django_db


class TestReleaseDue:
    def test_makes_the_owners_earnings_payable(self, settings):
        row = settled()
        assert row.release_due_at == row.lease.closed_at + dt.timedelta(
            seconds=settings.PAYOUT_DELAY_SECONDS
        )
        assert releases.release_due(at=row.release_due_at) == 1
        payout = Payout.objects.get()
        assert (payout.amount_minor, payout.status, payout.owner) == (400, "due", row.owner)
        payable = ledger.AccountRef(AccountKind.OWNER_PAYABLE, "usd", row.owner_id)
        accrued = ledger.AccountRef(AccountKind.OWNER_ACCRUED, "usd", row.lease_id)
        assert ledger.balance(account=payable) == 400
        assert ledger.balance(account=accrued) == 0
        transition = PayoutTransition.objects.get()
        assert (transition.from_status, transition.to_status) == ("", "due")

    def test_waits_for_its_time(self):
        row = settled()
        assert releases.release_due(at=row.release_due_at - dt.timedelta(seconds=1)) == 0
        assert not Payout.objects.exists()

    @pytest.mark.parametrize(("buffer_days", "waits_days"), [(14, 8), (1, 1), (0, 0)])
    def test_of_what_was_settled_late_waits_for_the_last_look_at_its_evidence(
        self, settings, buffer_days, waits_days
    ):
        settings.PAYOUT_DELAY_SECONDS = buffer_days * 86_400
        lease = factories.lease(of=factories.reservation(buyer=factories.tenant(funds_minor=471)))
        late = lease.closed_at + dt.timedelta(days=20)
        row = settlements.settle(lease_id=lease.id, at=late)
        assert row.release_due_at == late + dt.timedelta(days=waits_days)
        assert releases.release_due(at=late) == (waits_days == 0)
        assert releases.release_due(at=row.release_due_at) == (waits_days > 0)
        if buffer_days > waits_days:
            corrections.review_due(at=row.release_due_at)
            row.refresh_from_db()
            assert row.review_due_at is None

    def test_changes_nothing_when_it_comes_again(self):
        released_settlement()
        assert releases.release_due(at=MUCH_LATER) == 0
        assert Payout.objects.count() == 1
        assert Entry.objects.filter(kind="release").count() == 1

    def test_makes_no_payout_of_nothing(self):
        row = settled(status=LeaseStatus.FAILED, handed_over_after_seconds=None)
        assert releases.release_due(at=MUCH_LATER) == 1
        row.refresh_from_db()
        assert row.released_at == MUCH_LATER
        assert not Payout.objects.exists()

    def test_is_not_held_up_by_one_that_cannot_be_released(self, monkeypatch):
        monkeypatch.setattr(releases, "RELEASES_PER_RUN_MAX", 1)
        first, second = settled(), settled()
        release = releases.release

        def fall_over(*, settlement_id: str, at: dt.datetime) -> bool:
            if settlement_id == first.pk:
                raise RuntimeError("its books are torn")
            done: bool = release(settlement_id=settlement_id, at=at)
            return done

        monkeypatch.setattr(releases, "release", fall_over)
        assert releases.release_due(at=MUCH_LATER) == 1
        assert Payout.objects.get().settlement == second
