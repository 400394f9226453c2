"""Events on their way to endpoints, called over real sockets on this machine."""

import base64
import hmac
import json
import socket
import threading
from typing import Any

import pytest
from django.db import connections

from marketplace import deliveries
from marketplace.core.errors import NotFound
from marketplace.deliveries import WebhookAddressRefused, calling, endpoints, sending, signing
from marketplace.models import Event, Organization, WebhookDelivery, WebhookEndpoint
from marketplace.states import EventKind
from tests.factories import an_organization
from tests.marketplace.deliveries.callbacks import NOW, Receiver, add, later, tell

pytestmark = pytest.mark.django_db


def is_signed(call: tuple[dict[str, str], bytes], *, secret: str) -> bool:
    """Verify as the specification tells receivers to."""
    headers, body = call
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mark = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return f"v1,{mark}" in headers["webhook-signature"].split()


def test_a_signature_is_that_of_the_specifications_example() -> None:
    header = signing.sign(
        keys=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert header == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class TestAnEvent:
    def test_arrives_once_and_signed(self, tenant: Organization, receiver: Receiver) -> None:
        _, secret = add(tenant, receiver.url)
        event = tell(tenant)
        assert deliveries.deliver_due(at=NOW) == 1
        assert deliveries.deliver_due(at=later(days=1)) == 0
        (call,) = receiver.calls
        assert is_signed(call, secret=secret)
        assert call[0]["webhook-id"] == event.pk
        assert json.loads(call[1]) == {
            "id": event.pk,
            "type": "money.parked",
            "timestamp": "2026-11-25T12:00:00Z",
            "version": 1,
            "object_id": "rsv_1",
            "data": {"why": "test"},
        }
        delivery = WebhookDelivery.objects.get()
        assert (delivery.delivered_at, delivery.last_status) == (NOW, 200)

    def test_goes_to_those_who_want_its_kind_and_to_nobody_else(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        wanting, _ = add(tenant, receiver.url, EventKind.MONEY_PARKED)
        add(tenant, receiver.url, EventKind.PAYOUT_SENT)
        add(an_organization(), receiver.url)
        tell(tenant)
        assert [d.endpoint for d in WebhookDelivery.objects.all()] == [wanting]

    def test_that_is_refused_is_sent_again_with_the_same_id_and_growing_spaces(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        tell(tenant)
        receiver.answers = [(500, {}), (302, {"Location": receiver.url})]
        assert deliveries.deliver_due(at=NOW) == 1
        delivery = WebhookDelivery.objects.get()
        assert (delivery.last_status, delivery.due_at) == (500, later(seconds=5))
        assert len(delivery.last_answer) <= calling.PREFIX_LENGTH_MAX
        assert deliveries.deliver_due(at=later(seconds=4)) == 0
        assert deliveries.deliver_due(at=later(seconds=5)) == 1
        delivery.refresh_from_db()
        # A redirect is no success, and nobody followed it.
        assert (delivery.last_status, delivery.due_at) == (302, later(seconds=305))
        assert len(receiver.calls) == 2
        failing = WebhookEndpoint.objects.filter(failing_since=NOW)
        assert failing.get() == endpoint
        assert deliveries.deliver_due(at=later(seconds=305)) == 1
        assert not failing.exists()
        assert len({call[0]["webhook-id"] for call in receiver.calls}) == 1

    def test_is_given_up_after_its_last_attempt(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        add(tenant, receiver.url)
        tell(tenant)
        receiver.answers = [(503, {})] * 20
        at = NOW
        for _ in range(len(sending.RETRY_SECONDS) + 1):
            assert deliveries.deliver_due(at=at) == 1
            at = WebhookDelivery.objects.get().due_at or at
        delivery = WebhookDelivery.objects.get()
        assert (delivery.due_at, delivery.delivered_at) == (None, None)
        assert delivery.attempts == len(sending.RETRY_SECONDS) + 1

    def test_meets_a_time_out_where_nobody_answers(
        self, tenant: Organization, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calling, "TIMEOUT_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            add(tenant, f"http://127.0.0.1:{silent.getsockname()[1]}/")
            tell(tenant)
            deliveries.deliver_due(at=NOW)
        delivery = WebhookDelivery.objects.get()
        assert delivery.last_status is None
        assert delivery.last_answer == "no answer within 0.2 s"
        assert delivery.due_at == later(seconds=5)

    def test_that_is_refused_with_a_body_that_never_ends_is_refused_all_the_same(
        self, tenant: Organization, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calling, "REASON_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as server:
            add(tenant, f"http://127.0.0.1:{server.getsockname()[1]}/")
            tell(tenant)

            def refuse() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 503 Busy\r\n\r\ncome ")
                    connection.sendall(b"back later")
                    connection.recv(1)

            serving = threading.Thread(target=refuse)
            serving.start()
            deliveries.deliver_due(at=NOW)
            serving.join()
        delivery = WebhookDelivery.objects.get()
        assert (delivery.last_status, delivery.last_answer) == (503, "come back later")

    def test_arrives_again_when_the_worker_dies_between_the_call_and_its_record(
        self, tenant: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(tenant, receiver.url)
        event = tell(tenant)
        with monkeypatch.context() as dying:
            dying.setattr(sending, "_record", lambda *_, **__: exec("raise SystemExit"))
            with pytest.raises(SystemExit):
                deliveries.deliver_due(at=NOW)
        assert deliveries.deliver_due(at=later(seconds=sending.CLAIM_SECONDS - 1)) == 0
        assert deliveries.deliver_due(at=later(seconds=sending.CLAIM_SECONDS)) == 1
        assert [call[0]["webhook-id"] for call in receiver.calls] == [event.pk, event.pk]

    def test_that_was_claimed_again_is_not_changed_by_the_late_record(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        add(tenant, receiver.url)
        tell(tenant)
        (late,) = sending._claim(at=NOW)
        (again,) = sending._claim(at=later(seconds=sending.CLAIM_SECONDS))
        sending._record(late, answer=calling.Answer(status=500, text=""), at=later(seconds=61))
        assert WebhookDelivery.objects.get().last_status is None
        sending._record(again, answer=calling.Answer(status=200, text=""), at=later(seconds=62))
        assert WebhookDelivery.objects.get().due_at is None

    def test_is_sent_once_more_when_it_is_replayed(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        event = tell(tenant)
        add(tenant, receiver.url)
        assert deliveries.deliver_due(at=NOW) == 0
        for _ in range(2):
            assert deliveries.replay(organization=tenant, event_id=event.pk, at=NOW) == 1
            assert deliveries.deliver_due(at=NOW) == 1
        with pytest.raises(NotFound):
            deliveries.replay(organization=tenant, event_id=event.pk, at=later(days=31))
        with pytest.raises(NotFound):
            deliveries.replay(organization=an_organization(), event_id=event.pk, at=NOW)


class TestAnEndpoint:
    def test_that_is_gone_is_called_no_more_and_its_organization_is_told(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        receiver.answers = [(410, {})]
        tell(tenant)
        deliveries.deliver_due(at=NOW)
        endpoint.refresh_from_db()
        assert (endpoint.disabled_at, endpoint.disabled_because) == (NOW, "gone")
        tell(tenant, at=later(seconds=1))
        assert deliveries.deliver_due(at=later(days=1)) == 0
        told = Event.objects.get(kind="webhook_endpoint.disabled")
        assert told.data == {"url": receiver.url, "because": "gone"}
        deliveries.enable(
            organization=tenant, endpoint_id=endpoint.pk, at=later(days=1), actor="test"
        )
        tell(tenant, at=later(days=1))
        assert deliveries.deliver_due(at=later(days=1)) == 1

    def test_that_fails_for_days_is_disabled(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        receiver.answers = [(500, {})] * 9
        tell(tenant)
        deliveries.deliver_due(at=NOW)
        at = later(days=sending.FAILING_DAYS_MAX)
        tell(tenant, at=at)
        deliveries.deliver_due(at=at)
        endpoint.refresh_from_db()
        assert endpoint.disabled_because == "failing_for_days"
        told = Event.objects.get(kind="webhook_endpoint.disabled")
        assert (told.organization, told.object_id) == (tenant, endpoint.pk)

    def test_signs_with_both_secrets_for_a_day_after_a_rotation(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, old = add(tenant, receiver.url)
        _, new = deliveries.rotate_secret(
            organization=tenant, endpoint_id=endpoint.pk, at=NOW, actor="test"
        )
        tell(tenant)
        deliveries.deliver_due(at=NOW)
        at = later(seconds=endpoints.SECRET_BEFORE_SECONDS)
        tell(tenant, at=at)
        deliveries.deliver_due(at=at)
        first, second = receiver.calls
        assert is_signed(first, secret=new)
        assert is_signed(first, secret=old)
        assert is_signed(second, secret=new)
        assert not is_signed(second, secret=old)
        endpoint.refresh_from_db()
        assert old not in endpoint.sealed_secret_before
        assert new not in endpoint.sealed_secret

    def test_that_hangs_leaves_room_for_the_others(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        add(tenant, receiver.url, EventKind.MONEY_PARKED)
        other, _ = add(tenant, receiver.url, EventKind.PAYOUT_SENT)
        for second in range(sending.BATCH + 5):
            tell(tenant, at=later(seconds=second))
        tell(tenant, at=later(seconds=100), kind=EventKind.PAYOUT_SENT)
        claimed = sending._claim(at=later(seconds=200))
        assert len(claimed) == sending.PER_ENDPOINT + 1
        assert other in [delivery.endpoint for delivery in claimed]

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.com/",
            "http://127.0.0.1/",
            "ftp://example.com/",
            "https://user:word@example.com/",
            "https://example.com:0/",
            "https:///path",
            "https://exa mple.com/",
            "nonsense",
        ],
    )
    def test_is_not_added_with_an_address_that_nobody_calls(
        self, tenant: Organization, url: str, settings: Any
    ) -> None:
        settings.WEBHOOKS_TO_LOOPBACK = False
        with pytest.raises(WebhookAddressRefused):
            add(tenant, url)

    @pytest.mark.parametrize(
        "address",
        [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "::ffff:10.0.0.1",
            "fd00::1",
            "fe80::1%eth0",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
        ],
    )
    def test_whose_name_leads_to_a_private_address_is_not_called(
        self, address: str, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.WEBHOOKS_TO_LOOPBACK = False
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 443))
        private = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 443))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, private])
        monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
        answer = calling.call(url="https://hooks.example/", headers={}, body=b"")
        assert answer == calling.Answer(status=None, text=f"{address} is not a public address")


def test_a_run_beside_another_does_nothing(tenant: Organization, receiver: Receiver) -> None:
    add(tenant, receiver.url)
    tell(tenant)
    other = connections["default"].copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [sending._ONE_AT_A_TIME])
            assert deliveries.deliver_due(at=NOW) == 0
            cursor.execute("SELECT pg_advisory_unlock(%s)", [sending._ONE_AT_A_TIME])
    finally:
        other.close()
    assert deliveries.deliver_due(at=NOW) == 1
