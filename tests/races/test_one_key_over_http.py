"""One Idempotency-Key, fifty calls outstanding at one instant: one effect, and one answer, byte for byte.

For every kind of call that moves money. The twins serve the same application without the guard.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from agents.models import Node
from billing import books, wallet
from billing.models import CardRefund, CreditSale, Entry, Payment
from billing.states import EntryKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler import checks
from scheduler.models import Change, ExtensionHold, Reservation
from tests.api.test_changes import extension_quote, later, quote_of
from tests.api.test_credit import grant
from tests.api.test_top_ups import pays
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.billing.test_withdrawals import topped_up
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.server import SECRET
from tests.live import web_server
from tests.races.outstanding import Call, at_once, insisting, one

CALLS = 50
DEPOSIT_PRICE_MINOR_MIN = 10_000

pytestmark = [pytest.mark.timeout(400), pytest.mark.django_db(transaction=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A call, what else the same key must not stand for, and a count of what the call has done."""

    path: str
    body: dict[str, Any]
    other_body: dict[str, Any]
    count: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Served:
    base_url: str
    provider: StandIn

    def payments(self) -> int:
        """Return of how many payments the provider knows."""
        return len(self.provider.world.all("payment_intent"))


def environment_of(provider: StandIn) -> dict[str, str]:
    return {
        "STRIPE_SECRET_KEY": "sk_test_standin",
        "STRIPE_API_BASE": provider.base_url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "HEADROOM_DEPOSIT_PRICE_MINOR_MIN": str(DEPOSIT_PRICE_MINOR_MIN),
    }


@pytest.fixture(scope="module")
def provider() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def served(provider: StandIn, django_db_setup: None) -> Iterator[Served]:
    """Serve the market once for all tests: between them only its rows go."""
    with web_server(environment=environment_of(provider)) as base_url:
        yield Served(base_url, provider)


@pytest.fixture(autouse=True)
def _same_settings(settings: Any, provider: StandIn) -> None:
    """Let what is made before a race be made in the same market."""
    settings.STRIPE_SECRET_KEY = "sk_test_standin"
    settings.STRIPE_API_BASE = provider.base_url
    settings.STRIPE_WEBHOOK_SECRETS = [SECRET]
    settings.DEPOSIT_PRICE_MINOR_MIN = DEPOSIT_PRICE_MINOR_MIN


def a_fleet_that_reports() -> None:
    a_fleet(gpus=8)
    Node.objects.update(last_report_at=timezone.now() + dt.timedelta(minutes=10))


def a_booking(api: ApiClient, organization: Organization) -> dict[str, Any]:
    a_fleet_that_reports()
    fund(organization)
    quote = a_quote(api, gpus=8, window=a_window(in_hours=47, hours=4))
    return a_reservation(api, quote=quote)


def reservation_by(method: str, **wishes: Any) -> Callable[[ApiClient, Organization], Case]:
    def make(api: ApiClient, organization: Organization) -> Case:
        a_fleet_that_reports()
        fund(organization)
        grant(organization)
        window = a_window(in_hours=40 * 24, hours=24)
        body = {
            "quote_id": a_quote(api, gpus=8, window=window)["id"],
            "payment_method": method,
            **wishes,
        }
        return Case(
            path="/v1/reservations",
            body=body,
            other_body=body | {"name": "another"},
            count=Reservation.objects.count,
        )

    return make


def top_up(api: ApiClient, organization: Organization) -> Case:
    body = {"amount": {"amount_minor": 5000, "currency": "usd"}, "payment_method": "card"}
    return Case(
        path="/v1/wallet/top-ups",
        body=body,
        other_body=body | {"save_card": True},
        count=Payment.objects.count,
    )


def withdrawal(api: ApiClient, organization: Organization) -> Case:
    topped_up(100 * CALLS, by=organization)  # enough for all of them
    return Case(
        path="/v1/wallet/withdrawals",
        body={"amount": {"amount_minor": 100, "currency": "usd"}},
        other_body={"amount": {"amount_minor": 101, "currency": "usd"}},
        count=CardRefund.objects.count,
    )


def cancellation(api: ApiClient, organization: Organization) -> Case:
    booked = a_booking(api, organization)
    body = {"quote_id": quote_of(api, booked["id"]).json["id"]}
    return Case(
        path=f"/v1/reservations/{booked['id']}/cancellation",
        body=body,
        other_body={"quote_id": quote_of(api, booked["id"]).json["id"]},
        count=Change.objects.count,
    )


def extension_by(method: str) -> Callable[[ApiClient, Organization], Case]:
    def make(api: ApiClient, organization: Organization) -> Case:
        booked = a_booking(api, organization)
        end = later(booked["ends_at"], hours=2)
        quotes = [extension_quote(api, booked["id"], ends_at=end).json["id"] for _ in range(2)]
        body, other = ({"quote_id": each, "payment_method": method} for each in quotes)
        return Case(
            path=f"/v1/reservations/{booked['id']}/extensions",
            body=body,
            other_body=other,
            count=Change.objects.count if method == "wallet" else ExtensionHold.objects.count,
        )

    return make


def move(api: ApiClient, organization: Organization) -> Case:
    booked = a_booking(api, organization)
    wish = {name: later(booked[name], hours=24) for name in ("starts_at", "ends_at")}
    path = f"/v1/reservations/{booked['id']}"
    quotes = [api.post(f"{path}/change-quote", wish).json["id"] for _ in range(2)]
    body, other = ({"quote_id": each, "payment_method": "wallet"} for each in quotes)
    return Case(path=f"{path}/changes", body=body, other_body=other, count=Change.objects.count)


def invoice_payment_by(method: str) -> Callable[[ApiClient, Organization], Case]:
    def make(api: ApiClient, organization: Organization) -> Case:
        a_fleet_that_reports()
        fund(organization)
        grant(organization)
        a_reservation(api, payment_method="invoice")
        body = {"payment_method": method, "amount": {"amount_minor": 60, "currency": "usd"}}
        paid = Entry.objects.filter(kind=EntryKind.PAYMENT)
        return Case(
            path=f"/v1/invoices/{CreditSale.objects.get().invoice_id}/payments",
            body=body,
            other_body=body | {"amount": {"amount_minor": 61, "currency": "usd"}},
            count=paid.count if method == "wallet" else Payment.objects.count,
        )

    return make


KINDS = {
    "reservation from the wallet": reservation_by("wallet"),
    "reservation on account": reservation_by("invoice"),
    "reservation by card": reservation_by("card"),
    "reservation in two parts": reservation_by("card", payment_plan="deposit"),
    "top-up": top_up,
    "withdrawal": withdrawal,
    "cancellation": cancellation,
    "extension from the wallet": extension_by("wallet"),
    "extension by card": extension_by("card"),
    "move": move,
    "payment of an invoice from the wallet": invoice_payment_by("wallet"),
    "payment of an invoice by card": invoice_payment_by("card"),
}
ASKS_PROVIDER = {
    "reservation by card",
    "reservation in two parts",
    "top-up",
    "extension by card",
    "payment of an invoice by card",
}


def the_same(case: Case, *, secret: str, key: str) -> list[Call]:
    return [Call(path=case.path, secret=secret, key=key, body=case.body)] * CALLS


@pytest.mark.parametrize("kind", KINDS)
def test_one_key_is_one_effect_and_one_answer(
    kind: str, served: Served, api: ApiClient, organization: Organization
) -> None:
    case = KINDS[kind](api, organization)
    _, secret = a_key(organization=organization)
    key, known = a_new_key(), served.payments()

    answers = insisting(the_same(case, secret=secret, key=key), base_url=served.base_url)

    assert {each.status for each in answers} == {201}, answers[0]
    assert len({each.content for each in answers}) == 1
    assert sum(not each.is_replayed for each in answers) == 1
    assert case.count() == 1
    assert served.payments() - known == (kind in ASKS_PROVIDER)
    assert_the_key_is_taken(case, secret=secret, key=key, served=served)
    assert_the_key_of_another_tenant_is_another(
        case, key=key, answer=answers[0].content, served=served
    )
    assert books.check(at=timezone.now()).ok
    assert checks.check(at=timezone.now()).ok


def assert_the_key_is_taken(case: Case, *, secret: str, key: str, served: Served) -> None:
    other = Call(path=case.path, secret=secret, key=key, body=case.other_body)
    answers = at_once([other] * 5, base_url=served.base_url)
    assert {(each.status, each.code) for each in answers} == {(422, "idempotency_key_reused")}
    assert case.count() == 1


def assert_the_key_of_another_tenant_is_another(
    case: Case, *, key: str, answer: bytes, served: Served
) -> None:
    _, secret = a_key(organization=an_organization())
    theirs = one(
        Call(path=case.path, secret=secret, key=key, body=case.body), base_url=served.base_url
    )
    assert not theirs.is_replayed
    assert theirs.content != answer
    assert (theirs.status == 201) == (case.path == "/v1/wallet/top-ups")


def test_a_balance_is_asked_for_once(
    served: Served, api: ApiClient, organization: Organization
) -> None:
    """A payment that waits is everybody's answer here, also under another key."""
    case = reservation_by("card", payment_plan="deposit")(api, organization)
    booked = api.post(case.path, case.body, key=a_new_key()).json
    pays(served.provider, Payment.objects.get())
    known = served.payments()
    _, secret = a_key(organization=organization)
    path, key = f"/v1/reservations/{booked['id']}/balance-payments", a_new_key()

    answers = insisting(
        [Call(path=path, secret=secret, key=key, body={})] * CALLS, base_url=served.base_url
    )

    assert {each.status for each in answers} == {201}
    assert len({each.content for each in answers}) == 1
    assert served.payments() - known == 1
    assert Payment.objects.count() == 2
    assert books.check(at=timezone.now()).ok


class TestTwins:
    @pytest.mark.parametrize("kind", ["top-up", "withdrawal"])
    def test_without_the_keys_every_call_has_its_effect(
        self, kind: str, provider: StandIn, api: ApiClient, organization: Organization
    ) -> None:
        case = KINDS[kind](api, organization)
        _, secret = a_key(organization=organization)
        with web_server(
            application="tests.races.unguarded_keys:application",
            environment=environment_of(provider),
        ) as base_url:
            answers = insisting(the_same(case, secret=secret, key=a_new_key()), base_url=base_url)

        assert {each.status for each in answers} == {201}
        assert len({each.content for each in answers}) == CALLS
        assert case.count() == CALLS
        if kind == "withdrawal":
            assert wallet.balance(organization=organization) == Money(0, settings.CURRENCY)

    def test_without_the_seal_two_answers_are_heard(
        self, provider: StandIn, api: ApiClient, organization: Organization
    ) -> None:
        """What is true before the provider has answered is told to those who ask meanwhile."""
        case = top_up(api, organization)
        _, secret = a_key(organization=organization)
        with web_server(
            application="tests.races.unguarded_keys:unsealed", environment=environment_of(provider)
        ) as base_url:
            answers = insisting(the_same(case, secret=secret, key=a_new_key()), base_url=base_url)

        assert case.count() == 1
        assert {each.json["status"] for each in answers} == {"created", "open"}
