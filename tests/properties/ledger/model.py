"""Tenants and an owner, what is open between them, and what must hold of the books at every moment."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import QuerySet
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from agents.models import Outage
from billing import books, owner_movements, owner_statements, payments
from billing.models import Account, Entry, Payer, PayoutAccount, Posting
from billing.onboarding import FIRST
from billing.states import AccountKind, EntryKind, TaxTreatment
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories
from tests.billing.debtors import grant

Row = TypeVar("Row")
Stored = TypeVar("Stored", bound=models.Model)


class Absent(Exception):
    """There is nothing to which an event could happen."""


HOURS = 3
SECONDS = HOURS * 3600
DAY = dt.timedelta(days=1)
DURING = factories.START + dt.timedelta(hours=HOURS - 1) + dt.timedelta(hours=2)
LATER = factories.START + 200 * DAY  # when begins what is booked far ahead
FAR = factories.START + 365 * DAY
FARTHER = FAR + 100 * DAY
CREDIT_LIMIT = 10**9  # more than any run buys: it is not limits that are tried here
# What must hold nothing once everything that was bought is over and everybody has been paid.
ENDS_AT_ZERO = (
    AccountKind.HOLD,
    AccountKind.DISPUTE_WITHHELD,
    AccountKind.DEFERRED,
    AccountKind.REFUND_PAYABLE,
    AccountKind.PSP_CLEARING,
    AccountKind.STRIPE_PENDING,
    AccountKind.RECEIVABLE,
    AccountKind.DISPUTE_HOLD,
    AccountKind.PROMO,
    AccountKind.OWNER_ACCRUED,
    AccountKind.OWNER_PAYABLE,
    AccountKind.OWNER_RESERVE,
    AccountKind.PAYOUT_IN_TRANSIT,
    AccountKind.SUSPENSE,
    AccountKind.U_OPEN,
)
# Who is taxed how: place, basis points, treatment. Nobody ever gave the first one a status.
TAXES = (
    None,
    ("DE", 1900, TaxTreatment.STANDARD),
    ("FI", 2550, TaxTreatment.STANDARD),
    ("FR", 0, TaxTreatment.REVERSE_CHARGE),
)
WHO = st.integers(0, len(TAXES) - 1)


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
    """Return a tenant for each way of being taxed; the provider knows it, with a card that it saved."""
    found = []
    for number, terms in enumerate(TAXES):
        row = factories.tenant(name=f"Perceptron {number}")
        if terms is not None:
            place, basis_points, treatment = terms
            factories.taxed(buyer=row, basis_points=basis_points, treatment=treatment, place=place)
        grant(row, limit=CREDIT_LIMIT, currency=settings.CURRENCY, at=factories.START)
        payments.customer_made(
            organization=row, customer_id=f"cus_{number}", at=factories.START - 100 * DAY
        )
        Payer.objects.filter(organization=row).update(saved_card_id="pm_1")
        found.append(row)
    return found


def payout_account() -> PayoutAccount:
    """Return where the owner's money goes, as the provider lets it receive."""
    return PayoutAccount.objects.create(
        owner=factories.owner(),
        provider_id="acct_1",
        receives=True,
        seen_at=factories.START,
        requested_by="key_1",
        requested_at=factories.START,
        approved_by=FIRST,
        usable_at=factories.START,
    )


class Model(RuleBasedStateMachine):
    """What is open between tenants, an owner and the market, whose currency is that of the settings."""

    # Of all runs of a class: how often which kind of entry was posted, and what refused which rule.
    posted: ClassVar[Counter[EntryKind]] = Counter()
    refusals: ClassVar[Counter[str]] = Counter()
    lengths: ClassVar[list[int]] = []  # of each run that ended well, in entries
    # What a refused event leaves as it was.
    REMEMBERED = ("unbooked", "collected", "months")

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.tenants = tenants()
        payout_account()
        self.is_within = False  # an event
        self.known: dict[str, list[Any]] = {}  # rows that were read since the last one
        self.number = 0
        # What the provider has not booked yet, by category and object: the amount, and the fee.
        self.unbooked: dict[tuple[str, str], tuple[int, int]] = {}
        self.collected = 0  # how often owners were asked for what they owe
        self.months = 0  # how many have been closed, the first one that of START

    def teardown(self) -> None:
        """End every run with the closing of everything, and forget it."""
        try:
            self.close_everything()
            self.lengths.append(Entry.objects.count())
        finally:
            transaction.savepoint_rollback(self.savepoint)

    def close_everything(self) -> None:
        raise NotImplementedError

    def next_id(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}_{self.number}"

    def money(self, amount: int) -> Money:
        return Money(amount, settings.CURRENCY)

    def lost(self) -> set[str]:
        return set(Outage.objects.values_list("gpu__uuid", flat=True))

    def set_status(self, row: Reservation, status: ReservationStatus) -> None:
        Reservation.objects.filter(pk=row.pk).update(status=status)
        row.status = status

    def bought(self) -> list[Reservation]:
        """Return what is paid, or owed for, and has not begun."""
        return self.reservations(
            status__in=(ReservationStatus.SCHEDULED, ReservationStatus.ACTIVE),
            unpaid_minor=0,
            is_payment_held=False,
            leases__isnull=True,
        )

    def in_parts(self) -> list[Reservation]:
        """Return what a deposit was paid for, and whose balance is open."""
        return self.reservations(status=ReservationStatus.SCHEDULED, unpaid_minor__gt=0)

    def reservations(self, **terms: object) -> list[Reservation]:
        known = Reservation.objects.filter(**terms).select_related("organization", "quote")
        return self.read(known)

    def running(self) -> list[Lease]:
        known = Lease.objects.filter(status=LeaseStatus.ACTIVE)
        return self.read(known.select_related("reservation", "node"))

    def read(self, known: QuerySet[Stored]) -> list[Stored]:
        """Return rows, the oldest first; between events they are read once, as rules ask for them again."""
        if self.is_within:
            return list(known.order_by("pk"))
        name = str(known.query)
        if name not in self.known:
            self.known[name] = list(known.order_by("pk"))
        return self.known[name]

    def pick(self, data: st.DataObject, rows: Sequence[Row]) -> Row:
        """Draw one of some rows, the newest being the simplest.

        :raises Absent: when there is none.
        """
        if not rows:
            raise Absent
        return rows[len(rows) - 1 - data.draw(st.integers(0, len(rows) - 1))]

    def look_at_sizes(self) -> None:
        """Let PostgreSQL plan for the tables as they are: nobody has committed what a run has written."""
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE billing_posting, billing_entry, billing_account")

    def check(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        report = books.check(at=FARTHER)
        assert report.ok, [check for check in report.checks if not check.ok]
        self.check_statements()

    def check_statements(self) -> None:
        """Each month's statement leads from one balance of the owner to the next, and to the books."""
        moved = Entry.objects.order_by("effective_at").values_list("effective_at", flat=True)
        before = owner_movements.Balances()
        for month in dict.fromkeys(f"{at:%Y-%m}" for at in moved):
            told = owner_statements.statement(
                owner=factories.owner(), month=month, at=FARTHER + 1000 * DAY
            )
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
