"""A process that dies at any step of what it asks the provider for, with and without the effect there.

After a restart, at once or when the provider has forgotten the key, there is one effect per intent, the books
balance, and the provider's own books agree with them.
"""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from billing import intents
from billing import provider as doors
from billing.models import CardRefund, Intent
from tests.billing.crash_case import KINDS, Case
from tests.billing.dying import STEPS, dies
from tests.live import database_url

PROJECT = Path(__file__).resolve().parents[2]
AT_ONCE, FORGOTTEN = {"seconds": 61}, {"hours": 25}


@pytest.fixture
def a_case(provider, clock):
    return lambda kind: Case(provider, clock, kind)


def _cut(*axes, fast):
    """Return every combination; those beyond the cut are slow, because together they take minutes."""
    return [
        pytest.param(
            *values,
            marks=[] if fast(*values) else [pytest.mark.slow],
            id=" ".join(re.sub(r"\W+", " ", str(value)).strip() for value in values),
        )
        for values in product(*axes)
    ]


@pytest.mark.django_db
class TestOneEffect:
    @pytest.mark.parametrize(
        ("kind", "step", "later"),
        _cut(
            KINDS,
            STEPS,
            (AT_ONCE, FORGOTTEN),
            # Without the effect and at once, and with it when the key is forgotten.
            fast=lambda _, step, later: (
                (step, later) in (("claimed", AT_ONCE), ("called", FORGOTTEN))
            ),
        ),
    )
    def test_after_a_death_at_any_step(self, a_case, kind, step, later):
        case = a_case(kind)
        with dies(at=step, kind=KINDS[kind]):
            case.drive()
        case.drive()  # at once: it is still claimed by the dead
        case.drive(**later)
        case.check()

    @pytest.mark.parametrize(
        ("kind", "fault", "later"),
        _cut(
            KINDS,
            ("timeout_before", "timeout_after", "server_error"),
            ({"minutes": 10}, FORGOTTEN),
            fast=lambda kind, fault, later: (
                (fault, later) == ("timeout_before", FORGOTTEN)
                or (kind, fault) == ("capture", "timeout_after")
            ),
        ),
    )
    def test_after_an_answer_that_never_came(self, a_case, kind, fault, later):
        case = a_case(kind)
        case.stand_in.fail(fault, "POST")
        case.drive()
        assert Intent.objects.filter(kind=KINDS[kind], status="sent").count() == 1
        case.drive(**later)
        case.check()

    @pytest.mark.parametrize("kind", _cut(KINDS, fast=lambda kind: kind == "price"))
    def test_under_a_brown_out(self, a_case, kind):
        case = a_case(kind)
        for fault in ("rate_limit", "conflict", "server_error", "timeout_after", "rate_limit"):
            case.stand_in.fail(fault)
        for _ in range(8):
            case.drive(seconds=90)
        case.check()

    @pytest.mark.parametrize("kind", _cut(KINDS, fast=lambda kind: kind in {"refund", "reversal"}))
    def test_when_two_drive_it_side_by_side(self, a_case, monkeypatch, kind):
        case = a_case(kind)
        calls = []

        def rival(*, step, intent):
            if step == "claimed" and not calls:
                calls.append(intent.pk)
                assert not doors.drive(intent_id=intent.pk, at=case.clock())

        monkeypatch.setattr(intents, "reached", rival)
        case.drive()
        case.check()


@pytest.mark.django_db
def test_a_fault_that_the_provider_keeps_under_the_key_ends_with_a_person(a_case):
    case = a_case("refund")
    case.stand_in.fail("server_error_stored", "POST /v1/refunds")
    for _ in range(10):
        case.drive(hours=2)
    assert Intent.objects.get(kind="refund").status == "sent"
    case.stand_in.fail("server_error_stored", "POST /v1/refunds", times=9)
    case.drive(hours=6)
    assert Intent.objects.get(kind="refund").status == "unknown"
    assert CardRefund.objects.get().status == "due"


@pytest.mark.django_db
def test_a_key_that_was_used_for_something_else_ends_with_a_person(a_case, unguarded):
    case = a_case("refund")
    case.stand_in.fail("server_error_stored", "POST /v1/refunds")
    case.drive()
    with unguarded():
        Intent.objects.filter(kind="refund").update(
            params={"payment_id": case.payment.provider_id, "amount_minor": 501, "metadata": {}}
        )
    case.drive(minutes=10)
    assert Intent.objects.get(kind="refund").status == "unknown"


SCRIPT = """
import datetime as dt, os, sys
import django
django.setup()
from billing import intents, provider
def die(*, step, intent):
    if step == {step!r} and intent.kind == {kind!r}:
        os._exit(137)
intents.reached = die
provider.drive_due(at=dt.datetime.fromisoformat({at!r}))
"""


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_exits_leaves_one_effect(a_case, settings, kind, step):
    case = a_case(kind)
    script = SCRIPT.format(step=step, kind=KINDS[kind].value, at=case.clock().isoformat())
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={
            **os.environ,
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "marketplace.settings",
            "STRIPE_SECRET_KEY": settings.STRIPE_SECRET_KEY,
            "STRIPE_API_BASE": settings.STRIPE_API_BASE,
        },
        check=False,
    )
    assert ended.returncode == 137
    case.drive(seconds=61)
    case.check()
