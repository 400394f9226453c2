"""Fill the books of an empty market by what a market does, and check them: run by a process of its own.

`python -m tests.billing.books_of_a_month fill|check`, with the database in `DATABASE_URL`. For tests of
migrations, which need tables with rows in them that no transaction of a test can hold.
"""

import datetime as dt
import sys

import django
from django.db import transaction


def fill() -> None:
    """Buy, deliver, refund, invoice, write off and pay out, so that most tables of billing have rows."""
    from billing import (
        disputes,
        invoices,
        payouts,
        receivables,
        refunds,
        releases,
        settlements,
    )
    from billing.models import CreditSale, Payout
    from scheduler.models import Reservation
    from scheduler.states import PaymentMethod, ReservationStatus
    from tests.billing import debtors, factories

    at = factories.START + dt.timedelta(hours=2)
    late = at + dt.timedelta(days=60)
    prepaid = factories.taxed(buyer=factories.tenant(name="Prepaid", funds_minor=5_000))
    for delivered in (3600, 1800, 0):
        row = factories.reservation(buyer=prepaid, status=ReservationStatus.COMPLETED)
        lease = factories.lease(of=row, returned_after_seconds=delivered)
        factories.meter(of=lease, seconds=max(delivered, 60), busy=60)
        settlements.settle(lease_id=lease.pk, at=late)
        settlements.refund_rest(reservation_id=row.pk, at=late)
    disputes.open_dispute(
        dispute_id="dp_1",
        reservation=row,
        amount_minor=100,
        fee_minor=15,
        currency="usd",
        at=at,
        actor="test",
    )
    disputes.lose(dispute_id="dp_1", at=at, actor="test")
    debtor = debtors.grant(factories.tenant(name="On account"))
    for number in range(3):
        row = factories.reservation(buyer=debtor, paid=False, status=ReservationStatus.COMPLETED)
        Reservation.objects.filter(pk=row.pk).update(payment_method=PaymentMethod.INVOICE)
        row.refresh_from_db()
        factories.bought_on_account(row)
        sale = CreditSale.objects.get(reservation=row)
        lease = factories.lease(of=row)
        settlements.settle(lease_id=lease.pk, at=late)
        if number == 0:
            debtors.pay_by_bank(sale, 471, at=at)
        elif number == 1:
            receivables.write_off(
                organization=debtor,
                invoice_id=sale.invoice_id,
                amount_minor=471,
                currency="usd",
                decision_id="apv_1",
                at=at,
            )
    refunds.open_due(at=late)
    released = late + dt.timedelta(days=14)
    releases.release_due(at=released)
    payout = Payout.objects.order_by("pk").first()
    assert payout is not None
    payouts.send(payout_id=payout.pk, at=released, actor="test")
    payouts.confirm(payout_id=payout.pk, at=released, actor="test")
    invoices.run_due(at=late)


def check() -> list[str]:
    """Return the breaches of the books."""
    from billing import books
    from tests.billing import factories

    report = books.check(at=factories.START + dt.timedelta(days=61))
    return [f"{each.name}: {each.detail}" for each in report.checks if not each.ok]


if __name__ == "__main__":
    django.setup()
    if sys.argv[1] == "fill":
        with transaction.atomic():
            fill()
    for breach in check():
        print(breach)  # noqa: T201 - what this process is run for
