"""What takes two people: large refunds, write-offs, credit, remitted tax, silent leases, unparking money, and
where money goes of which nobody knew whose it is.

One person asks, another one decides; PostgreSQL refuses one who does both. What was asked for happens in the
transaction of the decision, or the decision does not stand.
"""

import datetime as dt

from django.conf import settings
from django.db import IntegrityError, transaction

from billing import (
    clawbacks,
    credit,
    ledger,
    owner_debts,
    parking,
    promotions,
    receivables,
    refunds,
    silences,
    single_decisions,
    suspense,
    tax_remittances,
    withdrawals,
)
from billing.models import NET_DAYS, Approval, ApprovalTransition
from billing.states import (
    APPROVAL_ARROWS,
    MARKETS_OWN,
    RESOLUTIONS,
    RULINGS,
    ApprovalKind,
    ApprovalStatus,
)
from marketplace import audit
from marketplace.core.errors import DomainError, InvalidValue, StateConflict
from marketplace.core.money import Money
from marketplace.models import Organization

PROMOTION_LIFE_MAX = dt.timedelta(days=730)  # a gift that never ends is a debt for ever


class FourEyesNeeded(DomainError):
    """Whoever asked for it cannot let it happen: that takes somebody else."""

    code = "four_eyes_needed"
    title = "This takes a second person"


@transaction.atomic
def request(
    *,
    kind: ApprovalKind,
    organization: Organization | None,
    subject_id: str,
    amount: Money,
    reason: str,
    at: dt.datetime,
    actor: str,
    net_days: int | None = None,
    expires_at: dt.datetime | None = None,
) -> Approval:
    """Ask for a movement of money; small refunds and promotions happen at once, all else takes two people.

    A write-off is of an invoice, or of what an owner owes: then its subject is the owner itself.
    For credit the amount is the limit, and `net_days` the time to pay an invoice; a limit of 0 ends it. A
    promotion can be spent until `expires_at`.
    What concerns the market alone has no organization, such as tax that goes to a tax office.

    :raises InvalidValue: without a reason or whose it is, when the same is being asked for already, or with
        terms of credit that nobody gives.
    :raises DomainError: whatever refuses a small refund, or a remittance as things stand.
    """
    if not reason.strip():
        raise InvalidValue("Say why.", pointer="/reason")
    if (organization is None) != (kind in MARKETS_OWN):
        raise InvalidValue(
            "Say whose it is; the market's own is nobody's.", pointer="/organization"
        )
    _check_remittance(kind=kind, subject_id=subject_id, amount=amount, at=at)
    if kind in RULINGS:
        silences.require_open(lease_id=subject_id, organization=organization)
    if kind in RESOLUTIONS:
        suspense.require_open(
            kind=kind, organization=organization, item_id=subject_id, amount=amount
        )
    _check_credit(kind=kind, organization=organization, amount=amount, net_days=net_days)
    _check_promotion(
        kind=kind, organization=organization, amount=amount, expires_at=expires_at, at=at
    )
    approval = Approval(
        kind=kind,
        organization=organization,
        subject_id=subject_id,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        net_days=net_days,
        expires_at=expires_at,
        reason=reason.strip(),
        requested_by=actor,
        requested_at=at,
    )
    _insert(approval)
    ApprovalTransition.objects.create(
        approval=approval, from_status="", to_status=approval.status, actor=actor, at=at
    )
    if single_decisions.is_enough(
        kind=kind, subject_id=subject_id, amount=amount, actor=actor, at=at
    ):
        alone = single_decisions.decider(actor=actor)
        _decide(approval, to=ApprovalStatus.APPROVED, at=at, actor=alone)
        _carry_out(approval, at=at)
    _trail(approval, action="approval.requested", at=at, actor=actor)
    return approval


@transaction.atomic
def approve(*, approval_id: str, at: dt.datetime, actor: str) -> Approval:
    """Take the arrow requested → approved, and let it happen.

    :raises FourEyesNeeded: when the same person asked for it.
    :raises StateConflict: when it was decided before.
    :raises DomainError: whatever refuses the movement itself; then it is not approved.
    """
    approval = Approval.objects.select_related("organization").get(pk=approval_id)
    _decide(approval, to=ApprovalStatus.APPROVED, at=at, actor=actor)
    _carry_out(approval, at=at)
    _trail(approval, action="approval.approved", at=at, actor=actor)
    return approval


@transaction.atomic
def refuse(*, approval_id: str, at: dt.datetime, actor: str) -> Approval:
    """Take the arrow requested → refused: nothing happens.

    :raises FourEyesNeeded: when the same person asked for it.
    :raises StateConflict: when it was decided before.
    """
    approval = Approval.objects.select_related("organization").get(pk=approval_id)
    _decide(approval, to=ApprovalStatus.REFUSED, at=at, actor=actor)
    if approval.kind == ApprovalKind.WITHDRAWAL:
        withdrawals.refuse(approval=approval, at=at)
    _trail(approval, action="approval.refused", at=at, actor=actor)
    return approval


def _carry_out(approval: Approval, *, at: dt.datetime) -> None:
    kind, organization = ApprovalKind(approval.kind), approval.organization
    if organization is None:
        _carry_out_for_market(approval, kind=kind, at=at)
        return
    match kind:
        case ApprovalKind.REFUND:
            refunds.give(
                organization=organization,
                subject_id=approval.subject_id,
                amount=Money(approval.amount_minor, approval.currency),
                key=approval.id,
                at=at,
            )
        case ApprovalKind.WRITE_OFF if approval.subject_id == organization.pk:
            owner_debts.write_off(approval=approval, at=at)
        case ApprovalKind.WRITE_OFF:
            receivables.write_off(
                organization=organization,
                invoice_id=approval.subject_id,
                amount_minor=approval.amount_minor,
                currency=approval.currency,
                decision_id=approval.id,
                at=at,
            )
        case ApprovalKind.CREDIT:
            credit.grant(approval=approval, at=at)
        case ApprovalKind.DISPUTE:
            clawbacks.charge(approval=approval, at=at)
        case ApprovalKind.PROMOTION:
            promotions.grant(approval=approval, at=at)
        case ApprovalKind.WITHDRAWAL:
            withdrawals.carry_out(approval=approval, at=at)
        case ApprovalKind.UNPARK:
            parking.end(organization=organization, at=at, actor=approval.decided_by)
        case ApprovalKind.SILENCE_DELIVERED | ApprovalKind.SILENCE_REFUNDED:
            # The ruling is the approval itself; the next run settles by it.
            silences.require_open(
                lease_id=approval.subject_id, organization=organization, but=approval
            )
        case ApprovalKind.SUSPENSE_WALLET:
            suspense.resolve(approval=approval, at=at)
        case (
            ApprovalKind.TAX_REMITTANCE
            | ApprovalKind.REMITTANCE_REVERSAL
            | ApprovalKind.SUSPENSE_BANK
            | ApprovalKind.SUSPENSE_FEES
            | ApprovalKind.SUSPENSE_MARKET
        ):
            raise AssertionError(f"{approval.pk} is the market's own")


def _carry_out_for_market(approval: Approval, *, kind: ApprovalKind, at: dt.datetime) -> None:
    if kind == ApprovalKind.TAX_REMITTANCE:
        tax_remittances.remit(approval=approval, at=at)
    elif kind in RESOLUTIONS:
        suspense.resolve(approval=approval, at=at)
    else:
        assert kind == ApprovalKind.REMITTANCE_REVERSAL, approval
        tax_remittances.take_back(approval=approval, at=at)


def _insert(approval: Approval) -> None:
    """Keep a request, of which one at a time waits for its decision.

    :raises InvalidValue: when the same is being asked for already.
    """
    try:
        with transaction.atomic():
            approval.save(force_insert=True)
    except IntegrityError as error:
        if ledger.violated_constraint(error) != "approval_is_asked_for_once":
            raise
        raise InvalidValue("The same is being asked for already.", pointer="/subject_id") from error


def _check_remittance(
    *, kind: ApprovalKind, subject_id: str, amount: Money, at: dt.datetime
) -> None:
    """Refuse to ask for what could not happen now; it is looked at again when it is decided.

    :raises DomainError: then.
    """
    if kind == ApprovalKind.TAX_REMITTANCE:
        tax_remittances.require_open(subject_id=subject_id, amount=amount, at=at)
    elif kind == ApprovalKind.REMITTANCE_REVERSAL:
        tax_remittances.require_standing(remittance_id=subject_id, amount=amount)


def _check_credit(
    *, kind: ApprovalKind, organization: Organization | None, amount: Money, net_days: int | None
) -> None:
    """Refuse terms of credit that nobody gives, and days to pay where none are asked for.

    :raises InvalidValue: then.
    """
    if kind != ApprovalKind.CREDIT:
        if net_days is not None:
            raise InvalidValue("Only credit has days to pay.", pointer="/net_days")
        return
    if net_days not in {days for days, _ in NET_DAYS}:
        known = " or ".join(str(days) for days, _ in NET_DAYS)
        raise InvalidValue(f"An invoice is to be paid within {known} days.", pointer="/net_days")
    if organization is None or not organization.is_tenant:
        raise InvalidValue("Only an organization that buys gets credit.", pointer="/organization")
    if amount.amount_minor < 0 or amount.currency != settings.CURRENCY:
        raise InvalidValue(
            f"A limit is 0 or more, in {settings.CURRENCY.upper()}.", pointer="/amount_minor"
        )


def _check_promotion(
    *,
    kind: ApprovalKind,
    organization: Organization | None,
    amount: Money,
    expires_at: dt.datetime | None,
    at: dt.datetime,
) -> None:
    """Refuse a promotion that cannot be spent, and a day of expiry where there is none.

    :raises InvalidValue: then.
    """
    if kind != ApprovalKind.PROMOTION:
        if expires_at is not None:
            raise InvalidValue("Only a promotion expires.", pointer="/expires_at")
        return
    if expires_at is None or not at < expires_at <= at + PROMOTION_LIFE_MAX:
        raise InvalidValue(
            f"A promotion expires within {PROMOTION_LIFE_MAX.days} days.", pointer="/expires_at"
        )
    if organization is None or not organization.is_tenant:
        raise InvalidValue("Only who buys can spend a promotion.", pointer="/organization")
    if amount.amount_minor <= 0 or amount.currency != settings.CURRENCY:
        raise InvalidValue(
            f"A promotion is 1 or more, in {settings.CURRENCY.upper()}.", pointer="/amount_minor"
        )


def _decide(approval: Approval, *, to: ApprovalStatus, at: dt.datetime, actor: str) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    if actor == approval.requested_by:
        raise FourEyesNeeded(f"{actor} asked for this; somebody else decides it.")
    came_from = ApprovalStatus(approval.status)
    won = APPROVAL_ARROWS.allows(came_from, to) and Approval.objects.filter(
        pk=approval.pk, status=came_from
    ).update(status=to, decided_by=actor, decided_at=at)
    if not won:
        raise StateConflict(f"{approval.pk} was decided before")
    approval.status, approval.decided_by, approval.decided_at = to, actor, at
    ApprovalTransition.objects.create(
        approval=approval, from_status=came_from, to_status=to, actor=actor, at=at
    )


def _trail(approval: Approval, *, action: str, at: dt.datetime, actor: str) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=approval.id,
        organization=approval.organization,
        detail={
            "kind": approval.kind,
            "subject_id": approval.subject_id,
            "amount_minor": approval.amount_minor,
            "currency": approval.currency,
            **({"net_days": approval.net_days} if approval.net_days is not None else {}),
        },
    )
