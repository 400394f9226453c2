"""What owners are owed: earnings become payable once a tenant can no longer reasonably dispute the lease."""

import datetime as dt
import logging

from django.db import transaction

from billing import ledger
from billing.models import Payout, PayoutTransition, Settlement
from billing.settlements import owner_accrued
from billing.states import AccountKind, EntryKind, PayoutStatus

logger = logging.getLogger(__name__)

RELEASES_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest
CANDIDATES_PER_RUN_MAX = 5_000  # ids; so many may fail before they hold up those behind them
ACTOR = "billing.release_earnings"


def release_due(*, at: dt.datetime) -> int:
    """Make the settlements payable whose time has come; return how many.

    Safe to run twice or side by side. One that cannot be released is logged and does not hold up the rest.
    """
    due = Settlement.objects.filter(released_at__isnull=True, release_due_at__lte=at)
    released = 0
    for settlement_id in due.order_by("release_due_at").values_list("pk", flat=True)[
        :CANDIDATES_PER_RUN_MAX
    ]:
        if released >= RELEASES_PER_RUN_MAX:
            break
        try:
            released += release(settlement_id=settlement_id, at=at)
        except Exception:
            logger.exception("settlement %s could not be released", settlement_id)
    return released


@transaction.atomic
def release(*, settlement_id: str, at: dt.datetime) -> bool:
    """Move one settlement's earnings to what is payable; say whether it was this call that did it.

    A settlement that earned the owner nothing is marked as released and makes no payout.
    """
    settlement = (
        Settlement.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=settlement_id, released_at__isnull=True, release_due_at__lte=at)
        .select_related("owner")
        .first()
    )
    if settlement is None:
        return False
    Settlement.objects.filter(pk=settlement.pk).update(released_at=at)
    if not settlement.owner_minor:
        return True
    entry = ledger.post(
        idempotency_key=f"release:{settlement.id}",
        kind=EntryKind.RELEASE,
        subject_id=settlement.id,
        effective_at=at,
        legs=ledger.transfer(
            debited=owner_accrued(
                lease_id=settlement.lease_id, owner=settlement.owner, currency=settlement.currency
            ),
            credited=ledger.AccountRef(
                AccountKind.OWNER_PAYABLE,
                settlement.currency,
                settlement.owner_id,
                settlement.owner,
            ),
            amount=settlement.owner_minor,
        ),
    )
    payout = Payout.objects.create(
        owner=settlement.owner,
        settlement=settlement,
        entry=entry,
        status=PayoutStatus.DUE,
        amount_minor=settlement.owner_minor,
        currency=settlement.currency,
        due_at=settlement.release_due_at,
        created_at=at,
    )
    PayoutTransition.objects.create(
        payout=payout, from_status="", to_status=PayoutStatus.DUE, actor=ACTOR, at=at
    )
    return True
