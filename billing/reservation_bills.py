"""The bill of a reservation as its readers want it: its figures as a month has them, and what is ahead.

Its numbers are those of `billing.bills`; here they only take the places that they have in the bill of a
month, so that both are shown by the same means and a reader of one can read the other.
"""

import datetime as dt
from collections import Counter
from dataclasses import dataclass

from billing import bills, budgets, month_bills, month_movements
from billing.bills import Bill
from billing.budgets import BudgetStanding, Labels
from billing.invoices import reading
from billing.models import Invoice
from billing.month_bills import Ahead
from billing.month_figures import Figures, Row
from billing.month_movements import Movements
from billing.promised import contracted
from scheduler.models import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationBill:
    """A bill with what stands around it. `row` has its figures; its costs and shares are the bill's own.

    `ahead_by_month` is what of it is promised and not yet delivered, `budgets` those that it counts in, as
    they stand in the periods in which it begins.
    """

    bill: Bill
    row: Row
    documents: list[Invoice]
    ahead_by_month: list[tuple[str, Ahead]]
    budgets: list[BudgetStanding]

    @property
    def costs(self) -> dict[str, str | None]:
        """Return what a GPU-hour cost and what was measured, by the names that a month has for them."""
        bill = self.bill
        return {
            "cost_per_delivered_gpu_hour": bill.cost_per_delivered_gpu_hour,
            "cost_per_attached_gpu_hour": bill.cost_per_attached_gpu_hour,
            "cost_per_busy_gpu_hour": bill.cost_per_busy_gpu_hour,
            "meter_coverage": bill.meter_coverage,
            "energy_kwh": bill.energy_kwh,
        }

    @property
    def focus_paths(self) -> list[str]:
        """Return where the API has the charges in the columns of FOCUS, from the month of the purchase on."""
        reservation = self.row.reservation
        assert reservation is not None, "a bill is of a reservation"
        paths = []
        since = reservation.created_at.astimezone(dt.UTC)
        while since < reservation.ends_at:
            month = f"{since:%Y-%m}"
            paths.append(month_bills.focus_paths(month=month)[0])
            since = month_movements.month_window(month=month).ends_at
        return paths


def reservation_bill(*, reservation: Reservation, at: dt.datetime) -> ReservationBill:
    """Return the bill of a reservation as it stands at an instant, with all that it is read with."""
    bill = bills.reservation_bill(reservation=reservation, at=at)
    is_ahead = reservation.status in month_bills.AHEAD and reservation.ends_at > at
    return ReservationBill(
        bill=bill,
        row=_row(reservation=reservation, bill=bill),
        documents=list(reading.of_reservation(reservation=reservation)),
        ahead_by_month=month_bills.ahead_of([reservation] if is_ahead else [], since=at),
        budgets=[
            each
            for each in budgets.standings(
                organization=reservation.organization, at=reservation.starts_at
            )
            if each.budget.project in {"", reservation.project}
        ],
    )


def _row(*, reservation: Reservation, bill: Bill) -> Row:
    """Return the bill as a month has its reservations, but of all their time."""
    seconds, price = contracted(reservation, window=reservation.window)
    return Row(
        reservation=reservation,
        figures=Figures(
            promised_seconds=seconds,
            contracted=price,
            list_cost=bill.list_cost.amount_minor,
            books=Movements(
                charged=bill.bought.amount_minor,
                earned=bill.earned.amount_minor,
                refunded=bill.refunded.amount_minor,
                fees=bill.fees.amount_minor,
                credits=bill.credits.amount_minor,
                tax_charged=bill.tax.amount_minor,
                closing=bill.open.amount_minor,
                bought=bill.gpu_seconds.bought,
                busy=bill.gpu_seconds.busy,
                idle=bill.gpu_seconds.idle,
                undelivered=bill.gpu_seconds.undelivered,
                released=bill.gpu_seconds.released,
                closing_seconds=bill.gpu_seconds.open,
            ),
            metered_seconds=bill.gpu_seconds_metered,
            busy_measured_seconds=bill.gpu_seconds.busy if bill.gpu_seconds_measured else None,
            attached_seconds=bill.gpu_seconds.attached,
            energy_millijoules=bill.energy_millijoules,
            undelivered_by_reason=Counter(bill.gpu_seconds.undelivered_by_reason),
        ),
        buyer=month_bills.buyers_of(reservation_ids=[reservation.pk]).get(reservation.pk),
        labels=Labels(reservation.project, reservation.tags),
        lease_ids=tuple(line.lease_id for line in bill.lines),
    )
