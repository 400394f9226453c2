"""A promotion is spent before anything else, comes back as what it was, and never becomes money."""

import datetime as dt

import pytest
from django.db import IntegrityError, transaction

from billing import (
    approvals,
    books,
    checkout,
    ledger,
    parking,
    promotions,
    purchases,
    receivables,
    refunds,
    settlements,
    tasks,
    wallet,
)
from billing.ledger import InsufficientFunds
from billing.models import Approval, Promotion, Refund
from billing.states import AccountKind, ApprovalKind, ApprovalStatus
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.core.windows import format_instant
from marketplace.models import Event, Organization
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories as rows
from tests.scheduler import factories
from tests.scheduler.factories import NOW

pytestmark = pytest.mark.django_db

AT = rows.START
LATER = AT + dt.timedelta(days=2)


def left(promotion: Promotion) -> int:
    return ledger.kept_balance(account=promotions.account(promotion))


def held(tenant: Organization) -> int:
    return wallet.balance(organization=tenant).amount_minor


def total(kind: AccountKind) -> int:
    return ledger.balance(account=ledger.AccountRef(kind, "usd"))


def bought(
    tenant: Organization, *, status: ReservationStatus = ReservationStatus.ACTIVE
) -> Reservation:
    """Return a reservation of 471, promotions spent on it first."""
    row = rows.reservation(buyer=tenant, paid=False, status=status)
    price = purchases.price_with_tax(reservation=row)
    promotions.spend(reservation=row, amount_minor=price, key=row.pk, at=AT)
    purchases.post(reservation=row, at=AT)
    return row


def given_back(row: Reservation) -> None:
    """Refund what no lease of a reservation accounts for, and let it go where it belongs."""
    Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.FAILED)
    settlements.refund_rest(reservation_id=row.pk, at=LATER)
    refunds.open_due(at=LATER)


class TestAGrant:
    def ask(
        self, *, amount: int = 5_000, tenant: Organization | None = None, **changes
    ) -> Approval:
        values = {"expires_at": AT + dt.timedelta(days=30), "at": AT, "actor": "anna", **changes}
        return approvals.request(
            kind=ApprovalKind.PROMOTION,
            organization=tenant or rows.tenant(),
            subject_id="welcome",
            amount=Money(amount, "usd"),
            reason="a new customer",
            **values,
        )

    def test_up_to_the_limit_takes_one_person_and_above_it_two(self):
        assert self.ask(amount=10_000).status == ApprovalStatus.APPROVED
        assert left(Promotion.objects.get()) == 10_000
        waits = self.ask(amount=1)
        assert waits.status == ApprovalStatus.REQUESTED
        approvals.approve(approval_id=waits.pk, at=AT, actor="bert")
        assert Promotion.objects.count() == 2
        assert total(AccountKind.PROMO_COST) == 10_001
        assert books.check(at=AT).ok

    @pytest.mark.parametrize(
        "wrong",
        [
            {"expires_at": None},
            {"expires_at": AT},
            {"expires_at": AT + dt.timedelta(days=731)},
            {"amount": 0},
        ],
    )
    def test_is_refused_where_nobody_could_spend_it(self, wrong):
        with pytest.raises(InvalidValue):
            self.ask(**wrong)

    def test_is_for_who_buys(self):
        with pytest.raises(InvalidValue):
            self.ask(tenant=rows.owner())

    def test_alone_has_a_day_of_expiry(self):
        with pytest.raises(InvalidValue, match="expires"):
            approvals.request(
                kind=ApprovalKind.REFUND,
                organization=rows.tenant(),
                subject_id="rsv_1",
                amount=Money(1, "usd"),
                reason="a bad day",
                at=AT,
                actor="anna",
                expires_at=LATER,
            )

    def test_is_kept_by_the_database(self):
        made = rows.promotion(buyer=rows.tenant(), minor=5)
        for change in ({"amount_minor": 6}, {"expires_at": LATER}):
            with pytest.raises(IntegrityError), transaction.atomic():
                Promotion.objects.filter(pk=made.pk).update(**change)


class TestAPurchase:
    def order(self, tenant: Organization) -> Reservation:
        quote = factories.make_quote(tenant=tenant, gpus=2)
        return checkout.purchase(
            organization=tenant,
            quote_id=quote.pk,
            payment_method="wallet",
            details=ReservationDetails(),
            at=NOW,
            actor="test",
        )

    def test_from_the_wallet_spends_what_expires_first_then_the_tenants_own_money(self):
        factories.make_pool()
        tenant = factories.make_organization()
        late = rows.promotion(buyer=tenant, minor=5_000, days=60, at=NOW)
        soon = rows.promotion(buyer=tenant, minor=100, days=30, at=NOW)
        rows.fund(tenant, minor=1_000_000)
        row = self.order(tenant)
        price = purchases.price_with_tax(reservation=row)
        assert left(soon) == 0
        assert left(late) == max(5_000 - (price - 100), 0)
        assert held(tenant) == 1_000_000 - max(price - 5_100, 0)
        assert books.check(at=NOW).ok

    def test_needs_no_money_where_a_promotion_covers_it(self):
        factories.make_pool()
        tenant = factories.make_organization()
        rows.promotion(buyer=tenant, minor=1_000_000, at=NOW)
        assert self.order(tenant).status == ReservationStatus.SCHEDULED
        assert held(tenant) == 0

    def test_says_what_is_missing_beyond_the_promotion(self):
        factories.make_pool()
        tenant = factories.make_organization()
        made = rows.promotion(buyer=tenant, minor=100, at=NOW)
        quote = factories.make_quote(tenant=tenant, gpus=2)
        with pytest.raises(InsufficientFunds) as refusal:
            checkout.purchase(
                organization=tenant,
                quote_id=quote.pk,
                payment_method="wallet",
                details=ReservationDetails(),
                at=NOW,
                actor="test",
            )
        assert refusal.value.extra["missing"] == {
            "amount_minor": quote.total_minor - 100,
            "currency": "usd",
        }
        assert left(made) == 100

    def test_leaves_alone_what_has_expired(self):
        tenant = rows.tenant(funds_minor=471)
        made = rows.promotion(buyer=tenant, minor=100, days=1)  # until START
        bought(tenant)
        assert (left(made), held(tenant)) == (100, 0)


class TestARefund:
    def test_of_what_only_a_promotion_paid_is_a_promotion_again(self):
        tenant = rows.tenant()
        made = rows.promotion(buyer=tenant, minor=500)
        given_back(bought(tenant))
        assert left(made) == 500
        # What the tenant gets beyond the refund is the market's own credit, and money.
        assert held(tenant) == total(AccountKind.SLA_CREDITS) == 47
        assert books.check(at=LATER).ok

    def test_of_a_part_returns_the_tenants_own_money_first(self):
        tenant = rows.tenant(funds_minor=371)
        made = rows.promotion(buyer=tenant, minor=100)
        row = bought(tenant)
        lease = rows.lease(of=row, returned_after_seconds=1800)
        settlements.settle(lease_id=lease.pk, at=LATER)
        refunds.open_due(at=LATER)
        # Half of 471 is kept: the 100 of the promotion are in it.
        assert left(made) == 0
        assert held(tenant) == 235 + total(AccountKind.SLA_CREDITS)
        assert books.check(at=LATER).ok

    def test_that_no_charge_brought_returns_what_the_promotion_paid(self):
        """Bought by card, its added hours from the wallet: the rest of a refund comes back there."""
        tenant = rows.tenant(funds_minor=0)
        made = rows.promotion(buyer=tenant, minor=500)
        row = bought(tenant)
        Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.CARD)
        given_back(row)
        (refund,) = Refund.objects.filter(reservation=row)
        assert (refund.payment, refund.amount_minor, left(made)) == (None, 471, 29)
        refunds.send(refund_id=refund.pk, at=LATER, actor="test")
        refunds.fail(refund_id=refund.pk, at=LATER, actor="test")
        assert (left(made), held(tenant)) == (500, total(AccountKind.SLA_CREDITS))

    def test_returns_each_part_once(self):
        tenant = rows.tenant(funds_minor=371)
        made = rows.promotion(buyer=tenant, minor=100)
        row = bought(tenant)
        given_back(row)
        for _ in range(2):
            receivables.offset(reservation=row, at=LATER)
        assert left(made) == 100
        assert held(tenant) == 371 + total(AccountKind.SLA_CREDITS)

    def test_of_an_expired_promotion_is_ours(self):
        tenant = rows.tenant()
        made = rows.promotion(buyer=tenant, minor=500, days=2)
        row = bought(tenant)
        promotions.expire_due(at=LATER)
        assert total(AccountKind.BREAKAGE) == 29
        given_back(row)
        assert (left(made), total(AccountKind.BREAKAGE)) == (0, 500)
        assert held(tenant) == total(AccountKind.SLA_CREDITS)
        assert books.check(at=LATER).ok

    def test_returns_the_tax_that_it_paid_as_well(self):
        tenant = rows.taxed(buyer=rows.tenant())
        made = rows.promotion(buyer=tenant, minor=600)
        given_back(bought(tenant))
        assert left(made) == 600


class TestExpiry:
    def test_is_a_task_and_takes_what_is_left_once(self, time_machine):
        made = rows.promotion(buyer=rows.tenant(), minor=500, days=2)
        time_machine.move_to(AT + dt.timedelta(days=3), tick=False)
        for _ in range(2):
            tasks.expire_promotions()
        made.refresh_from_db()
        assert made.expired_at is not None
        assert (left(made), total(AccountKind.BREAKAGE)) == (0, 500)

    def test_does_not_come_early(self):
        rows.promotion(buyer=rows.tenant(), minor=500, days=2)
        assert promotions.expire_due(at=AT) == 0

    def test_ends_one_that_was_used_up(self):
        tenant = rows.tenant()
        made = rows.promotion(buyer=tenant, minor=471, days=2)
        bought(tenant)
        assert promotions.expire_due(at=LATER) == 1
        assert left(made) == total(AccountKind.BREAKAGE) == 0
        assert not ledger.is_posted(idempotency_key=f"promo_expired:{made.pk}")


class TestEvents:
    def test_tell_of_a_grant_and_of_what_nobody_used_of_it(self):
        made = rows.promotion(buyer=rows.tenant(), minor=500, days=2, at=AT)
        (granted,) = Event.objects.filter(kind__startswith="promotion.")
        assert (granted.kind, granted.object_id) == ("promotion.granted", made.pk)
        assert granted.data == {
            "amount_minor": 500,
            "currency": "usd",
            "expires_at": format_instant(made.expires_at),
        }
        bought(rows.tenant())
        for _ in range(2):
            promotions.expire_due(at=made.expires_at)
        expired = Event.objects.get(kind="promotion.expired")
        assert (expired.data["amount_minor"], expired.data["left_minor"]) == (500, 29)

    def test_do_not_tell_of_an_end_while_the_money_is_parked(self):
        made = rows.promotion(buyer=rows.tenant(), minor=500, days=2, at=AT)
        parking.park(breaches={rows.tenant().pk: "why"}, at=AT)
        promotions.expire_due(at=made.expires_at)
        assert not Event.objects.filter(kind="promotion.expired").exists()
