"""Prepaid money on its way back to a tenant: as far as it goes, to the cards and accounts that it came from.

The newest payment is returned first, and none by more than is left of it. What cannot go that way, because it
came by another or the way is closed, goes to a bank account that two operators know; and so does a large sum
take two. What was withdrawn has left the wallet; what the provider cannot return is in it again. A promotion
is in no wallet, so nobody withdraws one.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet, Sum

from billing import (
    accounts,
    card_refunds,
    chargeable,
    credit,
    ledger,
    parking,
    receivables,
    top_up_disputes,
    wallet,
    withdrawal_notices,
)
from billing.models import Approval, Payment, Withdrawal, WithdrawalPart
from billing.provider_states import CardRefundStatus, PaymentPurpose, PaymentStatus
from billing.states import AccountKind, EntryKind
from marketplace import audit
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.money import Money
from marketplace.models import Organization

WINDOW = dt.timedelta(days=1)  # in which withdrawals that nobody looked at add up
PARTS_MAX = 50  # each is a call to the provider; a larger sum comes in parts
REASON = "withdrawal"


class WithdrawalRefused(InvalidValue):
    """The wallet does not hold so much that is not owed."""

    code = "withdrawal_refused"
    title = "This cannot be withdrawn"


@transaction.atomic
def request(
    *, organization: Organization, amount: Money, at: dt.datetime, actor: str
) -> Withdrawal:
    """Withdraw from the wallet: at once where it goes back the way it came and is small, else by operators.

    :raises WithdrawalRefused: when the wallet does not hold it, or what it holds is owed on invoices.
    :raises StateConflict: while another withdrawal waits for operators.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    parking.require_moving(organizations=[organization])
    receivables.lock(organization)
    top_up_disputes.square(organization=organization, at=at)
    if amount.currency != settings.CURRENCY or amount.amount_minor <= 0:
        raise WithdrawalRefused(
            f"A withdrawal is 1 or more, in {settings.CURRENCY.upper()}.", pointer="/amount"
        )
    held = wallet.locked_balance(organization=organization).amount_minor
    free = held - credit.owed_minor(organization=organization, currency=amount.currency)
    if amount.amount_minor > free:
        raise WithdrawalRefused(
            f"{Money(max(free, 0), amount.currency)} can be withdrawn: what the wallet holds, less what is "
            "owed on invoices.",
            pointer="/amount/amount_minor",
        )
    if Withdrawal.objects.visible_to(organization).waiting().exists():
        raise StateConflict("another withdrawal waits for the market's operators")
    row = Withdrawal.objects.create(
        organization=organization,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        requested_by=actor,
        requested_at=at,
    )
    audit.record(
        at=at,
        actor=actor,
        action="wallet.withdrawal_requested",
        object_id=row.pk,
        organization=organization,
        detail={"amount_minor": row.amount_minor, "currency": row.currency},
    )
    withdrawal_notices.tell_requested(row, at=at)
    if _goes_alone(row, at=at):
        _carry_out(row, approval=None, at=at)
    return row


@transaction.atomic
def carry_out(*, approval: Approval, at: dt.datetime) -> Withdrawal:
    """Carry out what two operators decided; what does not go back the way it came goes to a bank account.

    The transfer itself is the operators': this takes its amount out of the wallet.

    :raises InvalidValue: when no such withdrawal waits.
    :raises ledger.InsufficientFunds: when the wallet has spent it meanwhile.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    organization = approval.organization
    assert organization is not None, approval.pk
    parking.require_moving(organizations=[organization])
    receivables.lock(organization)
    top_up_disputes.square(organization=organization, at=at)
    row = (
        Withdrawal.objects.visible_to(organization)
        .waiting()
        .filter(
            pk=approval.subject_id,
            amount_minor=approval.amount_minor,
            currency=approval.currency,
        )
        .first()
    )
    if row is None:
        raise InvalidValue(
            f"No withdrawal {approval.subject_id} of this amount waits.", pointer="/subject_id"
        )
    _carry_out(row, approval=approval, at=at)
    return row


def refuse(*, approval: Approval, at: dt.datetime) -> None:
    """Tell a tenant that operators refused its withdrawal; the money never left its wallet."""
    assert approval.organization is not None, approval.pk
    refused = Withdrawal.objects.visible_to(approval.organization).filter(pk=approval.subject_id)
    for row in refused.select_related("organization"):
        withdrawal_notices.tell_refused(row, at=at)


def _goes_alone(row: Withdrawal, *, at: dt.datetime) -> bool:
    """Say whether all of it goes back the way it came, and little went so lately."""
    lately = (
        Withdrawal.objects.visible_to(row.organization)
        .filter(approval__isnull=True, carried_out_at__gt=at - WINDOW, currency=row.currency)
        .aggregate(sum=Sum("amount_minor"))["sum"]
        or 0
    )
    room = sum(_returnable_minor(each) for each in _returnable(row))
    return (
        row.amount_minor <= room
        and row.amount_minor % chargeable.step(row.currency) == 0
        and lately + row.amount_minor <= settings.WITHDRAWAL_ALONE_MINOR_MAX
    )


def _returnable(row: Withdrawal) -> QuerySet[Payment]:
    """Return the top-ups of which something can go back, the newest first.

    One that a bank calls into question, or whose way back was closed before, is none.
    """
    return (
        Payment.objects.visible_to(row.organization)
        .filter(
            purpose=PaymentPurpose.TOP_UP,
            status=PaymentStatus.SUCCEEDED,
            currency=row.currency,
            received_minor__gt=F("refunded_minor"),
            top_up_disputes__isnull=True,
        )
        .exclude(refunds__status=CardRefundStatus.FAILED)
        .select_related("organization")
        .order_by("-pk")[:PARTS_MAX]
    )


def _returnable_minor(payment: Payment) -> int:
    """Return what of a top-up can go back, in the steps in which the provider returns money."""
    left = payment.received_minor - payment.refunded_minor
    return chargeable.rounded_down(amount_minor=left, currency=payment.currency)


def _carry_out(row: Withdrawal, *, approval: Approval | None, at: dt.datetime) -> None:
    left = row.amount_minor
    for payment in _returnable(row):
        fits = chargeable.rounded_down(amount_minor=left, currency=row.currency)
        part = min(fits, _returnable_minor(payment))
        if not part:
            continue
        refund = card_refunds.write(payment=payment, amount_minor=part, reason=REASON, at=at)
        WithdrawalPart.objects.create(withdrawal=row, refund=refund)
        left -= part
    assert not left or approval is not None, row.pk
    if left:
        row.entry = ledger.post(
            idempotency_key=f"withdrawal:{row.pk}",
            kind=EntryKind.WITHDRAWAL,
            subject_id=row.pk,
            effective_at=at,
            legs=ledger.transfer(
                debited=accounts.wallet(organization=row.organization, currency=row.currency),
                credited=accounts.shared(kind=AccountKind.BANK, currency=row.currency),
                amount=left,
            ),
        )
    row.approval, row.bank_minor, row.carried_out_at = approval, left, at
    row.save(update_fields=["approval", "entry", "bank_minor", "carried_out_at"])
    withdrawal_notices.tell_sent(row, at=at)
