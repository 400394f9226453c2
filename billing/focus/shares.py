"""What of an entry stands on which document: a charge on one line, what goes back on as many as credit it.

A credit note takes back what one invoice said, so one refund may be told on several. Each row has the amount
of its own line, and what no document says stays on none: so the rows of a document add up to its total.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from billing.focus.columns import TAX_SUFFIX
from billing.focus.facts import Documents, Fact, Place
from billing.focus.frames import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of what an entry gave back, in minor units and GPU-seconds, and the line that says so."""

    minor: int
    seconds: int
    place: Place | None


def given_back(*, minor: int, seconds: int, places: tuple[Place, ...]) -> list[Share]:
    """Return the shares of an amount before tax: they add up to it and to its GPU-seconds.

    The last one has the seconds that no other has.
    """
    told = [place for place in places if place.net_minor]
    parts: list[tuple[int, Place | None]] = [(place.net_minor, place) for place in told]
    rest = minor - sum(place.net_minor for place in told)
    if rest or not parts:
        parts.append((rest, None))
    shares, left = [], seconds
    for amount, place in parts[:-1]:
        own = min(place.gpu_seconds, left) if place else 0
        shares.append(Share(minor=amount, seconds=own, place=place))
        left -= own
    amount, place = parts[-1]
    return [*shares, Share(minor=amount, seconds=left, place=place)]


def taxes(fact: Fact, *, documents: Documents) -> Iterator[tuple[int, Place | None]]:
    """Yield the amounts of tax that an entry moved, signed as it was billed, each with its line."""
    charged = fact.tax_minor + fact.tax_refunded_minor
    if charged:
        yield charged, documents.charged
    told = [place for place in documents.given_back if place.tax_minor]
    yield from ((-place.tax_minor, place) for place in told)
    rest = fact.tax_refunded_minor - sum(place.tax_minor for place in told)
    if rest:
        yield -rest, None


def on_line(row: Row, place: Place | None) -> Row:
    """Return a row with the line that says its amount; a row of nothing billed stands on none."""
    if place is None or row["BilledCost"] == "0.0":
        return row
    is_tax = row["ChargeCategory"] == "Tax"
    return {
        **row,
        "InvoiceId": place.number,
        "InvoiceDetailId": f"{place.line_id}{TAX_SUFFIX}" if is_tax else place.line_id,
    }
