"""Payouts to owners: due, on their way, and paid or failed. `billing.releases` makes them due."""

import datetime as dt

from django.db import transaction

from billing import accounts, ledger
from billing.models import Payout, PayoutTransition
from billing.states import PAYOUT_ARROWS, AccountKind, EntryKind, PayoutStatus
from marketplace.core.errors import StateConflict
from marketplace.models import Organization

ACTOR = "billing.release_earnings"


@transaction.atomic
def send(*, payout_id: str, at: dt.datetime, actor: str) -> Payout:
    """Take the arrow due → in_transit: from now on the money is on its way to the owner.

    :raises StateConflict: when the payout is not due.
    :raises parking.MoneyParked: while the owner's money is parked.
    """
    payout = _of(payout_id)
    attempt = payout.transitions.filter(to_status=PayoutStatus.IN_TRANSIT).count() + 1
    _move(payout, to=PayoutStatus.IN_TRANSIT, at=at, actor=actor)
    _transfer(
        payout,
        key=f"transfer:{payout.id}:{attempt}",
        kind=EntryKind.TRANSFER,
        debited=_payable(payout),
        credited=_in_transit(payout),
        at=at,
    )
    return payout


@transaction.atomic
def confirm(
    *,
    payout_id: str,
    at: dt.datetime,
    actor: str,
    paid_from: AccountKind = AccountKind.STRIPE_AVAILABLE,
) -> Payout:
    """Take the arrow in_transit → paid: the money has left the account it was paid from.

    :raises StateConflict: when the payout is not on its way.
    """
    payout = _of(payout_id)
    _move(payout, to=PayoutStatus.PAID, at=at, actor=actor)
    _transfer(
        payout,
        key=f"transfer_paid:{payout.id}",
        kind=EntryKind.TRANSFER_PAID,
        debited=_in_transit(payout),
        credited=accounts.shared(kind=paid_from, currency=payout.currency),
        at=at,
    )
    return payout


@transaction.atomic
def fail(*, payout_id: str, at: dt.datetime, actor: str) -> Payout:
    """Take the arrow in_transit → failed: the money is the owner's still, and payable again.

    :raises StateConflict: when the payout is not on its way.
    """
    payout = _of(payout_id)
    _move(payout, to=PayoutStatus.FAILED, at=at, actor=actor)
    attempt = payout.transitions.filter(to_status=PayoutStatus.FAILED).count()
    _transfer(
        payout,
        key=f"transfer_failed:{payout.id}:{attempt}",
        kind=EntryKind.TRANSFER_FAILED,
        debited=_in_transit(payout),
        credited=_payable(payout),
        at=at,
    )
    return payout


@transaction.atomic
def retry(*, payout_id: str, at: dt.datetime, actor: str) -> Payout:
    """Take the arrow failed → due: it is to be sent once more.

    :raises StateConflict: when the payout has not failed.
    """
    payout = _of(payout_id)
    _move(payout, to=PayoutStatus.DUE, at=at, actor=actor)
    return payout


def record_reversal(
    *, owner: Organization, reversal_id: str, amount_minor: int, currency: str, at: dt.datetime
) -> None:
    """Record money that came back of what an owner had been sent: it owes that much less."""
    ledger.post(
        idempotency_key=f"trrev:{reversal_id}",
        kind=EntryKind.TRANSFER_REVERSAL,
        subject_id=owner.id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.STRIPE_AVAILABLE, currency=currency),
            credited=accounts.of_owner(
                kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency=currency
            ),
            amount=amount_minor,
        ),
    )


def make(
    payout: Payout, *, owner: Organization, currency: str, due_at: dt.datetime, at: dt.datetime
) -> None:
    """Store a payout that is due; its entry is posted."""
    payout.owner, payout.currency = owner, currency
    payout.due_at, payout.created_at = due_at, at
    payout.save(force_insert=True)
    PayoutTransition.objects.create(
        payout=payout, from_status="", to_status=payout.status, actor=ACTOR, at=at
    )


def _payable(payout: Payout) -> ledger.AccountRef:
    return accounts.of_owner(
        kind=AccountKind.OWNER_PAYABLE, owner=payout.owner, currency=payout.currency
    )


def _in_transit(payout: Payout) -> ledger.AccountRef:
    return accounts.of_object(
        kind=AccountKind.PAYOUT_IN_TRANSIT,
        object_id=payout.id,
        currency=payout.currency,
        organization=payout.owner,
    )


def _transfer(
    payout: Payout,
    *,
    key: str,
    kind: EntryKind,
    debited: ledger.AccountRef,
    credited: ledger.AccountRef,
    at: dt.datetime,
) -> None:
    ledger.post(
        idempotency_key=key,
        kind=kind,
        subject_id=payout.id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=credited, amount=payout.amount_minor),
    )


def _of(payout_id: str) -> Payout:
    return Payout.objects.select_related("owner").get(pk=payout_id)


def _move(payout: Payout, *, to: PayoutStatus, at: dt.datetime, actor: str) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = PayoutStatus(payout.status)
    won = PAYOUT_ARROWS.allows(came_from, to) and Payout.objects.filter(
        pk=payout.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{payout.pk} is {came_from} or moved on; it cannot become {to}")
    payout.status = to
    PayoutTransition.objects.create(
        payout=payout, from_status=came_from, to_status=to, actor=actor, at=at
    )
