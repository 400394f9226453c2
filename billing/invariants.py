"""Invariants of what came after the first tables: hours, corrections, credits, refunds, payouts, disputes.

As in `billing.books`, each query derives everything from postings and returns a row per breach, with the
organization whose money is to be parked for it.
"""

from dataclasses import dataclass

SUSPENSE_PATIENCE_SECONDS = 86_400  # a person looks at it within a day

# Signed by side: what a debit adds, a credit takes away.
SIGNED = "CASE p.side WHEN 'debit' THEN p.amount ELSE -p.amount END"


@dataclass(frozen=True, slots=True)
class Invariant:
    """A sentence that must hold, and the query that returns a text and an organization per breach."""

    name: str
    sentence: str
    breaches: str


def sum_of(condition: str) -> str:
    """Return the SQL of what the postings under a condition add up to, debits first."""
    return f"coalesce(sum({SIGNED}) FILTER (WHERE {condition}), 0)"


def _by_kind(*kinds: str) -> str:
    """Return the query for what accounts of some kinds hold, by account, in their normal sides."""
    names = ", ".join(f"'{kind}'" for kind in kinds)
    return f"""
        SELECT a.id, a.code, a.kind, a.subject_id, a.currency, a.organization_id,
            sum(CASE WHEN p.side = a.normal_side THEN p.amount ELSE -p.amount END) AS balance,
            max(e.recorded_at) AS last_at
        FROM billing_account a
        JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
        WHERE a.kind IN ({names}) GROUP BY a.id
    """  # noqa: S608 - constants of this file


# What was posted of a dispute that was lost: `d` is the dispute.
_BORNE = f"""
    SELECT {sum_of("a.kind = 'refund_payable' AND e.kind = 'dispute_set_off'")} AS set_off,
        {sum_of("a.kind = 'owner_clawback' AND e.kind = 'dispute_charged'")} AS charged,
        {sum_of("a.kind = 'dispute_losses' AND e.kind = 'dispute_returned'")} AS returned
    FROM billing_entry e
    JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
    WHERE e.subject_id = d.id
        AND e.kind IN ('dispute_set_off', 'dispute_charged', 'dispute_returned')
"""  # noqa: S608 - constants of this file

MORE_INVARIANTS = (
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
        """,  # noqa: S608 - constants of this file
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
        JOIN ({_by_kind("owner_accrued")}) b ON b.subject_id = s.lease_id
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
        FROM ({_by_kind("owner_payable", "payout_in_transit", "owner_reserve")}) b
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
        "refunds_are_on_their_way",
        "What a refund cleared with the provider is what is sent and not yet settled; none is over-promised.",
        f"""
        SELECT f.id || ' is ' || f.status || ', its clearing account keeps ' || coalesce(b.balance, 0),
            r.organization_id
        FROM billing_refund f
        JOIN scheduler_reservation r ON r.id = f.reservation_id
        LEFT JOIN ({_by_kind("psp_clearing")}) b ON b.subject_id = f.id
        WHERE coalesce(b.balance, 0) <> CASE f.status WHEN 'sent' THEN -f.amount_minor ELSE 0 END
        UNION ALL
        SELECT f.id || ' is due for ' || f.amount_minor || ', payable are ' || coalesce(b.balance, 0),
            r.organization_id
        FROM billing_refund f
        JOIN scheduler_reservation r ON r.id = f.reservation_id
        LEFT JOIN ({_by_kind("refund_payable")}) b ON b.subject_id = r.id
        WHERE f.status = 'due' AND f.amount_minor > coalesce(b.balance, 0)
        """,  # noqa: S608
    ),
    Invariant(
        "disputes_hold_what_is_open",
        "What a dispute holds is its amount while it is open, and nothing after.",
        f"""
        SELECT d.id || ' is ' || d.status || ' and holds ' || coalesce(b.balance, 0), r.organization_id
        FROM billing_dispute d
        JOIN scheduler_reservation r ON r.id = d.reservation_id
        LEFT JOIN ({_by_kind("dispute_hold")}) b ON b.subject_id = d.id
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
    Invariant(
        "nothing_stays_in_suspense",
        "Money of which nobody knows whose it is does not stay so for a day.",
        f"""
        SELECT b.currency || ': ' || b.balance || ' since ' || b.last_at, NULL
        FROM ({_by_kind("suspense")}) b
        WHERE b.balance <> 0
            AND b.last_at < %(at)s - interval '{SUSPENSE_PATIENCE_SECONDS} seconds'
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
