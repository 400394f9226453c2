"""The bill of one reservation as rows of CSV and as a page to print: the same figures as its JSON."""

import csv
import datetime as dt
import io
from collections.abc import Sequence

from django.template.loader import render_to_string

from billing import bill_words, month_bills
from billing.bills import Bill, BillLine, GpuSeconds
from billing.models import Invoice
from billing.states import UndeliveredReason
from scheduler.models import Reservation


def rows(*, bill: Bill, reservation: Reservation) -> str:
    """Return a line per lease and one of the whole, money in minor units; what is not known is empty."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\r\n")
    whole = {
        "reservation_id": bill.reservation_id,
        "lease_id": "",
        "status": reservation.status,
        "gpus": reservation.gpus,
        **_window(reservation.starts_at, reservation.ends_at),
        "currency": reservation.currency,
        **_minor(bill),
        "fees_minor": bill.fees.amount_minor,
        "net_minor": bill.net.amount_minor,
        "tax_minor": bill.tax.amount_minor,
        "net_with_tax_minor": bill.net_with_tax.amount_minor,
        "credits_minor": bill.credits.amount_minor,
        **_seconds(bill.gpu_seconds),
        "cost_per_delivered_gpu_hour": bill.cost_per_delivered_gpu_hour,
        "cost_per_busy_gpu_hour": bill.cost_per_busy_gpu_hour,
        "meter_coverage": bill.meter_coverage,
        "energy_kwh": bill.energy_kwh,
        "final": str(bill.final).lower(),
    }
    writer.writerow(whole)
    for line in bill.lines:
        known = {
            "reservation_id": bill.reservation_id,
            "lease_id": line.lease_id,
            "status": line.status,
            "gpus": line.gpus,
            **_window(line.window.starts_at, line.window.ends_at),
            "currency": reservation.currency,
            **_minor(line),
            **_seconds(line.gpu_seconds),
            "final": str(line.settled).lower(),
        }
        writer.writerow([known.get(name) for name in whole])
    writer.writerow(whole.values())
    return target.getvalue()


def page(
    *, bill: Bill, reservation: Reservation, documents: Sequence[Invoice], at: dt.datetime
) -> str:
    """Return the bill as HTML that needs nothing else."""
    return render_to_string(
        "api/bill.html",
        {
            "bill": bill,
            "now": f"{at:%Y-%m-%d %H:%M}",
            "words": bill_words.words_of(bill=bill, reservation=reservation, documents=documents),
            "columns": bill_words.LINE_COLUMNS,
            "minutes": month_bills.MINUTES_PATH,
        },
    )


def _window(starts_at: dt.datetime, ends_at: dt.datetime) -> dict[str, str]:
    return {
        "starts_at": f"{starts_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "ends_at": f"{ends_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _minor(of: Bill | BillLine) -> dict[str, int]:
    return {
        "bought_minor": of.bought.amount_minor,
        "earned_minor": of.earned.amount_minor,
        "refunded_minor": of.refunded.amount_minor,
        "open_minor": of.open.amount_minor,
    }


def _seconds(seconds: GpuSeconds) -> dict[str, int]:
    names = ("bought", "delivered", "busy", "idle", "undelivered", "released", "open")
    return {
        **{f"gpu_seconds_{name}": getattr(seconds, name) for name in names},
        **{
            f"gpu_seconds_undelivered_{reason.value}": seconds.undelivered_by_reason.get(reason, 0)
            for reason in UndeliveredReason
        },
    }
