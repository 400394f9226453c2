"""Invariants of the ledger itself: its entries, its accounts and what guards them."""

from billing.invariants import SIGNED, Invariant

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

LEDGER_INVARIANTS = (
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
        """,  # noqa: S608 - constants of this package
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
)
