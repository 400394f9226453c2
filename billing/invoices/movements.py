"""What entries of the ledger charged a tenant or gave back to it, and no document says yet.

A price is charged by purchases, extensions and moves, and by corrections against the tenant; it goes back by
changes, settlements, corrections, and refunds of the rest. What the market gives beyond the price (credits
for what was not delivered, compensation, shares of resales, goodwill) is no part of what was sold, and on no
document.

A charge is told by one line, whole. What goes back is told by amount: a credit note takes no more than was
invoiced by then, and what is left of it is told by a later one, once what it takes back is invoiced too.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import connection

from billing import tax
from billing.invoices.wording import charge_of, return_of
from billing.models import Correction, Settlement, TaxLine
from billing.month_movements import MOMENT
from billing.states import EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Change, Lease, Reservation
from scheduler.states import ChangeKind

KINDS = (
    EntryKind.PURCHASE,
    EntryKind.BALANCE,
    EntryKind.CHANGE,
    EntryKind.SETTLEMENT,
    EntryKind.CORRECTION,
    EntryKind.REFUND,
)
_CREDITED = "coalesce(sum(n.{}) FILTER (WHERE n.corrects_line_id IS NOT NULL), 0)::bigint"
_UNTOLD = f"""
    WITH subjects AS (
        SELECT r.id, r.id AS reservation_id, NULL::timestamptz AS ends_at
        FROM scheduler_reservation r
        WHERE r.organization_id = %(organization)s
        UNION ALL
        SELECT l.id, l.reservation_id, l.ends_at FROM scheduler_lease l
        JOIN scheduler_reservation r ON r.id = l.reservation_id
        WHERE r.organization_id = %(organization)s
        UNION ALL
        SELECT c.id, c.reservation_id, NULL FROM scheduler_change c
        JOIN scheduler_reservation r ON r.id = c.reservation_id
        WHERE r.organization_id = %(organization)s
    ),
    entries AS MATERIALIZED (
        SELECT e.id, e.kind, e.idempotency_key, e.subject_id, l.reservation_id, e.effective_at,
            told.is_charged, told.net, told.tax, told.gpu_seconds
        FROM subjects l
        JOIN billing_entry e ON e.subject_id = l.id AND e.kind = ANY(%(kinds)s)
        LEFT JOIN scheduler_change c ON c.id = e.subject_id
        LEFT JOIN billing_settlement s ON s.entry_id = e.id
        LEFT JOIN billing_correction k ON k.entry_id = e.id
        LEFT JOIN billing_taxline t ON t.entry_id = e.id
        LEFT JOIN LATERAL (
            SELECT sum(p.amount) AS refunded
            FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind = 'refund' AND p.entry_id = e.id AND a.kind = 'deferred'
        ) rest ON true
        CROSS JOIN LATERAL (
            SELECT count(*) AS lines, coalesce(bool_or(n.corrects_line_id IS NULL), false) AS is_charged,
                {_CREDITED.format("net_minor")} AS net, {_CREDITED.format("tax_minor")} AS tax,
                {_CREDITED.format("gpu_seconds")} AS gpu_seconds
            FROM billing_invoiceline n WHERE n.entry_key = e.idempotency_key
        ) told
        WHERE {MOMENT} < %(before)s AND (
            told.lines = 0 OR coalesce(t.tax_refunded_minor, 0) > told.tax
            OR coalesce(c.refunded_minor, s.refunded_minor, k.refunded_minor, rest.refunded, 0) > told.net
        )
    )
    SELECT e.*,
        coalesce(sum(CASE p.side WHEN 'credit' THEN p.amount ELSE -p.amount END)
            FILTER (WHERE a.kind = 'deferred'), 0) AS deferred,
        coalesce(sum(p.amount) FILTER (WHERE a.kind = 'u_bought' AND p.side = 'credit'), 0) AS bought,
        coalesce(sum(p.amount) FILTER (
            WHERE a.kind IN ('u_undelivered', 'u_released') AND p.side = 'debit'), 0) AS given_back,
        coalesce(bool_or(a.kind = 'receivable' AND p.side = 'debit'), false) AS is_on_account
    FROM entries e
    JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
    GROUP BY e.id, e.kind, e.idempotency_key, e.subject_id, e.reservation_id, e.effective_at,
        e.is_charged, e.net, e.tax, e.gpu_seconds
    ORDER BY e.effective_at, e.id
"""  # noqa: S608 - constants of this file and of the bill of a month


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What one entry charged of a reservation's price, or what of it goes back and is not told yet.

    In minor units, none negative.
    """

    entry_key: str
    reservation: Reservation
    window: Window
    description: str
    gpu_seconds: int
    net_minor: int
    tax_minor: int
    terms: tax.TaxTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """What no document says yet, in the order in which it happened."""

    charges: list[Movement]
    returns: list[Movement]


@dataclass(frozen=True, slots=True)
class _Row:
    """One entry, with what its postings add up to, and what documents say of it so far."""

    entry_id: str
    kind: str
    key: str
    subject_id: str
    reservation_id: str
    effective_at: dt.datetime
    is_charged: bool
    credited_net: int
    credited_tax: int
    credited_seconds: int
    deferred: int
    bought: int
    given_back: int
    is_on_account: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the entries are about, by their ids."""

    reservations: dict[str, Reservation]
    changes: dict[str, Change]
    leases: dict[str, Lease]
    settled_minor: dict[str, int]
    corrected_minor: dict[str, int]
    taxes: dict[str, TaxLine]


def untold(*, organization: Organization, before: dt.datetime) -> Untold:
    """Return what a tenant was charged and got back before an instant and no document says yet.

    What is charged on account is left out: its invoice is issued before it is posted.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _UNTOLD,
            {
                "organization": organization.pk,
                "kinds": [kind.value for kind in KINDS],
                "before": before,
            },
        )
        rows = [_Row(*row) for row in cursor.fetchall()]
    facts = _facts(rows)
    charges, returns = [], []
    for row in rows:
        charged, refunded = _net(row, facts)
        if charged > 0 and not row.is_charged and not row.is_on_account:
            charges.append(_movement(row, facts, net=charged, is_return=False))
        if refunded > 0:
            back = _movement(row, facts, net=refunded - row.credited_net, is_return=True)
            if back.net_minor or back.tax_minor:
                returns.append(back)
    return Untold(charges=charges, returns=returns)


def _facts(rows: Iterable[_Row]) -> _Facts:
    rows = list(rows)
    subjects = [row.subject_id for row in rows]
    entries = [row.entry_id for row in rows]
    reservations = Reservation.objects.select_related("quote", "organization", "tax_terms")
    return _Facts(
        reservations=reservations.in_bulk([row.reservation_id for row in rows]),
        changes=Change.objects.in_bulk(subjects),
        leases=Lease.objects.in_bulk(subjects),
        settled_minor=dict(
            Settlement.objects.filter(entry__in=entries).values_list("entry_id", "refunded_minor")
        ),
        corrected_minor={
            entry_id: refunded + borne if refunded < 0 else refunded
            for entry_id, refunded, borne in Correction.objects.filter(
                entry__in=entries
            ).values_list("entry_id", "refunded_minor", "borne_minor")
        },
        taxes=TaxLine.objects.in_bulk(entries, field_name="entry_id"),
    )


def _net(row: _Row, facts: _Facts) -> tuple[int, int]:
    """Return what an entry charged and what it gave back of a price, before tax."""
    match row.kind:
        case EntryKind.PURCHASE | EntryKind.BALANCE:
            return int(row.deferred), 0
        case EntryKind.CHANGE:
            change = facts.changes[row.subject_id]
            return change.charged_minor, change.refunded_minor
        case EntryKind.SETTLEMENT:
            return 0, facts.settled_minor[row.entry_id]
        case EntryKind.CORRECTION:
            refunded = facts.corrected_minor[row.entry_id]
            return max(-refunded, 0), max(refunded, 0)
        case _:
            return 0, -int(row.deferred)


def _movement(row: _Row, facts: _Facts, *, net: int, is_return: bool) -> Movement:
    reservation, window = facts.reservations[row.reservation_id], _window(row, facts)
    change, taxed = facts.changes.get(row.subject_id), facts.taxes.get(row.entry_id)
    kind = EntryKind(row.kind)
    description = (
        return_of(kind=kind, change=change, reservation=reservation, window=window)
        if is_return
        else charge_of(
            kind=kind, change=change, reservation=reservation, window=window, net_minor=net
        )
    )
    moved = 0
    if taxed is not None:
        moved = taxed.tax_refunded_minor if is_return else taxed.tax_charged_minor
    seconds = int(row.given_back if is_return else row.bought)
    if is_return:
        moved -= row.credited_tax
        seconds = max(seconds - row.credited_seconds, 0)
    return Movement(
        entry_key=row.key,
        reservation=reservation,
        window=window,
        description=description,
        gpu_seconds=seconds,
        net_minor=net,
        tax_minor=moved,
        terms=tax.terms_of(reservation=reservation),
    )


def _window(row: _Row, facts: _Facts) -> Window:
    """Return the window that an entry is about: of the purchase, the lease, or what was added."""
    reservation = facts.reservations[row.reservation_id]
    change, lease = facts.changes.get(row.subject_id), facts.leases.get(row.subject_id)
    if lease is not None:
        return lease.window
    if change is not None:
        return window_of_change(change)
    if row.kind in {EntryKind.PURCHASE, EntryKind.BALANCE}:
        return Window(reservation.quote.starts_at, reservation.quote.ends_at)
    return reservation.window


def window_of_change(change: Change) -> Window:
    """Return what a change is about: what an extension adds, otherwise the window that it found."""
    if change.kind == ChangeKind.EXTENSION:
        assert change.ends_at is not None, change
        return Window(change.from_ends_at, change.ends_at)
    if change.kind == ChangeKind.MOVE:
        assert change.starts_at is not None, change
        assert change.ends_at is not None, change
        return Window(change.starts_at, change.ends_at)
    return Window(change.from_starts_at, change.from_ends_at)
