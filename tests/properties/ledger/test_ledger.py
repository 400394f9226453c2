"""Any order of events keeps the books, and when all is over every account that must be empty is."""

import pytest
from django.db import connection
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from billing import ledger, payouts, settlements
from billing.models import Account, Entry, Payout
from billing.states import AccountKind, EntryKind
from tests.billing import factories
from tests.properties.ledger.machine import Market
from tests.properties.ledger.model import FAR, balances

pytestmark = pytest.mark.django_db


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("examples", "steps"),
    [(4, 15), pytest.param(70, 50, marks=pytest.mark.slow, id="two hundred long runs")],
)
# Some keep a reserve back, some do not; of the currencies none has as many decimal places as another.
@pytest.mark.parametrize(("currency", "reserve"), [("usd", 0), ("jpy", 1000), ("kwd", 1000)])
def test_any_order_of_events_keeps_the_books(db, settings, examples, steps, currency, reserve):
    settings.CURRENCY = currency
    settings.OWNER_RESERVE_BASIS_POINTS = reserve
    run_state_machine_as_test(
        Market,
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_replay_of_the_journal_into_empty_books_gives_the_same_balances():
    """The same entries, in their order, through the same door, in a database whose books are empty."""
    buyer = factories.tenant(funds_minor=5000)
    for gpus in (1, 2, 3):
        row = factories.reservation(buyer=buyer, gpus=gpus, hours=2)
        lease = factories.lease(of=row, returned_after_seconds=5000)
        factories.meter_fully(of=lease)
    settlements.settle_ended(at=FAR)
    payouts.release_due(at=FAR)
    payouts.send(payout_id=Payout.objects.first().pk, at=FAR, actor="test")

    def kept() -> dict[tuple[str, str], int]:
        rows = Account.objects.filter(guarded=True).values_list("code", "currency", "balance")
        return {(code, currency): balance for code, currency, balance in rows}

    journal = [
        (
            entry,
            [
                ledger.Leg(
                    ledger.AccountRef(
                        AccountKind(p.account.kind),
                        p.account.currency,
                        p.account.subject_id,
                        p.account.organization,
                    ),
                    ledger.Side(p.side),
                    p.amount,
                )
                for p in entry.postings.select_related("account__organization").order_by("id")
            ],
        )
        for entry in Entry.objects.order_by("recorded_at", "pk")
    ]
    before, derived = kept(), balances(*AccountKind)
    assert before
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        cursor.execute("SET LOCAL session_replication_role = replica")
        for table in (
            *("billing_payouttransition", "billing_payout", "billing_settlement"),
            *("billing_posting", "billing_entry", "billing_account"),
        ):
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute("SET LOCAL session_replication_role = DEFAULT")
    assert kept() == {}
    for entry, legs in journal:
        ledger.post(
            idempotency_key=entry.idempotency_key,
            kind=EntryKind(entry.kind),
            subject_id=entry.subject_id,
            effective_at=entry.effective_at,
            legs=legs,
        )
    assert (kept(), balances(*AccountKind)) == (before, derived)
