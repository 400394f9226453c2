"""Each invariant of gifts, withdrawals, disputed top-ups and bad debts finds its own breach."""

import datetime as dt
from typing import Any

import pytest
from django.db.models import F

from billing import (
    approvals,
    books,
    card_refunds,
    ledger,
    parking,
    promotions,
    purchases,
    receivables,
    wallet,
    withdrawals,
)
from billing.invariants.wallets import UNPARKED_PATIENCE_SECONDS
from billing.ledger import AccountRef
from billing.models import (
    CardRefund,
    Intent,
    Promotion,
    TaxLine,
    TopUpDispute,
    Withdrawal,
)
from billing.states import AccountKind, ApprovalKind, EntryKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Reservation
from tests.billing import debtors, factories
from tests.billing.test_top_up_disputes import say
from tests.billing.test_withdrawals import topped_up

pytestmark = pytest.mark.django_db

AT = factories.START
PROMOTIONS = "promotions_equal_their_entries"
RETURNED = "promotions_return_at_most_what_was_spent"
WITHDRAWALS = "withdrawals_are_in_one_place"
REFUNDS = "refunds_to_cards_are_in_one_place"
DISPUTES = "disputes_withhold_what_is_open"
DEBTS = "recovered_is_at_most_what_was_written_off"


def broken(*, at: dt.datetime = AT) -> tuple[set[str], set[str]]:
    """Return the names of the invariants that do not hold, and whose money would be parked."""
    report = books.check(at=at)
    names = {check.name for check in report.checks if not check.ok}
    return names, set(books.breaches_of(report))


def finds(name: str, organization: Organization | None = None, *, at: dt.datetime = AT) -> None:
    names, parked = broken(at=at)
    assert name in names
    assert parked >= {organization.pk} if organization is not None else not parked


def sound(*, at: dt.datetime = AT) -> None:
    assert broken(at=at) == (set(), set())


def move(
    kind: EntryKind, debited: AccountRef, credited: AccountRef, amount: int, *, subject_id: str
) -> None:
    """Post what no verb would: balanced, and wrong."""
    ledger.post(
        idempotency_key=f"wrong:{kind}:{subject_id}:{amount}",
        kind=kind,
        subject_id=subject_id,
        effective_at=AT,
        legs=ledger.transfer(debited=debited, credited=credited, amount=amount),
    )


def shared(kind: AccountKind) -> AccountRef:
    return AccountRef(kind, "usd")


def purse(organization: Organization) -> AccountRef:
    return wallet.account(organization=organization, currency="usd")


class TestPromotions:
    @pytest.fixture
    def row(self) -> Reservation:
        """Return a reservation of 471, of which a promotion of 500 paid 300 and got 100 back."""
        tenant = factories.tenant(funds_minor=271)
        row = factories.reservation(buyer=tenant, paid=False)
        self.gift = factories.promotion(buyer=tenant, minor=500)
        promotions.spend(reservation=row, amount_minor=300, key=row.pk, at=AT)
        purchases.post(reservation=row, at=AT)
        move(
            EntryKind.PROMOTION_RETURNED,
            purse(tenant),
            promotions.account(self.gift),
            100,
            subject_id=row.pk,
        )
        sound()
        return row

    def test_were_granted_as_they_say(self, row, unguarded):
        with unguarded():
            Promotion.objects.update(amount_minor=501)
        finds(PROMOTIONS, row.organization)

    def test_have_left_what_nobody_used(self, row):
        tenant = row.organization
        mine = promotions.account(self.gift)
        move(EntryKind.GOODWILL, mine, purse(tenant), 10, subject_id=row.pk)
        finds(PROMOTIONS, tenant)

    @pytest.mark.parametrize("ended", [True, False])
    def test_end_once_and_with_nothing_left(self, row, unguarded, ended):
        if ended:
            with unguarded():
                Promotion.objects.update(expired_at=AT)
        else:
            mine = promotions.account(self.gift)
            ours = shared(AccountKind.BREAKAGE)
            move(EntryKind.PROMOTION_EXPIRY, mine, ours, 1, subject_id=self.gift.pk)
        finds(PROMOTIONS, row.organization)

    def test_are_granted_by_somebody(self, row):
        tenant = row.organization
        nobodys = AccountRef(AccountKind.PROMO, "usd", "prm_x", tenant)
        cost = shared(AccountKind.PROMO_COST)
        move(EntryKind.PROMOTION, cost, nobodys, 5, subject_id="prm_x")
        finds(PROMOTIONS, tenant)

    def test_get_back_from_a_reservation_what_it_took_of_them_at_most(self, row):
        tenant = row.organization
        factories.fund(tenant, minor=1_000)
        other = factories.reservation(buyer=tenant)
        mine = promotions.account(self.gift)
        move(EntryKind.PROMOTION_RETURNED, purse(tenant), mine, 1, subject_id=other.pk)
        names, parked = broken()
        assert (names, parked) == ({RETURNED}, {tenant.pk})

    def test_are_spent_by_their_tenant_alone(self, row):
        stranger = factories.tenant(name="Somebody else")
        mine = promotions.account(self.gift)
        move(EntryKind.PROMOTION_SPENT, mine, purse(stranger), 1, subject_id=row.pk)
        names, parked = broken()
        assert (names, parked) == ({RETURNED}, {row.organization_id})


class TestWithdrawals:
    @pytest.fixture
    def row(self) -> Withdrawal:
        """Return a withdrawal of 1500, of which 1000 go to a card and 500 went to a bank account."""
        topped_up(1_000)
        tenant = factories.tenant(funds_minor=700)
        row = self.ask(1_500)
        asked = approvals.request(
            kind=ApprovalKind.WITHDRAWAL,
            organization=tenant,
            subject_id=row.pk,
            amount=Money(1_500, "usd"),
            reason="the customer leaves",
            at=AT,
            actor="anna",
        )
        sound()
        approvals.approve(approval_id=asked.pk, at=AT, actor="bert")
        sound()
        row.refresh_from_db()
        return row

    def ask(self, minor: int) -> Withdrawal:
        return withdrawals.request(
            organization=factories.tenant(), amount=Money(minor, "usd"), at=AT, actor="key_cfo"
        )

    @pytest.mark.parametrize(
        "changed",
        [
            {"amount_minor": 1_501},
            {"bank_minor": 499},
            {"carried_out_at": None},
            {"bank_minor": 0, "entry": None, "approval": None},
        ],
    )
    def test_went_as_they_say(self, row, unguarded, changed):
        with unguarded():
            Withdrawal.objects.filter(pk=row.pk).update(**changed)
        finds(WITHDRAWALS, row.organization)

    def test_go_once(self, row):
        move(
            EntryKind.WITHDRAWAL,
            purse(row.organization),
            shared(AccountKind.BANK),
            200,
            subject_id=row.pk,
        )
        finds(WITHDRAWALS, row.organization)

    def test_are_of_their_tenants_payments(self, row, unguarded):
        stranger = factories.tenant(name="Somebody else")
        other = topped_up(1_000, by=stranger)
        with unguarded():
            CardRefund.objects.update(payment=other)
        finds(WITHDRAWALS, row.organization)

    def test_that_wait_took_nothing(self):
        factories.fund(factories.tenant(), minor=100)
        row = self.ask(100)
        sound()
        bank = shared(AccountKind.BANK)
        move(EntryKind.WITHDRAWAL, purse(row.organization), bank, 100, subject_id=row.pk)
        finds(WITHDRAWALS, row.organization)


class TestRefundsToCards:
    @pytest.fixture
    def refund(self) -> CardRefund:
        payment = topped_up(1_000)
        made = card_refunds.write(payment=payment, amount_minor=400, reason="asked", at=AT)
        sound()
        return made

    def test_are_on_their_way_while_they_are_asked_for(self, refund, unguarded):
        with unguarded():
            Intent.objects.all().delete()
        finds(REFUNDS, refund.payment.organization)

    def test_left_once(self, refund):
        tenant = refund.payment.organization
        out = AccountRef(AccountKind.REFUND_PAYABLE, "usd", refund.pk, tenant)
        move(EntryKind.GOODWILL, purse(tenant), out, 1, subject_id="x")
        finds(REFUNDS, tenant)


class TestDisputes:
    def disputed(self, *states: str) -> TopUpDispute:
        payment = topped_up(5_000)
        for state in ("needs_response", *states):
            dispute = say(payment, state)
        sound()
        return dispute

    def mine(self, kind: AccountKind) -> AccountRef:
        return AccountRef(kind, "usd", "dp_1", factories.tenant())

    def wrongs(self, debited: AccountRef, credited: AccountRef) -> Any:
        move(EntryKind.GOODWILL, debited, credited, 1, subject_id="x")
        finds(DISPUTES, factories.tenant())

    @pytest.mark.parametrize("states", [(), ("won",), ("lost",)])
    def test_withhold_no_more_than_is_open(self, states):
        self.disputed(*states)
        self.wrongs(shared(AccountKind.SLA_CREDITS), self.mine(AccountKind.DISPUTE_WITHHELD))

    @pytest.mark.parametrize("states", [(), ("won",)])
    def test_are_owed_only_when_they_are_lost(self, states):
        self.disputed(*states)
        self.wrongs(self.mine(AccountKind.RECEIVABLE), shared(AccountKind.BANK))

    def test_are_owed_as_far_as_they_go(self):
        self.disputed("lost")
        owed = self.mine(AccountKind.RECEIVABLE)
        move(EntryKind.GOODWILL, owed, shared(AccountKind.BANK), 5_001, subject_id="x")
        finds(DISPUTES, factories.tenant())

    def test_exist_where_something_is_withheld(self):
        nobodys = AccountRef(AccountKind.DISPUTE_WITHHELD, "usd", "dp_x", factories.tenant())
        self.wrongs(shared(AccountKind.SLA_CREDITS), nobodys)

    def test_that_were_won_give_back_only_what_is_not_parked(self):
        payment = topped_up(5_000)
        say(payment)
        tenant = factories.tenant()
        parking.park(breaches={tenant.pk: "why"}, at=AT)
        say(payment, "won")
        sound()
        parking.end(organization=tenant, at=AT, actor="test")
        sound(at=AT + dt.timedelta(seconds=UNPARKED_PATIENCE_SECONDS - 1))
        finds(DISPUTES, tenant, at=AT + dt.timedelta(seconds=UNPARKED_PATIENCE_SECONDS + 1))


class TestBadDebts:
    @pytest.fixture
    def invoice_id(self) -> str:
        """Return an invoice of which 100 were written off and 40 recovered."""
        tenant = debtors.grant(factories.tenant())
        row = factories.reservation(buyer=tenant, paid=False)
        invoice_id = factories.bought_on_account(row)
        receivables.write_off(
            organization=tenant,
            invoice_id=invoice_id,
            amount_minor=100,
            currency="usd",
            decision_id="apv_1",
            at=AT,
        )
        factories.fund(tenant, minor=200)
        self.recover(invoice_id, 40)
        sound()
        return invoice_id

    def recover(self, invoice_id: str, minor: int) -> None:
        tenant = factories.tenant()
        lost = shared(AccountKind.BAD_DEBT)
        move(EntryKind.RECOVERY, purse(tenant), lost, minor, subject_id=invoice_id)

    def test_come_back_at_most_once(self, invoice_id):
        self.recover(invoice_id, 61)
        names, parked = broken()
        assert (names, parked) == ({DEBTS}, {factories.tenant().pk})

    def test_are_what_was_given_up(self, invoice_id):
        bank, lost = shared(AccountKind.BANK), shared(AccountKind.BAD_DEBT)
        move(EntryKind.GOODWILL, lost, bank, 1, subject_id="x")
        finds(DEBTS)

    def test_leave_out_what_tax_offices_gave_up(self, invoice_id, unguarded, settings):
        settings.TAX_RELIEF_ON_BAD_DEBT = True
        tenant = factories.taxed(buyer=debtors.grant(factories.tenant(name="Taxed")))
        row = factories.reservation(buyer=tenant, paid=False)
        taxed = factories.bought_on_account(row)
        receivables.write_off(
            organization=tenant,
            invoice_id=taxed,
            amount_minor=560,
            currency="usd",
            decision_id="apv_2",
            at=AT,
        )
        sound()
        with unguarded():
            lines = TaxLine.objects.filter(is_relief=True)
            lines.update(tax_refunded_minor=F("tax_refunded_minor") - 1)
        assert DEBTS in broken()[0]
