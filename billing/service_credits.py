"""What a tenant gets beyond its refund: for what was not delivered, and for what its owner took back.

Who bears it: the owner, as far as its hardware or its handover failed and the lease earned that much; the
market bears the rest. A reclaim is the owner's decision: what the lease did not earn, the owner owes.

It goes to the wallet, and from there at once to what is still owed for the same reservation on account:
nobody gets a credit to spend for what it has not paid (`receivables.set_credit_off`).
"""

import datetime as dt

from django.conf import settings

from agents.protocol import Cause
from billing import accounts, ledger
from billing.amounts import BASIS_POINTS, Amounts
from billing.deliveries import Delivery, is_refunded
from billing.states import AccountKind, EntryKind
from marketplace.core.money import share_of
from scheduler.models import Lease, Reclaim, Reservation
from scheduler.states import LeaseStatus, ReservationStatus

# Of these the tenant did not get what it bought; of a cancelled or reclaimed one other rules tell.
CREDITED_STATUSES = (ReservationStatus.COMPLETED, ReservationStatus.FAILED)


def credit_for(*, refunded_minor: int) -> int:
    """Return the credit that goes with a refund of what was not delivered."""
    return share_of(
        total_minor=refunded_minor,
        part=settings.UNDELIVERED_CREDIT_BASIS_POINTS,
        whole=BASIS_POINTS,
    )


def post_for_lease(
    *, lease: Lease, delivery: Delivery, amounts: Amounts, at: dt.datetime
) -> tuple[int, int]:
    """Post what a lease's tenant gets beyond its refund; return it, and the part that the owner bears.

    For a lease that was reclaimed it is what the notice said.
    """
    reclaim = Reclaim.objects.filter(lease=lease).first()
    if reclaim is not None:
        return _compensate(reclaim=reclaim, lease=lease, earned_by_owner=amounts.owner, at=at)
    credit = credit_for(refunded_minor=amounts.refunded)
    of_owner = min(credit, amounts.owner) if is_owners_fault(lease, delivery) else 0
    _post(
        key=f"sla:{lease.id}",
        kind=EntryKind.CREDIT,
        lease=lease,
        rows=[
            (_accrued(lease), of_owner),
            (_cost(lease, AccountKind.SLA_CREDITS), credit - of_owner),
        ],
        at=at,
    )
    return credit, of_owner


def added_by_evidence(
    *, lease: Lease, delivery: Delivery, amounts: Amounts, given: int, of_owner: int
) -> tuple[int, int]:
    """Return what evidence that came late adds to a lease's credit, and to the part that its owner bears.

    `given` and `of_owner` are what there was of both, in minor units. Together they are what the settlement
    would have given had it known, and come to the same party: so nobody gains by telling late. What was given
    is not taken back, and stays with who bears it; the owner's part may fall with what the lease earned. A
    lease that was reclaimed has its compensation and no credit, now as then.
    """
    if Reclaim.objects.filter(lease=lease).exists():
        return 0, 0
    more = max(credit_for(refunded_minor=amounts.refunded) - given, 0)
    borne = given + more if is_owners_fault(lease, delivery) else of_owner
    return more, min(borne, amounts.owner) - of_owner


def post_for_rest(*, reservation: Reservation, refunded_minor: int, at: dt.datetime) -> int:
    """Post the credit for what no lease of a finished reservation accounts for; return it."""
    if reservation.status not in CREDITED_STATUSES:
        return 0
    credit = credit_for(refunded_minor=refunded_minor)
    if credit:
        ledger.post(
            idempotency_key=f"sla:{reservation.id}",
            kind=EntryKind.CREDIT,
            subject_id=reservation.id,
            effective_at=at,
            legs=ledger.transfer(
                debited=accounts.shared(
                    kind=AccountKind.SLA_CREDITS, currency=reservation.currency
                ),
                credited=accounts.wallet(
                    organization=reservation.organization, currency=reservation.currency
                ),
                amount=credit,
            ),
        )
    return credit


def _compensate(
    *, reclaim: Reclaim, lease: Lease, earned_by_owner: int, at: dt.datetime
) -> tuple[int, int]:
    amount = reclaim.compensation_minor
    of_lease = min(amount, max(earned_by_owner, 0))
    owed = accounts.of_owner(
        kind=AccountKind.OWNER_CLAWBACK,
        owner=lease.node.organization,
        currency=lease.reservation.currency,
    )
    _post(
        key=f"reclaim:{lease.id}",
        kind=EntryKind.COMPENSATION,
        lease=lease,
        rows=[(_accrued(lease), of_lease), (owed, amount - of_lease)],
        at=at,
    )
    return amount, amount


def _post(
    *,
    key: str,
    kind: EntryKind,
    lease: Lease,
    rows: list[tuple[ledger.AccountRef, int]],
    at: dt.datetime,
) -> None:
    purse = accounts.wallet(
        organization=lease.reservation.organization, currency=lease.reservation.currency
    )
    legs = ledger.differences((debited, purse, amount) for debited, amount in rows)
    if legs:
        ledger.post(idempotency_key=key, kind=kind, subject_id=lease.id, effective_at=at, legs=legs)


def _accrued(lease: Lease) -> ledger.AccountRef:
    return accounts.owner_accrued(
        lease_id=lease.id, owner=lease.node.organization, currency=lease.reservation.currency
    )


def _cost(lease: Lease, kind: AccountKind) -> ledger.AccountRef:
    return accounts.shared(kind=kind, currency=lease.reservation.currency)


def is_owners_fault(lease: Lease, delivery: Delivery) -> bool:
    """Say whether anything speaks for the owner's doing: a lost lease, or an outage of the hardware's."""
    if lease.status in {LeaseStatus.FAILED, LeaseStatus.INTERRUPTED}:
        return True
    return any(
        outage.cause is Cause.HARDWARE and is_refunded(lease=lease, outage=outage)
        for outage in delivery.outages
    )
