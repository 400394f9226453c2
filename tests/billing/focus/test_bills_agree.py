"""What the bill of a month says of a reservation is what the FOCUS rows of that month add up to."""

from decimal import Decimal

import pytest

from billing import month_bills, month_movements, reservation_bills
from billing.month_figures import Figures
from marketplace.models import Organization
from scheduler.models import Quote, Reservation
from tests.billing.focus import world

pytestmark = pytest.mark.django_db

CENT = Decimal("0.01")


@pytest.fixture
def tenant() -> Organization:
    """Return one to whom everything happened, at a surge that each quote names."""
    organization = world.lived_in()
    for quote in Quote.objects.all():
        quote.price_breakdown["base_rate"] = str(quote.rate - Decimal("0.111111"))
        quote.save(update_fields=["price_breakdown"])
    return organization


def of_month(tenant: Organization, month: str) -> dict[str, Figures]:
    window = month_movements.month_window(month=month)
    rows = month_bills.rows_of(organization=tenant, window=window)
    return {row.reservation.pk: row.figures for row in rows if row.reservation is not None}


def charges(tenant: Organization, month: str) -> list[dict[str, str]]:
    """Return what was charged or used for reservations: no taxes and credits, which bills have apart."""
    return [
        row
        for row in world.rows(tenant, month=month)
        if row["ChargeCategory"] in {"Purchase", "Usage"}
    ]


def is_bought(row: dict[str, str]) -> bool:
    """Say whether a row is of what is paid ahead: a correction is told as usage and stands for both."""
    return row["ChargeCategory"] == "Purchase" or row["x_EventType"] == "correction"


def test_every_figure_of_a_month_is_that_of_its_focus_rows(tenant: Organization) -> None:
    seen = 0
    for month in world.MONTHS:
        rows = charges(tenant, month)
        for reservation_id, figures in of_month(tenant, month).items():
            mine = [row for row in rows if row["x_ReservationId"] == reservation_id]
            bought = [row for row in mine if is_bought(row)]
            assert figures.list_cost == world.total(bought, "ListCost").quantize(CENT) * 100
            assert figures.billed == world.total(mine, "BilledCost") * 100
            assert figures.effective == world.total(mine, "EffectiveCost") * 100
            seen += len(bought)
    assert seen > len(world.MONTHS)


def test_the_bill_of_a_reservation_is_that_of_its_months(tenant: Organization) -> None:
    months = [of_month(tenant, month) for month in world.MONTHS]
    rows = [row for month in world.MONTHS for row in charges(tenant, month)]
    for reservation in Reservation.objects.filter(organization=tenant):
        whole = reservation_bills.reservation_bill(reservation=reservation, at=world.LATER)
        figures = whole.row.figures
        parts = [month[reservation.pk] for month in months if reservation.pk in month]
        for name in ("billed", "effective", "contracted", "tax"):
            assert getattr(figures, name) == sum(getattr(part, name) for part in parts), name
        for name in ("charged", "refunded", "earned", "fees", "credits"):
            of_months = sum(getattr(part.books, name) for part in parts)
            assert getattr(figures.books, name) == of_months, name
        mine = [row for row in rows if row["x_ReservationId"] == reservation.pk]
        listed = world.total([row for row in mine if is_bought(row)], "ListCost")
        assert figures.list_cost == listed.quantize(CENT) * 100
        # What is promised is what was bought, added and given back; each row rounds its price of an hour.
        agreed = [row for row in mine if row["x_EventType"] in {"purchase", "change"}]
        contracted = world.total(
            [row for row in agreed if row["ChargeCategory"] == "Purchase"], "ContractedCost"
        )
        assert abs(figures.contracted - contracted * 100) <= len(agreed)
