"""Money of which nobody knew whose it is: where two people let it go, and how it is missed meanwhile."""

import datetime as dt
from typing import Any

import pytest
from django.db import DatabaseError, transaction
from django.urls import reverse
from django.utils import timezone

from billing import approvals, books, ledger, parking, provider_books, suspense, wallet
from billing.approvals import FourEyesNeeded
from billing.models import Approval, BalanceTransaction, Entry
from billing.states import AccountKind, ApprovalKind, ApprovalStatus, EntryKind
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import AuditEvent, Event, Organization
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = factories.START
DAY = dt.timedelta(days=1)


def aside(amount: int, *, number: int = 1) -> str:
    """Put a booking aside that explains nothing; return the item's id."""
    row = BalanceTransaction.objects.create(
        pk=f"txn_{number}",
        category="other_adjustment",
        source_id="",
        amount_minor=amount,
        fee_minor=0,
        currency="usd",
        available_at=AT,
        created_at=AT,
    )
    entry = provider_books.put_aside(transaction_id=row.pk, at=AT)
    assert entry is not None
    return entry.pk


def ask(
    item_id: str,
    amount: int,
    *,
    kind: ApprovalKind = ApprovalKind.SUSPENSE_MARKET,
    organization: Organization | None = None,
    currency: str = "usd",
) -> Approval:
    return approvals.request(
        kind=kind,
        organization=organization,
        subject_id=item_id,
        amount=Money(amount, currency),
        reason="The provider's support says so.",
        at=AT,
        actor="anna",
    )


def resolve(item_id: str, amount: int, **changes: Any) -> Approval:
    asked = ask(item_id, amount, **changes)
    return approvals.approve(approval_id=asked.pk, at=AT, actor="ben")


def holds(kind: AccountKind) -> int:
    return ledger.balance(account=ledger.AccountRef(kind, "usd"))


def left(item_id: str) -> int:
    return int(suspense.items().get(pk=item_id).left_minor)


def broken(*, after: dt.timedelta = DAY) -> list[str]:
    """Return which checks fail so long after what was recorded last, which has the database's own clock."""
    recorded_at = Entry.objects.latest("recorded_at").recorded_at
    report = books.check(at=recorded_at + after + dt.timedelta(hours=1))
    return [check.name for check in report.checks if not check.ok]


class TestWhereItGoes:
    @pytest.mark.parametrize(
        ("kind", "toward"),
        [
            (ApprovalKind.SUSPENSE_BANK, AccountKind.BANK),
            (ApprovalKind.SUSPENSE_FEES, AccountKind.PSP_FEES),
            (ApprovalKind.SUSPENSE_MARKET, AccountKind.ROUNDING_FX),
        ],
    )
    @pytest.mark.parametrize("amount", [777, -777])
    def test_is_what_two_people_say(
        self, kind: ApprovalKind, toward: AccountKind, amount: int
    ) -> None:
        item = aside(amount)
        resolve(item, 777, kind=kind)
        assert (holds(AccountKind.SUSPENSE), left(item)) == (0, 0)
        assert holds(toward) == -amount  # a cost, or our bank's, goes down by what came
        assert holds(AccountKind.STRIPE_AVAILABLE) == amount
        assert broken() == []

    def test_is_a_tenants_wallet_and_it_is_told(self) -> None:
        tenant = factories.tenant()
        item = aside(777)
        made = resolve(item, 777, kind=ApprovalKind.SUSPENSE_WALLET, organization=tenant)
        assert wallet.balance(organization=tenant) == Money(777, "usd")
        told = Event.objects.get(kind="wallet.credited")
        entry = Entry.objects.get(kind=EntryKind.SUSPENSE_RESOLVED)
        assert (told.organization, told.object_id) == (tenant, entry.pk)
        assert told.data == {"amount_minor": 777, "currency": "usd"}
        assert entry.subject_id == item
        trail = AuditEvent.objects.get(action="approval.approved", object_id=made.pk)
        assert (trail.actor, trail.organization) == ("ben", tenant)
        assert broken() == []

    def test_may_be_several_places(self) -> None:
        tenant = factories.tenant()
        item = aside(777)
        resolve(item, 700, kind=ApprovalKind.SUSPENSE_WALLET, organization=tenant)
        assert (left(item), broken()) == (77, ["nothing_stays_in_suspense"])
        resolve(item, 77, kind=ApprovalKind.SUSPENSE_FEES)
        assert (left(item), broken()) == (0, [])
        assert not suspense.open_items().exists()


class TestRefusals:
    def test_takes_two_people_whatever_the_amount(self) -> None:
        item = aside(1)
        asked = ask(item, 1)
        assert asked.status == ApprovalStatus.REQUESTED
        with pytest.raises(FourEyesNeeded):
            approvals.approve(approval_id=asked.pk, at=AT, actor="anna")
        assert left(item) == 1

    @pytest.mark.parametrize("amount", [0, 778])
    def test_of_more_than_is_left(self, amount: int) -> None:
        with pytest.raises(InvalidValue, match=r"7\.77"):
            ask(aside(777), amount)

    def test_of_another_currency(self) -> None:
        with pytest.raises(InvalidValue):
            ask(aside(777), 777, currency="eur")

    def test_of_what_was_never_put_aside(self) -> None:
        for unknown in ("ent_nobody", ""):
            with pytest.raises(InvalidValue, match="put aside"):
                ask(unknown, 1)

    def test_of_what_was_resolved_since_it_was_asked_for(self) -> None:
        item = aside(777)
        first = ask(item, 777, kind=ApprovalKind.SUSPENSE_BANK)
        second = ask(item, 700)
        approvals.approve(approval_id=first.pk, at=AT, actor="ben")
        with pytest.raises(InvalidValue):
            approvals.approve(approval_id=second.pk, at=AT, actor="ben")
        second.refresh_from_db()
        assert (second.status, left(item)) == (ApprovalStatus.REQUESTED, 0)

    def test_to_let_a_wallet_pay_for_what_has_gone(self) -> None:
        tenant = factories.tenant(funds_minor=1000)
        with pytest.raises(InvalidValue, match="No wallet pays"):
            ask(aside(-777), 777, kind=ApprovalKind.SUSPENSE_WALLET, organization=tenant)

    def test_to_give_a_wallet_to_who_buys_nothing(self) -> None:
        with pytest.raises(InvalidValue, match="Only who buys"):
            ask(
                aside(777),
                777,
                kind=ApprovalKind.SUSPENSE_WALLET,
                organization=factories.owner(),
            )

    def test_without_a_tenant_or_with_one_that_is_none_of_its_business(self) -> None:
        item = aside(777)
        with pytest.raises(InvalidValue, match="whose it is"):
            ask(item, 777, kind=ApprovalKind.SUSPENSE_WALLET)
        with pytest.raises(InvalidValue, match="whose it is"):
            ask(item, 777, organization=factories.tenant())

    def test_while_the_tenants_money_is_parked(self) -> None:
        tenant = factories.tenant()
        item = aside(777)
        asked = ask(item, 777, kind=ApprovalKind.SUSPENSE_WALLET, organization=tenant)
        parking.park(breaches={tenant.pk: "a breach"}, at=AT)
        with pytest.raises(parking.MoneyParked):
            approvals.approve(approval_id=asked.pk, at=AT, actor="ben")
        assert left(item) == 777
        assert not Event.objects.filter(kind="wallet.credited").exists()

    def test_of_the_market_is_nobodys_in_the_database_too(self) -> None:
        item = aside(777)
        with pytest.raises(DatabaseError, match="of_somebody"), transaction.atomic():
            Approval.objects.create(
                kind=ApprovalKind.SUSPENSE_BANK,
                organization=factories.tenant(),
                subject_id=item,
                amount_minor=777,
                currency="usd",
                reason="a guess",
                requested_by="anna",
                requested_at=AT,
            )


class TestTheNightlyCheck:
    def test_names_the_oldest_item_however_much_comes_after_it(self) -> None:
        item = aside(777)
        recorded_at = Entry.objects.get(pk=item).recorded_at
        aside(5, number=2)
        checks = books.check(at=recorded_at + DAY + dt.timedelta(hours=1)).checks
        (found,) = (check for check in checks if not check.ok)
        assert found.name == "nothing_stays_in_suspense"
        assert item in found.detail

    def test_is_content_within_a_day(self) -> None:
        aside(777)
        assert broken(after=dt.timedelta(hours=1)) == []

    def test_finds_two_items_that_cancel_out(self) -> None:
        aside(777)
        aside(-777, number=2)
        assert holds(AccountKind.SUSPENSE) == 0
        assert broken() == ["nothing_stays_in_suspense"]

    def test_finds_what_came_there_otherwise(self) -> None:
        ledger.post(
            idempotency_key="stray",
            kind=EntryKind.BALANCE_TRANSACTION,
            subject_id="",
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.BANK, "usd"),
                credited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                amount=5,
            ),
        )
        assert broken(after=dt.timedelta()) == ["nothing_stays_in_suspense"]

    def test_forgets_what_was_undone(self) -> None:
        item = aside(777)
        ledger.reverse(entry=Entry.objects.get(pk=item), idempotency_key="undo", at=AT)
        assert broken() == []

    def test_has_an_item_open_again_whose_resolution_was_undone(self) -> None:
        item = aside(777)
        resolve(item, 777)
        made = Entry.objects.get(kind=EntryKind.SUSPENSE_RESOLVED)
        ledger.reverse(entry=made, idempotency_key="undo", at=AT)
        assert (left(item), broken()) == (777, ["nothing_stays_in_suspense"])

    @pytest.mark.parametrize(("amount", "toward"), [(777, AccountKind.PSP_FEES), (776, None)])
    def test_finds_what_went_elsewhere_than_was_decided(
        self, amount: int, toward: AccountKind | None
    ) -> None:
        item = aside(777)
        asked = ask(item, 777)
        Approval.objects.filter(pk=asked.pk).update(
            status=ApprovalStatus.APPROVED, decided_by="ben", decided_at=AT
        )
        ledger.post(
            idempotency_key=f"suspense_resolved:{asked.pk}",
            kind=EntryKind.SUSPENSE_RESOLVED,
            subject_id=item,
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                credited=ledger.AccountRef(toward or AccountKind.ROUNDING_FX, "usd"),
                amount=amount,
            ),
        )
        assert "two_people_gave_it_up" in broken()

    def test_finds_what_nobody_decided(self) -> None:
        item = aside(777)
        asked = ask(item, 777)
        ledger.post(
            idempotency_key=f"suspense_resolved:{asked.pk}",
            kind=EntryKind.SUSPENSE_RESOLVED,
            subject_id=item,
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                credited=ledger.AccountRef(AccountKind.ROUNDING_FX, "usd"),
                amount=777,
            ),
        )
        assert broken() == ["two_people_gave_it_up"]

    def test_finds_more_taken_out_than_was_put_aside(self) -> None:
        item = aside(777)
        resolve(item, 777)
        again = Approval.objects.create(
            kind=ApprovalKind.SUSPENSE_MARKET,
            subject_id=item,
            amount_minor=5,
            currency="usd",
            reason="once more",
            requested_by="anna",
            requested_at=AT,
            status=ApprovalStatus.APPROVED,
            decided_by="ben",
            decided_at=AT,
        )
        ledger.post(
            idempotency_key=f"suspense_resolved:{again.pk}",
            kind=EntryKind.SUSPENSE_RESOLVED,
            subject_id=item,
            effective_at=AT,
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.SUSPENSE, "usd"),
                credited=ledger.AccountRef(AccountKind.ROUNDING_FX, "usd"),
                amount=5,
            ),
        )
        assert "two_people_gave_it_up" in broken(after=-DAY)


class TestInTheAdmin:
    @pytest.fixture(autouse=True)
    def plain_static_files(self, settings: Any) -> None:
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }

    def listed(self, admin_client: Any) -> str:
        return str(
            admin_client.get(reverse("admin:billing_suspenseitem_changelist")).content.decode()
        )

    def test_what_is_open_is_listed_and_asked_for(self, admin_client: Any) -> None:
        item = aside(777)
        address = reverse("admin:billing_suspense_resolve", args=[item])
        page = self.listed(admin_client)
        assert all(part in page for part in (item, "7.77 USD", "other_adjustment", address))
        assert "7.77 USD came" in admin_client.get(address).content.decode()
        form = {"kind": "suspense_fees", "amount_minor": "777", "reason": "a rebate"}
        answer = admin_client.post(address, form)
        asked = Approval.objects.get()
        assert answer.headers["Location"] == reverse(
            "admin:billing_approval_change", args=[asked.pk]
        )
        page = self.listed(admin_client)
        assert "Being decided" in page
        assert answer.headers["Location"] in page
        approvals.approve(approval_id=asked.pk, at=timezone.now(), actor="ben")
        assert item not in self.listed(admin_client)

    def test_what_cannot_be_says_why(self, admin_client: Any) -> None:
        address = reverse("admin:billing_suspense_resolve", args=[aside(-777)])
        form = {
            "kind": "suspense_wallet",
            "organization": factories.tenant().pk,
            "amount_minor": "777",
            "reason": "a guess",
        }
        assert "No wallet pays" in admin_client.post(address, form).content.decode()
        form = {"kind": "suspense_bank", "amount_minor": "778", "reason": "a guess"}
        assert "7.77 USD of it are left" in admin_client.post(address, form).content.decode()
        assert not Approval.objects.exists()

    def test_is_for_those_who_may_ask(self, client: Any, django_user_model: Any) -> None:
        client.force_login(
            django_user_model.objects.create_user("eve", "eve@example.test", "x", is_staff=True)
        )
        address = reverse("admin:billing_suspense_resolve", args=[aside(777)])
        assert client.get(address).status_code == 403
        assert client.get(reverse("admin:billing_suspenseitem_changelist")).status_code == 403

    def test_what_does_not_exist_is_not_found(self, admin_client: Any) -> None:
        address = reverse("admin:billing_suspense_resolve", args=["ent_nobody"])
        assert admin_client.get(address).status_code == 404
