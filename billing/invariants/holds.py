"""Invariants of what wallets hold for orders.

A hold that is late parks nobody: money that is parked is not given back.
"""

from billing.invariants import SIGNED, Invariant

HOLD_PATIENCE_SECONDS = 300  # what voids a hold that is due runs every few seconds

HOLD_INVARIANTS = (
    Invariant(
        "holds_keep_what_they_say",
        "An open hold keeps its amount and a resolved one nothing, by the entries that it names; else nothing"
        " is held.",
        f"""
        SELECT h.purchase_request_id || ' holds ' || h.amount_minor || ' and is '
            || coalesce(nullif(h.resolution, ''), 'open') || '; taken were ' || posted.taken
            || ', kept are ' || posted.kept, q.organization_id
        FROM billing_wallethold h JOIN billing_purchaserequest q ON q.id = h.purchase_request_id
        CROSS JOIN LATERAL (
            SELECT -coalesce(sum({SIGNED}), 0) AS kept,
                -coalesce(sum({SIGNED}) FILTER (WHERE p.entry_id = h.entry_id), 0) AS taken,
                coalesce(sum({SIGNED}) FILTER (WHERE p.entry_id = h.resolved_by_id), 0) AS used
            FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
            WHERE a.kind = 'hold' AND a.subject_id = q.id
                AND (a.currency, a.organization_id) = (h.currency, q.organization_id)
        ) posted
        LEFT JOIN billing_entry by ON by.id = h.resolved_by_id
        WHERE posted.taken <> h.amount_minor
            OR posted.kept <> CASE h.resolution WHEN '' THEN h.amount_minor ELSE 0 END
            OR CASE h.resolution
                WHEN 'voided' THEN by.kind <> 'void' OR posted.used <> h.amount_minor
                WHEN 'captured' THEN by.kind NOT IN ('purchase', 'change')
                ELSE false
            END
        UNION ALL
        SELECT a.code || ' keeps ' || a.balance || ' for no request', a.organization_id
        FROM billing_account a
        WHERE a.kind = 'hold' AND a.balance <> 0 AND NOT EXISTS (
            SELECT FROM billing_wallethold h WHERE h.purchase_request_id = a.subject_id
        )
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "holds_end_with_their_order",
        "No hold is open when its order cannot be made any more, or was made.",
        f"""
        SELECT q.id || ' is ' || q.status || ', holds ' || h.amount_minor || ' until ' || h.held_until,
            CASE WHEN made.is_made THEN q.organization_id END
        FROM billing_wallethold h JOIN billing_purchaserequest q ON q.id = h.purchase_request_id
        CROSS JOIN LATERAL (
            SELECT EXISTS (
                SELECT FROM scheduler_quote o WHERE o.id = q.quote_id AND o.status = 'used'
            ) OR EXISTS (
                SELECT FROM scheduler_changequote o
                WHERE o.id = q.quote_id AND o.used_at IS NOT NULL
            ) AS is_made
        ) made
        WHERE h.resolved_at IS NULL AND (
            made.is_made
            OR least(h.held_until, CASE q.status WHEN 'refused' THEN q.decided_at END)
                < %(at)s - interval '{HOLD_PATIENCE_SECONDS} seconds'
        ) AND NOT EXISTS (
            SELECT FROM billing_parking k
            WHERE k.organization_id = q.organization_id AND k.ended_at IS NULL
        )
        """,  # noqa: S608
    ),
)
