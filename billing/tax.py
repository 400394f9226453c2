"""The tax of a sale: its terms are frozen when it is bought, and every entry moves what its net price asks.

The tax of a reservation is always that of the net price it keeps. An entry moves the difference between the
tax after it and the tax before it, so the parts add up whatever their number, and a full refund brings back
all of it. A fee that is kept of what was given back is a price for capacity that was kept ready, and taxed
like any other. No tax is in what the market pays of its own: credits for what was not delivered and
compensation are damages, goodwill and a share of a resale are gifts, and none lowers what was sold. Money
put into a wallet has bought nothing yet, and is no sale.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing import accounts, ledger, tax_relief, tax_rules
from billing.models import Entry, ReservationTax, TaxLine
from billing.models.tax import BASIS_POINTS
from billing.states import TaxTreatment
from marketplace.core.money import round_half_even
from marketplace.models import Organization
from scheduler.models import Reservation

Row = tax_relief.Row


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxTerms:
    """By which terms a sale is taxed; an empty jurisdiction: by none, and no report names it."""

    jurisdiction: str
    rate_basis_points: int
    treatment: TaxTreatment
    note: str
    name: str = ""
    tax_id: str = ""

    @property
    def is_reported(self) -> bool:
        return bool(self.jurisdiction)


NO_TAX = TaxTerms(
    jurisdiction="", rate_basis_points=0, treatment=TaxTreatment.STANDARD, note="No tax"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxPart:
    """What one entry does to the net price of a reservation and to its tax, in minor units, none negative."""

    net_charged: int = 0
    net_refunded: int = 0
    charged: int = 0
    refunded: int = 0
    is_noted: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.net_charged or self.net_refunded)


NOTHING = TaxPart()


def current_terms(*, organization: Organization, at: dt.datetime) -> TaxTerms:
    """Return the terms by which a tenant would buy at an instant: no tax where nobody gave it a status."""
    status = tax_rules.status_at(organization=organization, at=at)
    if status is None:
        return NO_TAX
    name, rate = "", 0
    if status.treatment == TaxTreatment.STANDARD:
        rule = tax_rules.rule_at(jurisdiction=status.jurisdiction, at=at)
        assert rule is not None, f"{status} was set without a rule"
        name, rate = rule.name, rule.rate_basis_points
    return _terms(
        jurisdiction=status.jurisdiction,
        treatment=status.treatment,
        rate_basis_points=rate,
        name=name,
        tax_id=status.tax_id,
    )


def freeze(*, reservation: Reservation, at: dt.datetime) -> TaxTerms:
    """Keep with a reservation the terms of the instant in which it is bought; the first call decides.

    A tenant without a status has nothing to keep, and its reservation stays untaxed whatever comes later:
    this is called where a quote is accepted, and nowhere else.
    """
    if terms_of(reservation=reservation).is_reported:
        return terms_of(reservation=reservation)
    terms = current_terms(organization=reservation.organization, at=at)
    if terms.is_reported:
        ReservationTax.objects.create(
            reservation=reservation,
            jurisdiction=terms.jurisdiction,
            treatment=terms.treatment,
            rate_basis_points=terms.rate_basis_points,
            name=terms.name,
            tax_id=terms.tax_id,
            frozen_at=at,
        )
    return terms


def terms_of(*, reservation: Reservation) -> TaxTerms:
    """Return the terms that were frozen when a reservation was bought.

    A query that has `tax_terms` among its related rows spares this one its own.
    """
    frozen: ReservationTax | None = getattr(reservation, "tax_terms", None)
    if frozen is None:
        return NO_TAX
    return _terms(
        jurisdiction=frozen.jurisdiction,
        treatment=frozen.treatment,
        rate_basis_points=frozen.rate_basis_points,
        name=frozen.name,
        tax_id=frozen.tax_id,
    )


def tax_minor(*, net_minor: int, terms: TaxTerms) -> int:
    """Return the tax on a net amount, rounded once."""
    return round_half_even(Fraction(net_minor * terms.rate_basis_points, BASIS_POINTS))


def gross_minor(*, net_minor: int, terms: TaxTerms) -> int:
    """Return a net amount with its tax: what is charged."""
    return net_minor + tax_minor(net_minor=net_minor, terms=terms)


def part_of(*, reservation: Reservation, key: str, charged: int = 0, refunded: int = 0) -> TaxPart:
    """Return the tax that goes with what an entry charges and gives back of the net price.

    `key` is the entry's: of one that was posted before, the answer is what it moved then. Nobody else moves
    tax of the reservation until the transaction ends.
    """
    terms = terms_of(reservation=reservation)
    if not terms.is_reported or not (charged or refunded):
        return NOTHING
    _lock(reservation)
    posted = TaxLine.objects.filter(entry__idempotency_key=key).first()
    if posted is not None:
        return TaxPart(
            net_charged=posted.net_charged_minor,
            net_refunded=posted.net_refunded_minor,
            charged=posted.tax_charged_minor,
            refunded=posted.tax_refunded_minor,
            is_noted=True,
        )
    return preview(reservation=reservation, charged=charged, refunded=refunded)


def preview(*, reservation: Reservation, charged: int = 0, refunded: int = 0) -> TaxPart:
    """Return the tax that would go with a net amount charged or given back, as things stand."""
    terms = terms_of(reservation=reservation)
    if not terms.is_reported:
        return NOTHING
    before = net_kept(reservation=reservation)
    between, after = before + charged, before + charged - refunded
    taxes = [tax_minor(net_minor=net, terms=terms) for net in (before, between, after)]
    return TaxPart(
        net_charged=charged,
        net_refunded=refunded,
        charged=taxes[1] - taxes[0],
        refunded=taxes[1] - taxes[2],
    )


def rows(
    part: TaxPart,
    *,
    reservation: Reservation,
    payer: ledger.AccountRef,
    payee: ledger.AccountRef,
) -> list[Row]:
    """Return the tax legs of an entry as rows for `ledger.differences`: who pays, and who gets back."""
    if part.is_empty:
        return []
    owed = accounts.tax_payable(
        jurisdiction=terms_of(reservation=reservation).jurisdiction, currency=reservation.currency
    )
    return [(payer, owed, part.charged), (owed, payee, part.refunded)]


def note(part: TaxPart, *, reservation: Reservation, entry: Entry, at: dt.datetime) -> None:
    """Write down what an entry moved, in its transaction; `at` is the period in which it is filed.

    Relief for tax that goes back by this is withdrawn: see `billing.tax_relief`.
    """
    if part.is_empty or part.is_noted:
        return
    line = TaxLine.objects.create(
        reservation_id=reservation.pk,
        entry=entry,
        currency=reservation.currency,
        net_charged_minor=part.net_charged,
        net_refunded_minor=part.net_refunded,
        tax_charged_minor=part.charged,
        tax_refunded_minor=part.refunded,
        at=at,
    )
    if part.refunded:
        tax_relief.withdraw_excess(
            sale=line.reservation, currency=line.currency, cause=entry, at=at
        )


def net_kept(*, reservation: Reservation) -> int:
    """Return the net price that a taxed reservation keeps so far, as its lines say."""
    lines = TaxLine.objects.filter(reservation=reservation.pk, is_relief=False)
    return sum(
        charged - refunded
        for charged, refunded in lines.values_list("net_charged_minor", "net_refunded_minor")
    )


def net_within(*, reservation: Reservation, net_minor: int, gross_minor: int) -> int:
    """Return how much of a net amount can be charged, so that with its tax it is at most a gross amount.

    Nobody else moves tax of the reservation until the transaction ends.
    """
    terms = terms_of(reservation=reservation)
    if not terms.is_reported:
        return min(net_minor, gross_minor)
    _lock(reservation)
    before = net_kept(reservation=reservation)
    taxed = tax_minor(net_minor=before, terms=terms)
    low, high = 0, min(net_minor, gross_minor)
    while low < high:  # the tax rises with the net: halve what is left
        middle = (low + high + 1) // 2
        due = middle + tax_minor(net_minor=before + middle, terms=terms) - taxed
        low, high = (middle, high) if due <= gross_minor else (low, middle - 1)
    return low


def _lock(reservation: Reservation) -> None:
    """Let nobody else move tax of the reservation meanwhile: the terms' row stands for all its lines."""
    ReservationTax.objects.select_for_update(no_key=True).get(pk=reservation.pk)


def _terms(
    *, jurisdiction: str, treatment: str, rate_basis_points: int, name: str, tax_id: str
) -> TaxTerms:
    match TaxTreatment(treatment):
        case TaxTreatment.STANDARD:
            note = f"{name} {percent(rate_basis_points)} % ({jurisdiction})"
        case TaxTreatment.REVERSE_CHARGE:
            note = f"Reverse charge: the customer accounts for the tax ({jurisdiction}, {tax_id})"
        case TaxTreatment.EXEMPT:
            note = f"Exempt from tax ({jurisdiction})"
    return TaxTerms(
        jurisdiction=jurisdiction,
        rate_basis_points=rate_basis_points,
        treatment=TaxTreatment(treatment),
        note=note,
        name=name,
        tax_id=tax_id,
    )


def percent(basis_points: int) -> str:
    """Return a rate in percent, as documents say it: 19, 25.5, 8.25."""
    return f"{Decimal(basis_points).scaleb(-2).normalize():f}"
