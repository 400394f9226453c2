"""Owners' parts of the fees of changes: payable once a tenant can no longer reasonably dispute them."""

import datetime as dt
import logging

from django.db import transaction

from billing import accounts, ledger, payouts, releases, reserves
from billing.models import FeeShare, Payout
from billing.states import AccountKind, EntryKind
from marketplace.models import Organization

logger = logging.getLogger(__name__)

RELEASES_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest


def release_due(*, at: dt.datetime) -> int:
    """Make the owners' parts of fees payable whose time has come; return how many.

    Safe to run twice or side by side. One that cannot be released is logged and does not hold up the rest.
    """
    due = FeeShare.objects.filter(released_at__isnull=True, release_due_at__lte=at)
    released = 0
    for share_id in due.order_by("release_due_at").values_list("pk", flat=True)[
        :RELEASES_PER_RUN_MAX
    ]:
        try:
            released += release(share_id=share_id, at=at)
        except Exception:
            logger.exception("fee share %s could not be released", share_id)
    return released


@transaction.atomic
def release(*, share_id: str, at: dt.datetime) -> bool:
    """Move one owner's part of a fee to what is payable, less what the owner owes and what is kept back.

    Say whether it was this call that did it. Nothing is released while the owner's money is parked, or a
    payment of the reservation is disputed.
    """
    share = (
        FeeShare.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=share_id, released_at__isnull=True, release_due_at__lte=at)
        .select_related("owner", "change")
        .first()
    )
    if share is None or releases.is_frozen(
        owner=share.owner, reservation_id=share.change.reservation_id
    ):
        return False
    # No other release may net what this owner owes meanwhile.
    owner = Organization.objects.select_for_update(no_key=True).get(pk=share.owner_id)
    parts = reserves.parts_of(earned=share.amount_minor, owner=owner, currency=share.currency)
    owed, kept, payable = (
        accounts.of_owner(kind=kind, owner=owner, currency=share.currency)
        for kind in (
            AccountKind.OWNER_CLAWBACK,
            AccountKind.OWNER_RESERVE,
            AccountKind.OWNER_PAYABLE,
        )
    )
    source = accrued(share_id=share.id, owner=owner, currency=share.currency)
    FeeShare.objects.filter(pk=share.pk).update(released_at=at)
    entry = ledger.post(
        idempotency_key=f"release:{share.id}",
        kind=EntryKind.RELEASE,
        subject_id=share.id,
        effective_at=at,
        legs=ledger.differences(
            [
                (source, owed, parts.netted),
                (source, kept, parts.kept_back),
                (source, payable, parts.payable),
            ]
        ),
    )
    if parts.kept_back:
        reserves.keep(fee_share=share, amount_minor=parts.kept_back, currency=share.currency, at=at)
    if parts.payable:
        payouts.make(
            Payout(fee_share=share, entry=entry, amount_minor=parts.payable),
            owner=owner,
            currency=share.currency,
            due_at=share.release_due_at,
            at=at,
        )
    return True


def accrued(*, share_id: str, owner: Organization, currency: str) -> ledger.AccountRef:
    """Return the account of an owner's part of a fee until it is released."""
    return ledger.AccountRef(AccountKind.OWNER_ACCRUED, currency, share_id, owner)
