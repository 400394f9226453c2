"""What of an entry stands on which document: a charge on one line, what goes back on as many as credit it.

A credit note takes back what one invoice said, so one refund may be told on several. Each row has the amount
of its own line, and what no document says stays on none: so the rows of a document add up to its total.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from billing.focus.columns import TAX_SUFFIX
from billing.focus.facts import Documents, Fact, Place
from billing.focus.frames import Row
from billing.states import UndeliveredReason
from marketplace.core.money import divide_half_even


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of what an entry gave back, in minor units and GPU-seconds, and the line that says so.

    Both are negative where an entry takes again what had gone back. None: it was no want of delivery.
    """

    minor: int
    seconds: int
    place: Place | None
    reason: UndeliveredReason | None = None


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


def by_reason(parts: list[Share], *, reasons: Mapping[UndeliveredReason, int]) -> list[Share]:
    """Divide shares by why their seconds were not delivered: each reason's add up to its own.

    The reasons together have the seconds of the shares. They take those in their order, the largest first,
    and of each share's amount what its seconds come to, as differences of cumulative sums. A reason that
    evidence took back while another grew has seconds of the other sign, and no money.
    """
    sign = -1 if sum(reasons.values()) < 0 else 1
    order = sorted(reasons.items(), key=lambda item: (-sign * item[1], item[0]))
    left = [(reason, sign * seconds) for reason, seconds in order if sign * seconds > 0]
    against = [(reason, seconds) for reason, seconds in order if sign * seconds < 0]
    if not left:
        return parts
    more = sum(seconds for _, seconds in against)
    parts = [*parts[:-1], replace(parts[-1], seconds=parts[-1].seconds - more)]
    main, found = left[0][0], []
    for part in parts:
        whole, done, given = sign * part.seconds, 0, 0
        if not whole:
            found.append(replace(part, reason=main))
        while done < whole:
            reason, seconds = left.pop(0)
            taken = min(seconds, whole - done)
            if seconds > taken:
                left.insert(0, (reason, seconds - taken))
            done += taken
            upto = divide_half_even(part.minor * done, whole)
            found.append(
                Share(minor=upto - given, seconds=sign * taken, place=part.place, reason=reason)
            )
            given = upto
    assert not left, (parts, reasons)
    return [
        *found,
        *(Share(minor=0, seconds=seconds, place=None, reason=each) for each, seconds in against),
    ]


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
