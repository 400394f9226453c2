"""Any order of events keeps the books, and when all is over every account that must be empty is."""

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from billing import ledger, wallet
from billing.models import Account, Entry
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money
from tests.billing import factories
from tests.properties.ledger import replay
from tests.properties.ledger.events import event, writers
from tests.properties.ledger.machine import Market
from tests.properties.ledger.model import FAR, balances

pytestmark = pytest.mark.django_db

OF_A_RESERVE = {EntryKind.RESERVE_DRAWN, EntryKind.RESERVE_RELEASE}
# Some keep a reserve back, some do not; some get tax back of what nobody pays. Of the currencies none has as
# many decimal places as another.
MARKETS = (("usd", 0, False), ("jpy", 1000, True), ("kwd", 1000, True))
RUNS_OF_EACH = 70  # two hundred and ten
STEPS_OF_A_LONG_RUN = 30  # one in five is a story, of some ten events


@pytest.fixture(autouse=True)
def _ordered_ids(monkeypatch):
    """Let what is made later have the later id, also within a millisecond: so that a seed repeats its run."""
    numbers = itertools.count()
    monkeypatch.setattr(
        "marketplace.core.ids.secrets", SimpleNamespace(randbits=lambda _: next(numbers))
    )


@pytest.fixture(params=MARKETS, ids=[currency for currency, _, _ in MARKETS])
def kinds(request, db, settings):
    """Set up a market, and return the kinds of entries that can come about in it."""
    currency, reserve, relief = request.param
    settings.CURRENCY = currency
    settings.OWNER_RESERVE_BASIS_POINTS = reserve
    settings.TAX_RELIEF_ON_BAD_DEBT = relief
    impossible = set() if reserve else OF_A_RESERVE
    return set(EntryKind) - impossible - (set() if relief else {EntryKind.RELIEF_WITHDRAWN})


def a_market(base: type[Market] = Market) -> type[Market]:
    """Return a machine that counts for itself."""
    counts: dict[str, Any] = {"posted": Counter(), "refusals": Counter(), "lengths": []}
    return type(base.__name__, (base,), counts)


def tried(*, examples: int, steps: int = 1) -> hypothesis_settings:
    return hypothesis_settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def run(machine: type[Market], *, number: int, steps: int) -> None:
    """Run a machine once from a seed, which is told with whatever fails.

    What Hypothesis tries first, the simplest, is one rule of which nothing comes; the second one is the run.
    """
    seeded = seed(number)(type(machine.__name__, (machine,), {}))
    try:
        run_state_machine_as_test(seeded, settings=tried(examples=2, steps=steps))
    except BaseException as error:
        error.add_note(f"seed {number}, {steps} steps")
        raise


def tell(machine: type[Market]) -> None:
    """Tell all stories once, each of them as simple as it goes, with the end of everything."""

    @tried(examples=1)
    @given(data=st.data())
    def all_of_them(data):
        market = machine()
        try:
            for number, name in enumerate(market.stories()):
                getattr(market, name)(data=data, who=1 + number % 2, price=1_000 + number)
                market.nothing_is_made_or_lost()
            replay.require_same()
        finally:
            market.teardown()

    all_of_them()


@pytest.mark.timeout(600)
def test_any_order_of_events_keeps_the_books(kinds):
    machine = a_market()
    tell(machine)
    assert kinds - set(machine.posted) == set()
    run(machine, number=4, steps=15)


@pytest.mark.slow
@pytest.mark.timeout(5 * 3600)
def test_two_hundred_long_runs_post_every_kind_of_entry(kinds, subtests, record_property):
    """Each run has its seed; one that fails keeps no other one from being tried."""
    machine = a_market()
    for number in range(1, RUNS_OF_EACH + 1):
        with subtests.test(seed=number):
            run(machine, number=number, steps=STEPS_OF_A_LONG_RUN)
    for name in ("posted", "refusals", "lengths"):
        record_property(name, getattr(machine, name))
    assert kinds - set(machine.posted) == set()


def test_every_kind_of_entry_has_a_rule_that_writes_it():
    assert [kind for kind, rules in writers(Market).items() if not rules] == []


class TestEvents:
    """What holds the runs to the table of who writes what, and to what parked money may do."""

    def test_write_no_other_kind_than_they_declare(self, db):
        class Liar(Market):
            @event(EntryKind.GOODWILL)
            def lie(self):
                factories.fund(self.tenants[0], minor=100)

        with pytest.raises(AssertionError, match="DEPOSIT"):
            Liar().lie()

    def test_move_no_parked_money(self, db, monkeypatch):
        class Thief(Market):
            @event(EntryKind.GOODWILL)
            def steal(self):
                monkeypatch.setattr("billing.parking.require_moving", lambda **_: None)
                self.be_kind(amount=100, who=0)

        market = Thief()
        market.park(who=0, is_owner=False)
        with pytest.raises(AssertionError):
            market.steal()

    def test_leave_nothing_when_they_are_refused(self, db):
        market = a_market()()
        market.park(who=0, is_owner=False)
        market.be_kind(amount=100, who=0)
        assert not Entry.objects.exists()
        assert market.refusals == {"be_kind: MoneyParked": 1}


class TestReplay:
    def entry(self) -> Entry:
        return wallet.record_deposit(
            organization=factories.tenant(),
            amount=Money(500, "usd"),
            idempotency_key="k",
            at=factories.START,
            actor="test",
        )

    def test_posts_reversals_of_the_entries_that_it_has_posted(self, db):
        undone = ledger.reverse(entry=self.entry(), idempotency_key="undo", at=FAR)
        assert replay.require_same() == 2
        undone.refresh_from_db()  # all is as it was
        assert balances(AccountKind.WALLET) == {}

    def test_finds_a_balance_that_no_entry_explains(self, db):
        self.entry()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute("UPDATE billing_account SET balance = balance + 1 WHERE guarded")
            cursor.execute("SET LOCAL session_replication_role = DEFAULT")
        assert Account.objects.filter(balance=501).exists()
        with pytest.raises(AssertionError):
            replay.require_same()
