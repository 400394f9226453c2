import uuid

import pytest
from django.urls import reverse
from django.utils import timezone

from billing import books, onboarding, wallet
from billing.models import (
    Approval,
    Deposit,
    Entry,
    Payment,
    Payout,
    PayoutAccount,
    ProviderTransition,
    Settlement,
)
from billing.provider_states import DepositStatus, Machine, PaymentMeans, PaymentPurpose
from marketplace.core.money import Money
from marketplace.models import User
from tests.billing import factories
from tests.billing.debtors import a_debtor, buy, owed, sale_of
from tests.billing.focus import world
from tests.billing.owner_market import released_settlement
from tests.scheduler.factories import make_pool, make_quote

pytestmark = pytest.mark.django_db

BOOKS = "books"
DEPOSIT = "admin:billing_deposit"


@pytest.fixture(autouse=True)
def plain_static_files(settings):
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


class TestLists:
    @pytest.mark.parametrize(
        "model",
        [
            *("account", "entry", "posting", "settlement", "payout", "earnedhour", "correction"),
            *("reserve", "refund", "dispute", "booksrun", "parking", "approval"),
            *("creditterms", "creditsale", "dunningcase"),
            *("invoice", "billingprofile"),
            *("promotion", "withdrawal", "deposit", "taxremittance"),
            *("payment", "payoutaccount", "intent", "inboxevent", "difference"),
            *("disputecharge", "reversal", "cardinquiry"),
        ],
    )
    def test_show_search_and_refuse_to_add(self, admin_client, model):
        released_settlement()
        listing = reverse(f"admin:billing_{model}_changelist")
        assert admin_client.get(listing).status_code == 200
        assert admin_client.get(listing, {"q": "Nordlicht"}).status_code == 200
        assert admin_client.get(reverse(f"admin:billing_{model}_add")).status_code == 403

    def test_show_the_derived_balance(self, admin_client):
        factories.tenant(funds_minor=1234)
        page = admin_client.get(reverse("admin:billing_account_changelist")).content.decode()
        assert "12.34 USD" in page

    def test_show_one_of_each_without_a_way_to_change_it(self, admin_client):
        released_settlement()
        for row in (Entry.objects.first(), Settlement.objects.get(), Payout.objects.get()):
            address = reverse(f"admin:billing_{row._meta.model_name}_change", args=[row.pk])
            assert admin_client.get(address).status_code == 200
            assert admin_client.post(address, {}).status_code == 403

    def test_show_of_a_deposit_what_happens_next_and_what_did(self, admin_client):
        tenant = factories.tenant(funds_minor=1000)
        plan = Deposit.objects.get(reservation=world.in_two_parts(tenant))
        listing = reverse("admin:billing_deposit_changelist")
        row = reverse("admin:billing_deposit_change", args=[plan.pk])
        text = admin_client.get(listing).content.decode()
        assert "1.00 USD" in text
        assert "3.71 USD" in text
        assert ">nothing<" in text
        assert "none" in admin_client.get(row).content.decode()
        Deposit.objects.update(
            status=DepositStatus.ASKED, return_by=plan.created_at, act_due_at=plan.created_at
        )
        ProviderTransition.objects.create(
            machine=Machine.DEPOSIT,
            subject_id=plan.pk,
            from_status=DepositStatus.OPEN,
            to_status=DepositStatus.ASKED,
            at=plan.created_at,
        )
        payment = Payment.objects.create(
            organization=tenant,
            reservation=plan.reservation,
            purpose=PaymentPurpose.BALANCE,
            means=PaymentMeans.CARD,
            amount_minor=plan.balance_gross_minor,
            currency="usd",
            read_due_at=plan.created_at,
            due_at=plan.created_at,
            created_at=plan.created_at,
        )
        said = admin_client.get(row).content.decode()
        assert "its tenant is to return and pay" in admin_client.get(listing).content.decode()
        assert "open → asked" in said
        assert reverse("admin:billing_payment_change", args=[payment.pk]) in said

    def test_show_an_invoice_with_its_state_and_its_file(self, admin_client):
        row = factories.reservation(buyer=factories.tenant(), paid=False)
        invoice = factories.bought_on_account(row)
        listing = reverse("admin:billing_invoice_changelist")
        assert "HR-2026-000001" in admin_client.get(listing, {"state": "open"}).content.decode()
        assert "HR-2026-000001" not in admin_client.get(listing, {"state": "paid"}).content.decode()
        page = reverse("admin:billing_invoice_change", args=[invoice])
        assert "4.71 USD" in admin_client.get(page).content.decode()
        file = admin_client.get(reverse("admin:billing_invoice_pdf", args=[invoice]))
        assert file.content.startswith(b"%PDF-")
        nobody = admin_client.get(reverse("admin:billing_invoice_pdf", args=["inv_nobody"]))
        assert nobody.status_code == 404


class TestBooks:
    def test_show_every_check(self, admin_client):
        page = admin_client.get(reverse(BOOKS)).content.decode()
        assert "entries_balance" in page
        assert "BROKEN" not in page

    @pytest.mark.parametrize(
        "asked", [{"query_params": {"format": "json"}}, {"headers": {"accept": "application/json"}}]
    )
    def test_answer_in_json(self, admin_client, asked):
        report = admin_client.get(reverse(BOOKS), **asked).json()
        assert report["ok"] is True
        assert {"name", "ok", "detail"} == set(report["checks"][0])

    def test_show_a_breach(self, admin_client, unguarded):
        factories.tenant(funds_minor=10)
        with unguarded():
            type(factories.tenant().accounts.get()).objects.update(guarded=True, balance=3)
        report = admin_client.get(reverse(BOOKS), {"format": "json"}).json()
        assert report["ok"] is False

    def test_are_not_for_strangers(self, client):
        assert client.get(reverse(BOOKS)).status_code == 302

    def test_are_not_for_staff_without_the_permission(self, client):
        client.force_login(User.objects.create_user("clerk", is_staff=True))
        assert client.get(reverse(BOOKS)).status_code == 403
        assert client.get(reverse(DEPOSIT)).status_code == 403


class TestDeposit:
    def test_counts_a_form_once_that_is_sent_twice(self, admin_client):
        buyer = factories.tenant()
        form = {"organization": buyer.pk, "amount_minor": 500, "idempotency_key": uuid.uuid4()}
        for _ in range(2):
            assert admin_client.post(reverse(DEPOSIT), form).status_code == 302
        assert wallet.balance(organization=buyer) == Money(500, "usd")

    def test_shows_the_form(self, admin_client):
        assert b"Record the deposit" in admin_client.get(reverse(DEPOSIT)).content

    @pytest.mark.parametrize("amount", ["0", "-1", "1e3", "nan", "", "1000000001"])
    def test_refuses_an_amount_that_is_none(self, admin_client, amount):
        buyer = factories.tenant()
        form = {"organization": buyer.pk, "amount_minor": amount, "idempotency_key": uuid.uuid4()}
        assert admin_client.post(reverse(DEPOSIT), form).status_code == 200
        assert not Entry.objects.exists()

    def test_says_when_the_form_was_sent_before_with_another_amount(self, admin_client):
        buyer = factories.tenant()
        form = {"organization": buyer.pk, "amount_minor": 500, "idempotency_key": uuid.uuid4()}
        admin_client.post(reverse(DEPOSIT), form)
        answer = admin_client.post(reverse(DEPOSIT), {**form, "amount_minor": 501})
        assert b"other content" in answer.content
        assert wallet.balance(organization=buyer) == Money(500, "usd")

    def test_says_when_the_form_was_sent_before_for_another_tenant(self, admin_client):
        buyer, other = factories.tenant(), factories.tenant(name="The right one")
        form = {"organization": buyer.pk, "amount_minor": 500, "idempotency_key": uuid.uuid4()}
        admin_client.post(reverse(DEPOSIT), form)
        answer = admin_client.post(reverse(DEPOSIT), {**form, "organization": other.pk})
        (refusal,) = answer.context["form"].errors["organization"]
        assert buyer.pk in refusal
        assert wallet.balance(organization=other) == Money(0, "usd")


class TestFourEyes:
    def asked(self, client, **changes: object):
        tenant = factories.tenant()
        form = {
            "kind": "refund",
            "organization": tenant.pk,
            "subject_id": tenant.pk,
            "amount_minor": "50000",
            "reason": "a week of trouble",
            **changes,
        }
        return client.post(reverse("admin:billing_request"), form)

    def second_person(self, client) -> None:
        client.force_login(User.objects.create_superuser("bert", "bert@example.test", "x" * 20))

    def decide(self, client, decision: str):
        address = reverse("admin:billing_decide", args=[Approval.objects.get().pk])
        assert client.get(address).status_code == 200
        return client.post(address, {"decision": decision})

    def test_let_a_large_refund_happen(self, admin_client):
        assert self.asked(admin_client).status_code == 302
        assert wallet.balance(organization=factories.tenant()) == Money(0, "usd")
        self.second_person(admin_client)
        assert self.decide(admin_client, "approve").status_code == 302
        assert wallet.balance(organization=factories.tenant()) == Money(50_000, "usd")

    def test_are_not_two_of_one_person(self, admin_client):
        self.asked(admin_client)
        answer = self.decide(admin_client, "approve")
        assert "somebody else decides it" in answer.content.decode()
        assert wallet.balance(organization=factories.tenant()) == Money(0, "usd")

    def test_may_refuse(self, admin_client):
        self.asked(admin_client)
        self.second_person(admin_client)
        self.decide(admin_client, "refuse")
        assert Approval.objects.get().status == "refused"

    def test_say_what_is_wrong_with_a_wish(self, admin_client):
        assert "This field is required" in self.asked(admin_client, reason="").content.decode()
        assert "Refused" not in self.asked(admin_client).content.decode()
        assert "already" in self.asked(admin_client).content.decode()

    def test_need_permissions_of_their_own(self, client):
        client.force_login(
            User.objects.create_user("carl", "carl@example.test", "x" * 20, is_staff=True)
        )
        assert client.get(reverse("admin:billing_request")).status_code == 403
        assert client.get(reverse("admin:billing_decide", args=["apr_x"])).status_code == 403


def test_the_page_of_the_books_says_whose_money_is_parked(admin_client):
    row = factories.reservation(buyer=factories.tenant(funds_minor=471))
    type(row.quote).objects.update(total_minor=1)
    books.run(at=factories.START)
    page = admin_client.get(reverse(BOOKS)).content.decode()
    assert "Perceptron AG is parked" in page
    assert "found a breach" in page


class TestPayoutAccounts:
    @pytest.fixture
    def changed(self):
        owner = factories.owner()
        for actor in ("key_1", "admin"):
            onboarding.ask(
                owner=owner,
                email="owner@example.com",
                country="DE",
                at=timezone.now(),
                actor=actor,
            )
        return PayoutAccount.objects.get(usable_at__isnull=True)

    def act(self, client, account, action):
        return client.post(
            reverse("admin:billing_payoutaccount_changelist"),
            {"action": action, "_selected_action": [account.pk]},
            follow=True,
        ).content.decode()

    def test_are_not_approved_by_who_asked_for_them(self, admin_client, changed):
        assert "admin asked for this account" in self.act(admin_client, changed, "approve")
        changed.refresh_from_db()
        assert (changed.approved_by, changed.usable_at) == ("", None)

    def test_are_approved_by_somebody_else(self, client, changed):
        client.force_login(User.objects.create_superuser(username="cfo", password="x" * 20))
        self.act(client, changed, "approve")
        changed.refresh_from_db()
        assert changed.approved_by == "cfo"
        self.act(client, changed, "withdraw")
        changed.refresh_from_db()
        assert changed.retired_at is not None


class TestCredit:
    def test_is_asked_for_among_the_approvals(self, admin_client):
        tenant = factories.tenant()
        form = {
            "kind": "credit",
            "organization": tenant.pk,
            "subject_id": tenant.pk,
            "amount_minor": "500000",
            "net_days": "14",
            "reason": "a good customer",
        }
        admin_client.post(reverse("admin:billing_request"), form)
        approval = Approval.objects.get()
        assert (approval.status, approval.net_days) == ("requested", 14)

    def test_without_days_to_pay_says_why_not(self, admin_client):
        tenant = factories.tenant()
        form = {
            "kind": "credit",
            "organization": tenant.pk,
            "subject_id": tenant.pk,
            "amount_minor": "500000",
            "reason": "a good customer",
        }
        page = admin_client.post(reverse("admin:billing_request"), form).content.decode()
        assert "within 14 or 30 days" in page
        assert not Approval.objects.exists()

    def test_is_paid_by_a_transfer_that_is_recorded_once(self, admin_client):
        make_pool()
        sale = sale_of(buy(make_quote(tenant=a_debtor())))
        address = reverse("admin:billing_transfer_received", args=[sale.pk])
        assert sale.invoice_id in admin_client.get(address).content.decode()
        form = {"amount_minor": "100", "idempotency_key": str(uuid.uuid4())}
        for _ in range(2):
            assert admin_client.post(address, form).status_code == 302
        assert owed(sale) == sale.amount_minor - 100

    def test_says_at_the_amount_that_the_form_has_recorded_another_one(self, admin_client):
        make_pool()
        sale = sale_of(buy(make_quote(tenant=a_debtor())))
        address = reverse("admin:billing_transfer_received", args=[sale.pk])
        form = {"amount_minor": "100", "idempotency_key": str(uuid.uuid4())}
        admin_client.post(address, form)
        answer = admin_client.post(address, {**form, "amount_minor": "200"})
        assert answer.status_code == 200
        (refusal,) = answer.context["form"].errors["amount_minor"]
        assert "1.00 USD" in refusal
        assert owed(sale) == sale.amount_minor - 100

    def test_says_that_the_form_has_recorded_another_invoice(self, admin_client):
        make_pool()
        one, two = (sale_of(buy(make_quote(tenant=a_debtor()))) for _ in range(2))
        form = {"amount_minor": "100", "idempotency_key": str(uuid.uuid4())}
        for sale in (one, two):
            address = reverse("admin:billing_transfer_received", args=[sale.pk])
            answer = admin_client.post(address, form)
        assert one.invoice_id in answer.content.decode()
        assert owed(two) == two.amount_minor

    def test_is_not_paid_by_people_who_may_only_look(self, client):
        make_pool()
        sale = sale_of(buy(make_quote(tenant=a_debtor())))
        client.force_login(User.objects.create_user(username="eve", is_staff=True))
        address = reverse("admin:billing_transfer_received", args=[sale.pk])
        assert client.get(address).status_code == 403
