"""The stand-in for the payment provider, as the unmodified client library meets it."""

import json

import pytest
import stripe

from tests.fakes.stripe import StandIn

CLOCK = 1_790_000_000


@pytest.fixture
def stand_in():
    with StandIn(clock=CLOCK) as running:
        yield running


@pytest.fixture
def client(stand_in):
    return stripe.StripeClient(
        "sk_test_x", base_addresses={"api": stand_in.base_url}, max_network_retries=0
    )


def pay(client, *, amount=1000, method="pm_card_bypassPending", key=None, **params):
    return client.v1.payment_intents.create(
        {
            "amount": amount,
            "currency": "usd",
            "confirm": True,
            "payment_method": method,
            "payment_method_types": ["card"],
            **params,
        },
        {"idempotency_key": key} if key else {},
    )


class TestCards:
    def test_an_automatic_payment_succeeds_with_its_fee(self, client):
        paid = pay(client, expand=["latest_charge.balance_transaction"])
        row = paid.latest_charge.balance_transaction
        assert (paid.status, row.amount, row.fee, row.net) == ("succeeded", 1000, 59, 941)

    def test_a_manual_one_is_captured_in_part(self, client):
        held = pay(client, capture_method="manual")
        assert (held.status, held.amount_capturable) == ("requires_capture", 1000)
        taken = client.v1.payment_intents.capture(held.id, {"amount_to_capture": 400})
        assert (taken.status, taken.amount_received) == ("succeeded", 400)

    def test_a_hold_that_nobody_captures_is_released(self, client, stand_in):
        held = pay(client, capture_method="manual")
        stand_in.advance(days=8)
        assert client.v1.payment_intents.retrieve(held.id).status == "canceled"
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.payment_intents.capture(held.id)
        assert caught.value.code == "payment_intent_unexpected_state"

    @pytest.mark.parametrize(
        ("method", "code", "decline_code"),
        [
            ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
            ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
            ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
        ],
    )
    def test_a_decline_says_why(self, client, method, code, decline_code):
        with pytest.raises(stripe.CardError) as caught:
            pay(client, method=method)
        assert caught.value.code == code
        assert caught.value.error.decline_code == decline_code

    def test_three_d_secure_asks_on_session(self, client, stand_in):
        asked = pay(client, method="pm_card_threeDSecure2Required")
        assert (asked.status, asked.next_action.type) == ("requires_action", "use_stripe_sdk")
        stand_in.control("/_control/authenticate", {"id": asked.id})
        assert client.v1.payment_intents.retrieve(asked.id).status == "succeeded"

    def test_a_saved_card_pays_off_session_when_it_was_authenticated(self, client, stand_in):
        customer = client.v1.customers.create({"name": "Perceptron"})
        setup = client.v1.setup_intents.create(
            {
                "customer": customer.id,
                "confirm": True,
                "payment_method": "pm_card_authenticationRequiredOnSetup",
            }
        )
        stand_in.control("/_control/authenticate", {"id": setup.id})
        saved = client.v1.setup_intents.retrieve(setup.id).payment_method
        paid = pay(client, method=saved, customer=customer.id, off_session=True)
        assert paid.status == "succeeded"

    def test_a_card_that_always_asks_is_declined_off_session(self, client):
        with pytest.raises(stripe.CardError) as caught:
            pay(client, method="pm_card_authenticationRequired", off_session=True)
        assert caught.value.code == "authentication_required"


class TestBankTransfers:
    def test_money_in_parts_pays_when_it_is_all_there(self, client):
        customer = client.v1.customers.create({})
        waiting = client.v1.payment_intents.create(
            {
                "amount": 900,
                "currency": "usd",
                "customer": customer.id,
                "payment_method_types": ["customer_balance"],
                "payment_method_data": {"type": "customer_balance"},
                "confirm": True,
            }
        )
        assert waiting.next_action.type == "display_bank_transfer_instructions"
        fund = client.v1.test_helpers.customers.fund_cash_balance
        fund(customer.id, {"amount": 400, "currency": "usd"})
        assert client.v1.payment_intents.retrieve(waiting.id).status == "requires_action"
        fund(customer.id, {"amount": 600, "currency": "usd"})
        assert client.v1.payment_intents.retrieve(waiting.id).status == "succeeded"
        left = client.v1.customers.cash_balance.retrieve(customer.id)
        assert left.available["usd"] == 100


class TestRefunds:
    def test_never_return_more_than_was_captured(self, client):
        paid = pay(client)
        client.v1.refunds.create({"payment_intent": paid.id, "amount": 600})
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.refunds.create({"payment_intent": paid.id, "amount": 401})
        assert caught.value.code == "amount_too_large"

    def test_may_be_pending_first(self, client, stand_in):
        pay(client, amount=5000)
        paid = pay(client, method="pm_card_pendingRefund")
        refund = client.v1.refunds.create({"payment_intent": paid.id})
        assert refund.status == "pending"
        stand_in.advance(days=3)
        assert client.v1.refunds.retrieve(refund.id).status == "succeeded"

    def test_may_fail_later_and_the_money_comes_back(self, client, stand_in):
        pay(client, amount=5000)
        paid = pay(client, method="pm_card_refundFail")
        refund = client.v1.refunds.create({"payment_intent": paid.id})
        stand_in.advance(days=3)
        before = client.v1.balance.retrieve().available[0].amount
        assert client.v1.refunds.retrieve(refund.id).status == "failed"
        assert before == 5000 - 175 + 1000 - 59


class TestConnect:
    def an_account(self, client, stand_in):
        account = client.v2.core.accounts.create({"contact_email": "owner@example.com"})
        stand_in.control("/_control/capability", {"id": account.id})
        return account.id

    def test_a_transfer_needs_an_account_that_may_receive(self, client):
        account = client.v2.core.accounts.create({"contact_email": "owner@example.com"})
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.transfers.create({"amount": 1, "currency": "usd", "destination": account.id})
        assert caught.value.code == "insufficient_capabilities_for_transfer"

    def test_a_transfer_needs_an_available_balance(self, client, stand_in):
        account = self.an_account(client, stand_in)
        pay(client, method="pm_card_visa")
        order = {"amount": 500, "currency": "usd", "destination": account}
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.transfers.create(order)
        assert caught.value.code == "balance_insufficient"
        stand_in.advance(days=3)
        assert client.v1.transfers.create(order).amount == 500

    def test_a_reversal_needs_the_money_to_be_there_still(self, client, stand_in):
        account = self.an_account(client, stand_in)
        pay(client)
        sent = client.v1.transfers.create(
            {"amount": 500, "currency": "usd", "destination": account}
        )
        client.v1.payouts.create({"amount": 400, "currency": "usd"}, {"stripe_account": account})
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.transfers.reversals.create(sent.id, {"amount": 200})
        assert caught.value.code == "balance_insufficient"
        assert client.v1.transfers.reversals.create(sent.id, {"amount": 100}).amount == 100


class TestDisputesAndInvoices:
    def test_a_dispute_takes_the_money_and_a_fee_until_it_is_won(self, client, stand_in):
        paid = pay(client)
        dispute = stand_in.control("/_control/dispute", {"id": paid.latest_charge})
        assert client.v1.balance.retrieve().available[0].amount == 941 - 1000 - 1500
        stand_in.control("/_control/close-dispute", {"id": dispute["id"], "won": True})
        assert client.v1.disputes.retrieve(dispute["id"]).status == "won"
        assert client.v1.balance.retrieve().available[0].amount == 941 - 1500

    def test_an_invoice_is_open_until_it_is_paid(self, client):
        customer = client.v1.customers.create({})
        invoice = client.v1.invoices.create(
            {"customer": customer.id, "collection_method": "send_invoice", "days_until_due": 14}
        )
        client.v1.invoice_items.create(
            {"customer": customer.id, "invoice": invoice.id, "amount": 700, "currency": "usd"}
        )
        opened = client.v1.invoices.finalize_invoice(invoice.id)
        assert (opened.status, opened.amount_due) == ("open", 700)
        paid = client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
        assert (paid.status, paid.amount_remaining) == ("paid", 0)


class TestIdempotency:
    def test_a_key_gives_the_first_answer_again(self, client):
        first, second = pay(client, key="k"), pay(client, key="k")
        assert first.id == second.id
        assert second.last_response.headers["Idempotent-Replayed"] == "true"

    def test_a_key_belongs_to_its_parameters(self, client):
        pay(client, key="k")
        with pytest.raises(stripe.IdempotencyError):
            pay(client, amount=1001, key="k")

    def test_a_key_is_forgotten_after_a_day(self, client, stand_in):
        first = pay(client, key="k")
        stand_in.advance(seconds=86_400)
        assert pay(client, key="k").id != first.id

    def test_a_decline_is_kept(self, client):
        for _ in range(2):
            with pytest.raises(stripe.CardError):
                pay(client, method="pm_card_visa_chargeDeclined", key="k")
        assert len(client.v1.payment_intents.list().data) == 1


class TestFaults:
    @pytest.mark.parametrize(("kind", "effects"), [("timeout_before", 0), ("timeout_after", 1)])
    def test_an_answer_is_lost_before_or_after_the_effect(self, client, stand_in, kind, effects):
        stand_in.fail(kind, "POST /v1/payment_intents")
        with pytest.raises(stripe.APIConnectionError):
            pay(client)
        assert len(client.v1.payment_intents.list().data) == effects

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            ("rate_limit", stripe.RateLimitError),
            ("conflict", stripe.APIError),
            ("server_error", stripe.APIError),
        ],
    )
    def test_a_refusal_leaves_nothing_and_the_key_free(self, client, stand_in, kind, error):
        stand_in.fail(kind, "POST /v1/payment_intents")
        with pytest.raises(error):
            pay(client, key="k")
        assert pay(client, key="k").status == "succeeded"

    def test_a_stored_fault_comes_again_under_its_key(self, client, stand_in):
        stand_in.fail("server_error_stored", "POST /v1/payment_intents")
        for _ in range(2):
            with pytest.raises(stripe.APIError):
                pay(client, key="k")


class TestWebhooks:
    def test_are_signed_as_the_library_expects(self, client, stand_in):
        pay(client)
        delivery = stand_in.deliveries()[0]
        assert stripe.WebhookSignature.verify_header(
            delivery.body.decode(), delivery.signature, "whsec_standin", None
        )
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(
                delivery.body.decode() + " ", delivery.signature, "whsec_standin", None
            )

    def test_come_twice_shuffled_and_not_all(self, client, stand_in):
        for _ in range(10):
            pay(client)
        in_order = [d.event_id for d in stand_in.deliveries()]
        disturbed = [d.event_id for d in stand_in.deliveries(duplicate=3, shuffle_seed=1, drop=0.3)]
        assert len(set(in_order)) == 30
        assert len(disturbed) > len(set(disturbed))
        assert [e for e in in_order if e in set(disturbed)] != disturbed


def test_a_journal_brings_the_same_world_back(tmp_path):
    journal = tmp_path / "journal.jsonl"
    with StandIn(clock=CLOCK, journal=journal) as first:
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": first.base_url})
        paid = pay(client, key="k")
        client.v1.refunds.create({"payment_intent": paid.id, "amount": 100})
    with StandIn(clock=CLOCK, journal=journal) as second:
        assert json.dumps(second.world.objects) == json.dumps(first.world.objects)
        assert second.world.events == first.world.events


def test_a_delayed_event_arrives_behind_those_that_were_sent_after_it():
    with StandIn() as stand_in:
        for number in range(5):
            stand_in.world.emit("charge.updated", {"id": f"ch_{number}", "object": "charge"})
        sent = [event["id"] for event in stand_in.world.events]
        late = [delivery.event_id for delivery in stand_in.deliveries(delay=2)]
    assert sorted(late) == sorted(sent)
    assert [sent.index(event) for event in late] == [1, 3, 0, 2, 4]


def test_the_list_of_accounts_has_pages():
    with StandIn() as stand_in:
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": stand_in.base_url})
        made = [client.v2.core.accounts.create({"display_name": f"{n}"}).id for n in range(5)]
        first = client.v2.core.accounts.list({"limit": 2})
        assert [row.id for row in first.data] == made[:-3:-1]
        assert [row.id for row in first.auto_paging_iter()] == made[::-1]
