"""What tenants are told of their withdrawals: asked for, refused, sent, in part given back, settled."""

import datetime as dt

from django.db.models import Sum

from billing.models import CardRefund, Withdrawal
from billing.provider_states import CardRefundStatus
from marketplace import events
from marketplace.states import EventKind

_ON_ITS_WAY = (CardRefundStatus.DUE, CardRefundStatus.PENDING)


def tell_requested(row: Withdrawal, *, at: dt.datetime) -> None:
    """Tell that it was asked for; where operators decide, its money is in the wallet until then."""
    _tell(row, kind=EventKind.WITHDRAWAL_REQUESTED, at=at)


def tell_refused(row: Withdrawal, *, at: dt.datetime) -> None:
    """Tell, once, that operators refused it: its money stays in the wallet."""
    _tell(row, kind=EventKind.WITHDRAWAL_REFUSED, at=at)


def tell_sent(row: Withdrawal, *, at: dt.datetime) -> None:
    """Tell that all of it left the wallet, and by which ways; it is settled if it went by bank alone.

    A transfer by bank is the operators': the market hears of it no more.
    """
    _tell(
        row,
        kind=EventKind.WITHDRAWAL_SENT,
        at=at,
        to_cards_minor=row.amount_minor - row.bank_minor,
        by_bank_minor=row.bank_minor,
    )
    _tell_if_settled(row, at=at)


def tell_ended(refund: CardRefund, *, at: dt.datetime) -> None:
    """Tell what became of a refund that succeeded or failed, where it is a part of a withdrawal."""
    row = Withdrawal.objects.select_related("organization").filter(parts__refund=refund).first()
    if row is None:
        return
    if refund.status == CardRefundStatus.FAILED:
        _tell(
            row,
            kind=EventKind.WITHDRAWAL_FAILED,
            at=at,
            occasion=refund.pk,
            refund_id=refund.pk,
            given_back_minor=refund.amount_minor,
            code=refund.failure_code or None,
        )
    _tell_if_settled(row, at=at)


def _tell_if_settled(row: Withdrawal, *, at: dt.datetime) -> None:
    """Tell, once, that nothing of it is on its way any more."""
    refunds = CardRefund.objects.filter(withdrawal__withdrawal=row)
    if refunds.filter(status__in=_ON_ITS_WAY).exists():
        return
    failed = refunds.filter(status=CardRefundStatus.FAILED)
    given_back = failed.aggregate(sum=Sum("amount_minor"))["sum"] or 0
    _tell(
        row,
        kind=EventKind.WITHDRAWAL_SETTLED,
        at=at,
        settled_minor=row.amount_minor - given_back,
        given_back_minor=given_back,
    )


def _tell(
    row: Withdrawal, *, kind: EventKind, at: dt.datetime, occasion: str = "", **more: object
) -> None:
    events.record(
        organization=row.organization,
        kind=kind,
        object_id=row.pk,
        data={"amount_minor": row.amount_minor, "currency": row.currency, **more},
        at=at,
        key=f"{row.pk}:{kind.value}:{occasion}" if occasion else f"{row.pk}:{kind.value}",
    )
