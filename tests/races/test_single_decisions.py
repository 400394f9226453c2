"""Many small refunds of one person at once: together no more than one person may decide.

The twin leaves the lock out and shows that the race is real.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from django.db import transaction

from billing import approvals, single_decisions, wallet
from billing.states import ApprovalKind
from marketplace.core.money import Money
from marketplace.models import Organization
from tests.billing import factories
from tests.races.test_last_gpus import at_once

PEOPLE = 20
PART = 2_500
COVERED = 4

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _limit(settings) -> None:
    settings.REFUND_ALONE_MINOR_MAX = COVERED * PART


def refunding(number: int, *, actor: str = "anna") -> Callable[[], str]:
    # Each to another wallet, whose own lock would keep them apart otherwise.
    tenant = factories.tenant(name=f"Perceptron {number}")

    def refund() -> str:
        return approvals.request(
            kind=ApprovalKind.REFUND,
            organization=tenant,
            subject_id=f"rsv_{number}",
            amount=Money(PART, "usd"),
            reason="a bad day",
            at=factories.START,
            actor=actor,
        ).status

    return refund


def test_they_stop_at_the_limit() -> None:
    outcomes = at_once([refunding(number) for number in range(PEOPLE)])

    assert outcomes == Counter(approved=COVERED, requested=PEOPLE - COVERED)
    held = sum(
        wallet.balance(organization=each).amount_minor for each in Organization.objects.all()
    )
    assert held == COVERED * PART


def test_without_the_lock_two_pass_where_one_fits(
    settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REFUND_ALONE_MINOR_MAX = PART
    # The account that all share comes into being here, and nobody waits for that below.
    assert refunding(0, actor="bert")() == "approved"
    monkeypatch.setattr(single_decisions, "_lock", lambda: None)

    first, second = refunding(1), refunding(2)
    with transaction.atomic():
        # What the first has decided is not committed yet, so the second cannot see it.
        assert first() == "approved"
        outcomes = at_once([second])

    assert outcomes == Counter(approved=1)
