"""What owners owe us: by reclaims, late corrections and disputes they answer for, on `owner_clawback`.

It is netted with what they earn first. What netting had its time for is taken back out of what they were
sent, as far as transfers leave room; and what neither brings two people give up. Netting and reversals pay
the oldest debt first, so the age of a balance is that of what they have not reached.
"""

import datetime as dt
from collections.abc import Iterator

from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Sum, When

from billing import accounts, ledger, reserves, runs, transfers
from billing.models import Account, Approval, Posting, Reversal, Transfer
from billing.provider_states import TransferStatus
from billing.states import AccountKind, EntryKind, Side
from marketplace import events
from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
from marketplace.states import EventKind

ASK_AGAIN_SECONDS = (
    7 * 86_400
)  # what was refused for lack of money is not there an hour later either
OWNERS_PER_RUN_MAX = 50


class NothingOwed(InvalidValue):
    """The owner does not owe so much, or it is under way to come back."""

    code = "nothing_owed"
    title = "The owner does not owe so much"


def overdue_minor(*, owner: Organization, currency: str, at: dt.datetime) -> int:
    """Return what an owner owes for longer than netting is waited for, and nothing is under way to bring."""
    cutoff = at - dt.timedelta(seconds=settings.OWNER_DEBT_PATIENCE_SECONDS)
    debt = _account(owner=owner, currency=currency)
    young = Posting.objects.filter(
        account__code=debt.code,
        account__currency=currency,
        side=Side.DEBIT,
        entry__effective_at__gt=cutoff,
    ).aggregate(sum=Sum("amount"))["sum"]
    return max(reserves.owed(owner=owner, currency=currency) - (young or 0), 0)


def collect_due(*, at: dt.datetime) -> int:
    """Ask the provider for what owners owe for too long, where they were sent some; return of how many.

    Safe to run twice or side by side.
    """
    return runs.one_by_one(
        _candidates(at=at),
        lambda place: _collect(owner_id=place[0], currency=place[1], at=at),
        name="collect_owner_debts",
    )


@transaction.atomic
def write_off(*, approval: Approval, at: dt.datetime) -> None:
    """Give up what an owner owes, as two people decided: once per approval, and the owner is told.

    :raises NothingOwed: when it does not owe so much, or it is under way to come back.
    :raises parking.MoneyParked: while its money is parked.
    """
    assert approval.organization_id is not None, approval.pk
    # No release may net what this owner owes meanwhile, and no run ask for it.
    owner = Organization.objects.select_for_update(no_key=True).get(pk=approval.organization_id)
    owing = reserves.owed(owner=owner, currency=approval.currency)
    if not 0 < approval.amount_minor <= owing:
        raise NothingOwed(
            f"{owing} minor units are owed and not under way to come back.", pointer="/amount_minor"
        )
    ledger.post(
        idempotency_key=f"writeoff:{approval.pk}",
        kind=EntryKind.OWNER_WRITE_OFF,
        subject_id=owner.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.BAD_DEBT, currency=approval.currency),
            credited=_account(owner=owner, currency=approval.currency),
            amount=approval.amount_minor,
        ),
    )
    events.record(
        organization=owner,
        kind=EventKind.OWNER_DEBT_WRITTEN_OFF,
        object_id=approval.pk,
        data={"amount_minor": approval.amount_minor, "currency": approval.currency},
        at=at,
        key=f"{approval.pk}:{EventKind.OWNER_DEBT_WRITTEN_OFF.value}",
    )


def _candidates(*, at: dt.datetime) -> Iterator[tuple[str, str]]:
    """Yield owners with a debt of which a part is overdue, by currency; those whom it helps to ask."""
    recent = Reversal.objects.filter(
        created_at__gt=at - dt.timedelta(seconds=ASK_AGAIN_SECONDS),
        transfer__owner=OuterRef("organization"),
        transfer__currency=OuterRef("currency"),
    )
    with_room = Transfer.objects.filter(
        owner=OuterRef("organization"),
        currency=OuterRef("currency"),
        status=TransferStatus.PAID,
        reversed_minor__lt=F("amount_minor"),
    )
    signed = Case(
        When(postings__side=Side.DEBIT, then=F("postings__amount")), default=-F("postings__amount")
    )
    owing = (
        Account.objects.filter(~Exists(recent), Exists(with_room), kind=AccountKind.OWNER_CLAWBACK)
        .annotate(owed_minor=Sum(signed))
        .filter(owed_minor__gt=0)
        .select_related("organization")
        .order_by("pk")
    )
    count = 0
    for account in owing:
        owner, currency = account.organization, account.currency
        if owner is None or not overdue_minor(owner=owner, currency=currency, at=at):
            continue
        yield owner.pk, currency
        count += 1
        if count == OWNERS_PER_RUN_MAX:
            return


def _collect(*, owner_id: str, currency: str, at: dt.datetime) -> bool:
    owner = (
        Organization.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(pk=owner_id)
        .first()
    )
    if owner is None:
        return False
    overdue = overdue_minor(owner=owner, currency=currency, at=at)
    return bool(
        overdue and transfers.take_back(owner=owner, currency=currency, amount_minor=overdue, at=at)
    )


def _account(*, owner: Organization, currency: str) -> ledger.AccountRef:
    return accounts.of_owner(kind=AccountKind.OWNER_CLAWBACK, owner=owner, currency=currency)
