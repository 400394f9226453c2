"""The bill of one reservation as a page to file."""

import datetime as dt
from collections.abc import Sequence

from django.conf import settings
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, Spacer

from billing import bill_words, month_bills
from billing.bills import Bill
from billing.models import Invoice
from billing.pdf.layout import QUIET, WARNING, beside, build, heading, table, text
from scheduler.models import Reservation

INDENT = "– "  # before what is a part of the line above


def reservation_bill(
    *, bill: Bill, reservation: Reservation, documents: Sequence[Invoice], at: dt.datetime
) -> bytes:
    """Return the bill of a reservation as PDF: that of a final one stays the same bytes until corrected."""
    words = bill_words.words_of(bill=bill, reservation=reservation, documents=documents)
    state = "Final." if bill.final else f"As it stands at {at:%Y-%m-%d %H:%M} UTC; not final."
    story: list[Flowable] = [
        text(f"Bill of {words.name}", size=16, bold=True),
        Spacer(0, 1 * mm),
        text(state, color=QUIET),
    ]
    if bill.simulated:
        story.append(text("Simulated: these GPUs do not exist.", bold=True, color=WARNING))
    hours = [[f"{INDENT if part else ''}{word}", value] for word, value, part in words.hours]
    story += [
        *heading("What was bought"),
        table([list(row) for row in words.about], widths=[2, 6], head=False, texts=2),
        beside(
            [*heading("GPU-hours"), table(hours, widths=[5, 3], head=False, columns=2)],
            [
                *heading("Money"),
                table([list(row) for row in words.money], widths=[4, 3], head=False, columns=2),
            ],
        ),
        *_leases(words),
    ]
    return build(
        story,
        title=f"Bill of {words.name}",
        subject=bill.reservation_id,
        footer=f"{bill.reservation_id} · amounts without tax where nothing else is said",
    )


def _leases(words: bill_words.Words) -> list[Flowable]:
    if not words.lines:
        return []
    cells = [["Lease", *(name.capitalize() for name in bill_words.LINE_COLUMNS)]]
    cells += [[f"{name}\n{detail}", *values] for name, detail, values in words.lines]
    minutes = f"{settings.BASE_URL}{month_bills.MINUTES_PATH}"
    return [
        *heading("Leases"),
        table(cells, widths=[14, 4, 4, 4, 5, 5, 5, 5]),
        Spacer(0, 2 * mm),
        text(f"The minutes of every hour, GPU by GPU: {minutes}", size=7, color=QUIET),
    ]
