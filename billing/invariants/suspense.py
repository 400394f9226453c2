"""Invariants of what two people decide: where money of nobody known goes, and debts of owners given up."""

from billing.invariants import Invariant, balances_of

SUSPENSE_PATIENCE_SECONDS = 86_400  # a person looks at it within a day

# What was put aside and not undone, what is left of it, credits first.
_ASIDE = """
    SELECT e.id, e.recorded_at, a.currency, a.id AS account_id, x.amount, x.amount + y.amount AS left_minor
    FROM billing_entry e
    JOIN billing_posting p ON p.entry_id = e.id
    JOIN billing_account a ON a.id = p.account_id AND a.kind = 'suspense'
    CROSS JOIN LATERAL (
        SELECT CASE p.side WHEN 'credit' THEN p.amount ELSE -p.amount END AS amount
    ) x
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(CASE g.side WHEN 'credit' THEN g.amount ELSE -g.amount END), 0) AS amount
        FROM billing_entry r JOIN billing_posting g ON g.entry_id = r.id AND g.account_id = a.id
        WHERE r.kind = 'suspense_resolved' AND r.subject_id = e.id
            AND NOT EXISTS (SELECT FROM billing_entry u WHERE u.reverses_id = r.id)
    ) y
    WHERE e.kind = 'suspense'
        AND NOT EXISTS (SELECT FROM billing_entry u WHERE u.reverses_id = e.id)
"""

SUSPENSE_INVARIANTS = (
    Invariant(
        "nothing_stays_in_suspense",
        "Money of which nobody knows whose it is does not stay so for a day, and none is there but what was"
        " put aside.",
        f"""
        SELECT i.id || ' keeps ' || i.left_minor || ' ' || i.currency || ' since ' || i.recorded_at, NULL
        FROM ({_ASIDE}) i
        WHERE i.left_minor <> 0
            AND i.recorded_at < %(at)s - interval '{SUSPENSE_PATIENCE_SECONDS} seconds'
        UNION ALL
        SELECT b.currency || ': ' || b.balance || ', put aside are ' || i.left_minor, NULL
        FROM ({balances_of("suspense")}) b
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(i.left_minor), 0) AS left_minor FROM ({_ASIDE}) i
            WHERE i.currency = b.currency
        ) i
        WHERE b.balance <> i.left_minor
        """,  # noqa: S608
    ),
    Invariant(
        "two_people_gave_it_up",
        "What left suspense, and what owners owe no more, went where two people decided, by that amount; and"
        " no more left than was put aside.",
        f"""
        SELECT e.id || ' moved ' || e.amount || ' ' || e.currency || ', decided was ' || coalesce(
                a.kind || ' of ' || a.amount_minor || ' ' || a.currency || ' for ' || a.subject_id,
                'nothing'), coalesce(e.organization_id, a.organization_id)
        FROM (
            SELECT e.id, e.subject_id, a.currency, max(a.organization_id) AS organization_id,
                coalesce(sum(p.amount) FILTER (WHERE p.side = 'debit'), 0) AS amount,
                replace(replace(e.idempotency_key, 'suspense_resolved:', ''), 'writeoff:', '')
                    AS approval_id,
                max(a.kind) FILTER (WHERE a.kind NOT IN ('suspense', 'owner_clawback')) AS toward
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind IN ('suspense_resolved', 'owner_write_off') GROUP BY e.id, a.currency
        ) e
        LEFT JOIN billing_approval a ON a.id = e.approval_id AND a.status = 'approved'
        WHERE (a.subject_id, a.amount_minor, a.currency, a.kind) IS DISTINCT FROM (
            e.subject_id, e.amount, e.currency, CASE e.toward
                WHEN 'bank' THEN 'suspense_bank'
                WHEN 'wallet' THEN 'suspense_wallet'
                WHEN 'psp_fees' THEN 'suspense_fees'
                WHEN 'rounding_fx' THEN 'suspense_market'
                WHEN 'bad_debt' THEN 'write_off'
            END)
        UNION ALL
        SELECT i.id || ' put ' || i.amount || ' ' || i.currency || ' aside, and keeps ' || i.left_minor,
            NULL
        FROM ({_ASIDE}) i
        WHERE sign(i.left_minor) = -sign(i.amount) AND i.amount <> 0 OR abs(i.left_minor) > abs(i.amount)
        """,  # noqa: S608
    ),
)
