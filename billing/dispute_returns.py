"""What owners were charged for a lost dispute and nobody lost after all goes back to them.

What a reservation owes its tenant is set off against the dispute, also when evidence of it comes late. Where
its owners bear more by then than the dispute still costs, they get the difference: first what they still owe
is that much less, and the rest is a payout, due at once. So nobody gains by a dispute.
"""

import datetime as dt

from django.db.models import Sum

from billing import accounts, ledger, parking, payouts, reserves
from billing.models import Dispute, DisputeCharge, DisputeReturn, Payout
from billing.states import AccountKind, EntryKind
from marketplace import events
from marketplace.core.money import split_by_weights
from marketplace.models import Organization
from marketplace.states import EventKind


def borne_minor(*, dispute: Dispute) -> int:
    """Return what owners bear of a dispute, in minor units: charged, less what was given back of it."""
    return sum(_borne(charge) for charge in dispute.charges.all())


def is_parked(*, dispute: Dispute) -> bool:
    """Say whether an owner could get nothing back now: the money of one that was charged is parked."""
    owners = Organization.objects.filter(dispute_charges__dispute=dispute)
    return parking.is_parked(organizations=list(owners))


def give_back(*, dispute: Dispute, at: dt.datetime) -> int:
    """Give owners back what they bear beyond what a dispute costs, split by that; return it, in minor units.

    The caller has locked the dispute and who was charged: no release may net what these owe meanwhile.

    :raises parking.MoneyParked: while the money of one of them is parked.
    """
    charges = list(dispute.charges.select_related("owner").order_by("pk"))
    borne = [_borne(charge) for charge in charges]
    beyond = sum(borne) - (dispute.amount_minor - dispute.set_off_minor)
    if beyond <= 0:
        return 0
    parts = split_by_weights(total_minor=beyond, weights=borne)
    for charge, part in zip(charges, parts, strict=True):
        if part:
            _give(charge, amount_minor=part, at=at)
    return beyond


def _borne(charge: DisputeCharge) -> int:
    returned: int = charge.returns.aggregate(sum=Sum("amount_minor"))["sum"] or 0
    return charge.amount_minor - returned


def _give(charge: DisputeCharge, *, amount_minor: int, at: dt.datetime) -> None:
    owner = charge.owner
    owed, payable = (
        accounts.of_owner(kind=kind, owner=owner, currency=charge.currency)
        for kind in (AccountKind.OWNER_CLAWBACK, AccountKind.OWNER_PAYABLE)
    )
    losses = accounts.shared(kind=AccountKind.DISPUTE_LOSSES, currency=charge.currency)
    netted = min(amount_minor, reserves.owed(owner=owner, currency=charge.currency))
    number = charge.returns.count() + 1
    entry = ledger.post(
        idempotency_key=f"dispute_returned:{charge.dispute_id}:{owner.pk}:{number}",
        kind=EntryKind.DISPUTE_RETURNED,
        subject_id=charge.dispute_id,
        effective_at=at,
        legs=ledger.differences([(losses, owed, netted), (losses, payable, amount_minor - netted)]),
    )
    made = DisputeReturn.objects.create(
        charge=charge,
        entry=entry,
        amount_minor=amount_minor,
        netted_minor=netted,
        currency=charge.currency,
        returned_at=at,
    )
    if amount_minor > netted:
        payouts.make(
            Payout(dispute_return=made, entry=entry, amount_minor=amount_minor - netted),
            owner=owner,
            currency=charge.currency,
            due_at=at,
            at=at,
        )
    events.record(
        organization=owner,
        kind=EventKind.DISPUTE_RETURNED,
        object_id=charge.dispute_id,
        data={
            "amount_minor": made.amount_minor,
            "netted_minor": made.netted_minor,
            "currency": made.currency,
        },
        at=at,
        key=f"{charge.dispute_id}:{EventKind.DISPUTE_RETURNED.value}:{made.pk}",
    )
