"""What is kept of an owner's earnings against disputes, and what an owner owes: what is netted first."""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Q, Sum

from billing import accounts, ledger
from billing.amounts import BASIS_POINTS
from billing.models import FeeShare, Reserve, Reversal, Settlement
from billing.provider_states import ReversalStatus
from billing.states import AccountKind, EntryKind
from marketplace.core.money import share_of
from marketplace.models import Organization


@dataclass(frozen=True, slots=True)
class Parts:
    """What becomes of an amount that an owner has earned, in minor units; the three add up to it."""

    netted: int
    kept_back: int
    payable: int


def owed(*, owner: Organization, currency: str) -> int:
    """Return what an owner owes us and nothing is under way to bring back, in minor units."""
    balance = ledger.balance(
        account=accounts.of_owner(kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency=currency)
    )
    asked = Reversal.objects.filter(
        transfer__owner=owner, transfer__currency=currency, status=ReversalStatus.ASKED
    ).aggregate(sum=Sum("amount_minor"))["sum"]
    return max(balance - (asked or 0), 0)


def parts_of(*, earned: int, owner: Organization, currency: str) -> Parts:
    """Divide what becomes due to an owner: its debt first, then the reserve, and the rest is payable."""
    netted = min(earned, owed(owner=owner, currency=currency))
    rest = max(earned - netted, 0)
    kept_back = share_of(
        total_minor=rest, part=settings.OWNER_RESERVE_BASIS_POINTS, whole=BASIS_POINTS
    )
    return Parts(netted=netted, kept_back=kept_back, payable=rest - kept_back)


def keep(
    *,
    amount_minor: int,
    currency: str,
    at: dt.datetime,
    settlement: Settlement | None = None,
    fee_share: FeeShare | None = None,
) -> Reserve:
    """Write down what is kept back of a settlement, or of an owner's part of a fee; its entry is posted."""
    return Reserve.objects.create(
        settlement=settlement,
        fee_share=fee_share,
        amount_minor=amount_minor,
        currency=currency,
        release_due_at=at + dt.timedelta(seconds=settings.OWNER_RESERVE_SECONDS),
    )


def draw(
    *, owner: Organization, currency: str, amount_minor: int, dispute_id: str, at: dt.datetime
) -> int:
    """Pay what an owner owes for a dispute out of its reserve, the oldest first; return how much that was.

    The caller holds the lock on the owner's row.
    """
    left = amount_minor
    kept = (
        Reserve.objects.select_for_update(no_key=True, of=("self",))
        .filter(
            Q(settlement__owner=owner) | Q(fee_share__owner=owner),
            released_at__isnull=True,
            currency=currency,
        )
        .order_by("pk")
    )
    for reserve in kept:
        part = min(left, reserve.left_minor)
        if not part:
            break
        left -= part
        reserve.drawn_minor += part
        reserve.released_at = at if not reserve.left_minor else None
        reserve.save(update_fields=["drawn_minor", "released_at"])
    drawn = amount_minor - left
    if drawn:
        ledger.post(
            idempotency_key=f"reserve_drawn:{dispute_id}:{owner.pk}",
            kind=EntryKind.RESERVE_DRAWN,
            subject_id=dispute_id,
            effective_at=at,
            legs=ledger.transfer(
                debited=accounts.of_owner(
                    kind=AccountKind.OWNER_RESERVE, owner=owner, currency=currency
                ),
                credited=accounts.of_owner(
                    kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency=currency
                ),
                amount=drawn,
            ),
        )
    return drawn
