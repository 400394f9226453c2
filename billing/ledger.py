"""The one place that writes to the books: every entry and every posting comes from `post`.

PostgreSQL enforces what an entry must be (migration `0002_guard_the_books`) and writes it in one call
(`billing_post`, `0003_post_in_one_call`); this module says what is written and puts a refusal into words.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import IntegrityError, connection
from django.db.models import Q, Sum

from billing import parking
from billing.models import Account, Entry, Posting
from billing.states import FACTS, AccountKind, EntryKind, Side
from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.money import Money
from marketplace.models import Organization

LEGS_MAX = 20  # the richest event, a settlement, has eight; more is a mistake in the caller


class InsufficientFunds(DomainError):
    """The wallet does not hold what the purchase costs; nothing was taken."""

    code = "payment_required"
    title = "The wallet does not cover the price"


class EntryMismatch(StateConflict):
    """The idempotency key belongs to an entry with other content."""


@dataclass(frozen=True, slots=True)
class _Nature:
    """What all accounts of a kind have in common."""

    normal_side: Side
    is_guarded: bool


# Only what authorises spending is guarded: a guard on an account that all share costs most of the speed.
_GUARDED = frozenset(
    {
        AccountKind.RECEIVABLE,
        AccountKind.WALLET,
        AccountKind.DISPUTE_WITHHELD,
        AccountKind.PROMO,
        AccountKind.HOLD,
        AccountKind.DEFERRED,
        AccountKind.REFUND_PAYABLE,
        AccountKind.U_OPEN,
    }
)
_DEBIT_NORMAL = frozenset(
    {
        AccountKind.BANK,
        AccountKind.STRIPE_PENDING,
        AccountKind.STRIPE_AVAILABLE,
        AccountKind.STRIPE_RESERVED,
        AccountKind.PSP_CLEARING,
        AccountKind.RECEIVABLE,
        AccountKind.OWNER_CLAWBACK,
        AccountKind.DISPUTE_HOLD,
        AccountKind.PSP_FEES,
        AccountKind.SLA_CREDITS,
        AccountKind.RECLAIM_COST,
        AccountKind.DISPUTE_LOSSES,
        AccountKind.DISPUTE_FEES,
        AccountKind.PROMO_COST,
        AccountKind.BAD_DEBT,
        AccountKind.ROUNDING_FX,
        AccountKind.U_OPEN,
        AccountKind.U_BUSY,
        AccountKind.U_IDLE,
        AccountKind.U_UNDELIVERED,
        AccountKind.U_RELEASED,
    }
)
CHART: dict[AccountKind, _Nature] = {
    kind: _Nature(Side.DEBIT if kind in _DEBIT_NORMAL else Side.CREDIT, is_guarded=kind in _GUARDED)
    for kind in AccountKind
}


@dataclass(frozen=True, slots=True)
class AccountRef:
    """Name an account that need not exist yet: `deferred` of a reservation, in one currency."""

    kind: AccountKind
    currency: str
    subject_id: str = ""
    organization: Organization | None = None

    @property
    def code(self) -> str:
        return f"{self.kind.value}:{self.subject_id}" if self.subject_id else self.kind.value


@dataclass(frozen=True, slots=True)
class _Answer:
    """What `billing_post` says: the entry that has the key, or the wallet that is short."""

    entry_id: str | None
    content_sha256: str | None
    recorded_at: dt.datetime
    transaction_id: int
    is_new: bool
    short_code: str | None
    short_balance: int | None


@dataclass(frozen=True, slots=True)
class Leg:
    """A positive amount on one side of an account: minor units, or whole GPU-seconds."""

    account: AccountRef
    side: Side
    amount: int


def debit(account: AccountRef, *, amount: int) -> Leg:
    return Leg(account, Side.DEBIT, amount)


def credit(account: AccountRef, *, amount: int) -> Leg:
    return Leg(account, Side.CREDIT, amount)


def transfer(*, debited: AccountRef, credited: AccountRef, amount: int) -> list[Leg]:
    """Return the two legs that move an amount, or none for an amount of zero: there are no empty legs."""
    return [debit(debited, amount=amount), credit(credited, amount=amount)] if amount else []


def differences(rows: Iterable[tuple[AccountRef, AccountRef, int]]) -> list[Leg]:
    """Return the legs of some movements (debited, credited, amount) as one entry: one leg per account.

    A negative amount moves the other way; what cancels out leaves no leg.
    """
    sums: dict[tuple[str, str], tuple[AccountRef, int]] = {}
    for debited, credited, amount in rows:
        for account, signed in ((debited, amount), (credited, -amount)):
            place = (account.code, account.currency)
            sums[place] = (account, sums.get(place, (account, 0))[1] + signed)
    return [
        Leg(account, Side.DEBIT if signed > 0 else Side.CREDIT, abs(signed))
        for account, signed in sums.values()
        if signed
    ]


def post(
    *,
    idempotency_key: str,
    kind: EntryKind,
    subject_id: str,
    effective_at: dt.datetime,
    legs: Sequence[Leg],
    reverses: Entry | None = None,
) -> Entry:
    """Write one balanced entry, or return the one that this key wrote before.

    The content of an entry is its kind, subject, legs and what it reverses. `effective_at` is not part of
    it: a repeated call brings a later clock, and the first one stands.

    Outside of a transaction the entry is committed when this returns. A guard that refuses a defect raises
    `IntegrityError`, which ends the caller's transaction.

    :raises InsufficientFunds: when a wallet would fall below zero; nothing of the entry is stored, and the
        caller's transaction stands.
    :raises EntryMismatch: when the key was used for other content.
    :raises parking.MoneyParked: while the money of an organization in it is parked, unless the entry only
        records what has happened: `FACTS`.
    """
    _require_sound(legs)
    if kind not in FACTS:
        owners = {leg.account.organization for leg in legs}
        parking.require_moving(organizations=[owner for owner in owners if owner is not None])
    entry = Entry(
        idempotency_key=idempotency_key,
        content_sha256=_digest(kind=kind, subject_id=subject_id, legs=legs, reverses=reverses),
        kind=kind,
        subject_id=subject_id,
        effective_at=effective_at,
        reverses=reverses,
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT * FROM billing_post(%s, %s, %s, %s, %s, %s, %s, %s::jsonb)",
            [
                entry.id,
                idempotency_key,
                entry.content_sha256,
                kind.value,
                subject_id,
                effective_at,
                reverses.id if reverses else None,
                as_rows(legs),
            ],
        )
        answer = _Answer(*cursor.fetchone())
    if answer.short_code is not None:
        raise _insufficient_funds(legs=legs, answer=answer)
    if answer.is_new:
        entry.recorded_at, entry.transaction_id = answer.recorded_at, answer.transaction_id
        entry._state.adding = False  # noqa: SLF001 - the row stands in the database
        return entry
    if answer.content_sha256 != entry.content_sha256:
        raise EntryMismatch(f"the key {idempotency_key} belongs to an entry with other content")
    return Entry.objects.get(pk=answer.entry_id)


def reverse(*, entry: Entry, idempotency_key: str, at: dt.datetime) -> Entry:
    """Write the mirror image of an entry: the one way to undo it. An entry is reversed at most once.

    :raises InsufficientFunds: when what it credited to a wallet has been spent since.
    :raises EntryMismatch: when the entry was reversed before under another key.
    """
    earlier = Entry.objects.filter(reverses=entry).exclude(idempotency_key=idempotency_key)
    if earlier.exists():
        raise EntryMismatch(f"{entry.id} was reversed before")
    legs = [
        Leg(
            AccountRef(
                AccountKind(posting.account.kind),
                posting.account.currency,
                posting.account.subject_id,
                posting.account.organization,
            ),
            Side.CREDIT if posting.side == Side.DEBIT else Side.DEBIT,
            posting.amount,
        )
        for posting in entry.postings.select_related("account__organization").order_by("id")
    ]
    return post(
        idempotency_key=idempotency_key,
        kind=EntryKind.REVERSAL,
        subject_id=entry.subject_id,
        effective_at=at,
        legs=legs,
        reverses=entry,
    )


def balance(*, account: AccountRef) -> int:
    """Return the balance of an account in its normal side, derived from postings; 0 before the first."""
    normal = Q(side=CHART[account.kind].normal_side)
    sums = Posting.objects.filter(
        account__code=account.code, account__currency=account.currency
    ).aggregate(normal=Sum("amount", filter=normal), other=Sum("amount", filter=~normal))
    return (sums["normal"] or 0) - (sums["other"] or 0)


def is_posted(*, idempotency_key: str) -> bool:
    """Say whether an entry has a key: for a caller whose amounts depend on what is posted."""
    return Entry.objects.filter(idempotency_key=idempotency_key).exists()


def kept_balance(*, account: AccountRef) -> int:
    """Return the balance of a guarded account as its guard keeps it; 0 before the first posting."""
    assert CHART[account.kind].is_guarded, account.kind
    kept = Account.objects.filter(code=account.code, currency=account.currency)
    return kept.values_list("balance", flat=True).first() or 0


def require_funds(*, account: AccountRef, amount: int) -> None:
    """Lock a guarded account until the caller's transaction ends, and refuse when it holds less than that.

    Whoever takes something scarce before it pays calls this first: of all who spend one wallet, those who
    cannot pay then never stand in the way of those who can.

    :raises InsufficientFunds: when it holds less; nothing but the lock is left.
    """
    kept = locked_balance(account=account)
    if kept < amount:
        raise _short(held=kept, amount=amount, currency=account.currency)


def locked_balance(*, account: AccountRef) -> int:
    """Lock a guarded account until the caller's transaction ends; return its balance, or 0."""
    assert CHART[account.kind].is_guarded, account.kind
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT balance FROM billing_account WHERE code = %s AND currency = %s"
            " FOR NO KEY UPDATE",
            [account.code, account.currency],
        )
        row = cursor.fetchone()
    return int(row[0]) if row is not None else 0


def violated_constraint(error: IntegrityError) -> str | None:
    """Return the name of the constraint that PostgreSQL says was violated."""
    diagnosis = getattr(error.__cause__, "diag", None)
    return getattr(diagnosis, "constraint_name", None)


def _require_sound(legs: Sequence[Leg]) -> None:
    """Stop a caller's mistake here, where its cause is in sight; the database would stop it at commit."""
    assert 0 < len(legs) <= LEGS_MAX, len(legs)
    places = {(leg.account.code, leg.account.currency) for leg in legs}
    assert len(places) == len(legs), "one leg per account: merge them"
    sums: dict[str, int] = {}
    for leg in legs:
        assert leg.amount > 0, leg
        signed = leg.amount if leg.side is Side.DEBIT else -leg.amount
        sums[leg.account.currency] = sums.get(leg.account.currency, 0) + signed
    assert not any(sums.values()), sums


def _digest(
    *, kind: EntryKind, subject_id: str, legs: Sequence[Leg], reverses: Entry | None
) -> str:
    content = {
        "kind": kind.value,
        "subject_id": subject_id,
        "reverses": reverses.id if reverses else None,
        "legs": sorted(
            [leg.account.code, leg.account.currency, leg.side.value, leg.amount] for leg in legs
        ),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def as_rows(legs: Sequence[Leg]) -> str:
    """Return the legs as the JSON that `billing_post` reads."""
    rows = []
    for leg in legs:
        account, nature = leg.account, CHART[leg.account.kind]
        rows.append(
            {
                "code": account.code,
                "subject_id": account.subject_id,
                "kind": account.kind.value,
                "currency": account.currency,
                "organization_id": account.organization.pk if account.organization else None,
                "normal_side": nature.normal_side.value,
                "guarded": nature.is_guarded,
                "side": leg.side.value,
                "amount": leg.amount,
            }
        )
    return json.dumps(rows)


def _insufficient_funds(*, legs: Sequence[Leg], answer: _Answer) -> InsufficientFunds:
    """Return the refusal for a wallet that is short, with what is missing."""
    assert answer.short_balance is not None
    short = next(
        leg for leg in legs if leg.account.code == answer.short_code and leg.side is Side.DEBIT
    )
    return _short(held=answer.short_balance, amount=short.amount, currency=short.account.currency)


def _short(*, held: int, amount: int, currency: str) -> InsufficientFunds:
    missing, balance = Money(amount - held, currency), Money(held, currency)
    return InsufficientFunds(
        f"The wallet holds {balance}; {missing} are missing.",
        extra={"missing": _as_json(missing), "balance": _as_json(balance)},
    )


def _as_json(money: Money) -> dict[str, object]:
    return {"amount_minor": money.amount_minor, "currency": money.currency}
