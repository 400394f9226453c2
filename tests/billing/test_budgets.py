"""Budgets, with the real scheduler beneath: what counts, what is refused, what is told."""

import datetime as dt

import pytest

from billing import budgets, changes, checkout, settlements
from billing.budgets import (
    BudgetExceeded,
    BudgetsChanged,
    BudgetWish,
    ProjectFrozen,
    periods,
    spending,
)
from billing.models import Budget, ProjectFreeze
from billing.states import BudgetMode, BudgetPeriod
from marketplace.core.errors import InvalidValue, NotFound
from marketplace.core.windows import Window
from marketplace.models import AuditEvent, Event, Organization
from scheduler import cancellations, extensions, reservations
from scheduler.details import DetailChanges, ReservationDetails
from scheduler.models import Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories as books
from tests.billing.factories import tenant
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, window_in

pytestmark = pytest.mark.django_db

MONTH = periods.period_of(period=BudgetPeriod.MONTH, instant=NOW + hours(24))


def a_wish(amount_minor: int, **changes) -> BudgetWish:
    values = {"project": "", "period": BudgetPeriod.MONTH, "mode": BudgetMode.HARD, **changes}
    return BudgetWish(amount_minor=amount_minor, **values)


def put(organization: Organization, *wishes: BudgetWish) -> None:
    budgets.put(organization=organization, wishes=wishes, only_if=None, at=NOW, actor="key_cfo")


def buy(
    buyer: Organization,
    *,
    project: str = "",
    window: Window | None = None,
    gpus: int = 1,
) -> Reservation:
    quote = factories.make_quote(tenant=buyer, gpus=gpus, window=window or window_in(24))
    return checkout.purchase(
        organization=buyer,
        quote_id=quote.pk,
        payment_method="wallet",
        details=ReservationDetails(project=project),
        at=NOW,
        actor="key_engineer",
    )


def committed(buyer: Organization, *, project: str = "", window: Window = MONTH) -> int:
    return spending.committed(organization=buyer, project=project, window=window, currency="usd")


def told(buyer: Organization) -> list[int]:
    rows = Event.objects.filter(organization=buyer, kind="budget.threshold_reached")
    return sorted(row.data["threshold_percent"] for row in rows)


@pytest.fixture
def buyer() -> Organization:
    factories.make_pool()
    return tenant(funds_minor=1_000_000)


@pytest.fixture
def price(buyer: Organization) -> int:
    """Return what one GPU for the two hours of tomorrow costs."""
    return factories.make_quote(tenant=buyer, window=window_in(24)).total_minor


class TestAHardBudget:
    def test_takes_what_it_covers_to_the_last_cent_and_refuses_the_next(self, buyer, price):
        put(buyer, a_wish(2 * price))
        buy(buyer)
        buy(buyer)
        with pytest.raises(BudgetExceeded) as caught:
            buy(buyer)
        assert caught.value.extra == {
            "budget_id": Budget.objects.get().pk,
            "project": "",
            "period": "month",
            "period_starts_at": f"{MONTH.starts_at:%Y-%m-%d}T00:00:00Z",
            "period_ends_at": f"{MONTH.ends_at:%Y-%m-%d}T00:00:00Z",
            "amount": {"amount_minor": 2 * price, "currency": "usd"},
            "left": {"amount_minor": 0, "currency": "usd"},
            "asked": {"amount_minor": price, "currency": "usd"},
        }
        assert Reservation.objects.count() == 2

    def test_of_a_project_counts_that_project_alone(self, buyer, price):
        put(buyer, a_wish(0, project="llm-7"))
        buy(buyer)
        buy(buyer, project="other")
        with pytest.raises(BudgetExceeded, match="project llm-7"):
            buy(buyer, project="llm-7")

    def test_of_the_organization_counts_every_project(self, buyer, price):
        put(buyer, a_wish(price), a_wish(10 * price, project="llm-7"))
        buy(buyer, project="llm-7")
        with pytest.raises(BudgetExceeded, match="of the organization"):
            buy(buyer, project="llm-7")

    def test_holds_whatever_it_is_paid_with(self, buyer, price, provider):
        put(buyer, a_wish(price - 1))
        quote = factories.make_quote(tenant=buyer, window=window_in(24))
        with pytest.raises(BudgetExceeded):
            checkout.purchase(
                organization=buyer,
                quote_id=quote.pk,
                payment_method="card",
                details=ReservationDetails(),
                at=NOW,
                actor="test",
            )

    def test_counts_an_order_that_waits_for_its_payment_until_it_expires(
        self, buyer, price, provider
    ):
        put(buyer, a_wish(price))
        quote = factories.make_quote(tenant=buyer, window=window_in(24))
        checkout.purchase(
            organization=buyer,
            quote_id=quote.pk,
            payment_method="card",
            details=ReservationDetails(),
            at=NOW,
            actor="test",
        )
        with pytest.raises(BudgetExceeded):
            buy(buyer)
        reservations.expire_unpaid(at=NOW + hours(1))
        assert buy(buyer).status == ReservationStatus.SCHEDULED

    def test_is_free_again_for_what_a_cancellation_gave_back(self, buyer, price):
        put(buyer, a_wish(price))
        first = buy(buyer)
        quote = cancellations.quote(organization=buyer, reservation_id=first.pk, at=NOW)
        change = changes.cancel(
            organization=buyer, reservation_id=first.pk, quote_id=quote.pk, at=NOW, actor="test"
        )
        assert 0 < change.fee_minor < price
        this_month = periods.period_of(period=BudgetPeriod.MONTH, instant=NOW)
        assert committed(buyer, window=this_month) == change.fee_minor

    def test_refuses_an_extension_that_it_does_not_cover(self, buyer, price):
        first = buy(buyer)
        quote = extensions.quote(
            organization=buyer,
            reservation_id=first.pk,
            ends_at=first.ends_at + hours(2),
            max_rate=None,
            at=NOW,
        )
        extend = {
            "organization": buyer,
            "reservation_id": first.pk,
            "quote_id": quote.pk,
            "payment_method": "wallet",
            "at": NOW,
            "actor": "test",
        }
        put(buyer, a_wish(price + quote.charge_minor - 1))
        with pytest.raises(BudgetExceeded) as caught:
            changes.extend(**extend)
        assert caught.value.extra["asked"] == {
            "amount_minor": quote.charge_minor,
            "currency": "usd",
        }
        put(buyer, a_wish(price + quote.charge_minor))
        changes.extend(**extend)
        assert committed(buyer) == price + quote.charge_minor

    def test_that_is_lowered_takes_nothing_away_and_refuses_what_comes(self, buyer, price):
        put(buyer, a_wish(2 * price))
        first = buy(buyer)
        put(buyer, a_wish(price // 2))
        first.refresh_from_db()
        assert first.status == ReservationStatus.SCHEDULED
        (standing,) = budgets.standings(organization=buyer, at=first.starts_at)
        assert (standing.committed.amount_minor, standing.left.amount_minor) == (price, 0)
        with pytest.raises(BudgetExceeded):
            buy(buyer)

    def test_refuses_a_reservation_that_moves_into_its_project(self, buyer, price):
        put(buyer, a_wish(price - 1, project="llm-7"))
        first = buy(buyer)
        with pytest.raises(BudgetExceeded):
            budgets.change_details(
                reservation=first, changes=DetailChanges(project="llm-7"), at=NOW, actor="test"
            )
        budgets.change_details(
            reservation=first, changes=DetailChanges(project="b"), at=NOW, actor="test"
        )
        assert committed(buyer, project="b") == price

    def test_counts_the_parts_of_a_window_in_the_months_where_they_lie(self, buyer):
        window = Window(MONTH.ends_at - hours(5), MONTH.ends_at + hours(2))
        following = periods.period_of(period=BudgetPeriod.MONTH, instant=MONTH.ends_at)
        total = factories.make_quote(tenant=buyer, window=window).total_minor
        put(buyer, a_wish(total - 1))
        first = buy(buyer, window=window)
        parts = committed(buyer), committed(buyer, window=following)
        assert sum(parts) == first.total_minor
        assert parts[0] > parts[1] > 0


class TestWhatIsCommitted:
    def test_gives_back_what_a_settlement_refunded(self, buyer):
        reservation = books.reservation(buyer=buyer, hours=2)
        period = periods.period_of(period=BudgetPeriod.MONTH, instant=books.START)
        assert committed(buyer, window=period) == reservation.total_minor
        lease = books.lease(of=reservation, returned_after_seconds=3600)
        settlement = settlements.settle(lease_id=lease.pk, at=reservation.ends_at + hours(1))
        assert settlement is not None
        assert settlement.refunded_minor > 0
        assert committed(buyer, window=period) == settlement.earned_minor

    def test_gives_back_what_no_lease_accounts_for(self, buyer):
        reservation = books.reservation(buyer=buyer, gpus=2)
        lease = books.lease(of=reservation, gpus=1, status=LeaseStatus.ENDED)
        Reservation.objects.filter(pk=reservation.pk).update(status=ReservationStatus.COMPLETED)
        settlements.settle_ended(at=reservation.ends_at + hours(2))
        period = periods.period_of(period=BudgetPeriod.MONTH, instant=books.START)
        lease.refresh_from_db()
        assert committed(buyer, window=period) == lease.settlement.earned_minor

    def test_is_the_same_in_a_quarter_a_year_and_in_all(self, buyer, price):
        buy(buyer)
        for period in BudgetPeriod:
            window = periods.period_of(period=period, instant=NOW + hours(24))
            assert committed(buyer, window=window) == price

    def test_by_payment_is_in_the_month_of_the_charge(self, buyer):
        window = Window(NOW + hours(24 * 60), NOW + hours(24 * 60 + 2))
        first = buy(buyer, window=window)
        put(buyer, a_wish(10**9))
        (now,) = budgets.standings(organization=buyer, at=NOW)
        (then,) = budgets.standings(organization=buyer, at=window.starts_at)
        assert (now.paid.amount_minor, now.committed.amount_minor) == (first.total_minor, 0)
        assert (then.paid.amount_minor, then.committed.amount_minor) == (0, first.total_minor)


class TestThresholds:
    def test_are_told_once_in_a_period(self, buyer, price):
        put(buyer, a_wish(2 * price))
        buy(buyer)
        assert told(buyer) == [50]
        buy(buyer)
        budgets.watch_due(at=NOW + hours(1))
        budgets.watch_due(at=NOW + hours(2))
        assert told(buyer) == [50, 80, 100]

    def test_of_a_budget_that_only_tells_are_told_by_the_clock_and_nothing_is_refused(
        self, buyer, price
    ):
        put(buyer, a_wish(price // 2, mode=BudgetMode.NOTIFY, thresholds=(150,)))
        buy(buyer)
        assert told(buyer) == []
        assert budgets.watch_due(at=NOW) == 1
        assert budgets.watch_due(at=NOW) == 0
        assert told(buyer) == [150]

    def test_of_months_ahead_are_told_too(self, buyer):
        put(buyer, a_wish(1, mode=BudgetMode.NOTIFY, thresholds=(100,)))
        buy(buyer, window=Window(NOW + hours(24 * 60), NOW + hours(24 * 60 + 2)))
        budgets.watch_due(at=NOW)
        event = Event.objects.get(kind="budget.threshold_reached")
        assert event.data["period_starts_at"] > f"{NOW:%Y-%m-%d}"

    def test_are_not_told_again_when_the_budget_is_set_again(self, buyer, price):
        put(buyer, a_wish(price))
        buy(buyer)
        before = Budget.objects.get().pk
        put(buyer, a_wish(price))
        budgets.watch_due(at=NOW)
        assert Budget.objects.get().pk == before
        assert told(buyer) == [50, 80, 100]


class TestPut:
    def test_replaces_all_of_them(self, buyer):
        put(buyer, a_wish(1), a_wish(2, project="a"))
        put(buyer, a_wish(3, project="b"))
        assert [(b.project, b.amount_minor) for b in Budget.objects.all()] == [("b", 3)]
        assert AuditEvent.objects.filter(action="budgets.replaced").count() == 2

    def test_refuses_two_of_one_project_and_period(self, buyer):
        with pytest.raises(InvalidValue) as caught:
            put(buyer, a_wish(1), a_wish(2))
        assert caught.value.pointer == "/budgets/1"

    def test_refuses_to_replace_what_somebody_else_has_changed(self, buyer):
        put(buyer, a_wish(1))
        read = budgets.version(organization=buyer)
        put(buyer, a_wish(2))
        with pytest.raises(BudgetsChanged):
            budgets.put(organization=buyer, wishes=[a_wish(3)], only_if=read, at=NOW, actor="test")
        assert Budget.objects.get().amount_minor == 2


class TestAFreeze:
    def test_stops_orders_of_its_project_until_it_is_lifted(self, buyer):
        made = budgets.freeze(
            organization=buyer, project="llm-7", reason="over", at=NOW, actor="key_cfo"
        )
        with pytest.raises(ProjectFrozen):
            buy(buyer, project="llm-7")
        buy(buyer, project="other")
        budgets.unfreeze(organization=buyer, freeze_id=made.pk, at=NOW, actor="key_cfo")
        buy(buyer, project="llm-7")
        kinds = set(Event.objects.filter(object_id=made.pk).values_list("kind", flat=True))
        assert kinds == {"project.frozen", "project.unfrozen"}

    def test_of_the_organization_stops_all_orders_and_extensions_and_cuts_nothing(self, buyer):
        first = buy(buyer)
        quote = extensions.quote(
            organization=buyer,
            reservation_id=first.pk,
            ends_at=first.ends_at + hours(2),
            max_rate=None,
            at=NOW,
        )
        budgets.freeze(organization=buyer, project="", reason="", at=NOW, actor="key_cfo")
        with pytest.raises(ProjectFrozen):
            buy(buyer)
        with pytest.raises(ProjectFrozen):
            changes.extend(
                organization=buyer,
                reservation_id=first.pk,
                quote_id=quote.pk,
                payment_method="wallet",
                at=NOW,
                actor="test",
            )
        first.refresh_from_db()
        assert first.status == ReservationStatus.SCHEDULED
        leave = cancellations.quote(organization=buyer, reservation_id=first.pk, at=NOW)
        changes.cancel(
            organization=buyer, reservation_id=first.pk, quote_id=leave.pk, at=NOW, actor="test"
        )

    def test_made_twice_is_one(self, buyer):
        for _ in range(2):
            budgets.freeze(organization=buyer, project="a", reason="", at=NOW, actor="test")
        assert ProjectFreeze.objects.count() == 1

    def test_is_not_lifted_by_somebody_else(self, buyer):
        made = budgets.freeze(organization=buyer, project="a", reason="", at=NOW, actor="test")
        with pytest.raises(NotFound):
            budgets.unfreeze(
                organization=tenant(name="Another"), freeze_id=made.pk, at=NOW, actor="test"
            )


@pytest.mark.parametrize(
    ("period", "instant", "starts", "ends"),
    [
        (BudgetPeriod.MONTH, "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        (BudgetPeriod.MONTH, "2027-01-01T00:00:00", "2027-01-01", "2027-02-01"),
        (BudgetPeriod.QUARTER, "2026-11-25T12:00:00", "2026-10-01", "2027-01-01"),
        (BudgetPeriod.QUARTER, "2026-06-30T12:00:00", "2026-04-01", "2026-07-01"),
        (BudgetPeriod.YEAR, "2026-02-28T12:00:00", "2026-01-01", "2027-01-01"),
    ],
)
def test_a_period_is_one_of_the_calendar(period, instant, starts, ends):
    at = dt.datetime.fromisoformat(instant).replace(tzinfo=dt.UTC)
    found = periods.period_of(period=period, instant=at)
    assert (f"{found.starts_at:%F}", f"{found.ends_at:%F}") == (starts, ends)
