"""What is to be filed of a month: by place and treatment, what was sold and what tax that was.

A line belongs to the month in which it was posted, so a month that is over stays as it was filed. Sales
without tax are in it too: a reverse charge is reported by who accounts for it, an exempt sale as such.
"""

import csv
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from django.db.models import Case, CharField, F, Q, Sum, Value, When
from django.db.models.functions import Coalesce

from billing import tax_remittances
from billing.models import TaxLine
from billing.month_movements import month_window
from billing.states import TaxTreatment
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRow:
    """What was sold in a month on the same terms, in minor units; `net = net_charged - net_refunded`.

    `tax = tax_charged - tax_refunded`, and `due` is that less the relief for what nobody paid. `tax_id` is
    the customer's, and named where it is the customer who accounts for the tax.
    """

    jurisdiction: str
    treatment: str
    name: str
    rate_basis_points: int
    tax_id: str
    currency: str
    net_charged: int
    net_refunded: int
    net: int
    tax_charged: int
    tax_refunded: int
    tax: int
    relief: int
    due: int


def month_report(*, month: str, at: dt.datetime) -> list[TaxRow]:
    """Return the rows of a month of UTC, by place; one query. A month that is not over is not complete.

    :raises InvalidValue: when `month` names no month, or one that has not begun.
    """
    window = _window(month=month, at=at)
    names = ("jurisdiction", "treatment", "name", "rate_basis_points")
    sold, relieved = Q(is_relief=False), Q(is_relief=True)
    found = (
        TaxLine.objects.filter(at__gte=window.starts_at, at__lt=window.ends_at)
        .values(
            "currency",
            **{name: F(f"reservation__{name}") for name in names},
            customer=Case(
                When(
                    reservation__treatment=TaxTreatment.REVERSE_CHARGE,
                    then=F("reservation__tax_id"),
                ),
                default=Value(""),
                output_field=CharField(),
            ),
        )
        .annotate(
            net_charged=Coalesce(Sum("net_charged_minor", filter=sold), 0),
            net_refunded=Coalesce(Sum("net_refunded_minor", filter=sold), 0),
            tax_charged=Coalesce(Sum("tax_charged_minor", filter=sold), 0),
            tax_refunded=Coalesce(Sum("tax_refunded_minor", filter=sold), 0),
            relief=Coalesce(
                Sum(F("tax_refunded_minor") - F("tax_charged_minor"), filter=relieved), 0
            ),
        )
        .order_by(*names, "customer", "currency")
    )
    return [
        TaxRow(
            **{name: row[name] for name in names},
            tax_id=row["customer"],
            currency=row["currency"],
            net_charged=row["net_charged"],
            net_refunded=row["net_refunded"],
            net=row["net_charged"] - row["net_refunded"],
            tax_charged=row["tax_charged"],
            tax_refunded=row["tax_refunded"],
            tax=row["tax_charged"] - row["tax_refunded"],
            relief=row["relief"],
            due=row["tax_charged"] - row["tax_refunded"] - row["relief"],
        )
        for row in found
    ]


def offices(*, month: str, at: dt.datetime) -> list[tax_remittances.Period]:
    """Return what each tax office is owed of a month of UTC, what was remitted, and what is open.

    :raises InvalidValue: when `month` names no month, or one that has not begun.
    """
    _window(month=month, at=at)
    return tax_remittances.periods(month=month)


class _Line:
    """A file that hands each line on instead of keeping it."""

    def write(self, text: str) -> str:
        return text


def as_csv(
    rows: Sequence[TaxRow] | Sequence[tax_remittances.Period],
    *,
    of: type[TaxRow | tax_remittances.Period] = TaxRow,
) -> Iterator[str]:
    """Yield the lines of a report as CSV, its head first; money in minor units."""
    writer = csv.DictWriter(_Line(), [each.name for each in fields(of)], lineterminator="\r\n")
    yield writer.writeheader()
    for row in rows:
        yield writer.writerow(asdict(row))


def _window(*, month: str, at: dt.datetime) -> Window:
    try:
        window = month_window(month=month)
    except ValueError:
        raise InvalidValue("a month is written as YYYY-MM, such as 2026-11") from None
    if window.starts_at > at:
        raise InvalidValue(f"{month} has not begun")
    return window
