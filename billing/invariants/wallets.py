"""Invariants of wallets: of gifts, of what goes back to tenants, of disputed top-ups, and of bad debts.

That the refunds of a payment are at most what it brought stands in `billing.invariants.provider`.
"""

from billing.invariants import SIGNED, Invariant, sum_of

UNPARKED_PATIENCE_SECONDS = 300  # what was parked goes on within seconds of its end
# Money that only waits is late, not wrong: of parked organizations, and of those that moved again just now.
_PARKED = f"""
    EXISTS (
        SELECT FROM billing_parking k WHERE k.organization_id = p.organization_id AND (
            k.ended_at IS NULL
            OR k.ended_at > %(at)s - interval '{UNPARKED_PATIENCE_SECONDS} seconds')
    )
"""
_HELD = """
    (SELECT coalesce(sum(CASE WHEN g.side = a.normal_side THEN g.amount ELSE -g.amount END), 0)
        FROM billing_account a JOIN billing_posting g ON g.account_id = a.id
        WHERE a.kind = '{kind}' AND a.subject_id = {subject} AND a.currency = {row}.currency)
"""

WALLET_INVARIANTS = (
    Invariant(
        "promotions_equal_their_entries",
        "Each promotion was granted once; what is left of it is that less what was spent and expired, with"
        " what came back; nothing is left of one that ended.",
        f"""
        SELECT coalesce(m.id, posted.subject_id) || ' of ' || coalesce(m.amount_minor::text, 'nobody')
            || ': granted ' || posted.granted || ', spent ' || posted.spent || ', returned '
            || posted.returned || ', expired ' || posted.expired || ', left ' || posted.left,
            coalesce(m.organization_id, posted.organization_id)
        FROM billing_promotion m
        FULL JOIN (
            SELECT a.subject_id, a.currency, a.organization_id, -{sum_of("true")} AS left,
                -{sum_of("e.kind = 'promotion'")} AS granted,
                {sum_of("e.kind = 'promotion_spent'")} AS spent,
                -{sum_of("e.kind = 'promotion_returned'")} AS returned,
                {sum_of("e.kind = 'promotion_expiry'")} AS expired
            FROM billing_account a
            JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
            WHERE a.kind = 'promo' GROUP BY a.id
        ) posted ON (posted.subject_id, posted.currency, posted.organization_id)
            = (m.id, m.currency, m.organization_id)
        WHERE m.id IS NULL OR posted.subject_id IS NULL
            OR posted.granted <> m.amount_minor
            OR posted.left <> posted.granted - posted.spent + posted.returned - posted.expired
            OR posted.returned > posted.spent
            OR CASE WHEN m.expired_at IS NULL THEN posted.expired <> 0 ELSE posted.left <> 0 END
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "promotions_return_at_most_what_was_spent",
        "A reservation gives back to a promotion at most what it took of it, by its tenant's wallet.",
        f"""
        SELECT x.reservation || ' took ' || x.spent || ' of ' || x.promotion || ' and gave back '
            || x.returned || ', of the wallet ' || x.wallet, x.organization_id
        FROM (
            SELECT e.subject_id AS reservation, g.subject_id AS promotion, g.organization_id,
                {sum_of("e.kind = 'promotion_spent'")} AS spent,
                -{sum_of("e.kind = 'promotion_returned'")} AS returned,
                coalesce(sum((
                    SELECT {sum_of("a.kind = 'wallet' AND a.organization_id = g.organization_id")}
                    FROM billing_posting p JOIN billing_account a ON a.id = p.account_id
                    WHERE p.entry_id = e.id
                )), 0) AS wallet
            FROM billing_account g
            JOIN billing_posting p ON p.account_id = g.id JOIN billing_entry e ON e.id = p.entry_id
            WHERE g.kind = 'promo' AND e.kind IN ('promotion_spent', 'promotion_returned')
            GROUP BY e.subject_id, g.id
        ) x
        WHERE x.returned > x.spent OR x.wallet <> x.returned - x.spent
            OR NOT EXISTS (
                SELECT FROM scheduler_reservation r
                WHERE r.id = x.reservation AND r.organization_id = x.organization_id)
        """,  # noqa: S608
    ),
    Invariant(
        "withdrawals_are_in_one_place",
        "All of a withdrawal waits, or all of it went: to the cards it came from, the rest by bank.",
        f"""
        SELECT w.id || ' of ' || w.amount_minor || coalesce(' carried out ' || w.carried_out_at, ' waits')
            || ': ' || parts.amount || ' to cards, ' || w.bank_minor || ' by bank, posted '
            || posted.amount, w.organization_id
        FROM billing_withdrawal w
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(c.amount_minor), 0) AS amount, coalesce(bool_or(
                (p.organization_id, c.currency) <> (w.organization_id, w.currency)), false) AS is_strange
            FROM billing_withdrawalpart t
            JOIN billing_cardrefund c ON c.id = t.refund_id JOIN billing_payment p ON p.id = c.payment_id
            WHERE t.withdrawal_id = w.id
        ) parts
        CROSS JOIN LATERAL (
            SELECT {sum_of("a.kind = 'wallet' AND a.organization_id = w.organization_id")} AS amount,
                -{sum_of("a.kind = 'bank'")} AS banked
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind = 'withdrawal' AND e.subject_id = w.id AND a.currency = w.currency
        ) posted
        WHERE parts.is_strange OR posted.amount <> w.bank_minor OR posted.banked <> w.bank_minor
            OR (w.entry_id IS NULL) <> (w.bank_minor = 0)
            OR parts.amount + w.bank_minor
                <> CASE WHEN w.carried_out_at IS NULL THEN 0 ELSE w.amount_minor END
        """,  # noqa: S608
    ),
    Invariant(
        "refunds_to_cards_are_in_one_place",
        "What goes back to a card is in the wallet, on its way out of it, or with the provider: once.",
        f"""
        SELECT c.id || ' is ' || c.status || ' for ' || c.amount_minor || ', to go out are ' || x.payable,
            p.organization_id
        FROM billing_cardrefund c JOIN billing_payment p ON p.id = c.payment_id
        CROSS JOIN LATERAL (
            SELECT {_HELD.format(kind="refund_payable", subject="c.id", row="c")} AS payable
        ) x
        WHERE x.payable <> CASE WHEN c.status = 'due' AND EXISTS (
            SELECT FROM billing_intent i WHERE i.kind = 'refund' AND i.subject_id = c.id
        ) THEN c.amount_minor ELSE 0 END
        """,  # noqa: S608
    ),
    Invariant(
        "disputes_withhold_what_is_open",
        "What is withheld for a top-up is at most what is disputed of it, while it is; what is owed for one,"
        " since it was lost.",
        f"""
        SELECT d.id || ' is ' || d.status || ' for ' || d.amount_minor || ', withheld are ' || x.withheld
            || ', owed ' || x.owed, p.organization_id
        FROM billing_topupdispute d JOIN billing_payment p ON p.id = d.payment_id
        CROSS JOIN LATERAL (
            SELECT {_HELD.format(kind="dispute_withheld", subject="d.id", row="d")} AS withheld,
                {_HELD.format(kind="receivable", subject="d.id", row="d")} AS owed
        ) x
        WHERE x.withheld > d.amount_minor OR x.owed > d.amount_minor
            OR CASE d.status WHEN 'open' THEN x.owed <> 0 WHEN 'lost' THEN x.withheld <> 0
                ELSE x.owed <> 0 OR (x.withheld <> 0 AND NOT {_PARKED}) END
        UNION ALL
        SELECT a.code || ' is withheld for no dispute', a.organization_id
        FROM billing_account a
        WHERE a.kind = 'dispute_withheld' AND NOT EXISTS (
            SELECT FROM billing_topupdispute d JOIN billing_payment p ON p.id = d.payment_id
            WHERE d.id = a.subject_id AND p.organization_id = a.organization_id)
        """,  # noqa: S608
    ),
    Invariant(
        "recovered_is_at_most_what_was_written_off",
        "Of each invoice at most what was written off was recovered, and all bad debts are what is still"
        " given up, less what tax offices gave up of it.",
        f"""
        SELECT coalesce(x.invoice, x.currency) || ' was written off by ' || x.lost || ', recovered were '
            || x.recovered, x.organization_id
        FROM (
            SELECT e.subject_id AS invoice, a.currency, max(a.organization_id) AS organization_id,
                -{sum_of("a.kind = 'receivable' AND e.kind = 'write_off'")} AS lost,
                -{sum_of("a.kind = 'bad_debt' AND e.kind = 'recovery'")} AS recovered
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind IN ('write_off', 'recovery')
            GROUP BY e.subject_id, a.currency
        ) x
        WHERE x.recovered > x.lost
        UNION ALL
        SELECT 'bad debts of ' || b.currency || ' are ' || b.balance || ', given up are ' || x.given_up
            || ', of it tax ' || relief.amount, NULL
        FROM (
            SELECT a.currency, sum({SIGNED}) AS balance
            FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
            WHERE a.kind = 'bad_debt' GROUP BY a.currency
        ) b
        CROSS JOIN LATERAL (
            SELECT -{sum_of("e.kind <> 'recovery'")} + {sum_of("e.kind = 'recovery'")} AS given_up
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE a.currency = b.currency AND (e.kind = 'write_off' AND a.kind = 'receivable'
                OR e.kind = 'owner_write_off' AND a.kind = 'owner_clawback'
                OR e.kind = 'recovery' AND a.kind = 'bad_debt')
        ) x
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(n.tax_refunded_minor - n.tax_charged_minor), 0) AS amount
            FROM billing_taxline n WHERE n.is_relief AND n.currency = b.currency
        ) relief
        WHERE b.balance <> x.given_up - relief.amount
        """,  # noqa: S608
    ),
)
