"""Invariants of what owners got twice: what was shared is what was posted, once, and never above the fee."""

from billing.invariants import Invariant, sum_of

RESALE_INVARIANTS = (
    Invariant(
        "resales_equal_their_entries",
        "What a lease gave for time that was left before it is what its entry posted, to who had left it.",
        f"""
        SELECT coalesce(x.id, posted.id) || ' says ' || coalesce(x.taken_minor, 0) || ' and '
            || coalesce(x.share_minor, 0) || ', posted ' || coalesce(posted.taken, 0) || ' and '
            || coalesce(posted.share, 0), coalesce(s.owner_id, posted.owner_id)
        FROM billing_resale x
        JOIN billing_settlement s ON s.id = x.settlement_id
        JOIN billing_feeshare f ON f.id = x.fee_share_id
        JOIN scheduler_change c ON c.id = f.change_id
        JOIN scheduler_reservation r ON r.id = c.reservation_id
        FULL JOIN (
            SELECT e.id, e.subject_id,
                max(a.organization_id) FILTER (WHERE a.kind = 'owner_accrued') AS owner_id,
                max(a.subject_id) FILTER (WHERE a.kind = 'owner_accrued') AS lease_id,
                max(a.organization_id) FILTER (WHERE a.kind = 'wallet') AS tenant_id,
                {sum_of("a.kind = 'owner_accrued'")} AS taken,
                -{sum_of("a.kind = 'wallet'")} AS share,
                -{sum_of("a.kind = 'resale_margin'")} AS margin
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind = 'resale'
            GROUP BY e.id
        ) posted ON posted.id = x.entry_id
        WHERE (coalesce(x.taken_minor, 0), coalesce(x.share_minor, 0),
                coalesce(x.taken_minor - x.share_minor, 0))
                <> (coalesce(posted.taken, 0), coalesce(posted.share, 0), coalesce(posted.margin, 0))
            OR (posted.id IS NOT NULL AND (s.owner_id, s.lease_id, c.id,
                    CASE WHEN x.share_minor > 0 THEN r.organization_id END)
                IS DISTINCT FROM
                    (posted.owner_id, posted.lease_id, posted.subject_id, posted.tenant_id))
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "resales_stay_within_their_fee",
        "Of an owner's part of a fee no more is shared than there was, and never with who bought again.",
        """
        SELECT f.id || ' is ' || f.amount_minor || ', given of it ' || shared.taken || ' for '
            || shared.worth || ' of ' || coalesce(c.given_back_by_owner ->> f.owner_id, 'nothing'),
            f.owner_id
        FROM billing_feeshare f
        JOIN scheduler_change c ON c.id = f.change_id
        JOIN scheduler_reservation r ON r.id = c.reservation_id
        CROSS JOIN LATERAL (
            SELECT sum(x.taken_minor) AS taken, sum(x.fee_part_minor) AS part,
                sum(x.worth_micro_seconds) AS worth, count(x.id) AS count,
                count(x.id) FILTER (WHERE b.organization_id <> r.organization_id
                    AND s.owner_id = f.owner_id
                    AND (x.currency, s.currency) = (f.currency, f.currency)) AS sound
            FROM billing_resale x
            JOIN billing_settlement s ON s.id = x.settlement_id
            JOIN scheduler_lease l ON l.id = s.lease_id
            JOIN scheduler_reservation b ON b.id = l.reservation_id
            WHERE x.fee_share_id = f.id
        ) shared
        WHERE shared.count > 0 AND (
            shared.taken > f.amount_minor OR shared.part > f.amount_minor
            OR shared.sound <> shared.count
            OR shared.worth > coalesce((c.given_back_by_owner ->> f.owner_id)::numeric, 0)
        )
        """,
    ),
    Invariant(
        "time_is_shared_once",
        "No second of a GPU is shared twice; each was left by who gets the share, and delivered again.",
        """
        SELECT a.resale_id || ' and ' || b.resale_id || ' share ' || a.slots || ' twice', NULL
        FROM billing_resalepart a JOIN billing_resalepart b
            ON a.id < b.id AND a.slots && b.slots AND a.period && b.period
        UNION ALL
        SELECT x.id || ' counts ' || x.gpu_seconds || ' GPU-seconds, its parts ' || parts.gpu_seconds
            || ', ' || parts.strange || ' of them of other time', s.owner_id
        FROM billing_resale x
        JOIN billing_settlement s ON s.id = x.settlement_id
        JOIN scheduler_lease l ON l.id = s.lease_id
        JOIN billing_feeshare f ON f.id = x.fee_share_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(p.gpu_seconds), 0) AS gpu_seconds,
                count(*) FILTER (WHERE NOT p.period <@ tstzrange(l.starts_at, l.ends_at)
                    OR p.gpu_seconds > (upper(p.slots) - lower(p.slots))
                        * extract(epoch FROM upper(p.period) - lower(p.period))
                    OR NOT EXISTS (
                        SELECT FROM scheduler_releasedplace q WHERE q.change_id = f.change_id
                            AND q.slots @> p.slots AND q.period @> p.period
                    )) AS strange
            FROM billing_resalepart p WHERE p.resale_id = x.id
        ) parts
        WHERE parts.gpu_seconds <> x.gpu_seconds OR parts.strange > 0
        """,
    ),
)
