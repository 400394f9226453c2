"""Invariants of prices in two parts.

As in `billing.invariants`, each query returns a row per breach.
"""

from billing.invariants import Invariant

DEPOSIT_INVARIANTS = (
    Invariant(
        "deposits_and_balances_make_the_price",
        "Of a price in two parts the deposit was bought first and the balance after it, never more than it.",
        """
        SELECT d.reservation_id || ' is ' || d.status || ': parts of ' || d.net_minor || ' and '
            || d.balance_net_minor || ' of ' || q.total_minor || ', bought ' || bought.deposit || ' and '
            || bought.balance || ', owed ' || r.unpaid_minor, r.organization_id
        FROM billing_deposit d
        JOIN scheduler_reservation r ON r.id = d.reservation_id
        JOIN scheduler_quote q ON q.id = r.quote_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(p.amount) FILTER (WHERE e.kind = 'purchase'), 0) AS deposit,
                coalesce(sum(p.amount) FILTER (WHERE e.kind = 'balance'), 0) AS balance
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id AND p.side = 'credit'
            JOIN billing_account a ON a.id = p.account_id AND a.kind = 'deferred'
            WHERE e.subject_id = r.id AND e.kind IN ('purchase', 'balance')
        ) bought
        WHERE d.net_minor + d.balance_net_minor <> q.total_minor
            OR bought.deposit <> CASE d.status WHEN 'awaited' THEN 0 ELSE d.net_minor END
            OR bought.balance <> CASE d.status WHEN 'paid' THEN d.balance_net_minor ELSE 0 END
            OR r.unpaid_minor <> CASE d.status WHEN 'paid' THEN 0 ELSE d.balance_net_minor END
        UNION ALL
        SELECT r.id || ' owes ' || r.unpaid_minor || ' and has no deposit', r.organization_id
        FROM scheduler_reservation r LEFT JOIN billing_deposit d ON d.reservation_id = r.id
        WHERE r.unpaid_minor <> 0 AND d.reservation_id IS NULL
        """,
    ),
    Invariant(
        "nothing_begins_unpaid",
        "No reservation began while a balance was open.",
        """
        SELECT r.id || ' is ' || r.status || ' and owes ' || r.unpaid_minor, r.organization_id
        FROM scheduler_reservation r
        WHERE r.unpaid_minor <> 0 AND (
            r.status IN ('active', 'completed', 'reclaimed')
            OR EXISTS (SELECT FROM scheduler_lease l WHERE l.reservation_id = r.id))
        """,
    ),
)
