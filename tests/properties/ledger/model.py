"""Tenants and an owner, what is open between them, and what must hold of the books at every moment."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from hypothesis.stateful import RuleBasedStateMachine, invariant

from agents.models import Outage
from billing import books, owner_movements, owner_statements, receivables
from billing.ledger import InsufficientFunds
from billing.models import Account, Posting
from billing.states import AccountKind, TaxTreatment
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import ReservationStatus
from tests.billing import factories
from tests.billing.debtors import grant

HOURS = 3
SECONDS = HOURS * 3600
DURING = factories.START + dt.timedelta(hours=HOURS - 1) + dt.timedelta(hours=2)
FAR = factories.START + dt.timedelta(days=365)
FARTHER = FAR + dt.timedelta(days=100)
CREDIT_LIMIT = 10**9  # more than any run buys: it is not limits that are tried here
MONTHS_WITH_POSTINGS = ("2026-11", "2027-11", "2028-02")  # of START, FAR and FARTHER
# What must hold nothing once everything that was bought is over and everybody has been paid.
ENDS_AT_ZERO = (
    AccountKind.HOLD,
    AccountKind.DEFERRED,
    AccountKind.REFUND_PAYABLE,
    AccountKind.PSP_CLEARING,
    AccountKind.RECEIVABLE,
    AccountKind.DISPUTE_HOLD,
    AccountKind.PROMO,
    AccountKind.OWNER_ACCRUED,
    AccountKind.OWNER_PAYABLE,
    AccountKind.OWNER_RESERVE,
    AccountKind.PAYOUT_IN_TRANSIT,
    AccountKind.U_OPEN,
)
# Who is taxed how: place, basis points, treatment. Nobody ever gave the first one a status.
TAXES = (
    None,
    ("DE", 1900, TaxTreatment.STANDARD),
    ("FI", 2550, TaxTreatment.STANDARD),
    ("FR", 0, TaxTreatment.REVERSE_CHARGE),
)


def balances(*kinds: AccountKind) -> dict[str, int]:
    """Return what accounts of some kinds hold, derived from postings, those at zero left out."""
    sums: dict[str, int] = {}
    for posting in Posting.objects.filter(account__kind__in=kinds).select_related("account"):
        account = posting.account
        sign = 1 if posting.side == account.normal_side else -1
        place = f"{account.code} {account.currency}"
        sums[place] = sums.get(place, 0) + sign * posting.amount
    return {place: amount for place, amount in sums.items() if amount}


def tenants() -> list[Organization]:
    """Return a tenant for each way of being taxed."""
    found = []
    for number, terms in enumerate(TAXES):
        row = factories.tenant(name=f"Perceptron {number}")
        if terms is not None:
            place, basis_points, treatment = terms
            factories.taxed(buyer=row, basis_points=basis_points, treatment=treatment, place=place)
        grant(row, limit=CREDIT_LIMIT, currency=settings.CURRENCY, at=factories.START)
        found.append(row)
    return found


class Model(RuleBasedStateMachine):
    """What is open between tenants, an owner and the market, whose currency is that of the settings."""

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.tenants = tenants()
        self.number = 0
        self.running: list[Lease] = []
        self.bought: list[Reservation] = []
        self.held: list[Reservation] = []
        # By invoice: whose it is, and the reservation while it has not begun.
        self.invoices: dict[str, Organization] = {}
        self.in_parts: list[Reservation] = []  # whose balance is open
        self.on_account: dict[str, str] = {}
        self.clearing: dict[str, int] = {}
        self.months = 0  # how many have been closed, the first one that of START

    def teardown(self) -> None:
        """End every run with the closing of everything, and forget it."""
        try:
            self.close_everything()
        finally:
            transaction.savepoint_rollback(self.savepoint)

    def close_everything(self) -> None:
        raise NotImplementedError

    def next_id(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}_{self.number}"

    def owed(self, invoice: str) -> int:
        """Return what is open of an invoice: what goes back, and credits, are set against it."""
        return receivables.open_minor(
            organization=self.invoices[invoice], invoice_id=invoice, currency=settings.CURRENCY
        )

    def money(self, amount: int) -> Money:
        return Money(amount, settings.CURRENCY)

    def attempt(self, verb: Callable[[], Any]) -> Any:
        """Run a verb that the wallet may refuse; None when it did, and nothing of it is left."""
        inner = transaction.savepoint()
        try:
            return verb()
        except InsufficientFunds:
            transaction.savepoint_rollback(inner)
            return None

    def lost(self) -> set[str]:
        return set(Outage.objects.values_list("gpu__uuid", flat=True))

    def set_status(self, row: Reservation, status: ReservationStatus) -> None:
        Reservation.objects.filter(pk=row.pk).update(status=status)

    def check(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        report = books.check(at=FARTHER)
        assert report.ok, [check for check in report.checks if not check.ok]
        self.check_statements()

    def check_statements(self) -> None:
        """Each month's statement leads from one balance of the owner to the next, and to the books."""
        before = owner_movements.Balances()
        for month in MONTHS_WITH_POSTINGS:
            told = owner_statements.statement(owner=factories.owner(), month=month, at=FARTHER)
            assert told.opening == before
            changed = sum(told.totals.values())
            assert changed == owner_statements.change_of(told)
            assert told.opening.total + changed == told.closing.total
            before = told.closing
        assert before.total == sum(
            amount if "clawback" not in place else -amount
            for place, amount in balances(*owner_movements.OWNER_ACCOUNTS).items()
        )

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            cursor.execute(
                "SELECT sum(CASE WHEN p.side = 'debit' THEN p.amount ELSE -p.amount END)"
                " FROM billing_posting p JOIN billing_account a ON a.id = p.account_id"
                " GROUP BY a.currency"
            )
            assert all(total == 0 for (total,) in cursor.fetchall())
        assert not Account.objects.filter(balance__lt=0).exists()
