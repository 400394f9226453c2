"""An endpoint is disabled while its events are sent, and sent once more: nothing is due there afterwards.

The twin leaves the lock on the endpoint out and shows that the race is real.
"""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError

from marketplace import deliveries
from marketplace.deliveries import endpoints, sending
from marketplace.models import Organization, WebhookCall, WebhookDelivery, WebhookEndpoint
from tests.factories import an_organization
from tests.marketplace.deliveries.callbacks import Receiver, add, later, tell
from tests.marketplace.deliveries.conftest import receiver
from tests.races.interleaving import before, heard, unlocked
from tests.races.test_last_gpus import at_once

__all__ = ["receiver"]  # a fixture
EVENTS = 4

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def tenant() -> Organization:
    return an_organization()


@pytest.fixture
def endpoint(tenant: Organization, receiver: Receiver) -> WebhookEndpoint:
    """Return an endpoint that has refused some events once."""
    made, _ = add(tenant, receiver.url)
    for number in range(EVENTS):
        tell(tenant, at=later(seconds=number / 10))
    receiver.answers = [(500, {})] * EVENTS
    deliveries.deliver_due(at=later(seconds=1))
    return made


def stopping(endpoint: WebhookEndpoint) -> Callable[[], str]:
    return heard(lambda: endpoints.stop(endpoint=endpoint, at=later(seconds=10), actor="operator"))


def resending(endpoint: WebhookEndpoint) -> Callable[[], str]:
    event_id = WebhookDelivery.objects.order_by("pk").values_list("event_id", flat=True)[0]
    return heard(
        lambda: endpoints.resend(
            organization=endpoint.organization,
            endpoint_id=endpoint.pk,
            event_id=event_id,
            at=later(seconds=10),
            actor="test",
        )
    )


def sending_what_is_due() -> Callable[[], str]:
    return heard(lambda: deliveries.deliver_due(at=later(seconds=10)))


def what_is_due(endpoint: WebhookEndpoint) -> int:
    return WebhookDelivery.objects.filter(endpoint=endpoint, due_at__isnull=False).count()


class TestADisabledEndpoint:
    @pytest.mark.parametrize("seed", range(3))
    def test_has_nothing_due_whoever_was_first(self, endpoint: WebhookEndpoint, seed: int) -> None:
        actions = [stopping(endpoint), resending(endpoint), sending_what_is_due()]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert outcomes["done"] + outcomes["state_conflict"] == len(actions)
        assert what_is_due(endpoint) == 0

    def test_has_nothing_due_that_was_sent_once_more_meanwhile(
        self, endpoint: WebhookEndpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopper = before(monkeypatch, endpoints, "_anew", stopping(endpoint))

        assert resending(endpoint)() == "done"
        assert stopper.outcome() == "done"
        assert what_is_due(endpoint) == 0

    @pytest.mark.parametrize("rival", [stopping, resending])
    def test_keeps_nobody_waiting_who_is_waited_for(
        self,
        endpoint: WebhookEndpoint,
        monkeypatch: pytest.MonkeyPatch,
        rival: Callable[[WebhookEndpoint], Callable[[], str]],
    ) -> None:
        """A call went through, and its record is half written, when somebody acts on the endpoint."""
        other = before(monkeypatch, WebhookCall.objects, "create", rival(endpoint))

        assert sending_what_is_due()() == "done"
        assert other.outcome() == "done"
        assert what_is_due(endpoint) == (rival is resending)


class TestTwins:
    def test_without_the_lock_something_is_due_where_nobody_is_called(
        self, endpoint: WebhookEndpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unlocked(monkeypatch, WebhookEndpoint)
        stopper = before(monkeypatch, endpoints, "_anew", stopping(endpoint))

        assert resending(endpoint)() == "done"
        assert stopper.outcome() == "done"
        assert what_is_due(endpoint) == 1

    def test_without_the_order_of_locks_one_is_broken_off(
        self, endpoint: WebhookEndpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sending, "_lock_endpoint", lambda _delivery: None)
        other = before(monkeypatch, WebhookCall.objects, "create", stopping(endpoint))

        def both() -> tuple[Any, Any]:
            return sending_what_is_due()(), other.outcome()

        with pytest.raises(OperationalError, match="deadlock"):
            both()
