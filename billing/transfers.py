"""Send to owners what is due: one transfer per payout, another only when the first has surely failed."""

import datetime as dt

from django.db import transaction
from django.db.models import F, Sum

from billing import intents, onboarding, parking, payouts, runs
from billing.models import Payout, PayoutAccount, ProviderTransition, Reversal, Transfer
from billing.provider_states import (
    REVERSAL_ARROWS,
    TRANSFER_ARROWS,
    IntentKind,
    Machine,
    ReversalStatus,
    TransferStatus,
)
from billing.provider_values import ProviderTransfer
from billing.states import PayoutStatus
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.models import Organization
from marketplace.states import EventKind

ACTOR = "billing.transfers"
PAYOUTS_PER_RUN_MAX = 50
# A balance that does not suffice, or an account that lacks a paper, is not mended within the hour.
RETRY_SECONDS = 3600
# The provider's word for an account that may not receive any more.
DISABLED = "insufficient_capabilities_for_transfer"


def send_due(*, at: dt.datetime) -> int:
    """Ask for the transfers of the payouts that are due; return how many.

    An owner without an account that may receive keeps its payouts due. Safe to run side by side.
    """
    due = Payout.objects.filter(status__in=(PayoutStatus.DUE, PayoutStatus.FAILED), due_at__lte=at)
    able = PayoutAccount.objects.filter(
        receives=True, usable_at__lte=at, retired_at__isnull=True
    ).values("owner")
    recent = Transfer.objects.filter(created_at__gt=at - dt.timedelta(seconds=RETRY_SECONDS))
    ids = (
        due.filter(owner__in=able)
        .exclude(owner__in=parking.parked())
        .exclude(pk__in=recent.values("payout"))
        .order_by("due_at", "pk")
        .values_list("pk", flat=True)[:PAYOUTS_PER_RUN_MAX]
    )
    return runs.one_by_one(ids, lambda pk: send(payout_id=pk, at=at), name="send_payouts")


@transaction.atomic
def send(*, payout_id: str, at: dt.datetime) -> bool:
    """Send one payout; say whether it was this call that did it."""
    payout = (
        Payout.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=payout_id, status__in=(PayoutStatus.DUE, PayoutStatus.FAILED))
        .select_related("owner")
        .first()
    )
    if payout is None or parking.is_parked(organizations=[payout.owner]):
        return False
    account = onboarding.current(owner=payout.owner, at=at)
    if account is None or not account.receives:
        return False
    if payout.status == PayoutStatus.FAILED:
        payouts.retry(payout_id=payout.pk, at=at, actor=ACTOR)
    payouts.send(payout_id=payout.pk, at=at, actor=ACTOR)
    transfer = Transfer.objects.create(
        owner=payout.owner,
        account=account,
        payout=payout,
        status=TransferStatus.SENDING,
        amount_minor=payout.amount_minor,
        currency=payout.currency,
        created_at=at,
    )
    _note(transfer, from_status="", reason="", at=at)
    intents.write(
        kind=IntentKind.TRANSFER,
        subject_id=transfer.pk,
        organization=payout.owner,
        params={
            "account_id": account.provider_id,
            "amount_minor": payout.amount_minor,
            "currency": payout.currency,
            "transfer_group": payout.pk,
            "metadata": {"owner": payout.owner_id, "payout": payout.pk, "transfer": transfer.pk},
        },
        at=at,
    )
    return True


@transaction.atomic
def apply(*, transfer_id: str, made: ProviderTransfer, at: dt.datetime) -> Transfer:
    """Take over what the provider says of a transfer. Safe to call with the same, or with older news."""
    transfer = _locked(transfer_id)
    if transfer.status == TransferStatus.SENDING:
        Transfer.objects.filter(pk=transfer.pk).update(provider_id=made.id)
        _move(transfer, to=TransferStatus.PAID, reason="", at=at)
        payouts.confirm(payout_id=transfer.payout_id, at=at, actor=ACTOR)
        _tell(transfer, kind=EventKind.PAYOUT_SENT, at=at)
    return transfer


@transaction.atomic
def refused(*, transfer_id: str, code: str, at: dt.datetime) -> None:
    """Give the money back to what is payable: the provider would not send it."""
    transfer = _locked(transfer_id)
    if transfer.status != TransferStatus.SENDING:
        return
    Transfer.objects.filter(pk=transfer.pk).update(failure_code=code[:100])
    transfer.failure_code = code[:100]
    _move(transfer, to=TransferStatus.FAILED, reason=code, at=at)
    payouts.fail(payout_id=transfer.payout_id, at=at, actor=ACTOR)
    if code == DISABLED:
        PayoutAccount.objects.filter(pk=transfer.account_id).update(receives=False)
    _tell(transfer, kind=EventKind.PAYOUT_FAILED, at=at)


@transaction.atomic
def take_back(
    *, owner: Organization, currency: str, amount_minor: int, at: dt.datetime
) -> list[Reversal]:
    """Ask the provider to take back what an owner owes, from the newest transfers; each as often as it takes.

    What is no longer there is refused by the provider and stays owed: it is netted with what comes next.
    While the owner's money is parked the provider is not asked.
    """
    asked = []
    paid = Transfer.objects.select_for_update(no_key=True, of=("self",)).filter(
        owner=owner,
        currency=currency,
        status=TransferStatus.PAID,
        reversed_minor__lt=F("amount_minor"),
    )
    for transfer in paid.order_by("-pk"):
        under_way = transfer.reversals.filter(status=ReversalStatus.ASKED)
        promised = under_way.aggregate(sum=Sum("amount_minor"))["sum"] or 0
        part = min(amount_minor, transfer.amount_minor - transfer.reversed_minor - promised)
        if part <= 0:
            continue
        amount_minor -= part
        reversal = Reversal.objects.create(transfer=transfer, amount_minor=part, created_at=at)
        _note_reversal(reversal, from_status="", reason="", at=at)
        intents.write(
            kind=IntentKind.REVERSAL,
            subject_id=reversal.pk,
            organization=owner,
            params={
                "transfer_id": transfer.provider_id,
                "amount_minor": part,
                "metadata": {
                    "owner": owner.pk,
                    "transfer": transfer.pk,
                    "reversal": reversal.pk,
                },
            },
            at=at,
        )
        asked.append(reversal)
        if not amount_minor:
            break
    return asked


@transaction.atomic
def taken_back(*, reversal_id: str, made: ProviderTransfer, at: dt.datetime) -> None:
    """Record what came back of a transfer: the owner owes that much less. Once per reversal."""
    reversal = _locked_reversal(reversal_id)
    if reversal.status != ReversalStatus.ASKED:
        return
    transfer = _locked(reversal.transfer_id)
    _close_reversal(reversal, to=ReversalStatus.DONE, reason="", at=at, provider_id=made.id)
    payouts.record_reversal(
        owner=transfer.owner,
        reversal_id=made.id,
        amount_minor=made.amount_minor,
        currency=made.currency,
        at=at,
    )
    transfer.reversed_minor += made.amount_minor
    transfer.save(update_fields=["reversed_minor"])
    if transfer.reversed_minor == transfer.amount_minor:
        _move(transfer, to=TransferStatus.REVERSED, reason="", at=at)


@transaction.atomic
def not_taken_back(*, reversal_id: str, code: str, at: dt.datetime) -> None:
    """Give up one reversal that the provider refused: what it was for stays owed."""
    reversal = _locked_reversal(reversal_id)
    if reversal.status == ReversalStatus.ASKED:
        _close_reversal(
            reversal, to=ReversalStatus.REFUSED, reason=code, at=at, failure_code=code[:100]
        )


def _locked_reversal(reversal_id: str) -> Reversal:
    return Reversal.objects.select_for_update(no_key=True).get(pk=reversal_id)


def _close_reversal(
    reversal: Reversal, *, to: ReversalStatus, reason: str, at: dt.datetime, **changes: str
) -> None:
    """Compare and set; the row is locked by the caller."""
    came_from = ReversalStatus(reversal.status)
    changed = REVERSAL_ARROWS.allows(came_from, to) and Reversal.objects.filter(
        pk=reversal.pk, status=came_from
    ).update(status=to, closed_at=at, **changes)
    if not changed:
        raise StateConflict(f"{reversal.pk} is {came_from}; it cannot become {to}")
    reversal.status = to
    _note_reversal(reversal, from_status=came_from, reason=reason, at=at)


def _note_reversal(reversal: Reversal, *, from_status: str, reason: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.REVERSAL,
        subject_id=reversal.pk,
        from_status=from_status,
        to_status=reversal.status,
        reason=reason[:100],
        at=at,
    )


def _locked(transfer_id: str) -> Transfer:
    return (
        Transfer.objects.select_for_update(no_key=True, of=("self",))
        .select_related("owner")
        .get(pk=transfer_id)
    )


def _tell(transfer: Transfer, *, kind: EventKind, at: dt.datetime) -> None:
    events.record(
        organization=transfer.owner,
        kind=kind,
        object_id=transfer.payout_id,
        data={
            "amount_minor": transfer.amount_minor,
            "currency": transfer.currency,
            "code": transfer.failure_code or None,
        },
        at=at,
        key=f"{transfer.pk}:{kind.value}",
    )


def _move(transfer: Transfer, *, to: TransferStatus, reason: str, at: dt.datetime) -> None:
    """Compare and set; the row is locked by the caller."""
    came_from = TransferStatus(transfer.status)
    changed = TRANSFER_ARROWS.allows(came_from, to) and Transfer.objects.filter(
        pk=transfer.pk, status=came_from
    ).update(status=to, closed_at=at)
    if not changed:
        raise StateConflict(f"{transfer.pk} is {came_from}; it cannot become {to}")
    transfer.status = to
    _note(transfer, from_status=came_from, reason=reason, at=at)


def _note(transfer: Transfer, *, from_status: str, reason: str, at: dt.datetime) -> None:
    ProviderTransition.objects.create(
        machine=Machine.TRANSFER,
        subject_id=transfer.pk,
        from_status=from_status,
        to_status=transfer.status,
        reason=reason[:100],
        at=at,
    )
