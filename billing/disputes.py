"""Payments that a tenant's bank calls into question: gone while that lasts, and perhaps for good."""

import datetime as dt

from django.db import transaction
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet, Sum

from billing import accounts, dispute_returns, ledger
from billing.models import (
    Account,
    Dispute,
    DisputeTransition,
    Entry,
    Intent,
    Payment,
    Refund,
)
from billing.provider_states import IntentKind
from billing.provider_values import ProviderDispute
from billing.states import DISPUTE_ARROWS, AccountKind, DisputeStatus, EntryKind
from marketplace.core.errors import StateConflict
from marketplace.models import Organization
from scheduler.models import Reservation

# The provider's word for a refund of what a bank has taken back, or asks to.
REFUSED_AS_DISPUTED = "charge_disputed"
# The provider tells of a dispute within minutes, and is asked every five; then a refund is tried once more.
KNOWN_WITHIN_SECONDS = 86_400
# A week of such days: what still is no dispute then never becomes one, and the money finds another way.
REFUSALS_MAX = 7
# The provider's words for a dispute that is over; everything else is still open.
# https://docs.stripe.com/api/disputes/object#dispute_object-status
_ENDS = {
    "won": DisputeStatus.WON,
    "warning_closed": DisputeStatus.WON,
    "lost": DisputeStatus.LOST,
}
# It ended before it was filed. A card network that settles it by itself gives the holder the money of it, as
# Visa's Rapid Dispute Resolution does: then it is gone, with no fee.
PREVENTED = "prevented"


def end_of(made: ProviderDispute) -> DisputeStatus | None:
    """Return how a dispute has ended, None while it has not; a prevented one by where its money is."""
    if made.state == PREVENTED:
        return DisputeStatus.LOST if made.taken_minor else DisputeStatus.WON
    return _ENDS.get(made.state)


@transaction.atomic
def open_dispute(
    *,
    dispute_id: str,
    reservation: Reservation,
    payment: Payment | None = None,
    amount_minor: int,
    fee_minor: int,
    currency: str,
    at: dt.datetime,
    actor: str,
) -> Dispute:
    """Record that the provider took a payment back, with its fee; once per dispute.

    From now on nothing that the reservation's leases earned is released to their owners, and nothing that it
    owes goes back to its tenant, whose bank has the money.
    """
    dispute, is_new = Dispute.objects.get_or_create(
        pk=dispute_id,
        defaults={
            "reservation": reservation,
            "payment": payment,
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
def lose(*, dispute_id: str, at: dt.datetime, actor: str) -> Dispute:
    """Take the arrow open → lost: the money is gone, at our cost until an owner is charged with it.

    :raises StateConflict: when the dispute is over.
    """
    dispute = Dispute.objects.get(pk=dispute_id)
    _move(dispute, to=DisputeStatus.LOST, at=at, actor=actor)
    _close(dispute, debited=_losses(dispute), kind=EntryKind.DISPUTE_LOST, at=at)
    return dispute


def holds_back(*, reservation_id: str, at: dt.datetime) -> bool:
    """Say whether what a reservation owes its tenant waits: its bank has the money, or may get it.

    That is so while a dispute is open, while one that was lost is not set off, and for a day after each time
    that the provider says so of a dispute of which we have not heard yet.
    """
    known = Dispute.objects.filter(reservation=reservation_id)
    if known.filter(
        Q(status=DisputeStatus.OPEN)
        | Q(status=DisputeStatus.LOST, set_off_minor__lt=F("amount_minor"))
    ).exists():
        return True
    since = at - dt.timedelta(seconds=KNOWN_WITHIN_SECONDS)
    refused = Payment.objects.filter(
        reservation_refunds__in=Refund.objects.filter(
            reservation=reservation_id, pk__in=_refusals().values("subject_id")
        )
    ).distinct()
    return any(
        not _is_closed(payment) and _unexplained(payment).filter(closed_at__gt=since).exists()
        for payment in refused
    )


def room_minor(*, payment: Payment) -> int:
    """Return how much a reservation's payment can still give back, in minor units.

    Not there is what a bank has taken of it or may get, and nothing is where the provider takes no refund.
    """
    if _is_closed(payment):
        return 0
    disputed: int = (
        payment.disputes.exclude(status=DisputeStatus.WON).aggregate(sum=Sum("amount_minor"))["sum"]
        or 0
    )
    return max(payment.received_minor - payment.refunded_minor - disputed, 0)


def unexplained_refusals() -> QuerySet[Intent]:
    """Return the refusals of refunds as disputed that no dispute explains, where the money is still to go."""
    owing = Account.objects.filter(kind=AccountKind.REFUND_PAYABLE, balance__gt=0)
    waiting = Refund.objects.filter(reservation__in=owing.values("subject_id"))
    heard = DisputeTransition.objects.filter(
        dispute__reservation__refunds=OuterRef("subject_id"), at__gte=OuterRef("closed_at")
    )
    return _refusals().filter(~Exists(heard), subject_id__in=waiting.values("pk"))


def lock(*, reservation: Reservation) -> None:
    """Lock what setting off may move: what was lost, then who was charged for it and the tenant, by id.

    To be called before any money of the tenant is locked, by who has locked the reservation.
    """
    charged = Organization.objects.filter(dispute_charges__dispute__in=list(_lost(reservation)))
    owners = set(charged.values_list("pk", flat=True))
    if owners:
        parties = Organization.objects.filter(pk__in={*owners, reservation.organization_id})
        list(parties.select_for_update(no_key=True).order_by("pk"))


def set_off(*, reservation: Reservation, at: dt.datetime) -> int:
    """Set what a reservation owes its tenant off against what the tenant's bank took back for good.

    Return how much that was; an owner who bears what was set off gets it back. While the money of one who was
    charged is parked, all of it waits. The caller has locked the reservation, and then with `lock`.
    """
    total = 0
    for dispute in _lost(reservation):
        payable = accounts.of_reservation(
            kind=AccountKind.REFUND_PAYABLE, reservation=reservation, currency=dispute.currency
        )
        part = min(ledger.balance(account=payable), dispute.amount_minor - dispute.set_off_minor)
        if part <= 0 or dispute_returns.is_parked(dispute=dispute):
            break
        number = Entry.objects.filter(kind=EntryKind.DISPUTE_SET_OFF, subject_id=dispute.pk).count()
        ledger.post(
            idempotency_key=f"dispute:{dispute.pk}:set_off:{number + 1}",
            kind=EntryKind.DISPUTE_SET_OFF,
            subject_id=dispute.pk,
            effective_at=at,
            legs=ledger.transfer(debited=payable, credited=_losses(dispute), amount=part),
        )
        dispute.set_off_minor += part
        dispute.save(update_fields=["set_off_minor"])
        dispute_returns.give_back(dispute=dispute, at=at)
        total += part
    return total


def _lost(reservation: Reservation) -> QuerySet[Dispute]:
    """Return the disputes of which something is to be set off, and lock them."""
    return (
        Dispute.objects.select_for_update(no_key=True, of=("self",))
        .filter(
            reservation=reservation,
            status=DisputeStatus.LOST,
            set_off_minor__lt=F("amount_minor"),
        )
        .order_by("opened_at", "pk")
    )


def _refusals() -> QuerySet[Intent]:
    return Intent.objects.filter(kind=IntentKind.REFUND, refusal_code=REFUSED_AS_DISPUTED)


def _of(payment: Payment) -> QuerySet[Dispute]:
    """Return the disputes of a payment, and those of its reservation of which no payment is known."""
    return Dispute.objects.filter(
        Q(payment=payment) | Q(payment=None, reservation=payment.reservation_id)
    )


def _unexplained(payment: Payment) -> QuerySet[Intent]:
    """Return the refusals to give back by a payment since we heard of a dispute of it last."""
    refusals = _refusals().filter(subject_id__in=payment.reservation_refunds.values("pk"))
    heard = DisputeTransition.objects.filter(dispute__in=_of(payment)).aggregate(at=Max("at"))["at"]
    return refusals.filter(closed_at__gt=heard) if heard else refusals


def _is_closed(payment: Payment) -> bool:
    """Say whether the provider takes no refund of a payment any more.

    That is so where it refuses what a bank has left of it, and where it refused for so long without a dispute
    of which we know that none is to come.
    """
    refusals = _unexplained(payment).count()
    limit = 1 if _of(payment).filter(status=DisputeStatus.LOST).exists() else REFUSALS_MAX
    return refusals >= limit


def _losses(dispute: Dispute) -> ledger.AccountRef:
    return accounts.shared(kind=AccountKind.DISPUTE_LOSSES, currency=dispute.currency)


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
