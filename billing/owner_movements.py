"""What the books moved for an owner in a month of UTC: its accounts, and every posting on them.

An owner's balance is what it earned and was not sent: accrued, payable and in reserve, less what it owes. An
hour counts in the month in which it begins and a settlement where its lease's time ended, as on the tenant's
bill; everything else by its entry (see `billing.month_movements.MOMENT`). So every posting is in exactly one
month, and the lines of a month are what its balance changed by, to the minor unit.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import connection

from billing.month_movements import MOMENT
from billing.states import AccountKind, EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization

OWNER_ACCOUNTS = (
    AccountKind.OWNER_ACCRUED,
    AccountKind.OWNER_PAYABLE,
    AccountKind.OWNER_RESERVE,
    AccountKind.OWNER_CLAWBACK,
)
# What a lease earned is told by lease and not by hour: a month has 744 of them.
_BY_LEASE = (EntryKind.EARNING, EntryKind.SETTLEMENT)
_DELIVERY = (*_BY_LEASE, EntryKind.CORRECTION)
_DELIVERED_ACCOUNTS = (
    AccountKind.DEFERRED,
    AccountKind.PLATFORM_FEE,
    AccountKind.U_BUSY,
    AccountKind.U_IDLE,
    AccountKind.U_UNDELIVERED,
)
_POSTED = f"""
    SELECT e.id AS entry_id, e.kind AS entry_kind, e.subject_id, a.kind AS account_kind,
        CASE p.side WHEN 'credit' THEN p.amount ELSE -p.amount END AS amount,
        coalesce(h.starts_at, {MOMENT}) AS moment
    FROM billing_account a
    JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
    LEFT JOIN billing_earnedhour h ON h.entry_id = e.id
    LEFT JOIN scheduler_lease l ON l.id = e.subject_id
    WHERE a.organization_id = %(owner)s AND a.kind = ANY(%(accounts)s) AND a.currency = %(currency)s
"""  # noqa: S608 - constants of this file
_BALANCES = f"""
    SELECT account_kind, coalesce(sum(amount) FILTER (WHERE moment < %(starts_at)s), 0), sum(amount)
    FROM ({_POSTED}) posted WHERE moment < %(ends_at)s GROUP BY 1
"""  # noqa: S608
_MOVED = f"""
    SELECT entry_kind, subject_id, account_kind, max(moment), sum(amount),
        CASE WHEN entry_kind = ANY(%(by_lease)s) THEN '' ELSE entry_id END
    FROM ({_POSTED}) posted
    WHERE moment >= %(starts_at)s AND moment < %(ends_at)s GROUP BY 1, 2, 3, 6 ORDER BY 4, 6, 3
"""  # noqa: S608
_DELIVERED = f"""
    SELECT lease_id, is_correction, account_kind, sum(amount) FROM (
        SELECT l.id AS lease_id, e.kind = 'correction' AS is_correction, a.kind AS account_kind,
            CASE p.side WHEN 'credit' THEN p.amount ELSE -p.amount END AS amount,
            coalesce(h.starts_at, {MOMENT}) AS moment
        FROM scheduler_lease l
        JOIN billing_entry e ON e.subject_id = l.id AND e.kind = ANY(%(delivery)s)
        JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
        LEFT JOIN billing_earnedhour h ON h.entry_id = e.id
        WHERE l.id = ANY(%(leases)s) AND a.kind = ANY(%(accounts)s)
    ) posted
    WHERE moment >= %(starts_at)s AND moment < %(ends_at)s GROUP BY 1, 2, 3
"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Balances:
    """What an owner's accounts hold, in minor units: what it is owed, and `owed_by_owner` what it owes."""

    accrued: int = 0
    payable: int = 0
    reserve: int = 0
    owed_by_owner: int = 0

    @property
    def total(self) -> int:
        return self.accrued + self.payable + self.reserve - self.owed_by_owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """One entry on an owner's accounts, or all hours of one lease; minor units in the owner's favour.

    `amounts` has what it added to each account: what an owner pays of its debt is positive there too.
    """

    entry_id: str
    kind: EntryKind
    subject_id: str
    at: dt.datetime
    amounts: dict[AccountKind, int]

    @property
    def total(self) -> int:
        return sum(self.amounts.values())


@dataclass(slots=True, kw_only=True)
class Delivered:
    """What a lease's entries of a month say beside the owner's part: GPU-seconds and minor units.

    `given_back` was the price of what was not delivered, without its tax.
    """

    gpu_seconds_delivered: int = 0
    gpu_seconds_undelivered: int = 0
    deferred: int = 0
    fee: int = 0
    corrected_fee: int = 0


def balances(*, owner: Organization, window: Window, currency: str) -> tuple[Balances, Balances]:
    """Return what an owner's accounts held when a window began and when it ended."""
    opening, closing = {}, {}
    with connection.cursor() as cursor:
        cursor.execute(_BALANCES, _parameters(owner=owner, window=window, currency=currency))
        for kind, before, after in cursor.fetchall():
            opening[kind], closing[kind] = int(before), int(after)
    return _as_balances(opening), _as_balances(closing)


def in_window(*, owner: Organization, window: Window, currency: str) -> list[Movement]:
    """Return every movement of a window on an owner's accounts, in the order of their moments."""
    found: dict[tuple[str, str, str], Movement] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            _MOVED,
            {
                **_parameters(owner=owner, window=window, currency=currency),
                "by_lease": [kind.value for kind in _BY_LEASE],
            },
        )
        for kind, subject_id, account, at, amount, entry_id in cursor.fetchall():
            movement = found.setdefault(
                (entry_id, kind, subject_id),
                Movement(
                    entry_id=entry_id,
                    kind=EntryKind(kind),
                    subject_id=subject_id,
                    at=at,
                    amounts={},
                ),
            )
            movement.amounts[AccountKind(account)] = int(amount)
    return list(found.values())


def delivered(*, lease_ids: Iterable[str], window: Window) -> dict[str, Delivered]:
    """Return by lease what its hours, its settlement and its corrections of a window delivered."""
    found: dict[str, Delivered] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            _DELIVERED,
            {
                "leases": list(lease_ids),
                "delivery": [kind.value for kind in _DELIVERY],
                "accounts": [kind.value for kind in _DELIVERED_ACCOUNTS],
                "starts_at": window.starts_at,
                "ends_at": window.ends_at,
            },
        )
        for lease_id, is_correction, account, amount in cursor.fetchall():
            row = found.setdefault(lease_id, Delivered())
            _add(row, account=AccountKind(account), amount=int(amount), late=is_correction)
    return found


def _add(row: Delivered, *, account: AccountKind, amount: int, late: bool) -> None:
    if account == AccountKind.DEFERRED:
        row.deferred -= amount
    elif account == AccountKind.PLATFORM_FEE and late:
        row.corrected_fee += amount
    elif account == AccountKind.PLATFORM_FEE:
        row.fee += amount
    elif account == AccountKind.U_UNDELIVERED:
        row.gpu_seconds_undelivered -= amount
    else:
        row.gpu_seconds_delivered -= amount


def _as_balances(sums: dict[str, int]) -> Balances:
    accrued, payable, reserve, clawback = (sums.get(kind, 0) for kind in OWNER_ACCOUNTS)
    return Balances(accrued=accrued, payable=payable, reserve=reserve, owed_by_owner=-clawback)


def _parameters(
    *, owner: Organization, window: Window, currency: str
) -> dict[str, str | list[str] | dt.datetime]:
    return {
        "owner": owner.pk,
        "accounts": [kind.value for kind in OWNER_ACCOUNTS],
        "currency": currency,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
    }
