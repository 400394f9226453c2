"""The one place that writes to the books: every entry and every posting comes from `post`.

PostgreSQL enforces what an entry must be (migration `0002_guard_the_books`); this module makes entries and
translates a guard's refusal into words.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import IntegrityError, connection, transaction
from django.db.models import Q, Sum

from billing.models import Account, Entry, Posting
from billing.states import GPU_SECONDS, AccountKind, EntryKind, Side
from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.money import Money
from marketplace.models import Organization

LEGS_MAX = 20  # the richest event, a settlement, has eight; more is a mistake in the caller
OVERDRAWN_CONSTRAINT = "account_is_not_overdrawn"


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


CHART: dict[AccountKind, _Nature] = {
    AccountKind.BANK: _Nature(Side.DEBIT, is_guarded=False),
    AccountKind.WALLET: _Nature(Side.CREDIT, is_guarded=True),
    AccountKind.DEFERRED: _Nature(Side.CREDIT, is_guarded=True),
    AccountKind.OWNER_ACCRUED: _Nature(Side.CREDIT, is_guarded=False),
    AccountKind.OWNER_PAYABLE: _Nature(Side.CREDIT, is_guarded=False),
    AccountKind.PLATFORM_FEE: _Nature(Side.CREDIT, is_guarded=False),
    AccountKind.CANCELLATION_FEE: _Nature(Side.CREDIT, is_guarded=False),
    AccountKind.U_BOUGHT: _Nature(Side.CREDIT, is_guarded=False),
    AccountKind.U_OPEN: _Nature(Side.DEBIT, is_guarded=True),
    AccountKind.U_BUSY: _Nature(Side.DEBIT, is_guarded=False),
    AccountKind.U_IDLE: _Nature(Side.DEBIT, is_guarded=False),
    AccountKind.U_UNDELIVERED: _Nature(Side.DEBIT, is_guarded=False),
    AccountKind.U_RELEASED: _Nature(Side.DEBIT, is_guarded=False),
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

    :raises InsufficientFunds: when a wallet would fall below zero; nothing of the entry is stored.
    :raises EntryMismatch: when the key was used for other content.
    """
    _require_sound(legs)
    guarded: list[Account] = []
    try:
        with transaction.atomic():
            entry, is_new = _insert_entry(
                idempotency_key=idempotency_key,
                kind=kind,
                subject_id=subject_id,
                effective_at=effective_at,
                content_sha256=_digest(
                    kind=kind, subject_id=subject_id, legs=legs, reverses=reverses
                ),
                reverses=reverses,
            )
            if is_new:
                accounts = _accounts_of(legs)
                guarded += _lock_guarded(accounts)
                Posting.objects.bulk_create(
                    Posting(
                        entry=entry,
                        account=accounts[leg.account.code, leg.account.currency],
                        side=leg.side,
                        amount=leg.amount,
                    )
                    for leg in legs
                )
            return entry
    except IntegrityError as error:
        refusal = _insufficient_funds(error, legs=legs, guarded=guarded)
        if refusal is None:
            raise
        raise refusal from error


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


def _insert_entry(
    *,
    idempotency_key: str,
    kind: EntryKind,
    subject_id: str,
    effective_at: dt.datetime,
    content_sha256: str,
    reverses: Entry | None,
) -> tuple[Entry, bool]:
    """Insert the entry, or wait for and return the one that has the key; say whether it is new."""
    entry = Entry(
        idempotency_key=idempotency_key,
        content_sha256=content_sha256,
        kind=kind,
        subject_id=subject_id,
        effective_at=effective_at,
        reverses=reverses,
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO billing_entry"
            " (id, idempotency_key, content_sha256, kind, subject_id, effective_at, reverses_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (idempotency_key) DO NOTHING RETURNING recorded_at, transaction_id",
            [
                entry.id,
                idempotency_key,
                content_sha256,
                kind.value,
                subject_id,
                effective_at,
                reverses.id if reverses else None,
            ],
        )
        row = cursor.fetchone()
    if row is not None:
        entry.recorded_at, entry.transaction_id = row
        entry._state.adding = False  # noqa: SLF001 - the row stands in the database
        return entry, True
    entry = Entry.objects.get(idempotency_key=idempotency_key)
    if entry.content_sha256 != content_sha256:
        raise EntryMismatch(f"the key {idempotency_key} belongs to an entry with other content")
    return entry, False


def _accounts_of(legs: Sequence[Leg]) -> dict[tuple[str, str], Account]:
    """Return the accounts by (code, currency), made on first use, in one order for all writers."""
    refs = {(leg.account.code, leg.account.currency): leg.account for leg in legs}
    found = _find(refs)
    missing = sorted(set(refs) - set(found))
    if missing:
        Account.objects.bulk_create(
            (
                Account(
                    code=code,
                    currency=currency,
                    kind=refs[code, currency].kind,
                    subject_id=refs[code, currency].subject_id,
                    organization=refs[code, currency].organization,
                    normal_side=CHART[refs[code, currency].kind].normal_side,
                    guarded=CHART[refs[code, currency].kind].is_guarded,
                )
                for code, currency in missing
            ),
            ignore_conflicts=True,
        )
        found = _find(refs)
    return found


def _find(refs: dict[tuple[str, str], AccountRef]) -> dict[tuple[str, str], Account]:
    rows = Account.objects.filter(code__in={code for code, _ in refs})
    by_place = {(row.code, row.currency): row for row in rows}
    return {place: by_place[place] for place in refs if place in by_place}


def _lock_guarded(accounts: dict[tuple[str, str], Account]) -> list[Account]:
    """Lock the guarded accounts in ascending order, so that no two writers wait for each other."""
    guarded_ids = [account.pk for account in accounts.values() if account.guarded]
    if not guarded_ids:
        return []
    locked = Account.objects.select_for_update(no_key=True).filter(pk__in=guarded_ids)
    return list(locked.order_by("pk"))


def _insufficient_funds(
    error: IntegrityError, *, legs: Sequence[Leg], guarded: Sequence[Account]
) -> InsufficientFunds | None:
    """Return the refusal for a wallet that is short, None when the error is about anything else."""
    if violated_constraint(error) != OVERDRAWN_CONSTRAINT:
        return None
    for account in guarded:
        leg = next(
            leg
            for leg in legs
            if (leg.account.code, leg.account.currency) == (account.code, account.currency)
        )
        short_by = leg.amount - account.balance
        if account.kind == AccountKind.WALLET and leg.side is Side.DEBIT and short_by > 0:
            assert account.currency != GPU_SECONDS
            missing, held = (
                Money(short_by, account.currency),
                Money(account.balance, account.currency),
            )
            return InsufficientFunds(
                f"The wallet holds {held}; {missing} are missing.",
                extra={"missing": _as_json(missing), "balance": _as_json(held)},
            )
    return None


def _as_json(money: Money) -> dict[str, object]:
    return {"amount_minor": money.amount_minor, "currency": money.currency}
