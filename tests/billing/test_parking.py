"""While an organization's money is parked none of it moves, by any verb; what happened outside is told."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from billing import (
    card_refunds,
    changes,
    corrections,
    earnings,
    fee_shares,
    intents,
    ledger,
    parking,
    payments,
    payouts,
    promotions,
    provider,
    purchases,
    receivables,
    refunds,
    settlements,
    tasks,
    wallet_holds,
)
from billing.models import (
    Entry,
    Intent,
    Payment,
    Payout,
    Promotion,
    PurchaseRequest,
    Refund,
    Transfer,
    WalletHold,
)
from billing.payments import Wishes
from billing.provider_states import (
    CardRefundStatus,
    IntentKind,
    IntentStatus,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from billing.states import FACTS, AccountKind, EntryKind, PurchaseKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import ChangeKind, LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.billing.owner_market import OwnerWorld
from tests.billing.payments.market import Undelivering

pytestmark = pytest.mark.django_db

AT = factories.START + dt.timedelta(hours=6)
RELEASED_AT = AT + dt.timedelta(days=60)
Verb = Callable[[], Any]


def park(organization: Organization) -> None:
    parking.park(breaches={organization.pk: "looked into"}, at=AT)


def buyer() -> Organization:
    return factories.tenant(funds_minor=10_000)


def booked(*, method: PaymentMethod = PaymentMethod.WALLET, **changed: Any) -> Reservation:
    row = factories.reservation(buyer=buyer(), **changed)
    Reservation.objects.filter(pk=row.pk).update(payment_method=method)
    return Reservation.objects.get(pk=row.pk)


def unpaid() -> Reservation:
    return booked(paid=False, status=ReservationStatus.PAYMENT_PENDING)


def requested() -> PurchaseRequest:
    return PurchaseRequest.objects.create(
        organization=buyer(),
        kind=PurchaseKind.RESERVATION,
        quote_id="qte_1",
        amount_minor=471,
        currency="usd",
        requested_by="anna",
        requested_at=AT,
        expires_at=AT,
    )


def hold(request: PurchaseRequest) -> WalletHold | None:
    return wallet_holds.hold(request=request, price=Money(471, "usd"), at=AT)


def on_account() -> tuple[Reservation, str]:
    row = booked(method=PaymentMethod.INVOICE, paid=False, status=ReservationStatus.CANCELLED)
    return row, factories.bought_on_account(row)


def to_be_refunded() -> Reservation:
    """Return a reservation that was paid by card, failed, and owes its price."""
    row = booked(method=PaymentMethod.CARD, paid=False, status=ReservationStatus.FAILED)
    factories.paid_by_card(row, at=AT)
    settlements.refund_rest(reservation_id=row.pk, at=AT)
    return row


def refund_due() -> Refund:
    (refund,) = refunds.open_for(reservation_id=to_be_refunded().pk, at=AT)
    return refund


def ended() -> Lease:
    return factories.lease(of=booked())


def settled_lease() -> Lease:
    lease = ended()
    assert settlements.settle(lease_id=lease.pk, at=AT)
    return lease


def running() -> Lease:
    lease = factories.lease(of=booked(hours=2), status=LeaseStatus.ACTIVE)
    factories.meter_fully(of=lease)
    return lease


def granted() -> Reservation:
    row = unpaid()
    factories.promotion(buyer=row.organization, minor=300, days=2, at=AT - dt.timedelta(days=1))
    return row


def returned_early() -> Reservation:
    row = booked()
    changes.post(
        change=factories.change(of=row, kind=ChangeKind.CANCELLATION, fee=471, released=7200)
    )
    return row


def payout_due() -> Payout:
    settled_lease()
    assert payouts.release_due(at=RELEASED_AT)
    return Payout.objects.get()


def of_tenant(name: str) -> tuple[Organization, Verb]:
    """Make what a verb needs; return whose money it is, with the verb."""
    match name:
        case "purchase":
            row = unpaid()
            return row.organization, lambda: purchases.post(reservation=row, at=AT)
        case "hold":
            asked = requested()
            return asked.organization, lambda: hold(asked)
        case "void a hold":
            held = hold(requested())
            assert held is not None
            return held.purchase_request.organization, lambda: wallet_holds.void(held, at=AT)
        case "void the holds that are due":
            asked = requested()
            assert hold(asked)
            return asked.organization, lambda: wallet_holds.void_due(at=AT)
        case "capture a hold":
            row, asked = unpaid(), requested()
            taken = hold(asked)
            return row.organization, lambda: purchases.post(reservation=row, at=AT, held=taken)
        case "change":
            row = booked()
            change = factories.change(of=row, kind=ChangeKind.EXTENSION, charged=471, added=7200)
            return row.organization, lambda: changes.post(change=change)
        case "goodwill":
            tenant, gift = buyer(), Money(5, "usd")
            return tenant, lambda: refunds.give(
                organization=tenant, subject_id=tenant.pk, amount=gift, key="k", at=AT
            )
        case "send a refund":
            refund = refund_due()
            return refund.reservation.organization, lambda: refunds.send(
                refund_id=refund.pk, at=AT, actor="test"
            )
        case "set off":
            row, _ = on_account()
            settlements.refund_rest(reservation_id=row.pk, at=AT)
            return row.organization, lambda: receivables.offset(reservation=row, at=AT)
        case "write off":
            row, invoice_id = on_account()
            return row.organization, lambda: receivables.write_off(
                organization=row.organization,
                invoice_id=invoice_id,
                amount_minor=1,
                currency="usd",
                decision_id="apv_1",
                at=AT,
            )
        case "pay an invoice from the wallet":
            row, invoice_id = on_account()
            return row.organization, lambda: receivables.pay_from_wallet(
                organization=row.organization,
                invoice_id=invoice_id,
                payment_id="pay_1",
                amount=Money(471, "usd"),
                at=AT,
            )
        case "grant a promotion":
            tenant = buyer()
            return tenant, lambda: factories.promotion(buyer=tenant, minor=5, at=AT)
        case "spend a promotion":
            row = granted()
            return row.organization, lambda: promotions.spend(
                reservation=row, amount_minor=300, key=row.pk, at=AT
            )
        case "expire a promotion":
            row = granted()
            given = Promotion.objects.get(organization=row.organization)
            return row.organization, lambda: promotions.expire(
                promotion_id=given.pk, at=given.expires_at
            )
        case "refund what is left":
            row = booked(status=ReservationStatus.FAILED)
            return row.organization, lambda: settlements.refund_rest(reservation_id=row.pk, at=AT)
        case "settle":
            lease = ended()
            return lease.reservation.organization, lambda: settlements.settle(
                lease_id=lease.pk, at=AT
            )
        case "close an hour":
            lease = running()
            return lease.reservation.organization, lambda: earnings.close_due(at=AT)
        case "correct":
            lease = settled_lease()
            factories.outage(of=lease, seconds=600)
            review_at = lease.settlement.review_due_at
            assert review_at is not None
            return lease.reservation.organization, lambda: corrections.review(
                settlement_id=lease.settlement.pk, at=review_at
            )
        case _:
            raise AssertionError(name)


def of_owner(name: str) -> tuple[Organization, Verb]:
    """Make what a verb needs; return whose money it is, with the verb."""
    match name:
        case "settle":
            lease = ended()
            return lease.node.organization, lambda: settlements.settle(lease_id=lease.pk, at=AT)
        case "close an hour":
            lease = running()
            return lease.node.organization, lambda: earnings.close_due(at=AT)
        case "release":
            settled_lease()
            return factories.owner(), lambda: payouts.release_due(at=RELEASED_AT)
        case "release a fee's share":
            returned_early()
            return factories.owner(), lambda: fee_shares.release_due(at=RELEASED_AT)
        case "pay out":
            payout = payout_due()
            return factories.owner(), lambda: payouts.send(
                payout_id=payout.pk, at=RELEASED_AT, actor="test"
            )
        case _:
            raise AssertionError(name)


TENANTS = (
    "purchase",
    "hold",
    "void a hold",
    "void the holds that are due",
    "capture a hold",
    "change",
    "goodwill",
    "send a refund",
    "set off",
    "write off",
    "pay an invoice from the wallet",
    "grant a promotion",
    "spend a promotion",
    "expire a promotion",
    "refund what is left",
    "settle",
    "close an hour",
    "correct",
)
OWNERS = ("settle", "close an hour", "release", "release a fee's share", "pay out")


def moves(verb: Verb) -> bool:
    """Run a verb; say whether it wrote into the books."""
    before = Entry.objects.count()
    try:
        with transaction.atomic():
            verb()
    except parking.MoneyParked:
        assert Entry.objects.count() == before
    return Entry.objects.count() > before


class TestVerbs:
    @pytest.mark.parametrize("name", TENANTS)
    def test_move_no_money_of_a_parked_tenant(self, name):
        tenant, verb = of_tenant(name)
        park(tenant)
        assert not moves(verb)
        parking.end(organization=tenant, at=AT, actor="two people")
        assert moves(verb)

    @pytest.mark.parametrize("name", OWNERS)
    def test_move_no_money_of_a_parked_owner(self, name):
        owner, verb = of_owner(name)
        park(owner)
        assert not moves(verb)
        parking.end(organization=owner, at=AT, actor="two people")
        assert moves(verb)


class TestEntries:
    @pytest.mark.parametrize("kind", EntryKind)
    def test_of_parked_money_only_tell_what_has_happened(self, kind):
        tenant, other = buyer(), factories.tenant(name="another")
        park(tenant)

        def post(organization: Organization) -> bool:
            account = ledger.AccountRef(AccountKind.WALLET, "usd", organization.pk, organization)
            return moves(
                lambda: ledger.post(
                    idempotency_key=f"{kind}:{organization.pk}",
                    kind=kind,
                    subject_id=organization.pk,
                    effective_at=AT,
                    legs=ledger.transfer(
                        debited=ledger.AccountRef(AccountKind.BANK, "usd"),
                        credited=account,
                        amount=1,
                    ),
                )
            )

        assert post(tenant) == (kind in FACTS)
        assert post(other)


class TestCalls:
    @pytest.fixture
    def world(self, provider, clock):
        return Undelivering(provider, clock)

    def intent(self, world, kind: IntentKind) -> Intent:
        return intents.write(
            kind=kind, subject_id="x", organization=world.tenant, params={}, at=world.clock()
        )

    @pytest.mark.parametrize("kind", IntentKind)
    def test_that_move_money_are_not_made_first_while_it_is_parked(self, world, kind):
        intent = self.intent(world, kind)
        park(world.tenant)
        waits = kind in intents.MOVES_MONEY
        assert intents.due(at=world.clock()) == ([] if waits else [intent.pk])
        if waits:
            assert not intents.drive(
                intent_id=intent.pk, handlers=provider.HANDLERS, at=world.clock()
            )
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        assert intents.due(at=world.clock()) == [intent.pk]

    @pytest.mark.parametrize("kind", intents.MOVES_MONEY)
    def test_that_were_made_before_are_followed_to_their_end(self, world, kind):
        intent = self.intent(world, kind)
        Intent.objects.filter(pk=intent.pk).update(
            status=IntentStatus.SENT, attempts=1, sent_at=world.clock()
        )
        park(world.tenant)
        assert intents.due(at=world.clock()) == [intent.pk]

    def test_for_new_money_are_refused(self, world):
        park(world.tenant)
        with pytest.raises(parking.MoneyParked):
            world.top_up()
        with pytest.raises(parking.MoneyParked):
            world.reserve()
        assert not Payment.objects.exists()

    def test_that_return_money_wait_and_then_go(self, world):
        payment = world.paid()
        park(world.tenant)
        refund = card_refunds.write(
            payment=payment, amount_minor=2000, reason="asked", at=world.clock()
        )
        world.turn()
        assert (world.balance(), world.stand_in.world.all("refund")) == (5000, [])
        world.sound()
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        world.turn()
        refund.refresh_from_db()
        assert (refund.status, world.balance()) == ("succeeded", 3000)
        assert [row["amount"] for row in world.stand_in.world.all("refund")] == [2000]
        world.sound()

    def test_that_return_what_was_spent_meanwhile_go_nowhere(self, world):
        payment = world.paid()
        park(world.tenant)
        refund = card_refunds.write(
            payment=payment, amount_minor=5000, reason="asked", at=world.clock()
        )
        parking.end(organization=world.tenant, at=world.clock(), actor="two people")
        tenant = world.tenant
        ledger.post(
            idempotency_key="spent",
            kind=EntryKind.PURCHASE,
            subject_id="x",
            effective_at=world.clock(),
            legs=ledger.transfer(
                debited=ledger.AccountRef(AccountKind.WALLET, "usd", tenant.pk, tenant),
                credited=ledger.AccountRef(AccountKind.BANK, "usd"),
                amount=1,
            ),
        )
        world.turn()
        refund.refresh_from_db()
        payment.refresh_from_db()
        assert (refund.status, refund.failure_code) == (CardRefundStatus.FAILED, "spent")
        assert (world.balance(), payment.refunded_minor) == (4999, 0)
        assert world.told()[-1] == "refund.failed"
        world.sound()

    def test_for_an_invoice_bring_money_that_pays_it_afterwards(self, world):
        row = factories.reservation(buyer=world.tenant, paid=False)
        invoice_id = factories.bought_on_account(row)
        payment = payments.open_for_invoice(
            organization=world.tenant,
            invoice_id=invoice_id,
            amount=Money(471, "usd"),
            wishes=Wishes(means=PaymentMeans.CARD),
            at=world.clock(),
        )
        provider.drive_payment(payment_id=payment.pk, at=world.clock())
        payment.refresh_from_db()
        parking.park(breaches={world.tenant.pk: "looked into"}, at=world.clock())
        owed = receivables.account(organization=world.tenant, invoice_id=invoice_id, currency="usd")
        world.pays(payment)
        world.turn()
        assert (world.balance(), ledger.kept_balance(account=owed)) == (471, 471)
        parking.end(organization=world.tenant, at=world.clock(minutes=1), actor="two people")
        for _ in range(2):
            world.turn()
        assert (world.balance(), ledger.kept_balance(account=owed)) == (0, 0)

    @pytest.fixture
    def queued(self, world):
        """Return a refund that stands before one of another tenant in the queue."""
        reservation = to_be_refunded()
        Payment.objects.create(
            organization=reservation.organization,
            purpose=PaymentPurpose.RESERVATION,
            means=PaymentMeans.CARD,
            status=PaymentStatus.SUCCEEDED,
            reservation=reservation,
            amount_minor=471,
            received_minor=471,
            currency="usd",
            read_due_at=world.clock(),
            due_at=world.clock(),
            created_at=world.clock(),
        )
        (first,) = refunds.open_for(reservation_id=reservation.pk, at=world.clock())
        world.owing()
        assert first == Refund.objects.order_by("pk").first()
        return first

    def asked(self, world):
        tasks.drive_intents()
        return [row["amount"] for row in world.stand_in.world.all("refund")]

    def test_for_one_tenant_are_made_while_another_is_parked(self, world, queued):
        park(queued.reservation.organization)
        assert len(self.asked(world)) == 1
        queued.refresh_from_db()
        assert queued.status == "due"

    def test_for_one_tenant_are_made_while_another_ones_cannot(self, world, queued, unguarded):
        with unguarded():
            Refund.objects.filter(pk=queued.pk).update(amount_minor=472)  # more than there is
        assert len(self.asked(world)) == 1
        queued.refresh_from_db()
        assert queued.status == "due"

    def test_that_take_back_from_an_owner_wait(self, provider, clock):
        clock(days=60)
        world = OwnerWorld(provider, clock)
        payout = world.owing(150)
        park(payout.owner)
        world.ask(payout, 150)
        for is_parked in (True, False):
            world.turn()
            taken = Transfer.objects.get().reversed_minor
            assert taken == (0 if is_parked else 150)
            assert ledger.balance(account=world.owed(payout)) == 150 - taken
            parking.end(organization=payout.owner, at=clock(), actor="two people")
