"""Invariants of reservations: what they cost, what changes did, and that nothing stays behind."""

from billing.invariants import Invariant
from billing.invariants.settlements import SILENT

# Balances of the accounts that belong to reservations, in their normal sides, derived from postings.
_RESERVATION_BALANCES = """
    SELECT a.subject_id, a.kind,
        sum(CASE WHEN p.side = a.normal_side THEN p.amount ELSE -p.amount END) AS balance
    FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
    WHERE a.kind IN ('deferred', 'u_bought', 'u_open', 'u_busy', 'u_idle', 'u_undelivered',
        'u_released')
    GROUP BY a.subject_id, a.kind
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
        AND NOT EXISTS (SELECT FROM scheduler_lease l WHERE l.reservation_id = r.id AND {SILENT})
"""  # noqa: S608 - constants of this package

RESERVATION_INVARIANTS = (
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
)
