"""Invariants of finished leases: what they earned, hour by hour, and what their owners are owed."""

from billing.invariants import Invariant, balances_of, sum_of

# A lease of which nobody tells may wait until nothing can come any more, and then for two people: see
# `billing.silences`. `l` is the lease.
SILENT = """
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
"""  # noqa: S608 - constants of this package

SETTLEMENT_INVARIANTS = (
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
        AND NOT ({SILENT})
        GROUP BY l.id, n.organization_id
        HAVING count(s.id) > 1
            OR (l.status IN ('ended', 'interrupted', 'failed') AND count(s.id) = 0
                AND coalesce(l.closed_at, l.ends_at) < %(overdue_before)s)
            OR (l.status NOT IN ('ended', 'interrupted', 'failed') AND count(s.id) > 0)
        """,  # noqa: S608
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
        "hours_equal_their_entries",
        "Each closed hour says what its entry posted, and no two hours of a lease overlap.",
        f"""
        SELECT h.lease_id || ' at ' || h.starts_at || ' differs from its entry', n.organization_id
        FROM billing_earnedhour h
        JOIN scheduler_lease l ON l.id = h.lease_id JOIN agents_node n ON n.id = l.node_id
        LEFT JOIN billing_posting p ON p.entry_id = h.entry_id
        LEFT JOIN billing_account a ON a.id = p.account_id
        GROUP BY h.id, n.organization_id
        HAVING (h.owner_minor, h.fee_minor, h.gpu_seconds_delivered, h.gpu_seconds_busy)
            IS DISTINCT FROM (
                -{sum_of("a.kind = 'owner_accrued'")}, -{sum_of("a.kind = 'platform_fee'")},
                -{sum_of("a.kind = 'u_open'")}, {sum_of("a.kind = 'u_busy'")}
            )
        UNION ALL
        SELECT a.lease_id || ' closed ' || a.starts_at || ' twice', n.organization_id
        FROM billing_earnedhour a JOIN billing_earnedhour b
            ON a.lease_id = b.lease_id AND a.id < b.id
            AND a.starts_at < b.ends_at AND b.starts_at < a.ends_at
        JOIN scheduler_lease l ON l.id = a.lease_id JOIN agents_node n ON n.id = l.node_id
        """,  # noqa: S608
    ),
    Invariant(
        "corrections_equal_their_entries",
        "Each correction says what its entry posted.",
        f"""
        SELECT c.settlement_id || ' correction ' || c.number || ' differs from its entry', s.owner_id
        FROM billing_correction c
        JOIN billing_settlement s ON s.id = c.settlement_id
        LEFT JOIN billing_posting p ON p.entry_id = c.entry_id
        LEFT JOIN billing_account a ON a.id = p.account_id
        GROUP BY c.id, s.id
        HAVING (c.owner_minor - c.credit_of_owner_minor, c.fee_minor,
                c.refunded_minor + c.credit_minor,
                c.borne_minor + c.credit_minor - c.credit_of_owner_minor,
                c.gpu_seconds_delivered, c.gpu_seconds_busy)
            IS DISTINCT FROM (
                -{sum_of("a.kind IN ('owner_accrued', 'owner_clawback')")},
                -{sum_of("a.kind = 'platform_fee'")},
                -{sum_of("a.kind IN ('wallet', 'refund_payable', 'tax_payable')")} - c.borne_minor,
                {sum_of("a.kind = 'sla_credits'")},
                -{sum_of("a.kind = 'u_undelivered'")}, {sum_of("a.kind = 'u_busy'")}
            )
        """,  # noqa: S608
    ),
    Invariant(
        "credits_equal_their_entries",
        "Each settlement's credit was posted as it says, and nobody gave one for an unsettled lease.",
        f"""
        SELECT coalesce(s.id, e.subject_id) || ' says ' || coalesce(s.credit_minor, 0) || ', posted '
            || coalesce(e.amount, 0), s.owner_id
        FROM billing_settlement s FULL JOIN (
            SELECT e.subject_id, -{sum_of("a.kind = 'wallet'")} AS amount,
                {sum_of("a.kind IN ('owner_accrued', 'owner_clawback')")} AS of_owner
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind IN ('credit', 'compensation')
                AND NOT EXISTS (SELECT FROM scheduler_reservation r WHERE r.id = e.subject_id)
            GROUP BY e.subject_id
        ) e ON e.subject_id = s.lease_id
        WHERE (coalesce(s.credit_minor, 0), coalesce(s.credit_of_owner_minor, 0))
            <> (coalesce(e.amount, 0), coalesce(e.of_owner, 0))
        """,  # noqa: S608
    ),
    Invariant(
        "released_leases_are_empty",
        "Of a lease whose earnings were released, only what a correction added is still accrued.",
        f"""
        SELECT b.code || ' keeps ' || b.balance || ', corrections are due for ' || due.amount, s.owner_id
        FROM billing_settlement s
        JOIN ({balances_of("owner_accrued")}) b ON b.subject_id = s.lease_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(c.owner_minor - c.credit_of_owner_minor), 0) AS amount
            FROM billing_correction c
            WHERE c.settlement_id = s.id AND c.released_at IS NULL
        ) due
        WHERE s.released_at IS NOT NULL AND b.balance <> due.amount
        """,  # noqa: S608
    ),
    Invariant(
        "owners_are_owed_what_their_payouts_say",
        "What is payable, in transit and in reserve is what payouts and reserves add up to.",
        f"""
        SELECT b.code || ' keeps ' || b.balance || ', rows say ' || told.amount, b.organization_id
        FROM ({balances_of("owner_payable", "payout_in_transit", "owner_reserve")}) b
        CROSS JOIN LATERAL (
            SELECT CASE b.kind
                WHEN 'owner_payable' THEN (
                    SELECT coalesce(sum(o.amount_minor), 0) FROM billing_payout o
                    WHERE o.owner_id = b.subject_id AND o.currency = b.currency
                        AND o.status IN ('due', 'failed'))
                WHEN 'payout_in_transit' THEN (
                    SELECT coalesce(sum(o.amount_minor), 0) FROM billing_payout o
                    WHERE o.id = b.subject_id AND o.status = 'in_transit')
                ELSE (
                    SELECT coalesce(sum(k.amount_minor - k.drawn_minor), 0) FROM billing_reserve k
                    LEFT JOIN billing_settlement s ON s.id = k.settlement_id
                    LEFT JOIN billing_feeshare f ON f.id = k.fee_share_id
                    WHERE coalesce(s.owner_id, f.owner_id) = b.subject_id
                        AND k.currency = b.currency AND k.released_at IS NULL)
            END AS amount
        ) told
        WHERE b.balance <> told.amount
        """,  # noqa: S608
    ),
    Invariant(
        "reasons_add_up",
        "What a settlement or a correction keeps of reasons adds up to what was not delivered.",
        """
        SELECT k.settlement_id || ' explains ' || k.explained || ' of ' || k.undelivered, NULL
        FROM (
            SELECT s.id AS settlement_id, s.evidence,
                s.gpu_seconds_bought - s.gpu_seconds_delivered AS undelivered
            FROM billing_settlement s
            UNION ALL
            SELECT s.id, c.evidence, s.gpu_seconds_bought - s.gpu_seconds_delivered
                - sum(c.gpu_seconds_delivered) OVER (PARTITION BY s.id ORDER BY c.number)
            FROM billing_correction c JOIN billing_settlement s ON s.id = c.settlement_id
        ) said
        CROSS JOIN LATERAL (
            SELECT said.settlement_id, said.undelivered, (
                SELECT coalesce(sum(value::bigint), 0)
                FROM jsonb_each_text(said.evidence -> 'undelivered_by_reason')
            ) AS explained
        ) k
        WHERE said.evidence ? 'undelivered_by_reason' AND k.explained <> k.undelivered
        """,
    ),
)
