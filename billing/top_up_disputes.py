"""Card holders who ask their bank for the money of a top-up back.

The money and a fee leave our balance when a dispute opens, and the money comes back when it is won. When it
is lost the tenant's wallet bears it as far as it can, and we bear the rest.
"""

import datetime as dt

from django.db import transaction

from billing import ledger, wallet
from billing.models import Payment, ProviderTransition, TopUpDispute
from billing.provider_states import Machine
from billing.provider_values import ProviderDispute
from billing.states import DISPUTE_ARROWS, AccountKind, DisputeStatus, EntryKind
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.states import EventKind

# The provider's words for a dispute that is over; everything else is still open.
ENDS = {
    "won": DisputeStatus.WON,
    "warning_closed": DisputeStatus.WON,
    "prevented": DisputeStatus.WON,
    "lost": DisputeStatus.LOST,
}


@transaction.atomic
def apply(*, payment: Payment, made: ProviderDispute, at: dt.datetime) -> TopUpDispute:
    """Take over what the provider says of a dispute. Safe to call with the same, or with older news."""
    dispute, is_new = TopUpDispute.objects.get_or_create(
        pk=made.id,
        defaults={
            "payment": payment,
            "status": DisputeStatus.OPEN,
            "amount_minor": made.amount_minor,
            "fee_minor": made.fee_minor,
            "currency": made.currency,
            "opened_at": made.created_at,
        },
    )
    if is_new:
        _post_opening(dispute, at=at)
        _note(dispute, from_status="", at=at)
        _tell(dispute, kind=EventKind.DISPUTE_OPENED, at=at)
    dispute = (
        TopUpDispute.objects.select_for_update(no_key=True, of=("self",))
        .select_related("payment__organization")
        .get(pk=made.id)
    )
    end = ENDS.get(made.state)
    if end is not None and dispute.status == DisputeStatus.OPEN:
        if end == DisputeStatus.LOST:
            _bear(dispute, at=at)
        else:
            _post_return(dispute, at=at)
        _move(dispute, to=end, at=at)
        _tell(dispute, kind=EventKind.DISPUTE_CLOSED, at=at)
    return dispute


def hold(*, dispute: TopUpDispute) -> ledger.AccountRef:
    """Return the account of what was taken from us while a dispute is open."""
    return ledger.AccountRef(
        AccountKind.DISPUTE_HOLD, dispute.currency, dispute.pk, dispute.payment.organization
    )


def _post_opening(dispute: TopUpDispute, *, at: dt.datetime) -> None:
    taken = [
        (hold(dispute=dispute), dispute.amount_minor),
        (ledger.AccountRef(AccountKind.DISPUTE_FEES, dispute.currency), dispute.fee_minor),
    ]
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:opened",
        kind=EntryKind.DISPUTE_OPENED,
        subject_id=dispute.payment_id,
        effective_at=at,
        legs=[
            *(ledger.debit(account, amount=amount) for account, amount in taken if amount),
            ledger.credit(_available(dispute), amount=dispute.amount_minor + dispute.fee_minor),
        ],
    )


def _post_return(dispute: TopUpDispute, *, at: dt.datetime) -> None:
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:closed",
        kind=EntryKind.DISPUTE_WON,
        subject_id=dispute.payment_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=_available(dispute),
            credited=hold(dispute=dispute),
            amount=dispute.amount_minor,
        ),
    )


def _available(dispute: TopUpDispute) -> ledger.AccountRef:
    return ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, dispute.currency)


def _bear(dispute: TopUpDispute, *, at: dt.datetime) -> None:
    """Close the hold: out of the tenant's wallet what is there, the rest is our loss."""
    tenant = dispute.payment.organization
    held = wallet.balance(organization=tenant).amount_minor
    try:
        with transaction.atomic():
            _post_loss(dispute, from_wallet=min(held, dispute.amount_minor), at=at)
    except ledger.InsufficientFunds:  # spent in this very moment
        _post_loss(dispute, from_wallet=0, at=at)


def _post_loss(dispute: TopUpDispute, *, from_wallet: int, at: dt.datetime) -> None:
    tenant, currency = dispute.payment.organization, dispute.currency
    parts = [
        (wallet.account(organization=tenant, currency=currency), from_wallet),
        (
            ledger.AccountRef(AccountKind.DISPUTE_LOSSES, currency),
            dispute.amount_minor - from_wallet,
        ),
    ]
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:closed",
        kind=EntryKind.DISPUTE_LOST,
        subject_id=dispute.payment_id,
        effective_at=at,
        legs=[
            *(ledger.debit(account, amount=amount) for account, amount in parts if amount),
            ledger.credit(hold(dispute=dispute), amount=dispute.amount_minor),
        ],
    )


def _tell(dispute: TopUpDispute, *, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=dispute.payment.organization,
        kind=kind,
        object_id=dispute.payment_id,
        data={
            "amount_minor": dispute.amount_minor,
            "currency": dispute.currency,
            "status": dispute.status,
        },
        at=at,
        key=f"{dispute.pk}:{kind.value}",
    )


def _move(dispute: TopUpDispute, *, to: DisputeStatus, at: dt.datetime) -> None:
    """Compare and set; the row is locked by the caller."""
    came_from = DisputeStatus(dispute.status)
    changed = DISPUTE_ARROWS.allows(came_from, to) and TopUpDispute.objects.filter(
        pk=dispute.pk, status=came_from
    ).update(status=to, closed_at=at)
    if not changed:
        raise StateConflict(f"{dispute.pk} is {came_from}; it cannot become {to}")
    dispute.status = to
    _note(dispute, from_status=came_from, at=at)


def _note(dispute: TopUpDispute, *, from_status: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.DISPUTE,
        subject_id=dispute.payment_id,
        from_status=from_status,
        to_status=dispute.status,
        at=at,
    )
