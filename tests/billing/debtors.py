"""Tenants who may owe, and what they buy on account: shared by the tests of credit and of dunning."""

import datetime as dt
import itertools

from billing import approvals, checkout, receivables
from billing.models import Approval, CreditSale
from billing.states import ApprovalKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from tests.scheduler import factories
from tests.scheduler.factories import NOW

_numbers = itertools.count(1)


def ask_for_credit(
    organization: Organization,
    *,
    limit: int,
    net_days: int | None = 30,
    currency: str = "usd",
    at: dt.datetime = NOW,
) -> Approval:
    return approvals.request(
        kind=ApprovalKind.CREDIT,
        organization=organization,
        subject_id=organization.pk,
        amount=Money(limit, currency),
        reason="a good customer",
        net_days=net_days,
        at=at,
        actor="anna",
    )


def grant(
    organization: Organization,
    *,
    limit: int = 1_000_000,
    net_days: int = 30,
    currency: str = "usd",
    at: dt.datetime = NOW,
) -> Organization:
    asked = ask_for_credit(organization, limit=limit, net_days=net_days, currency=currency, at=at)
    approvals.approve(approval_id=asked.pk, at=at, actor="bert")
    return organization


def a_debtor(*, limit: int = 1_000_000, net_days: int = 30) -> Organization:
    """Return a tenant that may buy on account."""
    return grant(factories.make_organization(), limit=limit, net_days=net_days)


def buy(quote: Quote, *, payment_method: str = "invoice", at: dt.datetime = NOW) -> Reservation:
    return checkout.purchase(
        organization=quote.organization,
        quote_id=quote.pk,
        payment_method=payment_method,
        details=ReservationDetails(name="training"),
        at=at,
        actor="test",
    )


def sale_of(reservation: Reservation) -> CreditSale:
    return CreditSale.objects.get(reservation=reservation, change=None)


def owed(sale: CreditSale) -> int:
    return receivables.open_minor(
        organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
    )


def pay_by_bank(sale: CreditSale, amount: int, *, at: dt.datetime = NOW) -> None:
    receivables.pay(
        organization=sale.organization,
        invoice_id=sale.invoice_id,
        payment_id=f"bank-{next(_numbers)}",
        amount_minor=amount,
        currency=sale.currency,
        at=at,
        is_by_bank=True,
    )
