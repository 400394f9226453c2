"""What is kept of deliveries: their calls, for as long as events are shown; and one sent again by hand."""

import pytest

from marketplace import deliveries
from marketplace.core.errors import NotFound, StateConflict
from marketplace.deliveries import calling, keeping, sending
from marketplace.models import AuditEvent, Event, Organization, WebhookCall, WebhookDelivery
from marketplace.states import DeliveryState, DisabledBecause
from tests.factories import an_organization
from tests.marketplace.deliveries.callbacks import NOW, Receiver, add, later, tell

pytestmark = pytest.mark.django_db


class TestCalls:
    def test_are_written_down_with_what_came_back(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        add(tenant, receiver.url)
        tell(tenant)
        receiver.answers = [(503, {})]
        deliveries.deliver_due(at=NOW)
        deliveries.deliver_due(at=later(seconds=5))
        kept = WebhookCall.objects.values_list("at", "response_status", "error")
        assert list(kept) == [
            (later(seconds=5), 200, ""),
            (NOW, 503, "x" * calling.PREFIX_LENGTH_MAX),
        ]

    def test_that_come_late_are_kept_though_they_change_nothing(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        event = tell(tenant)
        (late,) = sending._claim(at=NOW)
        resend(tenant, endpoint.pk, event.pk)
        sending._record(late, answer=calling.Answer(status=500, text="no"), at=later(seconds=2))
        delivery = WebhookDelivery.objects.get()
        assert (delivery.due_at, delivery.attempts) == (later(seconds=1), 0)
        assert delivery.last_status is None
        assert delivery.calls.get().response_status == 500

    def test_leave_nothing_of_an_endpoint_that_was_taken_away_meanwhile(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        tell(tenant)
        (late,) = sending._claim(at=NOW)
        deliveries.remove(organization=tenant, endpoint_id=endpoint.pk, at=NOW, actor="test")
        sending._record(late, answer=calling.Answer(status=500, text="no"), at=NOW)
        assert not WebhookCall.objects.exists()


class TestState:
    def test_is_found_as_it_is_told(self, tenant: Organization, receiver: Receiver) -> None:
        endpoint, _ = add(tenant, receiver.url)
        tell(tenant)
        deliveries.deliver_due(at=NOW)
        for second in (1, 2):
            tell(tenant, at=later(seconds=second))
        WebhookDelivery.objects.filter(pk=newest().pk).update(due_at=None)
        found = {
            state: deliveries.sent_to(endpoint=endpoint, state=state) for state in DeliveryState
        }
        assert {state: [row.state for row in rows] for state, rows in found.items()} == {
            state: [state] for state in DeliveryState
        }
        assert len(deliveries.sent_to(endpoint=endpoint, state=None)) == 3


class TestResending:
    def test_sends_to_one_endpoint_with_all_attempts_ahead(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        add(tenant, receiver.url)
        event = tell(tenant)
        deliveries.deliver_due(at=NOW)
        sent = resend(tenant, endpoint.pk, event.pk)
        assert (sent.state, sent.attempts) == (DeliveryState.WAITING, 0)
        assert deliveries.deliver_due(at=later(seconds=1)) == 1
        ids = [headers["webhook-id"] for headers, _ in receiver.calls]
        assert ids == [event.pk] * 3
        trail = AuditEvent.objects.get(action="webhook_delivery.resent")
        assert (trail.object_id, trail.detail) == (endpoint.pk, {"event_id": event.pk})

    def test_is_refused_while_the_endpoint_is_disabled(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        event = tell(tenant)
        deliveries.stop(endpoint=endpoint, at=NOW, actor="admin:ada")
        with pytest.raises(StateConflict, match="enable it first"):
            resend(tenant, endpoint.pk, event.pk)
        assert deliveries.deliver_due(at=later(days=1)) == 0

    def test_finds_no_event_that_was_never_sent_nor_somebody_elses(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        event = tell(tenant)
        endpoint, _ = add(tenant, receiver.url)
        for organization, event_id in (
            (tenant, event.pk),
            (tenant, "\x00"),
            (an_organization(), tell(tenant).pk),
        ):
            with pytest.raises(NotFound):
                resend(organization, endpoint.pk, event_id)


class TestStopping:
    def test_gives_up_what_is_on_its_way_and_tells_the_organization(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        tell(tenant)
        deliveries.stop(endpoint=endpoint, at=NOW, actor="admin:ada")
        endpoint.refresh_from_db()
        assert endpoint.disabled_because == DisabledBecause.OPERATOR
        assert newest().state == DeliveryState.GIVEN_UP
        told = Event.objects.get(kind="webhook_endpoint.disabled")
        assert told.data["because"] == "operator"
        assert AuditEvent.objects.filter(
            action="webhook_endpoint.disabled", actor="admin:ada"
        ).exists()
        with pytest.raises(StateConflict):
            deliveries.stop(endpoint=endpoint, at=NOW, actor="admin:ada")
        assert Event.objects.filter(kind="webhook_endpoint.disabled").count() == 1

    def test_holds_for_an_event_that_was_written_meanwhile(
        self, tenant: Organization, receiver: Receiver
    ) -> None:
        endpoint, _ = add(tenant, receiver.url)
        tell(tenant)
        deliveries.stop(endpoint=endpoint, at=NOW, actor="admin:ada")
        # As a transaction writes it that began before the endpoint was disabled, and ends after.
        WebhookDelivery.objects.update(due_at=NOW)
        assert deliveries.deliver_due(at=NOW) == 0
        assert receiver.calls == []
        assert newest().state == DeliveryState.GIVEN_UP


class TestPruning:
    def test_forgets_what_is_older_than_events_are_shown(
        self, tenant: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "PRUNE_BATCH", 2)
        add(tenant, receiver.url)
        for second in range(5):
            tell(tenant, at=later(seconds=second))
        kept = tell(tenant, at=later(days=1))
        while deliveries.deliver_due(at=later(days=1)):
            pass
        assert deliveries.prune(at=later(days=30, seconds=-1)) == 0
        assert deliveries.prune(at=later(days=30, seconds=4)) == 5
        assert deliveries.prune(at=later(days=30, seconds=4)) == 0
        assert [row.event for row in WebhookDelivery.objects.all()] == [kept]
        assert WebhookCall.objects.count() == 1
        # The events stay: they are why nobody is told twice.
        assert Event.objects.count() == 6

    def test_goes_on_with_the_next_run_where_there_is_too_much_for_one(
        self, tenant: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "PRUNE_BATCH", 2)
        monkeypatch.setattr(keeping, "PRUNE_BATCHES_MAX", 1)
        add(tenant, receiver.url)
        for _ in range(3):
            tell(tenant)
        deliveries.deliver_due(at=NOW)
        at = later(days=31)
        assert [deliveries.prune(at=at) for _ in range(3)] == [2, 1, 0]

    def test_leaves_what_is_still_on_its_way_and_forgets_what_lies_behind_it(
        self, tenant: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "PRUNE_BATCH", 1)
        add(tenant, receiver.url)
        waiting = tell(tenant)
        tell(tenant, at=later(seconds=1))
        WebhookDelivery.objects.exclude(event=waiting).update(due_at=None)
        assert deliveries.prune(at=later(days=31)) == 1
        assert WebhookDelivery.objects.get().event == waiting


def resend(tenant: Organization, endpoint_id: str, event_id: str) -> WebhookDelivery:
    return deliveries.resend(
        organization=tenant,
        endpoint_id=endpoint_id,
        event_id=event_id,
        at=later(seconds=1),
        actor="test",
    )


def newest() -> WebhookDelivery:
    return WebhookDelivery.objects.select_related("event").latest("pk")
