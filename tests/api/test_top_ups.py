"""`/v1/wallet/top-ups`, card reservations over HTTP, and the page on which they are paid."""

import datetime as dt

import pytest
from django.utils import timezone

from billing import inbox, onboarding, parking, payments, provider
from billing.models import Payment
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler.models import Reservation
from tests.api.test_reservations import buy
from tests.api.world import a_fleet, a_new_key, a_quote, a_window
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.fakes.stripe import StandIn
from tests.fakes.stripe.server import SECRET

pytestmark = pytest.mark.django_db

BODY = {"amount": {"amount_minor": 5000, "currency": "usd"}, "payment_method": "card"}


@pytest.fixture
def stand_in(settings):
    with StandIn() as running:
        settings.STRIPE_SECRET_KEY = "sk_test_standin"
        settings.STRIPE_PUBLISHABLE_KEY = "pk_test_standin"
        settings.STRIPE_API_BASE = running.base_url
        settings.STRIPE_JS_URL = f"{running.base_url}/v3/"
        settings.STRIPE_WEBHOOK_SECRETS = [SECRET]
        yield running


def pays(stand_in, payment, method="pm_card_bypassPending"):
    """Pay as a browser does, and let the webhooks come."""
    stand_in.control("/_control/confirm", {"id": payment.provider_id, "payment_method": method})
    inbox.poll(at=timezone.now())
    inbox.process_due(at=timezone.now())


class TestTopUps:
    def test_say_how_to_pay_and_fill_the_wallet_then(self, api: ApiClient, stand_in) -> None:
        answer = api.post("/v1/wallet/top-ups", BODY, key="k")
        assert answer.status == 201
        assert answer.json["status"] == "open"
        assert "_secret_" in answer.json["client_secret"]
        assert "/pay/pay_" in answer.json["checkout_url"]
        pays(stand_in, Payment.objects.get())
        assert api.get("/v1/wallet").json["balance"]["amount_minor"] == 5000
        shown = api.get(f"/v1/wallet/top-ups/{answer.json['id']}").json
        assert (shown["status"], shown["client_secret"]) == ("succeeded", None)

    def test_are_made_once_per_key(self, api: ApiClient, stand_in) -> None:
        first, second = (api.post("/v1/wallet/top-ups", BODY, key="k") for _ in range(2))
        assert second.headers["Idempotent-Replayed"] == "true"
        assert second.content == first.content
        assert len(stand_in.world.all("payment_intent")) == 1

    def test_are_refused_while_the_money_is_parked(
        self, api: ApiClient, organization: Organization, stand_in
    ) -> None:
        parking.park(breaches={organization.pk: "looked into"}, at=timezone.now())
        answer = api.post("/v1/wallet/top-ups", BODY, key="k")
        assert (answer.status, answer.code) == (423, "money_parked")
        assert not Payment.objects.exists()

    def test_are_kept_when_the_provider_is_away(self, api: ApiClient, stand_in) -> None:
        stand_in.fail("timeout_before", "POST", times=9)
        answer = api.post("/v1/wallet/top-ups", BODY, key="k")
        assert (answer.status, answer.json["status"]) == (201, "created")
        assert answer.json["client_secret"] is None

    def test_tell_why_a_card_was_declined(self, api: ApiClient, stand_in) -> None:
        answer = api.post("/v1/wallet/top-ups", BODY, key="k")
        with pytest.raises(Exception, match="insufficient"):
            pays(stand_in, Payment.objects.get(), "pm_card_chargeDeclinedInsufficientFunds")
        inbox.poll(at=timezone.now())
        inbox.process_due(at=timezone.now())
        shown = api.get(f"/v1/wallet/top-ups/{answer.json['id']}").json
        assert shown["failure"]["code"] == "insufficient_funds"

    def test_by_bank_transfer_say_where_to_send_it(self, api: ApiClient, stand_in) -> None:
        body = {**BODY, "payment_method": "bank_transfer"}
        told = api.post("/v1/wallet/top-ups", body, key="k").json["bank_transfer"]
        assert (told["amount_remaining_minor"], bool(told["reference"])) == (5000, True)

    def test_need_a_provider(self, api: ApiClient) -> None:
        answer = api.post("/v1/wallet/top-ups", BODY, key="k")
        assert (answer.status, answer.code) == (501, "payment_method_unavailable")

    @pytest.mark.parametrize(
        ("amount", "status"),
        [
            ({"amount_minor": 49, "currency": "usd"}, 422),
            ({"amount_minor": 5000.5, "currency": "usd"}, 422),
            ({"amount_minor": "5000", "currency": "usd"}, 422),
            ({"amount_minor": 5000, "currency": "eur"}, 422),
        ],
    )
    def test_refuse_amounts_that_make_no_sense(
        self, api: ApiClient, stand_in, amount, status
    ) -> None:
        assert api.post("/v1/wallet/top-ups", {**BODY, "amount": amount}, key="k").status == status
        assert not Payment.objects.exists()

    def test_of_others_stay_theirs(self, api: ApiClient, stand_in) -> None:
        made = api.post("/v1/wallet/top-ups", BODY, key="k").json
        _, secret = a_key(organization=an_organization())
        other = api.signed_in(secret=secret)
        assert other.get(f"/v1/wallet/top-ups/{made['id']}").status == 404
        assert other.get("/v1/wallet/top-ups").json["data"] == []


class TestCardReservations:
    def test_wait_for_the_payment_and_are_scheduled_by_it(self, api: ApiClient, stand_in) -> None:
        a_fleet()
        answer = buy(api, quote=a_quote(api), payment_method="card")
        assert answer.status == 201
        assert answer.json["status"] == "payment_pending"
        assert answer.json["payment"]["checkout_url"]
        pays(stand_in, Payment.objects.get())
        shown = api.get(f"/v1/reservations/{answer.json['id']}").json
        assert (shown["status"], shown["payment"]["status"]) == ("scheduled", "paid")
        assert shown["payment"]["checkout_url"] is None

    def test_that_are_held_can_be_left_for_nothing_and_not_be_changed(
        self, api: ApiClient, stand_in
    ) -> None:
        a_fleet(tier=Tier.RECLAIMABLE, reclaim_notice=dt.timedelta(hours=1))
        quote = a_quote(api, tier="reclaimable", window=a_window(in_hours=4, hours=3))
        made = buy(api, quote=quote, payment_method="card").json
        pays(stand_in, Payment.objects.get())
        path = f"/v1/reservations/{made['id']}"
        shown = api.get(path).json
        assert (shown["status"], shown["payment"]["status"]) == ("scheduled", "held")
        assert [step["reason"] for step in shown["history"]][-1] == "payment_held"
        ends_at = format_instant(Reservation.objects.get().ends_at - dt.timedelta(hours=1))
        answer = api.post(f"{path}/change-quote", {"ends_at": ends_at})
        assert (answer.status, answer.code) == (409, "payment_held")
        ends_at = format_instant(Reservation.objects.get().ends_at + dt.timedelta(hours=1))
        answer = api.post(f"{path}/extension-quote", {"ends_at": ends_at})
        assert (answer.status, answer.code) == (409, "payment_held")
        leaving = api.post(f"{path}/cancellation-quote", {}).json
        assert (leaving["fee_waived_because"], leaving["fee"]["amount_minor"]) == ("not_paid", 0)
        body = {"quote_id": leaving["id"]}
        assert api.post(f"{path}/cancellation", body, key=a_new_key()).status == 201
        assert api.get(path).json["status"] == "cancelled"

    def test_replay_the_answer_with_the_secret(self, api: ApiClient, stand_in) -> None:
        a_fleet()
        quote, key = a_quote(api), a_new_key()
        first, second = (buy(api, quote=quote, key=key, payment_method="card") for _ in range(2))
        assert second.json["payment"]["client_secret"]
        assert second.content == first.content
        assert Reservation.objects.count() == 1

    def test_need_a_card_that_was_saved_to_be_paid_unasked(self, api: ApiClient, stand_in) -> None:
        a_fleet()
        answer = buy(api, quote=a_quote(api), payment_method="card", use_saved_card=True)
        assert (answer.status, answer.code) == (409, "no_saved_card")
        assert not Reservation.objects.exists()

    def test_by_bank_transfer_need_days_before_the_start(self, api: ApiClient, stand_in) -> None:
        a_fleet()
        near = buy(api, quote=a_quote(api), payment_method="bank_transfer")
        assert (near.status, near.code) == (422, "invalid_value")
        far = a_quote(api, window=a_window(in_hours=96))
        assert buy(api, quote=far, payment_method="bank_transfer").status == 201


class TestPage:
    def test_shows_the_fields_to_whoever_has_the_secret(self, api, stand_in, client) -> None:
        url = api.post("/v1/wallet/top-ups", BODY, key="k").json["checkout_url"]
        path = url.partition("8000")[2] or url[url.index("/pay/") :]
        page = client.get(path)
        assert page.status_code == 200
        assert "Pay 50.00 USD" in page.content.decode()
        assert "No real money moves" in page.content.decode()
        assert stand_in.base_url in page.headers["Content-Security-Policy"]
        assert client.get(path + "x").status_code == 404

    def test_says_when_it_is_paid(self, api, stand_in, client) -> None:
        url = api.post("/v1/wallet/top-ups", BODY, key="k").json["checkout_url"]
        payment = Payment.objects.get()
        pays(stand_in, payment)
        page = client.get(url[url.index("/pay/") :]).content.decode()
        assert "Paid. Thank you." in page
        assert "<form" not in page

    def test_is_not_offered_without_a_key_for_browsers(self, api, stand_in, settings) -> None:
        settings.STRIPE_PUBLISHABLE_KEY = ""
        assert api.post("/v1/wallet/top-ups", BODY, key="k").json["checkout_url"] is None


def test_nothing_is_asked_of_a_provider_that_is_not_there(db) -> None:
    at = timezone.now()
    assert (provider.drive_due(at=at), provider.read_due(at=at)) == (0, 0)
    assert (inbox.poll(at=at), inbox.process_due(at=at), payments.give_up_due(at=at)) == (0, 0, 0)


class TestPayoutAccount:
    BODY = {"email": "finance@example.com", "country": "DE"}

    def test_is_made_at_the_provider_and_says_where_to_go_on(self, api, stand_in) -> None:
        answer = api.post("/v1/owner/payout-account", self.BODY, key="k")
        assert answer.status == 201
        assert answer.json["receives"] is False
        assert answer.json["onboarding_url"].startswith(stand_in.base_url)
        account = stand_in.world.all("v2.core.account")[0]["id"]
        stand_in.control("/_control/capability", {"id": account})
        onboarding.read_due(at=timezone.now() + dt.timedelta(hours=1))
        shown = api.get("/v1/owner/payout-account").json
        assert (shown["receives"], shown["onboarding_url"]) == (True, None)

    def test_is_changed_by_two_people(self, api, stand_in) -> None:
        api.post("/v1/owner/payout-account", self.BODY, key="a")
        changed = api.post("/v1/owner/payout-account", self.BODY, key="b")
        assert (changed.status, changed.json["usable_at"]) == (201, None)
        again = api.post("/v1/owner/payout-account", self.BODY, key="c")
        assert (again.status, again.code) == (409, "state_conflict")

    def test_is_not_there_before_anybody_asked(self, api, stand_in) -> None:
        assert api.get("/v1/owner/payout-account").status == 404

    def test_needs_a_provider(self, api) -> None:
        answer = api.post("/v1/owner/payout-account", self.BODY, key="k")
        assert (answer.status, answer.code) == (501, "payment_method_unavailable")

    def test_says_when_the_provider_is_away(self, api, stand_in) -> None:
        api.post("/v1/owner/payout-account", self.BODY, key="k")
        stand_in.fail("server_error", "POST /v2/core/account_links", times=3)
        answer = api.get("/v1/owner/payout-account")
        assert (answer.status, answer.code) == (503, "onboarding_unavailable")
