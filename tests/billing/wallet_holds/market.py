"""A tenant of whose orders each takes two people, and what is done with them."""

import datetime as dt
from collections.abc import Callable

import pytest

from billing import (
    approval_limits,
    books,
    checkout,
    purchase_requests,
    tax_rules,
    wallet,
    wallet_holds,
)
from billing.models import Entry, Posting, PurchaseRequest, TaxRule
from billing.purchase_requests import ApprovalRequired
from billing.states import AccountKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.details import ReservationDetails
from scheduler.models import Quote, Reservation
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours

ASKER, APPROVER = "key_asker", "key_cfo"
YESTERDAY = NOW - dt.timedelta(days=1)
LATE = dt.timedelta(seconds=301)


def fund(tenant: Organization, minor: int) -> None:
    key = f"deposit {Entry.objects.count()}"
    wallet.record_deposit(
        organization=tenant, amount=Money(minor, "usd"), idempotency_key=key, at=NOW, actor="test"
    )


def limited(tenant: Organization, minor: int | None = 1) -> None:
    approval_limits.set_limit(organization=tenant, amount_minor=minor, at=NOW, actor=APPROVER)


def a_tenant(*, funds: int = 100_000) -> Organization:
    """Return a tenant of whose orders each takes two, in a market with eight GPUs."""
    factories.make_pool()
    tenant = factories.make_organization()
    if funds:
        fund(tenant, funds)
    limited(tenant)
    return tenant


def ask(quote: Quote, *, method: str = "wallet", at: dt.datetime = NOW) -> PurchaseRequest:
    with pytest.raises(ApprovalRequired):
        purchase_requests.ask_for_quote(
            organization=quote.organization,
            quote_id=quote.pk,
            project="",
            payment_method=method,
            at=at,
            actor=ASKER,
        )
    return PurchaseRequest.objects.get(quote_id=quote.pk)


def decide(
    verb: Callable[..., PurchaseRequest], row: PurchaseRequest, *, at: dt.datetime = NOW
) -> PurchaseRequest:
    return verb(organization=row.organization, request_id=row.pk, at=at, actor=APPROVER)


def order(quote: Quote, *, method: str = "wallet") -> Reservation:
    return checkout.purchase(
        organization=quote.organization,
        quote_id=quote.pk,
        payment_method=method,
        details=ReservationDetails(),
        at=NOW,
        actor=ASKER,
    )


def free(tenant: Organization) -> int:
    return wallet.balance(organization=tenant).amount_minor


def held(tenant: Organization) -> int:
    return wallet_holds.held_minor(organization=tenant, currency="usd")


def legs(entry: Entry, kind: AccountKind) -> int:
    """Return what an entry took out of the accounts of a kind."""
    taken = Posting.objects.filter(entry=entry, account__kind=kind)
    return sum(each.amount if each.side == "debit" else -each.amount for each in taken)


def breaches(*, at: dt.datetime = NOW) -> list[str]:
    return [check.name for check in books.check(at=at).checks if not check.ok]


def taxed(
    tenant: Organization, *, treatment: str = "standard", at: dt.datetime = YESTERDAY
) -> None:
    """Give a tenant a tax status from an instant on; the rule of its place is older."""
    if not TaxRule.objects.exists():
        tax_rules.publish_rule(
            jurisdiction="DE",
            name="VAT",
            rate_basis_points=1900,
            at=NOW - hours(48),
            actor="test",
        )
    tax_rules.set_status(
        organization=tenant,
        jurisdiction="DE",
        treatment=treatment,
        tax_id="DE123456789",
        at=at,
        actor="test",
    )


def decide_limit(tenant: Organization) -> None:
    """Let a second person take the limit away that was asked to go."""
    asked = approval_limits.waiting(organization=tenant)
    assert asked is not None
    approval_limits.approve(organization=tenant, request_id=asked.pk, at=NOW, actor=ASKER)
