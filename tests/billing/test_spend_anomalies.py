"""A day that costs a project far more than its days do is told once, and nothing else is."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import spend_anomalies
from billing.spend_anomalies import judge
from marketplace.models import Event, Organization
from scheduler.models import Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories

DAY = dt.timedelta(days=1)
TODAY = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
NOON = TODAY + dt.timedelta(hours=12)


class TestTheRule:
    def test_lets_what_is_usual_pass(self) -> None:
        assert judge(spend_minor=12_000, before=[10_000] * 28, excess_minor_min=0) is None

    def test_finds_more_than_twice_the_median(self) -> None:
        found = judge(spend_minor=20_001, before=[10_000] * 28, excess_minor_min=0)
        assert found is not None
        assert (found.median_minor, found.limit_minor, found.days) == (10_000, 20_000, 28)
        assert judge(spend_minor=20_000, before=[10_000] * 28, excess_minor_min=0) is None

    def test_is_patient_with_a_project_whose_days_differ(self) -> None:
        before = [5_000, 10_000, 15_000] * 9
        assert judge(spend_minor=39_000, before=before, excess_minor_min=0) is None
        assert judge(spend_minor=41_000, before=before, excess_minor_min=0) is not None

    def test_is_not_moved_by_one_dear_day_before(self) -> None:
        before = [10_000] * 20 + [10_000_000]
        assert judge(spend_minor=30_000, before=before, excess_minor_min=0) is not None

    def test_does_not_speak_of_pocket_money(self) -> None:
        assert judge(spend_minor=9_000, before=[100] * 28, excess_minor_min=10_000) is None

    def test_does_not_judge_before_it_knows_what_is_usual(self) -> None:
        assert judge(spend_minor=10**9, before=[1] * 6, excess_minor_min=0) is None
        assert judge(spend_minor=10**9, before=[1] * 7, excess_minor_min=0) is not None

    @given(before=st.lists(st.integers(1, 10**9), min_size=7, max_size=28), more=st.integers(1))
    def test_finds_a_dearer_day_wherever_it_finds_a_cheaper_one(
        self, before: list[int], more: int
    ) -> None:
        usual = judge(spend_minor=10**12 + more, before=before, excess_minor_min=10_000)
        assert usual is not None
        assert judge(spend_minor=usual.limit_minor, before=before, excess_minor_min=10_000) is None


@pytest.mark.django_db
class TestWatch:
    @pytest.fixture
    def buyer(self) -> Organization:
        return factories.tenant()

    def day(
        self,
        monkeypatch: pytest.MonkeyPatch,
        buyer: Organization,
        *,
        ago: int,
        gpus: int = 8,
        days: int = 1,
        project: str = "vision",
        status: ReservationStatus = ReservationStatus.COMPLETED,
    ) -> None:
        """Buy some days that began so many days ago."""
        monkeypatch.setattr(factories, "START", TODAY - ago * DAY)
        row = factories.reservation(
            buyer=buyer, gpus=gpus, hours=24 * days, paid=False, status=status
        )
        Reservation.objects.filter(pk=row.pk).update(project=project)

    def told(self) -> list[dict[str, Any]]:
        return [event.data for event in Event.objects.filter(kind="spend.anomaly").order_by("pk")]

    def test_tells_of_a_day_that_stands_out_once(
        self, monkeypatch: pytest.MonkeyPatch, buyer: Organization
    ) -> None:
        self.day(monkeypatch, buyer, ago=20, days=20)
        self.day(monkeypatch, buyer, ago=0, gpus=24, days=3, status=ReservationStatus.SCHEDULED)
        assert spend_anomalies.watch(at=NOON) == 1
        assert spend_anomalies.watch(at=NOON + dt.timedelta(hours=1)) == 0
        (data,) = self.told()
        usual = 45176  # 8 GPUs for 24 hours at 2.352942
        assert data == {
            "project": "vision",
            "day": "2026-11-30",
            "spend_minor": 3 * usual + 1,
            "median_minor": usual,
            "limit_minor": 2 * usual,
            "days_compared": 20,
            "currency": "usd",
        }

    def test_tells_of_the_next_day_again(
        self, monkeypatch: pytest.MonkeyPatch, buyer: Organization
    ) -> None:
        self.day(monkeypatch, buyer, ago=20, days=20)
        self.day(monkeypatch, buyer, ago=0, gpus=24, days=3)
        assert spend_anomalies.watch(at=NOON) == 1
        assert spend_anomalies.watch(at=NOON + DAY) == 1
        assert [data["day"] for data in self.told()] == ["2026-11-30", "2026-12-01"]

    def test_judges_each_project_by_its_own_days(
        self, monkeypatch: pytest.MonkeyPatch, buyer: Organization
    ) -> None:
        self.day(monkeypatch, buyer, ago=20, days=21, project="large", gpus=32)
        self.day(monkeypatch, buyer, ago=20, days=20, project="small")
        self.day(monkeypatch, buyer, ago=0, gpus=20, project="small")
        self.day(monkeypatch, factories.tenant(name="Other"), ago=0, gpus=64, project="small")
        assert spend_anomalies.watch(at=NOON) == 1
        assert [data["project"] for data in self.told()] == ["small"]

    def test_does_not_count_what_was_given_back(
        self, monkeypatch: pytest.MonkeyPatch, buyer: Organization
    ) -> None:
        self.day(monkeypatch, buyer, ago=20, days=20)
        self.day(monkeypatch, buyer, ago=0, gpus=64, status=ReservationStatus.CANCELLED)
        assert spend_anomalies.watch(at=NOON) == 0

    def test_says_nothing_of_the_weekly_run(
        self, monkeypatch: pytest.MonkeyPatch, buyer: Organization
    ) -> None:
        for weeks in range(5):
            self.day(monkeypatch, buyer, ago=7 * weeks, days=2)
        assert spend_anomalies.watch(at=NOON) == 0
