"""Payments that a tenant's bank calls into question: gone while that lasts, and perhaps for good."""

import datetime as dt

from django.db import transaction

from billing import accounts, ledger
from billing.models import Dispute, DisputeTransition
from billing.states import DISPUTE_ARROWS, AccountKind, DisputeStatus, EntryKind
from marketplace.core.errors import StateConflict
from marketplace.models import Organization
from scheduler.models import Reservation


@transaction.atomic
def open_dispute(
    *,
    dispute_id: str,
    reservation: Reservation,
    amount_minor: int,
    fee_minor: int,
    currency: str,
    at: dt.datetime,
    actor: str,
) -> Dispute:
    """Record that the provider took a payment back, with its fee; once per dispute.

    From now on nothing that the reservation's leases earned is released to their owners.
    """
    dispute, is_new = Dispute.objects.get_or_create(
        pk=dispute_id,
        defaults={
            "reservation": reservation,
            "amount_minor": amount_minor,
            "fee_minor": fee_minor,
            "currency": currency,
            "opened_at": at,
        },
    )
    if not is_new:
        return dispute
    available = accounts.shared(kind=AccountKind.STRIPE_AVAILABLE, currency=currency)
    fees = accounts.shared(kind=AccountKind.DISPUTE_FEES, currency=currency)
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:opened",
        kind=EntryKind.DISPUTE_OPENED,
        subject_id=reservation.id,
        effective_at=at,
        legs=ledger.differences(
            [(_held(dispute), available, amount_minor), (fees, available, fee_minor)]
        ),
    )
    DisputeTransition.objects.create(
        dispute=dispute, from_status="", to_status=dispute.status, actor=actor, at=at
    )
    return dispute


@transaction.atomic
def win(*, dispute_id: str, at: dt.datetime, actor: str) -> Dispute:
    """Take the arrow open → won: the money came back.

    :raises StateConflict: when the dispute is over.
    """
    dispute = Dispute.objects.get(pk=dispute_id)
    _move(dispute, to=DisputeStatus.WON, at=at, actor=actor)
    _close(
        dispute,
        debited=accounts.shared(kind=AccountKind.STRIPE_AVAILABLE, currency=dispute.currency),
        kind=EntryKind.DISPUTE_WON,
        at=at,
    )
    return dispute


@transaction.atomic
def lose(
    *, dispute_id: str, at: dt.datetime, actor: str, borne_by: Organization | None = None
) -> Dispute:
    """Take the arrow open → lost: the money is gone, at the cost of an owner where it is at fault.

    :raises StateConflict: when the dispute is over.
    """
    dispute = Dispute.objects.get(pk=dispute_id)
    _move(dispute, to=DisputeStatus.LOST, at=at, actor=actor)
    cost = (
        accounts.shared(kind=AccountKind.DISPUTE_LOSSES, currency=dispute.currency)
        if borne_by is None
        else accounts.of_owner(
            kind=AccountKind.OWNER_CLAWBACK, owner=borne_by, currency=dispute.currency
        )
    )
    _close(dispute, debited=cost, kind=EntryKind.DISPUTE_LOST, at=at)
    return dispute


def _close(
    dispute: Dispute, *, debited: ledger.AccountRef, kind: EntryKind, at: dt.datetime
) -> None:
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:closed",
        kind=kind,
        subject_id=dispute.reservation_id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=_held(dispute), amount=dispute.amount_minor),
    )


def _held(dispute: Dispute) -> ledger.AccountRef:
    return accounts.of_object(
        kind=AccountKind.DISPUTE_HOLD, object_id=dispute.pk, currency=dispute.currency
    )


def _move(dispute: Dispute, *, to: DisputeStatus, at: dt.datetime, actor: str) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = DisputeStatus(dispute.status)
    won = DISPUTE_ARROWS.allows(came_from, to) and Dispute.objects.filter(
        pk=dispute.pk, status=came_from
    ).update(status=to)
    if not won:
        raise StateConflict(f"{dispute.pk} is {came_from} or moved on; it cannot become {to}")
    dispute.status = to
    DisputeTransition.objects.create(
        dispute=dispute, from_status=came_from, to_status=to, actor=actor, at=at
    )
