"""Every verb that moves the money of a tenant or an owner, with what it needs to do so."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from django.db import transaction

from billing import (
    changes,
    corrections,
    earnings,
    fee_shares,
    parking,
    payouts,
    promotions,
    purchases,
    receivables,
    refunds,
    releases,
    settlements,
    wallet_holds,
)
from billing.models import Entry, Payout, Promotion, PurchaseRequest, Refund, WalletHold
from billing.states import PurchaseKind
from marketplace.core.money import Money
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import ChangeKind, LeaseStatus, PaymentMethod, ReservationStatus
from tests.billing import factories

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
    assert releases.release_due(at=RELEASED_AT)
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
            return factories.owner(), lambda: releases.release_due(at=RELEASED_AT)
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
