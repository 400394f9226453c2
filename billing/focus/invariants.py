"""Invariants of the exports: what the files say is what the ledger and the documents say, to the minor unit.

The other invariants are queries; these read the rows that a tenant would get, so what makes them is checked
too. Looked at is what moved in the last two nights: reservations with a purchase, a change, a settlement, a
correction or a refund in that time, and those on documents of it, each over all of its months. Hours alone do
not bring a reservation in; its settlement does. On the first nights of a month that is most of the market: a
million rows take half a minute, and no run looks at more than `ROWS_MAX`: whose exports were not looked at is
said as a breach, since what nobody checked is not known to hold.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection

from billing.focus import files, manifests
from billing.focus.columns import TAX_SUFFIX
from billing.focus.frames import UNIT, Row
from billing.focus.numbers import HOURS_PLACES
from billing.invariants import SIGNED
from billing.invoices.invariants import PRICES
from billing.models import InvoiceLine
from billing.states import AccountKind, EntryKind, InvoiceKind
from marketplace.core.money import SECONDS_PER_HOUR, currency_exponent
from marketplace.models import Organization

LOOKED_BACK_HOURS = 49  # two nights and an hour: one of them may be missed
ROWS_MAX = 3_000_000  # a minute and a half of one night; the exports themselves have no such limit
_OWN_HOURS = (
    ("x_BoughtGpuHours", 1),
    ("x_ReleasedGpuHours", -1),
    ("x_DeliveredGpuHours", -1),
    ("x_UndeliveredGpuHours", -1),
)
# Each row prints its hours rounded to the last of their places, so a sum is off by half of that per row.
_ROUNDING_SECONDS = Decimal(SECONDS_PER_HOUR) / 2 / 10**HOURS_PLACES

_MOVED = f"""
    WITH recent AS (
        SELECT p.key, p.reservation_id FROM ({PRICES}) p
        WHERE p.recorded_at >= least(%(at)s, statement_timestamp()) - interval '{LOOKED_BACK_HOURS} hours'
    ),
    papers AS (
        SELECT l.invoice_id FROM billing_invoiceline l JOIN recent ON recent.key = l.entry_key
        UNION
        SELECT i.id FROM billing_monthclose k
        JOIN billing_invoice i ON i.organization_id = k.organization_id AND i.period = k.month
        WHERE k.recorded_at >= least(%(at)s, statement_timestamp()) - interval '{LOOKED_BACK_HOURS} hours'
    ),
    touched AS (
        SELECT reservation_id FROM recent
        UNION
        SELECT l.reservation_id FROM billing_invoiceline l JOIN papers ON papers.invoice_id = l.invoice_id
        WHERE l.reservation_id IS NOT NULL
    )
    SELECT r.organization_id, array_agg(DISTINCT r.id), (
        SELECT array_agg(i.id) FROM papers JOIN billing_invoice i ON i.id = papers.invoice_id
        WHERE i.organization_id = r.organization_id
    )
    FROM touched JOIN scheduler_reservation r ON r.id = touched.reservation_id
    GROUP BY r.organization_id ORDER BY r.organization_id
"""  # noqa: S608 - constants of this file and of the invoices' invariants
_PAID = f"""
    SELECT p.reservation_id, sum(p.charged - p.refunded)::bigint FROM ({PRICES}) p
    WHERE p.reservation_id = ANY(%(reservations)s) GROUP BY p.reservation_id
"""  # noqa: S608
_HELD = f"""
    SELECT a.subject_id, a.kind, sum({SIGNED})::bigint
    FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
    WHERE a.kind = ANY(%(kinds)s) AND a.subject_id = ANY(%(reservations)s) GROUP BY a.subject_id, a.kind
"""  # noqa: S608

Breach = tuple[str, str | None]  # what is wrong, and whose it is


@dataclass(slots=True)
class _Sums:
    """What the rows of a reservation add up to, tax and credits apart."""

    currency: str = ""
    rows: int = 0
    billed: Decimal = Decimal(0)
    effective: Decimal = Decimal(0)
    # Bought, less what was given back and what was delivered: as it is priced, and by columns of ours.
    hours_left: Decimal = Decimal(0)
    own_hours_left: Decimal = Decimal(0)
    disordered: int = 0  # rows with more busy than attached, or more attached than delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class _Books:
    """What the ledger says by reservation: the net price kept, and what of it and of its time is left."""

    paid: dict[str, int]
    deferred: dict[str, int]
    still_open: dict[str, int]


SENTENCES = {
    "exports_tell_what_was_charged": (
        "The FOCUS rows of each reservation that moved lately bill its net price, and what of it is not "
        "effective yet is deferred."
    ),
    "exports_tell_every_hour": (
        "Of the hours that FOCUS rows bought, each is used, unused, given back or still open; none is more "
        "busy than attached, or more attached than delivered."
    ),
    "exports_tell_each_line": "Each line of a document of late is told by FOCUS rows that add up to it.",
    "exports_are_looked_at": "The FOCUS rows of every tenant with whom something moved lately were read.",
    "exports_stay_as_they_were": (
        "Of the FOCUS files of closed months whose digest was given out, those of this night have it still."
    ),
}


def breaches(*, at: dt.datetime) -> dict[str, list[Breach]]:
    """Return what the exports of what moved lately get wrong, by invariant.

    An export that is wrong is the market's fault: no breach names an organization whose money would stop.
    """
    found: dict[str, list[Breach]] = {name: [] for name in SENTENCES}
    moved = _query(_MOVED, {"at": at})
    books = _books(sorted(each for _, reservations, _ in moved for each in reservations))
    read = 0
    for number, (organization_id, reservations, documents) in enumerate(moved):
        if read > ROWS_MAX:
            text = f"the exports of {len(moved) - number} tenants from {organization_id} on were not read"
            found["exports_are_looked_at"].append((f"{text}: a night reads {ROWS_MAX} rows", None))
            break
        sums, lines, rows = _read(organization_id, reservations)
        read += rows
        for reservation_id in reservations:
            told = sums[reservation_id]
            found["exports_tell_what_was_charged"] += _wrong_money(reservation_id, told, books)
            found["exports_tell_every_hour"] += _wrong_hours(reservation_id, told, books)
        found["exports_tell_each_line"] += _wrong_lines(lines, documents or [])
    found["exports_stay_as_they_were"] += [(text, None) for text in manifests.breaches(at=at)]
    return found


def _books(reservations: list[str]) -> _Books:
    """Return what the ledger says of all the reservations that are looked at; two queries."""
    held: dict[tuple[str, str], int] = {
        (subject, kind): int(signed)
        for subject, kind, signed in _query(
            _HELD,
            {
                "kinds": [AccountKind.DEFERRED.value, AccountKind.U_OPEN.value],
                "reservations": reservations,
            },
        )
    }
    return _Books(
        paid={key: int(amount) for key, amount in _query(_PAID, {"reservations": reservations})},
        deferred={key: -held.get((key, AccountKind.DEFERRED), 0) for key in reservations},
        still_open={key: held.get((key, AccountKind.U_OPEN), 0) for key in reservations},
    )


def _read(
    organization_id: str, reservations: list[str]
) -> tuple[dict[str, _Sums], dict[str, Decimal], int]:
    """Return the sums of the rows, by reservation and by line of a document, and how many rows there are."""
    sums: dict[str, _Sums] = defaultdict(_Sums)
    lines: dict[str, Decimal] = defaultdict(Decimal)
    number = 0
    organization = Organization.objects.get(pk=organization_id)
    for row in files.charges_of(organization=organization, reservation_ids=reservations):
        number += 1
        billed = Decimal(row["BilledCost"])
        if row["InvoiceDetailId"]:
            lines[row["InvoiceDetailId"]] += billed
        if row["ChargeCategory"] not in {"Tax", "Credit"}:
            _add(sums[row["x_ReservationId"]], row, billed=billed)
    return sums, lines, number


def _add(sums: _Sums, row: Row, *, billed: Decimal) -> None:
    sums.currency = row["BillingCurrency"].lower()
    sums.rows += 1
    sums.billed += billed
    sums.effective += Decimal(row["EffectiveCost"])
    sums.own_hours_left += sum(
        (sign * Decimal(row[name]) for name, sign in _OWN_HOURS if row[name]), Decimal(0)
    )
    # A correction takes hours from what was delivered and gives them back in one row: nothing is left by it.
    if row["PricingUnit"] == UNIT and row["x_EventType"] != EntryKind.CORRECTION:
        hours = Decimal(row["PricingQuantity"])
        sums.hours_left += hours if row["ChargeCategory"] == "Purchase" else -hours
    delivered, attached, busy = (
        Decimal(row[name]) if row[name] else None
        for name in ("x_DeliveredGpuHours", "x_AttachedGpuHours", "x_BusyGpuHours")
    )
    # A correction tells differences: more of a lease may turn out busy without more of it delivered.
    is_difference = row["x_EventType"] == EntryKind.CORRECTION
    if delivered is not None and delivered >= 0 and not is_difference:
        known = [each for each in (delivered, attached, busy) if each is not None]
        sums.disordered += known != sorted(known, reverse=True)


def _wrong_money(reservation_id: str, told: _Sums, books: _Books) -> Iterator[Breach]:
    price = _major(books.paid.get(reservation_id, 0), told)
    deferred = _major(books.deferred[reservation_id], told)
    if (told.billed, told.billed - told.effective) != (price, deferred):
        said = f"{told.billed} billed and {told.effective} effective"
        yield (
            f"{reservation_id} is told as {said}, the books say {price} and {deferred} deferred",
            None,
        )


def _wrong_hours(reservation_id: str, told: _Sums, books: _Books) -> Iterator[Breach]:
    still_open = books.still_open[reservation_id]
    for hours in (told.hours_left, told.own_hours_left):
        left_seconds = hours * SECONDS_PER_HOUR
        if abs(left_seconds - still_open) > told.rows * _ROUNDING_SECONDS:
            said = f"{left_seconds} GPU-seconds open"
            yield f"{reservation_id} is told with {said}, the books say {still_open}", None
    if told.disordered:
        yield f"{reservation_id} has {told.disordered} rows that are more busy than there", None


def _wrong_lines(told: dict[str, Decimal], documents: list[str]) -> Iterator[Breach]:
    lines = InvoiceLine.objects.filter(invoice__in=documents, reservation__isnull=False)
    for line in lines.select_related("invoice").order_by("pk").iterator():
        for line_id, amount in _amounts(line):
            of_rows = told.get(line_id, Decimal(0))
            if of_rows != amount:
                yield (
                    f"{line.invoice.number} line {line_id} says {amount}, its rows {of_rows}",
                    None,
                )


def _amounts(line: InvoiceLine) -> Iterable[tuple[str, Decimal]]:
    """Return what the rows of a line and of its tax add up to, in the major unit."""
    sign = -1 if line.invoice.kind == InvoiceKind.CREDIT_NOTE else 1
    places = currency_exponent(line.invoice.currency)
    return (
        (line.pk, Decimal(sign * line.net_minor).scaleb(-places)),
        (f"{line.pk}{TAX_SUFFIX}", Decimal(sign * line.tax_minor).scaleb(-places)),
    )


def _query(statement: str, parameters: dict[str, Any]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def _major(minor: int, sums: _Sums) -> Decimal:
    return (
        Decimal(minor).scaleb(-currency_exponent(sums.currency))
        if sums.currency
        else Decimal(minor)
    )
