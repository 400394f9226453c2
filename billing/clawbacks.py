"""Disputes that owners answer for: charged by two people, and drawn on their reserve at once.

What that does not cover they owe, as other debts of theirs: see `billing.owner_debts`.
"""

import datetime as dt

from django.db import transaction

from billing import accounts, dispute_returns, ledger, reserves
from billing.models import Approval, Dispute, DisputeCharge
from billing.states import AccountKind, DisputeStatus, EntryKind
from marketplace import events
from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Lease

LEASES_NAMED_MAX = 100  # a block of hundreds of nodes is one reservation; an event stays small


@transaction.atomic
def charge(*, approval: Approval, at: dt.datetime) -> DisputeCharge:
    """Let an owner bear what two people decided of a dispute that was lost, and draw on its reserve.

    :raises InvalidValue: when there is no such dispute, it is not lost, the owner had no part in it, or the
        amount exceeds what is not borne yet.
    """
    dispute = (
        Dispute.objects.select_for_update(no_key=True, of=("self",))
        .filter(pk=approval.subject_id, status=DisputeStatus.LOST, currency=approval.currency)
        .first()
    )
    if dispute is None:
        raise InvalidValue("There is no dispute of this id that was lost.", pointer="/subject_id")
    # No release may net what this owner owes meanwhile.
    owner = Organization.objects.select_for_update(no_key=True).get(pk=approval.organization_id)
    leases = Lease.objects.filter(reservation=dispute.reservation_id, node__organization=owner)
    if not leases.exists():
        raise InvalidValue(
            "Nothing of this owner was leased for what is disputed.", pointer="/organization"
        )
    borne = dispute_returns.borne_minor(dispute=dispute)
    rest = dispute.amount_minor - dispute.set_off_minor - borne
    if not 0 < approval.amount_minor <= rest:
        raise InvalidValue(
            f"From 1 to {rest} minor units of it are not borne yet.", pointer="/amount_minor"
        )
    if dispute.charges.filter(owner=owner).exists():
        raise InvalidValue("This owner bears its part already.", pointer="/organization")
    ledger.post(
        idempotency_key=f"dispute_charged:{dispute.pk}:{owner.pk}",
        kind=EntryKind.DISPUTE_CHARGED,
        subject_id=dispute.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.of_owner(
                kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency=dispute.currency
            ),
            credited=accounts.shared(kind=AccountKind.DISPUTE_LOSSES, currency=dispute.currency),
            amount=approval.amount_minor,
        ),
    )
    drawn = reserves.draw(
        owner=owner,
        currency=dispute.currency,
        amount_minor=approval.amount_minor,
        dispute_id=dispute.pk,
        at=at,
    )
    made = DisputeCharge.objects.create(
        dispute=dispute,
        owner=owner,
        approval=approval,
        amount_minor=approval.amount_minor,
        drawn_minor=drawn,
        currency=dispute.currency,
        charged_at=at,
    )
    first = leases.order_by("pk").values_list("pk", flat=True)[:LEASES_NAMED_MAX]
    events.record(
        organization=owner,
        kind=EventKind.DISPUTE_CHARGED,
        object_id=dispute.pk,
        data={
            "amount_minor": made.amount_minor,
            "drawn_minor": made.drawn_minor,
            "currency": made.currency,
            "lease_ids": list(first),
        },
        at=at,
        key=f"{dispute.pk}:{EventKind.DISPUTE_CHARGED.value}:{owner.pk}",
    )
    return made
