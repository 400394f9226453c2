"""Invariants of documents: numbers without gaps, sums that fit, and the ledger told once and in full.

As in `billing.invariants`, each query returns a row per breach. What an entry charged or gave back is
derived here from postings and from what changes, settlements and corrections say, and not from the lines.
"""

from billing.invariants import Invariant

TOLD_AFTER_SECONDS = (
    3600  # what was in the books an hour before a month was closed is in its documents
)

# By entry: what it charged of a reservation's net price, and what it gave back.
PRICES = """
    SELECT e.id, e.idempotency_key AS key, e.effective_at, e.recorded_at, a.subject_id AS reservation_id,
        CASE WHEN e.kind IN ('purchase', 'balance') THEN p.amount ELSE 0 END AS charged,
        CASE WHEN e.kind IN ('purchase', 'balance') THEN 0 ELSE p.amount END AS refunded
    FROM billing_entry e
    JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
    WHERE e.kind IN ('purchase', 'balance', 'refund') AND a.kind = 'deferred'
    UNION ALL
    SELECT e.id, e.idempotency_key, e.effective_at, e.recorded_at, c.reservation_id,
        c.charged_minor, c.refunded_minor
    FROM billing_entry e JOIN scheduler_change c ON c.id = e.subject_id WHERE e.kind = 'change'
    UNION ALL
    SELECT e.id, e.idempotency_key, e.effective_at, e.recorded_at, l.reservation_id, 0, s.refunded_minor
    FROM billing_settlement s
    JOIN billing_entry e ON e.id = s.entry_id JOIN scheduler_lease l ON l.id = s.lease_id
    UNION ALL
    SELECT e.id, e.idempotency_key, e.effective_at, e.recorded_at, l.reservation_id,
        greatest(-c.refunded_minor - c.borne_minor, 0), greatest(c.refunded_minor, 0)
    FROM billing_correction c
    JOIN billing_entry e ON e.id = c.entry_id
    JOIN billing_settlement s ON s.id = c.settlement_id JOIN scheduler_lease l ON l.id = s.lease_id
"""
_MOVED = f"""
    SELECT m.*, coalesce(t.tax_charged_minor, 0) AS tax_charged,
        coalesce(t.tax_refunded_minor, 0) AS tax_refunded
    FROM ({PRICES}) m LEFT JOIN billing_taxline t ON t.entry_id = m.id
"""  # noqa: S608 - constants of this file
_CREDITED = """
    SELECT c.corrects_line_id, sum(c.net_minor) AS net, sum(c.tax_minor) AS tax
    FROM billing_invoiceline c WHERE c.corrects_line_id IS NOT NULL GROUP BY c.corrects_line_id
"""

INVOICE_INVARIANTS = (
    Invariant(
        "invoice_numbers_have_no_gap",
        "Each series counts from 1 to its last number, and its dates never go back.",
        """
        SELECT s.issuer || ' ' || s.kind || ' ' || s.year || ' counts to ' || s.last_sequence || ', has '
            || count(i.id) || ' up to ' || coalesce(max(i.sequence), 0), NULL
        FROM billing_invoiceseries s LEFT JOIN billing_invoice i
            ON i.issuer = s.issuer AND i.kind = s.kind AND i.year = s.year
        GROUP BY s.id
        HAVING (count(i.id), coalesce(max(i.sequence), 0)) <> (s.last_sequence, s.last_sequence)
        UNION ALL
        SELECT i.number || ' is dated before the number that precedes it', i.organization_id
        FROM billing_invoice i JOIN billing_invoice b ON b.issuer = i.issuer AND b.kind = i.kind
            AND b.year = i.year AND b.sequence = i.sequence - 1
        WHERE b.issued_at > i.issued_at
        """,
    ),
    Invariant(
        "invoice_lines_add_up",
        "Each document is the sum of its lines, and has some.",
        """
        SELECT i.number || ' says ' || i.net_minor || ' and ' || i.tax_minor || ', its lines '
            || coalesce(sum(l.net_minor), 0) || ' and ' || coalesce(sum(l.tax_minor), 0), i.organization_id
        FROM billing_invoice i LEFT JOIN billing_invoiceline l ON l.invoice_id = i.id
        GROUP BY i.id
        HAVING count(l.id) = 0 OR (i.net_minor, i.tax_minor, i.total_minor)
            <> (sum(l.net_minor), sum(l.tax_minor), sum(l.net_minor + l.tax_minor))
        """,
    ),
    Invariant(
        "credits_are_at_most_what_was_invoiced",
        "Credit notes take back no more of a line than it says.",
        f"""
        SELECT i.number || ' line ' || l.position || ' says ' || l.net_minor || ' and ' || l.tax_minor
            || ', credited are ' || c.net || ' and ' || c.tax, i.organization_id
        FROM billing_invoiceline l JOIN billing_invoice i ON i.id = l.invoice_id
        JOIN ({_CREDITED}) c ON c.corrects_line_id = l.id
        WHERE c.net > l.net_minor OR c.tax > l.tax_minor
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "invoice_lines_equal_their_entries",
        "Each line says what its entry charged; what is credited of an entry is at most what it gave back.",
        f"""
        SELECT i.number || ' line ' || l.position || ' says ' || l.net_minor || ' and ' || l.tax_minor
            || ', ' || l.entry_key || ' charged ' || coalesce(m.charged || ' and ' || m.tax_charged,
            'nothing'), i.organization_id
        FROM billing_invoiceline l JOIN billing_invoice i ON i.id = l.invoice_id
        LEFT JOIN ({_MOVED}) m ON m.key = l.entry_key
        WHERE l.corrects_line_id IS NULL AND l.reservation_id IS NOT NULL
            AND (l.net_minor, l.tax_minor) <> (coalesce(m.charged, 0), coalesce(m.tax_charged, 0))
        UNION ALL
        SELECT c.entry_key || ' is credited with ' || c.net || ' and ' || c.tax || ', gave back '
            || coalesce(m.refunded || ' and ' || m.tax_refunded, 'nothing'), c.organization_id
        FROM (
            SELECT l.entry_key, i.organization_id, sum(l.net_minor) AS net, sum(l.tax_minor) AS tax
            FROM billing_invoiceline l JOIN billing_invoice i ON i.id = l.invoice_id
            WHERE l.corrects_line_id IS NOT NULL AND l.reservation_id IS NOT NULL
            GROUP BY l.entry_key, i.organization_id
        ) c LEFT JOIN ({_MOVED}) m ON m.key = c.entry_key
        WHERE m.key IS NULL OR c.net > m.refunded OR c.tax > m.tax_refunded
        """,  # noqa: S608
    ),
    Invariant(
        "what_is_owed_has_an_invoice",
        "Whatever was bought on account has the one invoice that it is owed on, of that amount.",
        """
        SELECT a.code || ' was charged ' || p.amount || ', its invoice says '
            || coalesce(i.total_minor::text, 'nothing'), a.organization_id
        FROM billing_account a
        JOIN billing_posting p ON p.account_id = a.id AND p.side = 'debit'
        JOIN billing_entry e ON e.id = p.entry_id AND e.kind IN ('purchase', 'change')
        LEFT JOIN billing_invoice i ON i.id = a.subject_id AND i.organization_id = a.organization_id
            AND i.due_at IS NOT NULL AND i.currency = a.currency
            AND EXISTS (SELECT FROM billing_invoiceline l
                WHERE l.invoice_id = i.id AND l.entry_key = e.idempotency_key)
        WHERE a.kind = 'receivable' AND i.total_minor IS DISTINCT FROM p.amount
        """,
    ),
    Invariant(
        "closed_months_are_told",
        "What was in the books before a month was closed is on an invoice or a credit note.",
        f"""
        SELECT m.key || ' charged ' || m.charged || ', gave back ' || m.refunded
            || ', and no document of ' || k.month || ' says so', r.organization_id
        FROM ({_MOVED}) m JOIN scheduler_reservation r ON r.id = m.reservation_id
        JOIN LATERAL (
            SELECT k.month, k.recorded_at FROM billing_monthclose k
            WHERE k.organization_id = r.organization_id ORDER BY k.month DESC LIMIT 1
        ) k ON m.recorded_at < k.recorded_at - interval '{TOLD_AFTER_SECONDS} seconds'
            AND m.effective_at
                < ((k.month || '-01')::timestamp + interval '1 month') AT TIME ZONE 'UTC'
        WHERE (m.charged > 0 AND NOT EXISTS (
                SELECT FROM billing_invoiceline l
                WHERE l.entry_key = m.key AND l.corrects_line_id IS NULL))
            OR (m.refunded > coalesce((
                    SELECT sum(l.net_minor) FROM billing_invoiceline l
                    WHERE l.entry_key = m.key AND l.corrects_line_id IS NOT NULL), 0)
                AND EXISTS (
                    SELECT FROM billing_invoiceline l LEFT JOIN ({_CREDITED}) c ON c.corrects_line_id = l.id
                    WHERE l.reservation_id = m.reservation_id AND l.corrects_line_id IS NULL
                        AND l.net_minor > coalesce(c.net, 0)))
            OR (m.tax_refunded > coalesce((
                    SELECT sum(l.tax_minor) FROM billing_invoiceline l
                    WHERE l.entry_key = m.key AND l.corrects_line_id IS NOT NULL), 0)
                AND EXISTS (
                    SELECT FROM billing_invoiceline l LEFT JOIN ({_CREDITED}) c ON c.corrects_line_id = l.id
                    WHERE l.reservation_id = m.reservation_id AND l.corrects_line_id IS NULL
                        AND l.tax_minor > coalesce(c.tax, 0)))
        """,  # noqa: S608
    ),
)
