"""Every invariant of the books, as SQL over what is stored: a second opinion beside the constraints.

Each check is a query for breaches; a sound market returns no row from any. The queries derive everything
from postings and trust neither the guards nor the verbs.
"""

import datetime as dt
import logging
from dataclasses import dataclass, field

from django.db import connection, transaction

from billing import parking, settlements, silences
from billing.deposits.invariants import DEPOSIT_INVARIANTS
from billing.focus import invariants as export_invariants
from billing.guards import GUARDS
from billing.hold_invariants import HOLD_INVARIANTS
from billing.invariants import MORE_INVARIANTS, SIGNED, Invariant, sum_of
from billing.invoices.invariants import INVOICE_INVARIANTS
from billing.models import BooksRun
from billing.provider_invariants import PROVIDER_INVARIANTS
from billing.resale_invariants import RESALE_INVARIANTS
from billing.tax_invariants import TAX_INVARIANTS
from billing.wallet_invariants import WALLET_INVARIANTS

logger = logging.getLogger(__name__)

NIGHTLY_SECONDS = 86_400
# A finished lease is settled within seconds of its grace. Ten minutes cover a restart of everything.
SETTLEMENT_OVERDUE_SECONDS = 600
BREACHES_SHOWN_MAX = 5  # enough to begin the search with; the count says how many there are
BREACHES_READ_MAX = 10_000  # so many organizations at most are parked by one check


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant and whether it holds; `detail` says what was found.

    `organizations` has, by id, the first breach of each organization whose money is to be parked for it.
    """

    name: str
    ok: bool
    detail: str
    organizations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BooksReport:
    """All invariants at one instant, of one snapshot of the database."""

    at: dt.datetime
    ok: bool
    checks: list[Check]


# Balances of the accounts that belong to reservations, in their normal sides, derived from postings.
_RESERVATION_BALANCES = """
    SELECT a.subject_id, a.kind,
        sum(CASE WHEN p.side = a.normal_side THEN p.amount ELSE -p.amount END) AS balance
    FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
    WHERE a.kind IN ('deferred', 'u_bought', 'u_open', 'u_busy', 'u_idle', 'u_undelivered',
        'u_released')
    GROUP BY a.subject_id, a.kind
"""
# Whom the subject of an entry belongs to, where it is one of ours: `e` is the entry.
_OF_SUBJECT = """
    SELECT o.id AS organization_id FROM marketplace_organization o WHERE o.id = e.subject_id
    UNION SELECT r.organization_id FROM scheduler_reservation r WHERE r.id = e.subject_id
    UNION SELECT r.organization_id FROM scheduler_change c
        JOIN scheduler_reservation r ON r.id = c.reservation_id WHERE c.id = e.subject_id
    UNION SELECT unnest(ARRAY[r.organization_id, n.organization_id]) FROM scheduler_lease l
        JOIN scheduler_reservation r ON r.id = l.reservation_id JOIN agents_node n ON n.id = l.node_id
        WHERE l.id = e.subject_id
    UNION SELECT s.owner_id FROM billing_settlement s WHERE s.id = e.subject_id
    UNION SELECT f.owner_id FROM billing_feeshare f WHERE f.id = e.subject_id
    UNION SELECT o.owner_id FROM billing_payout o WHERE o.id = e.subject_id
    UNION SELECT i.organization_id FROM billing_invoice i WHERE i.id = e.subject_id
    UNION SELECT p.organization_id FROM billing_payment p WHERE p.id = e.subject_id
    UNION SELECT p.organization_id FROM billing_cardrefund c
        JOIN billing_payment p ON p.id = c.payment_id WHERE c.id = e.subject_id
    UNION SELECT r.organization_id FROM billing_refund f
        JOIN scheduler_reservation r ON r.id = f.reservation_id WHERE f.id = e.subject_id
"""
# A lease of which nobody tells may wait until nothing can come any more, and then for two people: see
# `billing.silences`. `l` is the lease.
_SILENT = """
    coalesce(l.closed_at, l.ends_at) > %(silent_since)s
    AND NOT EXISTS (SELECT FROM billing_settlement s WHERE s.lease_id = l.id)
    AND EXISTS (
        SELECT FROM scheduler_leasetransition t
        WHERE t.lease_id = l.id AND t.reason = 'return_unconfirmed'
    )
    AND NOT EXISTS (
        SELECT FROM agents_receipt c
        WHERE c.lease_id = l.id AND c.lease_epoch = l.epoch AND c.kind = 'return'
    )
    AND NOT EXISTS (
        SELECT FROM billing_approval v
        WHERE v.subject_id = l.id AND v.kind IN ('silence_delivered', 'silence_refunded')
            AND v.status = 'approved' AND v.decided_at < %(overdue_before)s
    )
"""
# Paid reservations that ended long enough ago for all their leases to be settled. One that waits for a lease
# is late, and lateness parks nobody.
_CLOSED = f"""
    SELECT r.id, CASE WHEN NOT EXISTS (
            SELECT FROM scheduler_lease l WHERE l.reservation_id = r.id AND NOT EXISTS (
                SELECT FROM billing_settlement s WHERE s.lease_id = l.id)
        ) THEN r.organization_id END AS organization_id
    FROM scheduler_reservation r
    WHERE r.status IN ('completed', 'failed', 'reclaimed', 'cancelled')
        AND EXISTS (
            SELECT FROM billing_entry e WHERE e.kind = 'purchase' AND e.subject_id = r.id
        )
        AND coalesce(
            (SELECT max(t.at) FROM scheduler_reservationtransition t WHERE t.reservation_id = r.id),
            r.ends_at
        ) < %(overdue_before)s
        AND NOT EXISTS (
            SELECT FROM billing_parking k
            WHERE k.organization_id = r.organization_id AND k.ended_at IS NULL
        )
        AND NOT EXISTS (SELECT FROM scheduler_lease l WHERE l.reservation_id = r.id AND {_SILENT})
"""  # noqa: S608 - constants of this file
_SETTLED_AMOUNTS = f"""
    SELECT s.id, s.owner_id, s.bought_minor, s.owner_minor, s.fee_minor, s.refunded_minor,
        s.gpu_seconds_bought, s.gpu_seconds_delivered, s.gpu_seconds_busy,
        {sum_of("a.kind = 'deferred'")} AS deferred,
        -{sum_of("a.kind = 'owner_accrued'")} AS owner,
        -{sum_of("a.kind = 'platform_fee'")} AS fee,
        -{sum_of("a.kind IN ('wallet', 'refund_payable', 'tax_payable')")} AS refunded,
        -{sum_of("a.kind = 'u_open'")} AS seconds,
        {sum_of("a.kind = 'u_busy'")} AS busy,
        {sum_of("a.kind = 'u_idle'")} AS idle,
        {sum_of("a.kind = 'u_undelivered'")} AS undelivered
    FROM billing_settlement s
    CROSS JOIN LATERAL (
        SELECT s.entry_id
        UNION SELECT h.entry_id FROM billing_earnedhour h WHERE h.lease_id = s.lease_id
    ) posted
    LEFT JOIN billing_posting p ON p.entry_id = posted.entry_id
    LEFT JOIN billing_account a ON a.id = p.account_id
    GROUP BY s.id
"""  # noqa: S608 - constants of this file

INVARIANTS = (
    Invariant(
        "entries_balance",
        "Every entry balances in every currency.",
        f"""
        SELECT off.id || ' is off by ' || off.amount || ' ' || off.currency, named.organization_id
        FROM (
            SELECT e.id, a.currency, sum({SIGNED}) AS amount
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            GROUP BY e.id, a.currency HAVING sum({SIGNED}) <> 0
        ) off
        LEFT JOIN LATERAL (
            SELECT DISTINCT a.organization_id
            FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
            WHERE p.entry_id = off.id AND a.organization_id IS NOT NULL
        ) named ON true
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "entries_have_postings",
        "No entry is empty.",
        f"""
        SELECT e.id || ' has no postings', named.organization_id
        FROM billing_entry e LEFT JOIN LATERAL ({_OF_SUBJECT}) named ON true
        WHERE NOT EXISTS (SELECT FROM billing_posting p WHERE p.entry_id = e.id)
        """,  # noqa: S608
    ),
    Invariant(
        "accounts_sum_to_zero",
        "All accounts of a currency together are zero.",
        f"""
        SELECT off.currency || ' is off by ' || off.amount, stray.organization_id
        FROM (
            SELECT a.currency, sum({SIGNED}) AS amount
            FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
            GROUP BY a.currency HAVING sum({SIGNED}) <> 0
        ) off
        LEFT JOIN LATERAL (
            SELECT DISTINCT a.organization_id
            FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
            WHERE a.currency = off.currency AND a.organization_id IS NOT NULL
                AND NOT EXISTS (SELECT FROM billing_entry e WHERE e.id = p.entry_id)
        ) stray ON true
        """,  # noqa: S608
    ),
    Invariant(
        "guarded_balances_are_derived",
        "Each guarded balance equals its postings and is not negative; no other account keeps one.",
        """
        SELECT a.code || ' keeps ' || a.balance || ', its postings make ' || d.balance, a.organization_id
        FROM billing_account a
        CROSS JOIN LATERAL (
            SELECT coalesce(
                sum(CASE WHEN p.side = a.normal_side THEN p.amount ELSE -p.amount END), 0
            ) AS balance
            FROM billing_posting p WHERE p.account_id = a.id
        ) d
        WHERE CASE WHEN a.guarded THEN a.balance <> d.balance OR d.balance < 0 ELSE a.balance <> 0 END
        """,
    ),
    Invariant(
        "guards_are_in_place",
        "Every trigger that guards the books exists and is enabled.",
        """
        SELECT guard || ' is missing or disabled', NULL FROM unnest(%(guards)s::text[]) AS guard
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger t
            WHERE t.tgrelid = to_regclass(split_part(guard, '.', 1))
                AND t.tgname = split_part(guard, '.', 2) AND t.tgenabled IN ('O', 'A')
        )
        """,
    ),
    Invariant(
        "prices_are_locked",
        "Each paid reservation costs what its quote and its changes make it, and was charged just that;"
        " one whose price is held on a card costs it, and was charged nothing yet.",
        """
        SELECT r.id || ' costs ' || r.total_minor || ', was quoted ' || q.total_minor
            || ', changed by ' || changed.amount || ', was charged '
            || coalesce(charged.amount::text, 'nothing') || ', owes ' || r.unpaid_minor, r.organization_id
        FROM scheduler_reservation r
        JOIN scheduler_quote q ON q.id = r.quote_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(c.charged_minor - c.refunded_minor - c.fee_minor), 0) AS amount,
                count(*) AS count
            FROM scheduler_change c WHERE c.reservation_id = r.id
        ) changed
        CROSS JOIN LATERAL (
            SELECT CASE WHEN count(e.id) > 0 THEN coalesce(sum(p.amount), 0) END AS amount
            FROM billing_entry e
            LEFT JOIN (
                billing_posting p JOIN billing_account a ON a.id = p.account_id
                    AND p.side = 'credit' AND a.kind = 'deferred'
            ) ON p.entry_id = e.id AND a.currency = r.currency
            WHERE e.kind IN ('purchase', 'balance') AND e.subject_id = r.id
        ) charged
        CROSS JOIN LATERAL (
            SELECT r.status = 'scheduled' AND charged.amount IS NULL AND EXISTS (
                SELECT FROM billing_payment h WHERE h.reservation_id = r.id AND h.status = 'authorized'
            ) AS is_held
        ) price
        WHERE r.status IN ('scheduled', 'active', 'completed', 'reclaimed', 'failed') AND (
            (r.currency, r.fee_basis_points) IS DISTINCT FROM (q.currency, q.fee_basis_points)
            OR (changed.count = 0 AND r.rate IS DISTINCT FROM q.rate)
            OR r.total_minor IS DISTINCT FROM q.total_minor + changed.amount
            OR (charged.amount IS DISTINCT FROM q.total_minor - r.unpaid_minor AND NOT price.is_held)
        )
        """,
    ),
    Invariant(
        "changes_are_posted",
        "Each change of a paid reservation moved what it says and its tax, and its fee found its owners.",
        """
        SELECT c.id || ' charged ' || c.charged_minor || ', refunded ' || c.refunded_minor || ', kept '
            || c.fee_minor || '; posted ' || posted.charged || ', ' || posted.refunded || ', '
            || posted.kept, r.organization_id
        FROM scheduler_change c JOIN scheduler_reservation r ON r.id = c.reservation_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(p.amount) FILTER (
                    WHERE a.kind IN ('wallet', 'hold', 'receivable') AND p.side = 'debit'), 0) AS charged,
                coalesce(sum(p.amount) FILTER (
                    WHERE a.kind IN ('wallet', 'refund_payable') AND p.side = 'credit'), 0) AS refunded,
                coalesce(sum(p.amount) FILTER (
                    WHERE a.kind IN ('cancellation_fee', 'owner_accrued') AND p.side = 'credit'), 0)
                    AS kept,
                coalesce(sum(p.amount) FILTER (
                    WHERE a.kind = 'u_bought' AND p.side = 'credit'), 0) AS added,
                coalesce(sum(p.amount) FILTER (
                    WHERE a.kind = 'u_released' AND p.side = 'debit'), 0) AS released
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE (e.kind = 'change' AND e.subject_id = c.id) OR (e.kind = 'fee_share'
                AND e.subject_id IN (SELECT f.id FROM billing_feeshare f WHERE f.change_id = c.id))
        ) posted
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(t.tax_charged_minor), 0) AS charged,
                coalesce(sum(t.tax_refunded_minor), 0) AS refunded
            FROM billing_entry e JOIN billing_taxline t ON t.entry_id = e.id
            WHERE e.kind = 'change' AND e.subject_id = c.id
        ) tax
        WHERE (c.charged_minor + tax.charged, c.refunded_minor + tax.refunded, c.fee_minor,
                c.gpu_seconds_added,
                c.gpu_seconds_released)
            IS DISTINCT FROM (posted.charged, posted.refunded, posted.kept, posted.added,
                posted.released)
        """,
    ),
    Invariant(
        "closed_reservations_are_empty",
        "Nothing stays deferred or open in a reservation that is over.",
        f"""
        SELECT c.id || ' keeps ' || b.balance || ' in ' || b.kind, c.organization_id
        FROM ({_CLOSED}) c JOIN ({_RESERVATION_BALANCES}) b ON b.subject_id = c.id
        WHERE b.kind IN ('deferred', 'u_open') AND b.balance <> 0
        """,  # noqa: S608
    ),
    Invariant(
        "gpu_seconds_add_up",
        "Bought GPU-seconds are what was promised, and each is busy, idle, undelivered, released or open.",
        f"""
        SELECT r.id || ' promised ' || promised.gpu_seconds
            || ', bought ' || t.bought || ', accounts for ' || t.found, r.organization_id
        FROM scheduler_reservation r JOIN scheduler_quote q ON q.id = r.quote_id
        CROSS JOIN LATERAL (
            SELECT r.gpus * extract(epoch FROM q.ends_at - q.starts_at)::bigint
                + coalesce(sum(c.gpu_seconds_added), 0) AS gpu_seconds
            FROM scheduler_change c WHERE c.reservation_id = r.id
        ) promised
        JOIN (
            SELECT subject_id,
                coalesce(sum(balance) FILTER (WHERE kind = 'u_bought'), 0) AS bought,
                coalesce(sum(balance) FILTER (WHERE kind = 'u_released'), 0) AS released,
                coalesce(sum(balance) FILTER (WHERE kind IN
                    ('u_open', 'u_busy', 'u_idle', 'u_undelivered', 'u_released')), 0) AS found
            FROM ({_RESERVATION_BALANCES}) b GROUP BY subject_id
        ) t ON t.subject_id = r.id
        WHERE t.bought <> t.found OR t.bought <> promised.gpu_seconds
            OR (r.status = 'scheduled' AND t.bought - t.released
                <> r.gpus * extract(epoch FROM r.ends_at - r.starts_at)::bigint)
        """,  # noqa: S608
    ),
    Invariant(
        "settlements_equal_their_entries",
        "Each settlement says what its entry and the hours before it posted.",
        f"""
        SELECT x.id || ' differs from its entries', x.owner_id FROM ({_SETTLED_AMOUNTS}) x
        WHERE (x.bought_minor, x.owner_minor, x.fee_minor, x.refunded_minor)
                IS DISTINCT FROM (x.deferred, x.owner, x.fee, x.refunded)
            OR (x.gpu_seconds_bought, x.gpu_seconds_busy, x.gpu_seconds_delivered)
                IS DISTINCT FROM (x.seconds, x.busy, x.busy + x.idle)
            OR x.gpu_seconds_bought <> x.busy + x.idle + x.undelivered
        """,  # noqa: S608
    ),
    Invariant(
        "finished_leases_are_settled",
        "Each lease that ended a while ago and is not silent has one settlement; no other lease has any.",
        f"""
        SELECT l.id || ' closed at ' || coalesce(l.closed_at::text, 'no instant') || ' and has '
            || count(s.id) || ' settlements',
            CASE WHEN count(s.id) > 0 THEN n.organization_id END
        FROM scheduler_lease l LEFT JOIN billing_settlement s ON s.lease_id = l.id
        JOIN scheduler_reservation r ON r.id = l.reservation_id
        JOIN agents_node n ON n.id = l.node_id
        WHERE NOT EXISTS (
            SELECT FROM billing_parking k
            WHERE k.organization_id IN (r.organization_id, n.organization_id) AND k.ended_at IS NULL
        )
        AND NOT ({_SILENT})
        GROUP BY l.id, n.organization_id
        HAVING count(s.id) > 1
            OR (l.status IN ('ended', 'interrupted', 'failed') AND count(s.id) = 0
                AND coalesce(l.closed_at, l.ends_at) < %(overdue_before)s)
            OR (l.status NOT IN ('ended', 'interrupted', 'failed') AND count(s.id) > 0)
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "payouts_equal_releases",
        "Each payout of a settlement is what its release made payable.",
        """
        SELECT s.id || ' earned ' || s.owner_minor || ', payout ' || coalesce(o.amount_minor::text, 'none')
            || ', posted ' || coalesce(posted.amount::text, 'nothing'), s.owner_id
        FROM billing_settlement s
        LEFT JOIN billing_payout o ON o.settlement_id = s.id
        LEFT JOIN LATERAL (
            SELECT sum(p.amount) AS amount
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind = 'release' AND e.subject_id = s.id AND a.kind = 'owner_payable'
                AND p.side = 'credit' AND a.organization_id = s.owner_id AND a.currency = s.currency
        ) posted ON true
        WHERE (o.amount_minor IS DISTINCT FROM posted.amount)
            OR (o.id IS NOT NULL AND s.released_at IS NULL)
            OR (o.id IS NOT NULL AND (o.owner_id, o.currency) <> (s.owner_id, s.currency))
        """,
    ),
    Invariant(
        "no_double_allocation",
        "No GPU is promised twice at one instant.",
        """
        SELECT 'allocations ' || a.id || ' and ' || b.id || ' overlap', n.organization_id
        FROM scheduler_allocation a JOIN scheduler_allocation b
            ON a.id < b.id AND a.slots && b.slots AND a.period && b.period
        JOIN agents_node n ON n.id = a.node_id
        WHERE a.live AND b.live
        """,
    ),
    *MORE_INVARIANTS,
    *PROVIDER_INVARIANTS,
    *WALLET_INVARIANTS,
    *INVOICE_INVARIANTS,
    *TAX_INVARIANTS,
    *DEPOSIT_INVARIANTS,
    *HOLD_INVARIANTS,
    *RESALE_INVARIANTS,
)
# Of every check, in their order: those that are queries, then those that read the exports.
NAMES = (*(invariant.name for invariant in INVARIANTS), *export_invariants.SENTENCES)


def check(*, at: dt.datetime) -> BooksReport:
    """Check every invariant on one snapshot of the database.

    A lease or reservation that closed less than its grace and `SETTLEMENT_OVERDUE_SECONDS` before `at` may
    still wait for its settlement.
    """
    patience_seconds = settlements.grace_seconds(at=at) + SETTLEMENT_OVERDUE_SECONDS
    overdue_before = at - dt.timedelta(seconds=patience_seconds)
    parameters: dict[str, dt.datetime | list[str]] = {
        "at": at,
        "overdue_before": overdue_before,
        "silent_since": at - dt.timedelta(seconds=silences.SILENT_SECONDS_MAX),
        "guards": list(GUARDS),
    }
    with transaction.atomic(), connection.cursor() as cursor:
        if not _is_nested():
            # Between two statements of READ COMMITTED a purchase may commit; of one snapshot it cannot.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        checks = []
        for invariant in INVARIANTS:
            cursor.execute(
                f"SELECT breach, organization_id FROM ({invariant.breaches})"  # noqa: S608
                f" AS found (breach, organization_id) LIMIT {BREACHES_READ_MAX}",
                parameters,
            )
            checks.append(_judge(invariant.name, invariant.sentence, cursor.fetchall()))
        for name, found in export_invariants.breaches(at=at).items():
            checks.append(_judge(name, export_invariants.SENTENCES[name], found))
    return BooksReport(at=at, ok=all(each.ok for each in checks), checks=checks)


def run_if_due(*, at: dt.datetime) -> BooksReport | None:
    """Check the books once a night, keep what was found, and park whose books are broken.

    None where the last night's check is not a day old. Safe to run twice: a check changes nothing, and
    whoever is parked stays parked.
    """
    last = BooksRun.objects.order_by("-at").values_list("at", flat=True).first()
    if last is not None and at < last + dt.timedelta(seconds=NIGHTLY_SECONDS):
        return None
    return run(at=at)


def run(*, at: dt.datetime) -> BooksReport:
    """Check the books now, keep what was found, and park whose books are broken."""
    report = check(at=at)
    with transaction.atomic():
        BooksRun.objects.create(
            at=at,
            ok=report.ok,
            checks=[
                {"name": each.name, "ok": each.ok, "detail": each.detail} for each in report.checks
            ],
        )
        parking.park(breaches=breaches_of(report), at=at)
    for each in report.checks:
        if not each.ok:
            logger.error("the books are broken: %s: %s", each.name, each.detail)
    return report


def breaches_of(report: BooksReport) -> dict[str, str]:
    """Return, by organization, the first breach that concerns its money."""
    found: dict[str, str] = {}
    for each in report.checks:
        for organization_id, text in each.organizations.items():
            found.setdefault(organization_id, text)
    return found


def _is_nested() -> bool:
    """Say whether a caller's transaction is open around ours: its isolation is the caller's choice."""
    return bool(connection.savepoint_ids)


def _judge(name: str, sentence: str, rows: list[tuple[str, str | None]]) -> Check:
    if not rows:
        return Check(name=name, ok=True, detail=sentence)
    texts = list(dict.fromkeys(text for text, _ in rows))  # one may concern several organizations
    shown = "; ".join(texts[:BREACHES_SHOWN_MAX])
    rest = (
        f"; and {len(texts) - BREACHES_SHOWN_MAX} more" if len(texts) > BREACHES_SHOWN_MAX else ""
    )
    return Check(
        name=name,
        ok=False,
        detail=f"{shown}{rest}",
        organizations={
            organization_id: f"{name}: {text}"
            for text, organization_id in reversed(rows)
            if organization_id is not None
        },
    )
