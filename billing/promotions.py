"""Money of ours that a tenant may spend until a day: granted, spent before anything else, expired.

A purchase from the wallet spends what expires first, then its own money. What comes back of it comes back in
the reverse order: the tenant's money first, then the promotion's, to where it came from while that can be
spent, and to us when it has expired. So no promotion ever becomes money that can be withdrawn.
"""

import datetime as dt
import logging
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet, Sum, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat

from billing import accounts, ledger, parking, tax
from billing.models import (
    Account,
    Approval,
    Correction,
    EarnedHour,
    Entry,
    Posting,
    Promotion,
    Resale,
    Settlement,
)
from billing.states import AccountKind, EntryKind, Side
from marketplace import audit, events
from marketplace.core.money import Money
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Reservation

logger = logging.getLogger(__name__)

GRANTS_PER_PURCHASE_MAX = 20  # each is an entry; who has more spends the rest next time
EXPIRIES_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest


@transaction.atomic
def grant(*, approval: Approval, at: dt.datetime) -> Promotion:
    """Let a tenant spend an amount of ours until a day, as it was decided; once per decision.

    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    organization = approval.organization
    assert organization is not None, approval.pk
    assert approval.expires_at is not None, approval.pk
    made = Promotion.objects.create(
        organization=organization,
        approval=approval,
        amount_minor=approval.amount_minor,
        currency=approval.currency,
        granted_at=at,
        expires_at=approval.expires_at,
    )
    ledger.post(
        idempotency_key=f"promo:{made.pk}",
        kind=EntryKind.PROMOTION,
        subject_id=made.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.PROMO_COST, currency=made.currency),
            credited=account(made),
            amount=made.amount_minor,
        ),
    )
    audit.record(
        at=at,
        actor=approval.decided_by,
        action="promotion.granted",
        object_id=made.pk,
        organization=organization,
        detail={"amount_minor": made.amount_minor, "currency": made.currency},
    )
    _tell(made, kind=EventKind.PROMOTION_GRANTED, at=at)
    return made


def standing(
    *, organization: Organization, currency: str, at: dt.datetime
) -> list[tuple[Promotion, Money]]:
    """Return what a tenant can spend of each promotion, in the order in which it is spent."""
    held = [(each, _left(each)) for each in _usable(organization, currency=currency, at=at)]
    return [(each, Money(left, currency)) for each, left in held if left]


def lock_minor(*, organization: Organization, currency: str, at: dt.datetime) -> int:
    """Return what a purchase can spend of promotions, in minor units.

    Nobody else spends or expires any of them until the caller's transaction ends.
    """
    return sum(left for _, left in _locked(organization, currency=currency, at=at))


@transaction.atomic
def spend(*, reservation: Reservation, amount_minor: int, key: str, at: dt.datetime) -> int:
    """Pay a part of a price and its tax into the wallet, ahead of its purchase; return how much that was.

    `key` names what is bought: the reservation or a change of it. The purchase then finds the money in the
    wallet: both belong into one transaction.
    """
    organization, currency = reservation.organization, reservation.currency
    wanted = amount_minor
    for each, left in _locked(organization, currency=currency, at=at):
        part = min(left, wanted)
        if not part:
            continue
        ledger.post(
            idempotency_key=f"promo:{each.pk}:{key}",
            kind=EntryKind.PROMOTION_SPENT,
            subject_id=reservation.id,
            effective_at=at,
            legs=ledger.transfer(
                debited=account(each),
                credited=accounts.wallet(organization=organization, currency=currency),
                amount=part,
            ),
        )
        wanted -= part
    return amount_minor - wanted


def lock_spent(*reservations: Reservation) -> None:
    """Lock what paid for some reservations, before anything of them goes back to a wallet."""
    spent = {pk for each in reservations for pk in _spent(each)}
    if spent:
        _locked_rows(spent)


def take_back(*, reservation: Reservation, refunded_minor: int, at: dt.datetime) -> int:
    """Take out of the wallet what of a refund was a promotion's; return how much that was.

    The refund is in the wallet by the caller's transaction, which has locked the reservation, and then what
    paid for it: `lock_spent`. What the reservation still keeps is paid by promotions as far as they go: what
    they paid beyond that is theirs.
    """
    wanted = min(surplus_minor(reservation=reservation), refunded_minor)
    if not wanted:
        return 0
    spent, returned = _spent(reservation), _returned(reservation)
    number = Entry.objects.filter(
        kind=EntryKind.PROMOTION_RETURNED, subject_id=reservation.id
    ).count()
    purse = accounts.wallet(organization=reservation.organization, currency=reservation.currency)
    left = wanted
    # What was spent last comes back first: it can be spent for the longest time.
    for each in sorted(_locked_rows(spent), key=lambda row: (row.expires_at, row.pk), reverse=True):
        part = min(left, spent[each.pk] - returned.get(each.pk, 0))
        if not part:
            continue
        number += 1
        ours = accounts.shared(kind=AccountKind.BREAKAGE, currency=reservation.currency)
        # Its own account keeps what was returned to it, and an expired one hands it on at once.
        ledger.post(
            idempotency_key=f"promo_returned:{reservation.id}:{number}",
            kind=EntryKind.PROMOTION_RETURNED,
            subject_id=reservation.id,
            effective_at=at,
            legs=ledger.transfer(debited=purse, credited=account(each), amount=part),
        )
        if each.expired_at is not None:
            _post_expiry(
                each, amount=part, key=f"{each.pk}:{reservation.id}:{number}", to=ours, at=at
            )
        left -= part
    assert not left, (reservation.pk, left)
    return wanted


def surplus_minor(*, reservation: Reservation) -> int:
    """Return what promotions paid of a reservation beyond what it keeps, and did not get back."""
    used = sum(_spent(reservation).values()) - sum(_returned(reservation).values())
    return max(used - _kept_minor(reservation), 0) if used else 0


def expire_due(*, at: dt.datetime) -> int:
    """Take back what nobody has spent in time; return how many grants ended. Safe to run side by side."""
    due = Promotion.objects.filter(expired_at__isnull=True, expires_at__lte=at)
    ids = due.order_by("expires_at").values_list("pk", flat=True)[:EXPIRIES_PER_RUN_MAX]
    ended = 0
    for promotion_id in ids:
        try:
            ended += expire(promotion_id=promotion_id, at=at)
        except Exception:
            logger.exception("promotion %s could not be ended", promotion_id)
    return ended


@transaction.atomic
def expire(*, promotion_id: str, at: dt.datetime) -> bool:
    """Take back what is left of one grant; say whether it was this call that did it."""
    row = (
        Promotion.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(pk=promotion_id, expired_at__isnull=True, expires_at__lte=at)
        .select_related("organization")
        .first()
    )
    if row is None or parking.is_parked(organizations=[row.organization]):
        return False
    ours = accounts.shared(kind=AccountKind.BREAKAGE, currency=row.currency)
    left = _left(row)
    _post_expiry(row, amount=left, key=row.pk, to=ours, at=at)
    Promotion.objects.filter(pk=row.pk).update(expired_at=at)
    _tell(row, kind=EventKind.PROMOTION_EXPIRED, at=at, left_minor=left)
    return True


def account(promotion: Promotion) -> ledger.AccountRef:
    """Return the name of the account of one grant."""
    return accounts.of_object(
        kind=AccountKind.PROMO,
        object_id=promotion.pk,
        currency=promotion.currency,
        organization=promotion.organization,
    )


def _tell(promotion: Promotion, *, kind: EventKind, at: dt.datetime, **more: int) -> None:
    events.record(
        organization=promotion.organization,
        kind=kind,
        object_id=promotion.pk,
        data={
            "amount_minor": promotion.amount_minor,
            "currency": promotion.currency,
            "expires_at": format_instant(promotion.expires_at),
            **more,
        },
        at=at,
        key=f"{promotion.pk}:{kind.value}",
    )


def _post_expiry(
    promotion: Promotion, *, amount: int, key: str, to: ledger.AccountRef, at: dt.datetime
) -> None:
    if amount:
        ledger.post(
            idempotency_key=f"promo_expired:{key}",
            kind=EntryKind.PROMOTION_EXPIRY,
            subject_id=promotion.pk,
            effective_at=at,
            legs=ledger.transfer(debited=account(promotion), credited=to, amount=amount),
        )


def _usable(organization: Organization, *, currency: str, at: dt.datetime) -> QuerySet[Promotion]:
    """Return the grants of which something can be spent, in the order in which it is."""
    held = Account.objects.filter(
        code=Concat(Value(f"{AccountKind.PROMO}:"), OuterRef("pk")),
        currency=OuterRef("currency"),
        balance__gt=0,
    )
    return (
        Promotion.objects.visible_to(organization)
        .filter(Exists(held), currency=currency, expired_at__isnull=True, expires_at__gt=at)
        .select_related("organization")
        .order_by("expires_at", "pk")[:GRANTS_PER_PURCHASE_MAX]
    )


def _locked(
    organization: Organization, *, currency: str, at: dt.datetime
) -> list[tuple[Promotion, int]]:
    """Return usable grants with what is left of each, locked by their rows in the order of their ids."""
    ids = [each.pk for each in _usable(organization, currency=currency, at=at)]
    rows = {each.pk: each for each in _locked_rows(ids) if each.expired_at is None}
    return [(rows[pk], _left(rows[pk])) for pk in ids if pk in rows]


def _locked_rows(ids: Iterable[str]) -> list[Promotion]:
    return list(
        Promotion.objects.select_for_update(no_key=True, of=("self",))
        .filter(pk__in=list(ids))
        .select_related("organization")
        .order_by("pk")
    )


def _spent(reservation: Reservation) -> dict[str, int]:
    return _by_grant(reservation, kind=EntryKind.PROMOTION_SPENT, side=Side.DEBIT)


def _returned(reservation: Reservation) -> dict[str, int]:
    return _by_grant(reservation, kind=EntryKind.PROMOTION_RETURNED, side=Side.CREDIT)


def _by_grant(reservation: Reservation, *, kind: EntryKind, side: Side) -> dict[str, int]:
    """Return by grant what a reservation took from it, or gave back to it."""
    moved = Posting.objects.filter(
        account__kind=AccountKind.PROMO,
        entry__kind=kind,
        entry__subject_id=reservation.id,
        side=side,
    )
    return dict(moved.values_list("account__subject_id").annotate(sum=Sum("amount")))


def _kept_minor(reservation: Reservation) -> int:
    """Return what a reservation still costs its tenant with its tax: not given back, earned or not.

    What the market bore of a late correction the tenant never paid; of a fee it got back what was sold again.
    """
    settled = Settlement.objects.filter(lease__reservation=reservation)
    late = Correction.objects.filter(settlement__lease__reservation=reservation)
    hours = EarnedHour.objects.filter(
        lease__reservation=reservation, lease__settlement__isnull=True
    )
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=reservation.currency
    )
    net = (
        ledger.kept_balance(account=deferred)
        + _sum(settled, F("earned_minor"))
        + _sum(late, F("earned_minor") - F("borne_minor"))
        + _sum(hours, F("earned_minor"))
        + _sum(reservation.changes.all(), F("fee_minor"))
    )
    shared = _sum(
        Resale.objects.filter(fee_share__change__reservation=reservation), F("share_minor")
    )
    return tax.gross_minor(net_minor=net, terms=tax.terms_of(reservation=reservation)) - shared


def _sum(rows: QuerySet[Any], column: Combinable) -> int:
    return int(rows.aggregate(sum=Sum(column))["sum"] or 0)


def _left(promotion: Promotion) -> int:
    return ledger.kept_balance(account=account(promotion))
