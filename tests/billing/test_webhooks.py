"""Webhooks: verified as they came, stored once, answered before anything is done, and then worked off."""

import contextlib
import json
from dataclasses import replace

import pytest
import stripe
from django.test import Client

from billing import books, card_refunds, inbox, ledger, payments, top_up_disputes, wallet
from billing import provider as doors
from billing.models import CardRefund, InboxEvent, Intent, TopUpDispute
from billing.states import AccountKind
from marketplace.core.money import Money
from tests.billing.card_market import CARD
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.webhooks import Delivery, delivery_of, sign
from tests.scheduler import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenant(db):
    return factories.make_organization()


def top_up(tenant, at, amount=5000):
    payment = payments.open_top_up(
        organization=tenant, amount=Money(amount, "usd"), wishes=CARD, at=at
    )
    doors.drive_payment(payment_id=payment.pk, at=at)
    payment.refresh_from_db()
    return payment


def pay(stand_in, payment, method="pm_card_bypassPending"):
    stand_in.control("/_control/confirm", {"id": payment.provider_id, "payment_method": method})


def post(delivery, *, client=None, **headers):
    return (client or Client()).post(
        "/webhooks/stripe",
        data=delivery.body,
        content_type="application/json",
        headers={"Stripe-Signature": delivery.signature, **headers},
    )


@pytest.fixture
def real_time(settings):
    """Return a stand-in with the real clock, for the view that reads it."""
    with StandIn() as stand_in:
        settings.STRIPE_SECRET_KEY = "sk_test_standin"
        settings.STRIPE_API_BASE = stand_in.base_url
        settings.STRIPE_WEBHOOK_SECRETS = [stand_in.secret]
        yield stand_in


def an_event(stand_in):
    return stand_in.world.emit(
        "payment_intent.succeeded", {"id": "pi_1", "object": "payment_intent"}
    )


def signed(stand_in, event, *secrets, at=None):
    return delivery_of(event, secrets=list(secrets), at=at or stand_in.world.now())


class TestReceiving:
    def test_stores_what_the_provider_signed_once(self, real_time):
        delivery = signed(real_time, an_event(real_time), real_time.secret)
        first, second = post(delivery), post(delivery)
        assert (first.status_code, first.json()) == (200, {"stored": True})
        assert (second.status_code, second.json()) == (200, {"stored": False})
        row = InboxEvent.objects.get()
        assert (row.payload.encode(), row.processed_at) == (delivery.body, None)

    def test_takes_every_secret_of_a_rotation(self, real_time, settings):
        settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new", "whsec_old"]
        for secret in ("whsec_old", "whsec_new"):
            assert post(signed(real_time, an_event(real_time), secret)).status_code == 200
        assert InboxEvent.objects.count() == 2

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda s, e: signed(s, e, "whsec_of_somebody_else"),
            lambda s, e: signed(s, e, s.secret, at=s.world.now() - 301),
            lambda s, e: signed(s, e, s.secret, at=s.world.now() + 301),
            lambda s, e: _dated_again(signed(s, e, s.secret, at=s.world.now() - 86_400), s),
            lambda s, e: _changed(signed(s, e, s.secret), body=b'{"id": "evt_2"}'),
            lambda s, e: _changed(signed(s, e, s.secret), signature=""),
            lambda s, e: _changed(signed(s, e, s.secret), signature="t=x,v1=y"),
            lambda s, e: _changed(signed(s, e, s.secret), signature="v1=abc"),
            lambda s, e: _changed(signed(s, e, s.secret), signature="t=99999999999999999,v1=a"),
            lambda s, e: _changed(signed(s, e, s.secret), body=b"\xff\xfe"),
        ],
    )
    def test_stores_nothing_that_is_forged_changed_or_old(self, real_time, spoil):
        answer = post(spoil(real_time, an_event(real_time)))
        assert (answer.status_code, answer.json()["code"]) == (400, "webhook_refused")
        assert not InboxEvent.objects.exists()

    def test_refuses_what_is_signed_but_no_event(self, real_time):
        for body in (b'{"hello": 1}', b"[]", b'{"id": "evt_1", "type": "x"}', b"not json"):
            at = real_time.world.now()
            signature = sign(body, secret=real_time.secret, at=at)
            assert post(Delivery("", body, signature)).status_code == 400
        assert not InboxEvent.objects.exists()

    def test_does_not_read_what_is_huge(self, real_time):
        event = an_event(real_time) | {"padding": "x" * 300_000}
        answer = post(signed(real_time, event, real_time.secret))
        assert answer.status_code == 413
        assert not InboxEvent.objects.exists()

    def test_takes_no_other_method(self, real_time):
        assert Client().get("/webhooks/stripe").status_code == 405


def _changed(delivery, **changes):
    return replace(delivery, **changes)


def _dated_again(delivery, stand_in):
    return _changed(delivery, signature=f"{delivery.signature},t={stand_in.world.now()}")


def receive(delivery, at):
    event = doors.gateway.verified_event(body=delivery.body, signature=delivery.signature, at=at)
    return inbox.store(event=event, source="webhook", at=at)


class TestWorkingOff:
    def test_reads_the_object_and_not_the_event(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        lie = provider.world.events[-1] | {"id": "evt_lie", "type": "payment_intent.canceled"}
        receive(signed(provider, lie, provider.secret), clock())
        assert inbox.process_due(at=clock()) == 1
        assert wallet.balance(organization=tenant) == Money(5000, "usd")

    def test_reads_an_object_once_for_all_its_events(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        for delivery in provider.deliveries():
            receive(delivery, clock())
        provider.world.journal.clear()
        inbox.process_due(at=clock())
        reads = [row for row in provider.world.journal if row[0] == "GET"]
        assert [path for _, path, _, _ in reads].count(
            f"/v1/payment_intents/{payment.provider_id}"
        ) == 1

    def test_ignores_what_it_does_not_know(self, provider, clock):
        event = provider.world.emit("price.created", {"id": "price_1", "object": "price"})
        receive(signed(provider, event, provider.secret), clock())
        inbox.process_due(at=clock())
        assert InboxEvent.objects.get().outcome == "ignored"

    def test_waits_for_a_row_of_ours_and_gives_up_at_last(self, provider, clock):
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": provider.base_url})
        client.v1.payment_intents.create({"amount": 100, "currency": "usd"})
        receive(provider.deliveries()[0], clock())
        assert inbox.process_due(at=clock()) == 0
        assert InboxEvent.objects.get().error == "no row of ours"
        InboxEvent.objects.update(attempts=inbox.ATTEMPTS_MAX)
        inbox.process_due(at=clock(hours=2))
        assert InboxEvent.objects.get().outcome == "given_up"

    def test_comes_again_after_the_provider_was_away(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        receive(provider.deliveries()[-1], clock())
        provider.fail("server_error", "GET /v1/payment_intents")
        assert inbox.process_due(at=clock()) == 0
        assert inbox.process_due(at=clock(seconds=10)) == 1
        assert wallet.balance(organization=tenant).amount_minor == 5000

    def test_adopts_a_payment_whose_answer_was_lost(self, provider, clock, tenant):
        top_up(tenant, clock())
        provider.fail("timeout_after", "POST /v1/payment_intents")
        payment = top_up(tenant, clock())
        assert payment.provider_id == ""
        for delivery in provider.deliveries():
            receive(delivery, clock())
        inbox.process_due(at=clock())
        payment.refresh_from_db()
        assert payment.status == "open"
        assert set(Intent.objects.values_list("status", flat=True)) == {"done"}

    def test_polls_what_no_webhook_brought(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        assert inbox.poll(at=clock(minutes=5)) > 0
        assert inbox.poll(at=clock()) == 0
        inbox.process_due(at=clock())
        assert wallet.balance(organization=tenant).amount_minor == 5000
        assert set(InboxEvent.objects.values_list("source", flat=True)) == {"poll"}

    def test_leaves_an_object_that_another_worker_reads(self, provider, clock, tenant, monkeypatch):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        receive(provider.deliveries()[-1], clock())
        monkeypatch.setattr(inbox, "object_lock", _taken)
        assert inbox.process_due(at=clock()) == 0
        assert InboxEvent.objects.get().error == "another worker reads it"


class TestDisputes:
    def test_that_are_lost_are_borne_by_the_wallet_first(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        self.work_off(provider, clock)
        made = provider.control("/_control/dispute", {"id": self.charge(payment)})
        self.work_off(provider, clock)
        assert TopUpDispute.objects.get().status == "open"
        provider.control("/_control/close-dispute", {"id": made["id"], "won": False})
        self.work_off(provider, clock)
        assert TopUpDispute.objects.get().status == "lost"
        assert wallet.balance(organization=tenant).amount_minor == 0
        assert books.check(at=clock()).ok

    def test_that_are_closed_before_they_were_opened_end_the_same(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        self.work_off(provider, clock)
        made = provider.control("/_control/dispute", {"id": self.charge(payment)})
        provider.control("/_control/close-dispute", {"id": made["id"], "won": True})
        for delivery in reversed(provider.deliveries()):
            receive(delivery, clock())
            inbox.process_due(at=clock())
        assert TopUpDispute.objects.get().status == "won"
        assert wallet.balance(organization=tenant).amount_minor == 5000
        top_up_disputes.apply(
            payment=payment,
            made=provider_dispute(made["id"]),
            at=clock(),
        )
        assert TopUpDispute.objects.get().status == "won"

    def test_that_are_heard_of_before_their_payment_are_borne_by_its_wallet(
        self, provider, clock, tenant
    ):
        payment = top_up(tenant, clock())
        pay(provider, payment, "pm_card_createDispute")
        (made,) = provider.world.all("dispute")
        provider.control("/_control/close-dispute", {"id": made["id"], "won": False})
        assert doors.READERS["dispute"](made["id"], clock())
        payment.refresh_from_db()
        assert (payment.status, TopUpDispute.objects.get().status) == ("succeeded", "lost")
        assert wallet.balance(organization=tenant).amount_minor == 0
        assert losses() == 0
        self.work_off(provider, clock)
        assert wallet.balance(organization=tenant).amount_minor == 0

    def test_wait_for_a_refund_that_is_refused_because_of_them(self, provider, clock, tenant):
        payment = top_up(tenant, clock())
        pay(provider, payment)
        self.work_off(provider, clock)
        payment.refresh_from_db()
        card_refunds.write(payment=payment, amount_minor=5000, reason="asked", at=clock())
        made = provider.control("/_control/dispute", {"id": self.charge(payment)})
        provider.control("/_control/close-dispute", {"id": made["id"], "won": False})
        assert not doors.READERS["dispute"](made["id"], clock())
        doors.drive_due(at=clock())
        assert CardRefund.objects.get().failure_code == "charge_disputed"
        assert wallet.balance(organization=tenant).amount_minor == 5000
        assert doors.READERS["dispute"](made["id"], clock())
        assert (wallet.balance(organization=tenant).amount_minor, losses()) == (0, 0)
        assert books.check(at=clock()).ok

    def test_of_what_is_no_payment_of_ours_are_left_alone(self, provider, clock):
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": provider.base_url})
        client.v1.payment_intents.create(
            {
                "amount": 900,
                "currency": "usd",
                "confirm": True,
                "payment_method": "pm_card_createDispute",
            }
        )
        (made,) = provider.world.all("dispute")
        assert not doors.READERS["dispute"](made["id"], clock())
        assert not TopUpDispute.objects.exists()

    def charge(self, payment):
        payment.refresh_from_db()
        return payment.charge_id

    def work_off(self, stand_in, clock):
        for delivery in stand_in.deliveries():
            receive(delivery, clock())
        while inbox.process_due(at=clock()):
            pass


@contextlib.contextmanager
def _taken(_object_id):
    yield False


def losses():
    return ledger.balance(account=ledger.AccountRef(AccountKind.DISPUTE_LOSSES, "usd"))


def provider_dispute(dispute_id):
    return doors.gateway.read_dispute(dispute_id=dispute_id)


def test_the_gateway_pins_the_version_of_its_library():
    from stripe._api_version import _ApiVersion

    assert doors.gateway.API_VERSION == _ApiVersion.CURRENT


def test_the_stored_payload_is_what_came(provider, clock):
    event = provider.world.emit("price.created", {"id": "price_1", "object": "price", "ä": "€"})
    delivery = signed(provider, event, provider.secret)
    receive(delivery, clock())
    assert json.loads(InboxEvent.objects.get().payload) == event
