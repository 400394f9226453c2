"""Two decisions about one item of suspense, and a debt that is given up while it is netted: one counts."""

import datetime as dt

import pytest

from billing import approvals, books, releases, suspense
from billing.models import Account, Settlement
from billing.states import AccountKind, ApprovalKind
from marketplace.core.money import Money
from marketplace.models import Organization
from tests.billing import test_clawbacks, test_suspense
from tests.billing.readings import balance
from tests.races.interleaving import before, heard, unlocked

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

AT = test_suspense.AT


def deciding(item: str, amount: int, *, kind: ApprovalKind):
    """Return how a second person says where a part of an item goes."""
    asked = test_suspense.ask(item, amount, kind=kind)
    return heard(lambda: approvals.approve(approval_id=asked.pk, at=AT, actor="ben"))


def broken(*, at: dt.datetime = AT) -> set[str]:
    return {each.name for each in books.check(at=at).checks if not each.ok}


class TestAnItem:
    def test_is_given_away_once(self, monkeypatch):
        item = test_suspense.aside(777)
        to_bank = deciding(item, 777, kind=ApprovalKind.SUSPENSE_BANK)
        to_market = deciding(item, 500, kind=ApprovalKind.SUSPENSE_MARKET)
        other = before(monkeypatch, suspense.ledger, "post", to_market)

        assert (to_bank(), other.outcome()) == ("done", "invalid_value")
        assert (test_suspense.left(item), balance(AccountKind.SUSPENSE)) == (0, 0)
        assert not broken()

    def test_without_its_lock_is_given_away_twice(self, monkeypatch):
        item = test_suspense.aside(777)
        to_bank = deciding(item, 777, kind=ApprovalKind.SUSPENSE_BANK)
        to_market = deciding(item, 500, kind=ApprovalKind.SUSPENSE_MARKET)
        unlocked(monkeypatch, Account)
        other = before(monkeypatch, suspense.ledger, "post", to_market)

        assert (to_bank(), other.outcome()) == ("done", "done")
        assert test_suspense.left(item) == -500
        assert "two_people_gave_it_up" in broken()


class TestADebt:
    """An owner owes 100; what it earns next nets that, while two people give it up."""

    @pytest.fixture
    def later(self, settings) -> Settlement:
        settings.OWNER_RESERVE_BASIS_POINTS = 0
        row = test_clawbacks.settled()
        test_clawbacks.lost(row)
        test_clawbacks.charged(row, amount=100)
        return test_clawbacks.settled()

    def giving_up(self, later: Settlement):
        at = later.release_due_at
        asked = approvals.request(
            kind=ApprovalKind.WRITE_OFF,
            organization=later.owner,
            subject_id=later.owner_id,
            amount=Money(100, "usd"),
            reason="It sells no more.",
            at=at,
            actor="anna",
        )
        return heard(lambda: approvals.approve(approval_id=asked.pk, at=at, actor="ben"))

    def test_is_netted_or_given_up(self, later, monkeypatch):
        give_up = self.giving_up(later)
        other = before(monkeypatch, releases.ledger, "post", give_up)

        assert releases.release(settlement_id=later.pk, at=later.release_due_at)
        assert other.outcome() == "nothing_owed"
        assert balance(AccountKind.OWNER_CLAWBACK, later.owner_id) == 0
        assert balance(AccountKind.BAD_DEBT) == 0
        assert not broken(at=later.release_due_at)

    def test_without_the_owners_lock_is_both(self, later, monkeypatch):
        give_up = self.giving_up(later)
        unlocked(monkeypatch, Organization)
        other = before(monkeypatch, releases.ledger, "post", give_up)

        assert releases.release(settlement_id=later.pk, at=later.release_due_at)
        assert other.outcome() == "done"
        assert balance(AccountKind.OWNER_CLAWBACK, later.owner_id) == -100
