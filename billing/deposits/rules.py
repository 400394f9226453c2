"""What can be paid in two parts, and in which: read from the settings when a quote is shown and accepted."""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings

from billing import tax
from billing.models import Deposit
from billing.tax import TaxTerms
from marketplace.core.errors import DomainError
from marketplace.core.money import share_of
from scheduler.models import Quote, Reservation

BASIS_POINTS = 10_000
# The provider takes no less at once: a part must be more than that.
PART_MINOR_MIN = 50


class PaymentPlanUnavailable(DomainError):
    """The price cannot be paid in two parts; `detail` says why."""

    code = "payment_plan_unavailable"
    title = "This cannot be paid in two parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A deposit and a balance, in minor units, and when the balance is charged.

    The net amounts add up to the price, and those with tax to the price with tax.
    """

    net_minor: int
    gross_minor: int
    balance_net_minor: int
    balance_gross_minor: int
    balance_due_at: dt.datetime


def offered(*, quote: Quote, terms: TaxTerms, at: dt.datetime) -> Parts | None:
    """Return in which parts the price of a quote may be paid by card, None where in none."""
    return None if _refusal(quote=quote, terms=terms, at=at) else _parts(quote=quote, terms=terms)


def require(*, quote: Quote, terms: TaxTerms, at: dt.datetime) -> Parts:
    """Return in which parts the price of a quote is paid.

    :raises PaymentPlanUnavailable: when it cannot be.
    """
    if why := _refusal(quote=quote, terms=terms, at=at):
        raise PaymentPlanUnavailable(why, pointer="/payment_plan")
    return _parts(quote=quote, terms=terms)


def make(*, reservation: Reservation, parts: Parts, at: dt.datetime) -> Deposit:
    """Keep the parts in which a reservation is paid, as its tenant was told them."""
    return Deposit.objects.create(
        reservation=reservation,
        net_minor=parts.net_minor,
        gross_minor=parts.gross_minor,
        balance_net_minor=parts.balance_net_minor,
        balance_gross_minor=parts.balance_gross_minor,
        currency=reservation.currency,
        balance_due_at=parts.balance_due_at,
        created_at=at,
    )


def _parts(*, quote: Quote, terms: TaxTerms) -> Parts:
    net = share_of(
        total_minor=quote.total_minor, part=settings.DEPOSIT_BASIS_POINTS, whole=BASIS_POINTS
    )
    gross = tax.gross_minor(net_minor=net, terms=terms)
    ahead = dt.timedelta(seconds=settings.BALANCE_AHEAD_SECONDS)
    return Parts(
        net_minor=net,
        gross_minor=gross,
        balance_net_minor=quote.total_minor - net,
        balance_gross_minor=tax.gross_minor(net_minor=quote.total_minor, terms=terms) - gross,
        balance_due_at=quote.starts_at - ahead,
    )


def _refusal(*, quote: Quote, terms: TaxTerms, at: dt.datetime) -> str:
    """Return why the price of a quote is not paid in two parts, or an empty text."""
    ahead = dt.timedelta(seconds=settings.DEPOSIT_AHEAD_SECONDS)
    if quote.starts_at - at <= ahead:
        return f"A deposit is taken for a start more than {ahead.days} days ahead."
    if tax.gross_minor(net_minor=quote.total_minor, terms=terms) < settings.DEPOSIT_PRICE_MINOR_MIN:
        return (
            f"A deposit is taken for a price of {settings.DEPOSIT_PRICE_MINOR_MIN} minor units or "
            "more, with tax."
        )
    parts = _parts(quote=quote, terms=terms)
    if min(parts.net_minor, parts.balance_net_minor) < PART_MINOR_MIN:
        return "This market takes no deposits, or the parts are less than a card can be charged."
    return ""
