"""Invariants of what comes in and goes out through the payment provider, and of what is only held there.

Captured is at most what was authorised, refunded at most what was captured, and what owners got, less what
was taken back, at most what they earned.
"""

from billing.invariants import SIGNED, Invariant

PROVIDER_INVARIANTS = (
    Invariant(
        "held_prices_are_held",
        "Behind each booking whose price is said to be held stands a payment that is, and the reverse.",
        """
        SELECT r.id || ' is to begin on a price that no payment holds', r.organization_id
        FROM scheduler_reservation r
        WHERE r.status = 'scheduled' AND r.is_payment_held AND NOT EXISTS (
            SELECT FROM billing_payment p WHERE p.reservation_id = r.id AND p.status = 'authorized'
        )
        UNION ALL
        SELECT p.id || ' is held, and ' || r.id || ' counts as paid', r.organization_id
        FROM billing_payment p JOIN scheduler_reservation r ON r.id = p.reservation_id
        WHERE p.status = 'authorized' AND NOT r.is_payment_held
            AND r.status IN ('scheduled', 'active', 'completed', 'reclaimed', 'failed')
        """,
    ),
    Invariant(
        "payments_equal_their_entries",
        "Each payment brought into its tenant's wallet what it says, and no more than was authorised.",
        """
        SELECT p.id || ' is ' || p.status || ' and brought ' || p.received_minor || ' of '
            || p.amount_minor || ', posted ' || posted.amount, p.organization_id
        FROM billing_payment p
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(g.amount), 0) AS amount
            FROM billing_entry e
            JOIN billing_posting g ON g.entry_id = e.id JOIN billing_account a ON a.id = g.account_id
            WHERE e.kind = 'top_up' AND e.subject_id = p.id AND g.side = 'credit'
                AND a.kind = 'wallet' AND a.organization_id = p.organization_id
                AND a.currency = p.currency
        ) posted
        WHERE posted.amount <> CASE p.status WHEN 'succeeded' THEN p.received_minor ELSE 0 END
            OR posted.amount > p.amount_minor
        """,
    ),
    Invariant(
        "payments_return_at_most_what_came",
        "What goes back of a payment is what its refunds say, and no more than it brought.",
        """
        SELECT p.id || ' says that ' || p.refunded_minor || ' of ' || p.received_minor
            || ' went back, its refunds say ' || gone.amount, p.organization_id
        FROM billing_payment p
        CROSS JOIN LATERAL (
            SELECT coalesce((
                SELECT sum(c.amount_minor) FROM billing_cardrefund c
                WHERE c.payment_id = p.id AND c.status <> 'failed'
            ), 0) + coalesce((
                SELECT sum(f.amount_minor) FROM billing_refund f
                WHERE f.payment_id = p.id AND f.status IN ('sent', 'settled')
            ), 0) AS amount
        ) gone
        WHERE p.refunded_minor <> gone.amount OR gone.amount > p.received_minor
        """,
    ),
    Invariant(
        "card_refunds_equal_their_entries",
        "Each refund to a card left the wallet once it was asked for, and is there again if it failed.",
        """
        SELECT c.id || ' is ' || c.status || ' for ' || c.amount_minor || ', withdrawn were '
            || posted.withdrawn || ', sent ' || posted.sent || ', put back ' || posted.put_back,
            p.organization_id
        FROM billing_cardrefund c JOIN billing_payment p ON p.id = c.payment_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(g.amount) FILTER (WHERE e.kind = 'withdrawal' AND g.side = 'debit'
                    AND a.kind = 'wallet' AND a.organization_id = p.organization_id), 0) AS withdrawn,
                coalesce(sum(g.amount) FILTER (WHERE e.kind = 'refund_sent' AND g.side = 'credit'
                    AND a.kind = 'psp_clearing'), 0) AS sent,
                coalesce(sum(g.amount) FILTER (WHERE e.kind = 'refund_failed' AND g.side = 'credit'
                    AND a.kind = 'wallet' AND a.organization_id = p.organization_id), 0) AS put_back
            FROM billing_entry e
            JOIN billing_posting g ON g.entry_id = e.id JOIN billing_account a ON a.id = g.account_id
            WHERE e.subject_id = c.id
        ) posted
        CROSS JOIN LATERAL (
            SELECT CASE WHEN EXISTS (
                SELECT FROM billing_intent i WHERE i.kind = 'refund' AND i.subject_id = c.id
            ) THEN c.amount_minor ELSE 0 END AS minor
        ) asked
        WHERE posted.withdrawn <> asked.minor OR CASE c.status
            WHEN 'due' THEN posted.sent <> 0 OR posted.put_back <> 0
            WHEN 'failed' THEN posted.put_back <> asked.minor OR posted.sent NOT IN (0, asked.minor)
            ELSE posted.sent <> c.amount_minor OR posted.put_back <> 0
        END
        """,
    ),
    Invariant(
        "transfers_equal_their_payouts",
        "Each transfer is of its payout's amount and as far as it is; no payout is sent twice.",
        """
        SELECT t.id || ' is ' || t.status || ' for ' || t.amount_minor || ', taken back '
            || t.reversed_minor || '; its payout is ' || o.status || ' for ' || o.amount_minor, t.owner_id
        FROM billing_transfer t JOIN billing_payout o ON o.id = t.payout_id
        WHERE (t.owner_id, t.amount_minor, t.currency) <> (o.owner_id, o.amount_minor, o.currency)
            OR (t.status = 'sending' AND o.status <> 'in_transit')
            OR (t.status IN ('paid', 'reversed') AND o.status <> 'paid')
            OR t.reversed_minor NOT BETWEEN 0 AND t.amount_minor
            OR (t.status IN ('sending', 'failed') AND t.reversed_minor <> 0)
            OR (t.status = 'reversed' AND t.reversed_minor <> t.amount_minor)
        UNION ALL
        SELECT t.payout_id || ' was sent ' || count(*) || ' times', t.owner_id
        FROM billing_transfer t WHERE t.status <> 'failed'
        GROUP BY t.payout_id, t.owner_id HAVING count(*) > 1
        """,
    ),
    Invariant(
        "owners_got_at_most_what_they_earned",
        "What an owner was sent, less what was taken back of it, is at most what its GPUs earned.",
        f"""
        SELECT got.owner_id || ' was sent ' || got.amount || ' ' || got.currency || ', earned '
            || earned.amount, got.owner_id
        FROM (
            SELECT o.owner_id, o.currency, sum(o.amount_minor) - coalesce((
                SELECT sum(t.reversed_minor) FROM billing_transfer t
                WHERE t.owner_id = o.owner_id AND t.currency = o.currency
            ), 0) AS amount
            FROM billing_payout o WHERE o.status IN ('in_transit', 'paid')
            GROUP BY o.owner_id, o.currency
        ) got
        CROSS JOIN LATERAL (
            SELECT -coalesce(sum({SIGNED}), 0) AS amount
            FROM billing_account a
            JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
            WHERE a.kind = 'owner_accrued' AND a.organization_id = got.owner_id
                AND a.currency = got.currency
                AND e.kind NOT IN ('release', 'correction_release')
        ) earned
        WHERE got.amount > earned.amount
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "what_was_taken_back_is_owed_no_more",
        "What transfers say was taken back of them lowered what their owner owes, once.",
        """
        SELECT t.owner_id || ' gave back ' || t.amount || ' ' || t.currency || ', posted '
            || posted.amount, t.owner_id
        FROM (
            SELECT owner_id, currency, sum(reversed_minor) AS amount FROM billing_transfer
            GROUP BY owner_id, currency
        ) t
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(p.amount), 0) AS amount
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind = 'transfer_reversal' AND e.subject_id = t.owner_id AND p.side = 'credit'
                AND a.kind = 'owner_clawback' AND a.organization_id = t.owner_id
                AND a.currency = t.currency
        ) posted
        WHERE posted.amount <> t.amount
        """,
    ),
    Invariant(
        "disputes_of_top_ups_hold_what_is_open",
        "What the dispute of a top-up holds is its amount while it is open, and nothing after.",
        f"""
        SELECT d.id || ' is ' || d.status || ' for ' || d.amount_minor || ' of ' || p.received_minor
            || ' and holds ' || held.amount, p.organization_id
        FROM billing_topupdispute d JOIN billing_payment p ON p.id = d.payment_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum({SIGNED.replace("p.", "g.")}), 0) AS amount
            FROM billing_account a JOIN billing_posting g ON g.account_id = a.id
            WHERE a.kind = 'dispute_hold' AND a.subject_id = d.id AND a.currency = d.currency
        ) held
        WHERE held.amount <> CASE d.status WHEN 'open' THEN d.amount_minor ELSE 0 END
            OR d.amount_minor > p.received_minor
        """,  # noqa: S608
    ),
)
