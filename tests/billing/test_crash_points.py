"""A process that dies at any step of a payment, refund or transfer, with and without the effect at the
provider: after a restart there is one effect per intent, and the books balance.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from billing import books, card_refunds, intents, onboarding, payments, transfers, wallet
from billing import provider as doors
from billing.models import CardRefund, Intent, Payment, Transfer
from billing.payments import Wishes
from billing.provider_states import IntentKind, IntentStatus, PaymentMeans
from marketplace.core.money import Money
from scheduler import reservations
from scheduler.details import ReservationDetails
from tests.billing import factories as books_factories
from tests.billing.test_payouts import released_settlement
from tests.fakes.stripe import balance as standin_balance
from tests.live import database_url
from tests.scheduler import factories

PROJECT = Path(__file__).resolve().parents[2]
STEPS = ("claimed", "called", "recorded")
KINDS = ("payment", "capture", "refund", "transfer")
OBJECTS = {
    "payment": "payment_intent",
    "capture": "payment_intent",
    "refund": "refund",
    "transfer": "transfer",
}


class Died(BaseException):
    """The process is gone: nothing catches it."""


class Case:
    """One intent that is about to be driven, and what must be true when it is all over."""

    def __init__(self, stand_in, clock, kind):
        self.stand_in = stand_in
        self.clock = clock
        self.kind = kind
        standin_balance.move(
            stand_in.world,
            source={"id": "tu_1"},
            kind="topup",
            category="topup",
            amount=100_000,
            currency="usd",
        )
        getattr(self, f"prepare_{kind}")()

    def prepare_payment(self):
        self.tenant = factories.make_organization()
        self.a_paid_top_up()  # makes the customer and saves a card
        self.payment = payments.open_top_up(
            organization=self.tenant,
            amount=Money(700, "usd"),
            wishes=Wishes(means=PaymentMeans.CARD, with_saved_card=True),
            at=self.clock(),
        )

    def prepare_capture(self):
        self.tenant = factories.make_organization()
        owner = factories.make_pool()
        factories.make_listing(owner=owner, tier="reclaimable", reclaim_notice_seconds=3600)
        quote = factories.make_quote(
            tenant=self.tenant, tier="reclaimable", window=factories.window_in(24)
        )
        self.reservation = reservations.reserve(
            organization=self.tenant,
            quote_id=quote.pk,
            payment_method="card",
            details=ReservationDetails(),
            at=self.clock(),
            actor="test",
        )
        self.payment = payments.open_for_reservation(
            reservation=self.reservation, wishes=Wishes(means=PaymentMeans.CARD), at=self.clock()
        )
        self.pay()
        self.clock(hours=23, minutes=50)
        payments.capture_due(at=self.clock())

    def prepare_refund(self):
        self.tenant = factories.make_organization()
        paid = self.a_paid_top_up()
        self.refund = card_refunds.write(
            payment=paid, amount_minor=500, reason="asked", at=self.clock()
        )

    def prepare_transfer(self):
        self.clock(days=60)
        account = onboarding.ask(
            owner=books_factories.owner(),
            email="owner@example.com",
            country="DE",
            at=self.clock(),
            actor="key_1",
        )
        doors.drive_due(at=self.clock())
        account.refresh_from_db()
        self.stand_in.control("/_control/capability", {"id": account.provider_id})
        onboarding.read(account=account, at=self.clock())
        released_settlement()
        transfers.send_due(at=self.clock())

    def a_paid_top_up(self):
        self.payment = payments.open_top_up(
            organization=self.tenant,
            amount=Money(5000, "usd"),
            wishes=Wishes(means=PaymentMeans.CARD, saves_card=True),
            at=self.clock(),
        )
        self.pay()
        return self.payment

    def pay(self):
        doors.drive_payment(payment_id=self.payment.pk, at=self.clock())
        self.payment.refresh_from_db()
        self.stand_in.control(
            "/_control/confirm",
            {"id": self.payment.provider_id, "payment_method": "pm_card_bypassPending"},
        )
        doors.read_payment(
            payment_id=self.payment.pk, object_id=self.payment.provider_id, at=self.clock()
        )
        self.payment.refresh_from_db()

    def drive(self, **passed):
        doors.drive_due(at=self.clock(**passed))

    def check(self):
        assert set(Intent.objects.values_list("status", flat=True)) == {IntentStatus.DONE}
        getattr(self, f"check_{self.kind}")()
        made = {
            row["metadata"]["intent_id"]: row["id"]
            for row in self.stand_in.world.all(OBJECTS[self.kind])
        }
        assert len(made) == len(self.stand_in.world.all(OBJECTS[self.kind])), "made twice"
        report = books.check(at=self.clock())
        assert report.ok, [check for check in report.checks if not check.ok]

    def check_payment(self):
        assert Payment.objects.get(pk=self.payment.pk).status == "succeeded"
        assert wallet.balance(organization=self.tenant).amount_minor == 5700
        assert len(self.stand_in.world.all("charge")) == 2

    def check_capture(self):
        assert Payment.objects.get().status == "succeeded"
        assert len(self.stand_in.world.all("charge")) == 1
        assert wallet.balance(organization=self.tenant).amount_minor == 0

    def check_refund(self):
        assert CardRefund.objects.get().status == "succeeded"
        assert wallet.balance(organization=self.tenant).amount_minor == 4500

    def check_transfer(self):
        assert Transfer.objects.get().status == "paid"
        assert [row["amount"] for row in self.stand_in.world.all("transfer")] == [400]


@pytest.fixture
def a_case(provider, clock):
    return lambda kind: Case(provider, clock, kind)


@pytest.mark.django_db
@pytest.mark.parametrize("kind", KINDS)
class TestOneEffect:
    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("later", [{"seconds": 61}, {"hours": 25}])
    def test_after_a_death_at_any_step(self, a_case, monkeypatch, kind, step, later):
        case = a_case(kind)

        def die(*, step, intent, at=step):
            if step == at and intent.kind == IntentKind(kind):
                raise Died

        monkeypatch.setattr(intents, "reached", die)
        with pytest.raises(Died):
            case.drive()
        monkeypatch.undo()
        case.drive()  # at once: it is still claimed by the dead
        case.drive(**later)
        case.check()

    @pytest.mark.parametrize("fault", ["timeout_before", "timeout_after", "server_error"])
    @pytest.mark.parametrize("later", [{"minutes": 10}, {"hours": 25}])
    def test_after_an_answer_that_never_came(self, a_case, kind, fault, later):
        case = a_case(kind)
        case.stand_in.fail(fault, "POST")
        case.drive()
        assert Intent.objects.filter(kind=kind, status="sent").count() == 1
        case.drive(**later)
        case.check()

    def test_under_a_brown_out(self, a_case, kind):
        case = a_case(kind)
        for fault in ("rate_limit", "conflict", "server_error", "timeout_after", "rate_limit"):
            case.stand_in.fail(fault)
        for _ in range(8):
            case.drive(minutes=6)
        case.check()

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
    script = SCRIPT.format(step=step, kind=kind, at=case.clock().isoformat())
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
