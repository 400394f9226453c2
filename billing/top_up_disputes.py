"""Card holders who ask their bank for the money of a top-up back.

The money and a fee leave our balance when a dispute opens, and the money comes back when it is won. While it
is open its amount is withheld from the tenant's wallet, as far as the wallet goes: what is there at its
opening, and what comes in later, so that a cancellation does not bring back to be spent what a bank has
taken already. A payment for a reservation buys it in the transaction in which it comes, and is not withheld.
Won, what was withheld is in the wallet again; lost, it closes the hold, and what it does not cover the tenant
owes: whatever comes into its wallet next pays that.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction
from django.db.models import (
    BigIntegerField,
    Exists,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
)
from django.db.models.functions import Coalesce, Concat

from billing import disputes, intents, ledger, parking, promotions, receivables, runs, wallet
from billing.models import Account, Entry, Payment, ProviderTransition, TopUpDispute
from billing.provider_states import Machine
from billing.provider_values import ProviderDispute
from billing.states import DISPUTE_ARROWS, AccountKind, DisputeStatus, EntryKind
from marketplace import events
from marketplace.core.errors import StateConflict
from marketplace.models import Organization
from marketplace.states import EventKind


@transaction.atomic
def apply(*, payment: Payment, made: ProviderDispute, at: dt.datetime) -> TopUpDispute:
    """Take over what the provider says of a dispute. Safe to call with the same, or with older news."""
    receivables.lock(payment.organization)
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
    dispute = _locked(made.id)
    _square(dispute, at=at)
    if is_new:
        _tell(dispute, kind=EventKind.DISPUTE_OPENED, at=at)
    end = disputes.end_of(made)
    if end is not None and dispute.status == DisputeStatus.OPEN:
        if end == DisputeStatus.LOST:
            _post_loss(dispute, at=at)
        else:
            _post_return(dispute, at=at)
        _move(dispute, to=end, at=at)
        _square(dispute, at=at)
        _tell(dispute, kind=EventKind.DISPUTE_CLOSED, at=at)
    return dispute


def square_due(*, at: dt.datetime) -> int:
    """Withhold, give back and collect what has become possible since; return of how many disputes.

    Those of tenants whose money is parked wait. Safe to run twice or side by side.
    """
    ids = list(_to_square().values_list("pk", flat=True)[: intents.INTENTS_PER_RUN_MAX])
    return runs.one_by_one(ids, lambda pk: _square_one(pk, at=at), name="square_disputes")


@transaction.atomic
def square(*, organization: Organization, at: dt.datetime) -> None:
    """Do the same for one tenant, before its wallet is spent or withdrawn from.

    The caller holds no lock on an account. The tenant's promotions, which a purchase spends as well, are
    locked before its wallet.
    """
    ids = list(_to_square().filter(payment__organization=organization).values_list("pk", flat=True))
    if not ids:
        return
    receivables.lock(organization)
    promotions.lock_minor(organization=organization, currency=settings.CURRENCY, at=at)
    for pk in ids:
        _square_one(pk, at=at)


def holds_back(*, payment: Payment) -> bool:
    """Say whether a bank has the money of a payment, or may get it: then none of it goes back otherwise."""
    taken = (DisputeStatus.OPEN, DisputeStatus.LOST)
    return TopUpDispute.objects.filter(payment=payment, status__in=taken).exists()


def withheld_minor(*, organization: Organization, currency: str) -> int:
    """Return what is withheld from a tenant's wallet, in minor units."""
    return _sum(
        Account.objects.filter(
            organization=organization, currency=currency, kind=AccountKind.DISPUTE_WITHHELD
        )
    )


def owed_minor(*, organization: Organization, currency: str) -> int:
    """Return what a tenant owes of disputes that were lost, in minor units."""
    lost = TopUpDispute.objects.filter(
        payment__organization=organization, status=DisputeStatus.LOST
    )
    return _sum(
        Account.objects.filter(
            organization=organization,
            currency=currency,
            kind=AccountKind.RECEIVABLE,
            balance__gt=0,
            subject_id__in=lost.values("pk"),
        )
    )


def hold(*, dispute: TopUpDispute) -> ledger.AccountRef:
    """Return the account of what was taken from us while a dispute is open."""
    return ledger.AccountRef(
        AccountKind.DISPUTE_HOLD, dispute.currency, dispute.pk, dispute.payment.organization
    )


def withheld(*, dispute: TopUpDispute) -> ledger.AccountRef:
    """Return the account of what was taken out of the wallet for a dispute."""
    return ledger.AccountRef(
        AccountKind.DISPUTE_WITHHELD, dispute.currency, dispute.pk, dispute.payment.organization
    )


def owed(*, dispute: TopUpDispute) -> ledger.AccountRef:
    """Return the account of what the tenant owes since a dispute was lost."""
    return receivables.account(
        organization=dispute.payment.organization,
        invoice_id=dispute.pk,
        currency=dispute.currency,
    )


def _to_square() -> QuerySet[TopUpDispute]:
    """Return the disputes of which something can be withheld, given back or collected, the oldest first."""
    missing = Q(status=DisputeStatus.OPEN, kept__lt=F("amount_minor"))
    missing |= Q(status=DisputeStatus.LOST, debt__gt=0)
    return (
        TopUpDispute.objects.annotate(
            kept=_balance(AccountKind.DISPUTE_WITHHELD),
            debt=_balance(AccountKind.RECEIVABLE),
            has_money=Exists(_purses()),
        )
        .filter(Q(status=DisputeStatus.WON, kept__gt=0) | missing & Q(has_money=True))
        .exclude(payment__organization__in=parking.parked())
        .order_by("opened_at", "pk")
    )


def _purses() -> QuerySet[Account]:
    """Return the wallet of a dispute's tenant, if anything is in it."""
    return Account.objects.filter(
        code=Concat(Value(f"{AccountKind.WALLET}:"), OuterRef("payment__organization")),
        currency=OuterRef("currency"),
        balance__gt=0,
    )


def _balance(kind: AccountKind) -> Coalesce:
    """Return what the account of a dispute holds, as its guard keeps it."""
    kept = Account.objects.filter(
        code=Concat(Value(f"{kind}:"), OuterRef("pk")), currency=OuterRef("currency")
    )
    return Coalesce(Subquery(kept.values("balance")), Value(0), output_field=BigIntegerField())


def _sum(rows: QuerySet[Account]) -> int:
    return rows.aggregate(sum=Sum("balance"))["sum"] or 0


@transaction.atomic
def _square_one(dispute_id: str, *, at: dt.datetime) -> bool:
    owner = TopUpDispute.objects.select_related("payment__organization").get(pk=dispute_id)
    receivables.lock(owner.payment.organization)
    return _square(_locked(dispute_id), at=at)


def _square(dispute: TopUpDispute, *, at: dt.datetime) -> bool:
    """Move between wallet and dispute what its state asks for, as far as the wallet goes; say whether any.

    The caller has locked the tenant and the dispute. Nothing of parked money moves.
    """
    if parking.is_parked(organizations=[dispute.payment.organization]):
        return False
    purse = wallet.account(organization=dispute.payment.organization, currency=dispute.currency)
    kept = ledger.kept_balance(account=withheld(dispute=dispute))
    match DisputeStatus(dispute.status):
        case DisputeStatus.OPEN:
            kind, debited, credited = EntryKind.DISPUTE_WITHHELD, purse, withheld(dispute=dispute)
            wanted = min(ledger.locked_balance(account=purse), dispute.amount_minor - kept)
        case DisputeStatus.WON:
            kind, debited, credited = EntryKind.DISPUTE_RELEASED, withheld(dispute=dispute), purse
            wanted = kept
        case DisputeStatus.LOST:
            kind, debited, credited = EntryKind.DISPUTE_REPAID, purse, owed(dispute=dispute)
            wanted = min(
                ledger.locked_balance(account=purse), ledger.kept_balance(account=credited)
            )
    if wanted <= 0:
        return False
    number = Entry.objects.filter(kind=kind, subject_id=dispute.payment_id).count() + 1
    ledger.post(
        idempotency_key=f"{kind}:{dispute.pk}:{number}",
        kind=kind,
        subject_id=dispute.payment_id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=credited, amount=wanted),
    )
    return True


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


def _post_loss(dispute: TopUpDispute, *, at: dt.datetime) -> None:
    """Close the hold with what was withheld; what that does not cover the tenant owes from now on."""
    kept = ledger.kept_balance(account=withheld(dispute=dispute))
    ledger.post(
        idempotency_key=f"dispute:{dispute.pk}:closed",
        kind=EntryKind.DISPUTE_LOST,
        subject_id=dispute.payment_id,
        effective_at=at,
        legs=ledger.differences(
            [
                (withheld(dispute=dispute), hold(dispute=dispute), kept),
                (owed(dispute=dispute), hold(dispute=dispute), dispute.amount_minor - kept),
            ]
        ),
    )


def _available(dispute: TopUpDispute) -> ledger.AccountRef:
    return ledger.AccountRef(AccountKind.STRIPE_AVAILABLE, dispute.currency)


def _locked(dispute_id: str) -> TopUpDispute:
    return (
        TopUpDispute.objects.select_for_update(no_key=True, of=("self",))
        .select_related("payment__organization")
        .get(pk=dispute_id)
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
            "withheld_minor": ledger.kept_balance(account=withheld(dispute=dispute)),
            "owed_minor": ledger.kept_balance(account=owed(dispute=dispute)),
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
