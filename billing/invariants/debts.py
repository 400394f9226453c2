"""Invariants of refunds, disputes and what tenants owe."""

from billing.invariants import Invariant, balances_of, sum_of

# What was posted of a dispute that was lost: `d` is the dispute.
_BORNE = f"""
    SELECT {sum_of("a.kind = 'refund_payable' AND e.kind = 'dispute_set_off'")} AS set_off,
        {sum_of("a.kind = 'owner_clawback' AND e.kind = 'dispute_charged'")} AS charged,
        {sum_of("a.kind = 'dispute_losses' AND e.kind = 'dispute_returned'")} AS returned
    FROM billing_entry e
    JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
    WHERE e.subject_id = d.id
        AND e.kind IN ('dispute_set_off', 'dispute_charged', 'dispute_returned')
"""  # noqa: S608 - constants of this package

DEBT_INVARIANTS = (
    Invariant(
        "refunds_are_on_their_way",
        "What a refund cleared with the provider is what is sent and not yet settled; none is over-promised.",
        f"""
        SELECT f.id || ' is ' || f.status || ', its clearing account keeps ' || coalesce(b.balance, 0),
            r.organization_id
        FROM billing_refund f
        JOIN scheduler_reservation r ON r.id = f.reservation_id
        LEFT JOIN ({balances_of("psp_clearing")}) b ON b.subject_id = f.id
        WHERE coalesce(b.balance, 0) <> CASE f.status WHEN 'sent' THEN -f.amount_minor ELSE 0 END
        UNION ALL
        SELECT f.id || ' is due for ' || f.amount_minor || ', payable are ' || coalesce(b.balance, 0),
            r.organization_id
        FROM billing_refund f
        JOIN scheduler_reservation r ON r.id = f.reservation_id
        LEFT JOIN ({balances_of("refund_payable")}) b ON b.subject_id = r.id
        WHERE f.status = 'due' AND f.amount_minor > coalesce(b.balance, 0)
        """,  # noqa: S608 - constants of this package
    ),
    Invariant(
        "disputes_hold_what_is_open",
        "What a dispute holds is its amount while it is open, and nothing after.",
        f"""
        SELECT d.id || ' is ' || d.status || ' and holds ' || coalesce(b.balance, 0), r.organization_id
        FROM billing_dispute d
        JOIN scheduler_reservation r ON r.id = d.reservation_id
        LEFT JOIN ({balances_of("dispute_hold")}) b ON b.subject_id = d.id
        WHERE coalesce(b.balance, 0) <> CASE d.status WHEN 'open' THEN d.amount_minor ELSE 0 END
        """,  # noqa: S608
    ),
    Invariant(
        "disputes_cost_what_they_say",
        "What was set off against a lost dispute, charged to owners and given back is what was posted.",
        f"""
        SELECT d.id || ' says ' || d.set_off_minor || ' set off, ' || said.charged || ' charged and '
            || said.returned || ' given back, posted ' || posted.set_off || ', ' || posted.charged
            || ' and ' || posted.returned, r.organization_id
        FROM billing_dispute d
        JOIN scheduler_reservation r ON r.id = d.reservation_id
        CROSS JOIN LATERAL (
            SELECT coalesce((
                SELECT sum(c.amount_minor) FROM billing_disputecharge c WHERE c.dispute_id = d.id
            ), 0) AS charged, coalesce((
                SELECT sum(g.amount_minor) FROM billing_disputereturn g
                JOIN billing_disputecharge c ON c.id = g.charge_id WHERE c.dispute_id = d.id
            ), 0) AS returned
        ) said
        CROSS JOIN LATERAL ({_BORNE}) posted
        WHERE (d.set_off_minor, said.charged, said.returned)
            <> (posted.set_off, posted.charged, posted.returned)
        """,  # noqa: S608
    ),
    Invariant(
        "disputes_are_borne_once",
        "What was set off and what owners bear of a lost dispute is together at most what it cost.",
        f"""
        SELECT d.id || ' cost ' || d.amount_minor || ', set off were ' || posted.set_off
            || ', charged ' || posted.charged || ', given back ' || posted.returned, r.organization_id
        FROM billing_dispute d
        JOIN scheduler_reservation r ON r.id = d.reservation_id
        CROSS JOIN LATERAL ({_BORNE}) posted
        WHERE posted.set_off + posted.charged - posted.returned > d.amount_minor
            OR posted.returned > posted.charged
        """,  # noqa: S608
    ),
    Invariant(
        "sales_on_account_are_owed",
        "Each sale on account made its tenant owe what its invoice says, once.",
        f"""
        SELECT s.invoice_id || ' says ' || s.amount_minor || ', owed became ' || owed.amount,
            s.organization_id
        FROM billing_creditsale s
        CROSS JOIN LATERAL (
            SELECT {sum_of("p.side = 'debit' AND e.kind IN ('purchase', 'change')")} AS amount
            FROM billing_account a
            JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
            WHERE a.kind = 'receivable' AND a.subject_id = s.invoice_id AND a.currency = s.currency
                AND a.organization_id = s.organization_id
        ) owed
        WHERE owed.amount <> s.amount_minor
        """,  # noqa: S608
    ),
    Invariant(
        "debts_are_watched",
        "Each sale on account is watched until it is owed no more.",
        """
        SELECT s.invoice_id || ' is ' || coalesce(d.status, 'not watched') || ' and open by '
            || coalesce(a.balance, 0), s.organization_id
        FROM billing_creditsale s
        LEFT JOIN billing_dunningcase d ON d.sale_id = s.id
        LEFT JOIN billing_account a ON a.kind = 'receivable' AND a.subject_id = s.invoice_id
            AND a.currency = s.currency
        WHERE d.status IS NULL OR (d.status = 'closed' AND coalesce(a.balance, 0) <> 0)
        """,
    ),
)
