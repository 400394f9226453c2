"""Bills as rows of CSV, and the names that their figures have everywhere: of a month and of a reservation.

New columns come last, so that a reader by position goes on to work.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings

from billing.month_figures import Figures, Row, ratios
from billing.states import UndeliveredReason
from marketplace.api.fields import InstantField


def identity(row: Row) -> dict[str, Any]:
    """Return whose a row is, which is nobody's where it is of no reservation."""
    reservation = row.reservation
    return {
        "reservation_id": reservation and reservation.pk,
        "name": reservation.name if reservation else "",
        "project": row.labels.project,
        "tags": dict(row.labels.tags),
        "status": reservation and reservation.status,
        "gpu_model": reservation and reservation.gpu_model_id,
        "region": reservation and reservation.region,
        "gpus": reservation and reservation.gpus,
        "starts_at": reservation and reservation.starts_at,
        "ends_at": reservation and reservation.ends_at,
        "simulated": bool(reservation and reservation.simulated),
        "bought_by": row.buyer and row.buyer.actor,
        "bought_by_name": row.buyer and row.buyer.name,
        "lease_ids": list(row.lease_ids),
    }


def seconds(figures: Figures) -> dict[str, int | None]:
    """Return the GPU-seconds, None where nothing measured them."""
    books = figures.books
    return {
        "promised": figures.promised_seconds,
        "opening": books.opening_seconds,
        "bought": books.bought,
        "delivered": figures.delivered_seconds,
        "attached": figures.attached_seconds,
        "busy": figures.busy_seconds,
        "undelivered": books.undelivered,
        "released": books.released,
        "closing": books.closing_seconds,
    }


def amounts(figures: Figures) -> dict[str, int]:
    """Return the money, in minor units."""
    books = figures.books
    return {
        "contracted": figures.contracted,
        "opening": books.opening,
        "charged": books.charged,
        "earned": books.earned,
        "refunded": books.refunded,
        "fees": books.fees,
        "closing": books.closing,
        "credits": books.credits,
        "billed": figures.billed,
        "effective": figures.effective,
        "tax": figures.tax,
        "billed_with_tax": figures.billed_with_tax,
        "list_cost": figures.list_cost,
    }


def lines(rows: Iterable[Mapping[str, object]], *, names: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a CSV as they are made: what is not known is an empty cell."""
    writer = csv.writer(_Line(), lineterminator="\r\n")
    yield writer.writerow(names)
    for row in rows:
        yield writer.writerow(row.values())


def cells(row: Row, *, costs: Mapping[str, str | None] | None = None) -> dict[str, object]:
    """Return the columns of a row; a formula that a tenant wrote into a name stays text in a spreadsheet.

    `costs` stand in the place of those that its figures come to.
    """
    of = identity(row)
    later = {
        "bought_by": of.pop("bought_by"),
        "bought_by_name": as_text(of.pop("bought_by_name") or ""),
        "lease_ids": " ".join(of.pop("lease_ids")),
        "list_cost_minor": row.figures.list_cost,
    }
    times = {
        name: InstantField().to_representation(of[name]) if of[name] else None
        for name in ("starts_at", "ends_at")
    }
    words = {name: as_text(of[name]) for name in ("name", "project")}
    tags = json.dumps(of["tags"], sort_keys=True, ensure_ascii=False)
    figures = _figure_cells(row.figures, costs=costs)
    return {**of, **times, **words, "tags": tags, **figures, **later}


def cells_of_figures(figures: Figures) -> dict[str, object]:
    """Return the columns of figures that are of many reservations."""
    return {**_figure_cells(figures), "list_cost_minor": figures.list_cost}


def as_text(text: str) -> str:
    """Return words so that a spreadsheet does not take them for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _figure_cells(
    figures: Figures, *, costs: Mapping[str, str | None] | None = None
) -> dict[str, object]:
    shown = dict(ratios(figures) if costs is None else costs)
    attached = {name: shown.pop(name) for name in ("cost_per_attached_gpu_hour",)}
    money = amounts(figures)
    del money["list_cost"]
    return {
        "currency": settings.CURRENCY,
        **{f"{name}_minor": amount for name, amount in money.items()},
        **{f"gpu_seconds_{name}": count for name, count in seconds(figures).items()},
        **shown,
        **attached,
        **{
            f"gpu_seconds_undelivered_{reason.value}": figures.undelivered_by_reason[reason]
            for reason in UndeliveredReason
        },
    }


class _Line:
    """A file that hands each line on instead of keeping it."""

    def write(self, text: str) -> str:
        return text
