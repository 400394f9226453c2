"""Read the entries of a tenant's month, in one statement and so of one snapshot, a page at a time.

The hours of leases are read from their own rows, which are an entry's content and come by the hundred
thousand; everything else from the legs of its entries. Which month something belongs to is decided by
`billing.month_movements`, so that a file and the bill of its month have the same content.

The cursor stands in the database and holds its result there: neither the size of a file nor the speed of
whoever reads it is felt as memory here or as an open transaction.
"""

import datetime as dt
from collections.abc import Iterator, Sequence

from django.db import connection
from django.db.models import Q

from billing import budgets, list_prices, undelivered
from billing.focus.facts import Deal, Documents, Fact, Payer, Place
from billing.models import Entry, InvoiceLine, MonthClose, Settlement
from billing.month_movements import (
    CREDITS,
    ENTRY_IS_IN_TIME,
    ENTRY_IS_LATE,
    HOUR_IS_IN_TIME,
    HOUR_IS_LATE,
    MOMENT,
    cutoffs,
)
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Reservation

ROWS_PER_PAGE = 5_000  # about 5 MB of facts

# Where a tenant's money comes from and goes back to; all else of an entry is what became of it.
_PURSES = (
    AccountKind.WALLET,
    AccountKind.HOLD,
    AccountKind.RECEIVABLE,
    AccountKind.REFUND_PAYABLE,
    AccountKind.PSP_CLEARING,
    AccountKind.BANK,
)
_OF_RESERVATION = (EntryKind.PURCHASE, EntryKind.BALANCE, EntryKind.REFUND)
_OF_LEASE = (EntryKind.SETTLEMENT, EntryKind.CORRECTION)
_ENTRIES = """
    SELECT e.id AS entry_id, r.id AS reservation_id, NULL AS lease_id
    FROM scheduler_reservation r JOIN billing_entry e ON e.subject_id = r.id
    WHERE r.organization_id = %(organization)s AND e.kind = ANY(%(of_reservation)s)
    UNION ALL
    SELECT s.entry_id, r.id, l.id
    FROM scheduler_reservation r JOIN scheduler_lease l ON l.reservation_id = r.id
    JOIN billing_settlement s ON s.lease_id = l.id
    WHERE r.organization_id = %(organization)s
    UNION ALL
    SELECT c.entry_id, r.id, l.id
    FROM scheduler_reservation r JOIN scheduler_lease l ON l.reservation_id = r.id
    JOIN billing_settlement s ON s.lease_id = l.id JOIN billing_correction c ON c.settlement_id = s.id
    WHERE r.organization_id = %(organization)s
    UNION ALL
    SELECT e.id, r.id, NULL
    FROM scheduler_reservation r JOIN scheduler_change c ON c.reservation_id = r.id
    JOIN billing_entry e ON e.subject_id = c.id AND e.kind = 'change'
    WHERE r.organization_id = %(organization)s
    UNION ALL
    SELECT e.id, coalesce(r.id, l.reservation_id, c.reservation_id), l.id
    FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
    JOIN billing_entry e ON e.id = p.entry_id
    LEFT JOIN scheduler_lease l ON l.id = e.subject_id
    LEFT JOIN scheduler_reservation r ON r.id = e.subject_id AND r.organization_id = a.organization_id
    LEFT JOIN scheduler_change c ON c.id = e.subject_id
    WHERE a.organization_id = %(organization)s AND a.kind = 'wallet' AND e.kind = ANY(%(credits)s)
"""
_SIGNED = "CASE p.side WHEN 'debit' THEN p.amount ELSE -p.amount END"


def _gained(condition: str) -> str:
    return f"coalesce(sum({_SIGNED}) FILTER (WHERE {condition}), 0)::bigint"


# An hour is closed before its lease is settled: others cannot be late.
_NOT_SETTLED_THEN = """
    LEFT JOIN billing_settlement s ON s.lease_id = l.id AND s.settled_at < %(opened_by)s::timestamptz
"""


def _hours(join: str, condition: str) -> str:
    """Return the query for the hours of a month, or for what came too late for the one before."""
    only_unsettled = "AND s.id IS NULL" if join else ""
    return f"""
    SELECT r.id AS reservation_id, l.id AS lease_id, h.entry_id, 'earning' AS kind, r.currency,
        h.ends_at AS effective_at, h.starts_at, h.ends_at,
        0::bigint, -h.earned_minor, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
        h.gpu_seconds_delivered, h.gpu_seconds_busy, h.gpu_seconds_metered, h.gpu_seconds_measured,
        h.gpu_seconds_attached, h.energy_millijoules, h.worth_micros::bigint,
        0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, ''
    FROM scheduler_reservation r JOIN scheduler_lease l ON l.reservation_id = r.id {join}
    JOIN billing_earnedhour h ON h.lease_id = l.id
    WHERE r.organization_id = %(organization)s AND h.entry_id IS NOT NULL {only_unsettled}
        AND (%(only)s::text[] IS NULL OR r.id = ANY(%(only)s)) AND l.starts_at < %(ends_at)s
        AND h.starts_at < %(ends_at)s AND {condition} AND {HOUR_IS_IN_TIME}
    """  # noqa: S608 - constants of this file


_FACTS = f"""
    WITH found AS ({_ENTRIES}),
    entries AS (
        SELECT * FROM found
        UNION ALL
        SELECT v.id, f.reservation_id, f.lease_id
        FROM found f JOIN billing_entry v ON v.reverses_id = f.entry_id
    )
    {_hours("", "h.starts_at >= %(starts_at)s")}
    UNION ALL
    {_hours(_NOT_SETTLED_THEN, f"h.starts_at < %(starts_at)s AND {HOUR_IS_LATE}")}
    UNION ALL
    SELECT f.reservation_id, f.lease_id, e.id, e.kind, coalesce(legs.currency, r.currency), e.effective_at,
        CASE
            WHEN s.id IS NOT NULL AND hours.until < lease.ends_at THEN hours.until
            WHEN c.id IS NOT NULL AND c.kind = 'extension' THEN c.from_ends_at
            WHEN c.id IS NOT NULL THEN coalesce(c.starts_at, c.from_starts_at)
            ELSE lease.starts_at
        END,
        CASE WHEN c.id IS NOT NULL THEN coalesce(c.ends_at, c.from_ends_at) ELSE lease.ends_at END,
        legs.taken - legs.tax, legs.deferred, legs.tax, coalesce(n.tax_refunded_minor, 0), legs.bought,
        legs.released, legs.undelivered, legs.delivered, legs.busy, s.gpu_seconds_metered - hours.metered,
        (s.evidence ->> 'gpu_seconds_measured')::bigint - hours.measured,
        (s.evidence ->> 'gpu_seconds_attached')::bigint - hours.attached,
        (s.evidence ->> 'energy_millijoules')::bigint - hours.energy, NULL,
        coalesce(c.charged_minor, 0), coalesce(c.fee_minor, 0), coalesce(k.earned_minor, 0),
        coalesce(k.borne_minor, 0), coalesce(k.credit_minor, 0), e.idempotency_key
    FROM entries f JOIN billing_entry e ON e.id = f.entry_id
    LEFT JOIN scheduler_reservation r ON r.id = f.reservation_id
    LEFT JOIN scheduler_lease l ON l.id = e.subject_id
    LEFT JOIN scheduler_lease lease ON lease.id = f.lease_id
    LEFT JOIN billing_settlement s ON s.entry_id = e.id
    LEFT JOIN billing_correction k ON k.entry_id = e.id
    LEFT JOIN scheduler_change c ON c.id = e.subject_id
    LEFT JOIN billing_taxline n ON n.entry_id = e.id AND NOT n.is_relief
    CROSS JOIN LATERAL (
        SELECT max(a.currency) FILTER (WHERE a.currency <> %(seconds)s) AS currency,
            {_gained("a.kind = ANY(%(purses)s)")} AS taken,
            -{_gained("a.kind = 'deferred'")} AS deferred,
            -{_gained("a.kind = 'tax_payable'")} AS tax,
            -{_gained("a.kind = 'u_bought'")} AS bought,
            {_gained("a.kind = 'u_released'")} AS released,
            {_gained("a.kind = 'u_undelivered'")} AS undelivered,
            {_gained("a.kind IN ('u_busy', 'u_idle')")} AS delivered,
            {_gained("a.kind = 'u_busy'")} AS busy
        FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
        WHERE p.entry_id = e.id
    ) legs
    LEFT JOIN LATERAL (
        SELECT max(x.ends_at) AS until, coalesce(sum(x.gpu_seconds_metered), 0)::bigint AS metered,
            coalesce(sum(x.gpu_seconds_measured), 0)::bigint AS measured,
            CASE WHEN count(x.id) = count(x.gpu_seconds_attached)
                THEN coalesce(sum(x.gpu_seconds_attached), 0)::bigint END AS attached,
            CASE WHEN count(x.id) = count(x.energy_millijoules)
                THEN coalesce(sum(x.energy_millijoules), 0)::bigint END AS energy
        FROM billing_earnedhour x WHERE x.lease_id = s.lease_id
    ) hours ON s.id IS NOT NULL
    WHERE (%(only)s::text[] IS NULL OR f.reservation_id = ANY(%(only)s))
        AND (e.effective_at >= %(starts_at)s OR {ENTRY_IS_LATE})
        AND coalesce(legs.currency, r.currency) IS NOT NULL
        AND {MOMENT} < %(ends_at)s AND ({MOMENT} >= %(starts_at)s OR {ENTRY_IS_LATE}) AND {ENTRY_IS_IN_TIME}
"""  # noqa: S608 - constants of this file and of the bill of a month


def pages(
    *,
    organization: Organization,
    payer: Payer,
    reservation_ids: Sequence[str] | None = None,
) -> Iterator[list[Fact]]:
    """Yield the entries of a month in pages, those of one reservation and lease together, by time.

    With `reservation_ids` only those of these reservations.
    """
    with connection.chunked_cursor() as cursor:
        cursor.execute(
            f"{_FACTS} ORDER BY 1 NULLS FIRST, 2 NULLS FIRST, 7 NULLS FIRST, 3",
            {
                "organization": organization.pk,
                "starts_at": payer.starts_at,
                "ends_at": payer.ends_at,
                **cutoffs(organization=organization, window=Window(payer.starts_at, payer.ends_at)),
                "only": None if reservation_ids is None else list(reservation_ids),
                "seconds": GPU_SECONDS,
                "purses": [kind.value for kind in _PURSES],
                "of_reservation": [kind.value for kind in _OF_RESERVATION],
                "credits": [kind.value for kind in CREDITS],
            },
        )
        while rows := cursor.fetchmany(ROWS_PER_PAGE):
            yield [Fact._make(row) for row in rows]


def deals(*, reservation_ids: set[str]) -> dict[str, Deal]:
    """Return what the reservations of a page say of themselves; three queries."""
    purchased = dict(
        Entry.objects.filter(kind=EntryKind.PURCHASE, subject_id__in=reservation_ids).values_list(
            "subject_id", "effective_at"
        )
    )
    found = list(
        Reservation.objects.filter(pk__in=reservation_ids).select_related(
            "quote", "gpu_model", "deposit"
        )
    )
    said = budgets.histories(reservations=found)
    return {
        each.pk: _deal(each, said=said[each.pk], purchased_at=purchased.get(each.pk))
        for each in found
    }


def reasons(*, facts: Sequence[Fact]) -> dict[str, undelivered.Reasons]:
    """Return why what the entries of a page gave back was not delivered, by entry; eight queries at most."""
    found: dict[str, undelivered.Reasons] = {}
    leases = {fact.lease_id for fact in facts if fact.kind in _OF_LEASE}
    if leases:
        settlements = Settlement.objects.filter(lease__in=leases).select_related("lease", "entry")
        for settlement in settlements.prefetch_related("corrections__entry"):
            for said in undelivered.of_settlement(settlement):
                if said.entry_id is not None:
                    found[said.entry_id] = said.reasons
    rests = {
        fact.reservation_id: fact
        for fact in facts
        if fact.kind == EntryKind.REFUND and fact.undelivered and fact.reservation_id
    }
    if rests:
        seconds = {key: fact.undelivered for key, fact in rests.items()}
        for key, of_rest in undelivered.of_rests(seconds=seconds).items():
            found[rests[key].entry_id] = of_rest
    return found


def documents(*, entry_keys: set[str], close: MonthClose | None) -> dict[str, Documents]:
    """Return where the entries of a page stand in invoices and credit notes; one query.

    Those of a closed month stand on what had been issued when it was closed: its file stays as it was, should
    a later document tell something of it after all.
    """
    found: dict[str, Documents] = {}
    lines = InvoiceLine.objects.filter(entry_key__in=entry_keys).order_by("pk")
    if close is not None:
        is_late = Q(invoice__period__gt=close.month) | Q(
            invoice__period="",
            invoice__corrects__isnull=False,
            invoice__issued_at__gt=close.closed_at,
        )
        lines = lines.exclude(is_late)
    wanted = (
        "entry_key",
        "corrects_line_id",
        "net_minor",
        "tax_minor",
        "gpu_seconds",
        "invoice__number",
    )
    for line in lines.select_related("invoice").only(*wanted):
        place = Place(
            number=line.invoice.number,
            line_id=line.pk,
            net_minor=line.net_minor,
            tax_minor=line.tax_minor,
            gpu_seconds=line.gpu_seconds,
        )
        of_entry = found.setdefault(line.entry_key, Documents())
        if line.corrects_line_id is None:
            of_entry.charged = place
        else:
            of_entry.given_back = (*of_entry.given_back, place)
    return found


def _deal(
    reservation: Reservation, *, said: budgets.History, purchased_at: dt.datetime | None
) -> Deal:
    quote, gpu_model = reservation.quote, reservation.gpu_model
    breakdown = quote.price_breakdown
    return Deal(
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        gpu_model=gpu_model.pk,
        gpu_model_name=gpu_model.name,
        gpus=reservation.gpus,
        region=reservation.region,
        tier=reservation.tier,
        starts_at=quote.starts_at,
        ends_at=quote.ends_at,
        rate=quote.rate,
        base_rate=list_prices.base_rate(quote),
        multiplier=breakdown.get("multiplier") or "",
        is_dynamic=quote.price_version_id is not None,
        name=reservation.name,
        said=said,
        simulated=reservation.simulated,
        purchased_at=purchased_at,
        is_in_two_parts=getattr(reservation, "deposit", None) is not None,
    )
