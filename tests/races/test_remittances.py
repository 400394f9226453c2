"""Collected tax is remitted by several people at once: no more than is owed, and each request once.

The twin leaves the lock of the tax office out and shows that the race is real.
"""

from collections.abc import Callable, Iterator

import pytest
from django.db import connection, transaction

from billing import approvals, ledger, tax_remittances
from billing.models import Approval, TaxRemittance
from tests.billing.tax.test_remittances import FILED_AT, ask, payable, sell, sound
from tests.races.interleaving import before, heard
from tests.races.test_last_gpus import at_once

PEOPLE = 8
OWED = 89

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _sold() -> None:
    with transaction.atomic():
        sell()


def approving(asked: Approval) -> Callable[[], str]:
    return heard(lambda: approvals.approve(approval_id=asked.pk, at=FILED_AT, actor="bert"))


def refusing(asked: Approval) -> Callable[[], str]:
    return heard(lambda: approvals.refuse(approval_id=asked.pk, at=FILED_AT, actor="carl"))


@pytest.fixture
def asked_twice() -> Iterator[list[Approval]]:
    """Return two requests for all that is owed; that one waits at a time is switched off meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'approval_is_asked_for_once'"
        )
        (definition,) = cursor.fetchone()
        cursor.execute("DROP INDEX approval_is_asked_for_once")
    try:
        yield [ask(OWED), ask(OWED)]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
            cursor.execute("TRUNCATE billing_approval CASCADE")
            cursor.execute("SET session_replication_role = DEFAULT")
            cursor.execute(definition)


def test_one_request_of_many_at_once_waits_for_its_decision() -> None:
    outcomes = at_once([heard(lambda: ask(OWED))] * PEOPLE)

    assert outcomes == {"done": 1, "invalid_value": PEOPLE - 1}
    assert Approval.objects.count() == 1


def test_a_request_is_decided_once() -> None:
    asked = ask(OWED)

    outcomes = at_once([approving(asked), refusing(asked)] * (PEOPLE // 2))

    assert outcomes == {"done": 1, "state_conflict": PEOPLE - 1}
    asked.refresh_from_db()
    remitted = OWED if asked.status == "approved" else 0
    assert TaxRemittance.objects.count() == bool(remitted)
    assert payable() == OWED - remitted
    sound()


def test_of_two_that_are_approved_at_once_one_finds_nothing_owed(
    asked_twice: list[Approval],
) -> None:
    outcomes = at_once([approving(each) for each in asked_twice])

    assert outcomes == {"done": 1, "nothing_to_remit": 1}
    assert payable() == 0


def test_without_the_lock_the_tax_office_gets_it_twice(
    asked_twice: list[Approval], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = asked_twice
    monkeypatch.setattr(tax_remittances, "_lock", lambda **_: None)
    other = before(monkeypatch, ledger, "post", approving(second))

    assert approving(first)() == "done"
    assert other.outcome() == "done"
    assert payable() == -OWED
    with pytest.raises(AssertionError):
        sound()
