"""Invariants of taxes: what is owed follows from what reservations keep, and from nothing else.

What a reservation keeps is derived from its purchase, changes, settlements, corrections and refunds: the
lines of its tax are checked, not believed.
"""

from billing.invariants import SIGNED, Invariant
from billing.models.tax import BASIS_POINTS

# Half to even, as everywhere: `round` of PostgreSQL goes away from zero.
_TAX_OF_KEPT = f"""
    (div(k.kept * k.rate, {BASIS_POINTS}) + CASE
        WHEN mod(k.kept * k.rate, {BASIS_POINTS}) * 2 > {BASIS_POINTS} THEN 1
        WHEN mod(k.kept * k.rate, {BASIS_POINTS}) * 2 = {BASIS_POINTS}
            THEN mod(div(k.kept * k.rate, {BASIS_POINTS}), 2)
        ELSE 0
    END)
"""
# By taxed reservation: the net price that it keeps.
_KEPT = """
    SELECT t.reservation_id, r.organization_id, r.currency, t.jurisdiction,
        t.rate_basis_points::numeric AS rate,
        (SELECT coalesce(sum(p.amount), 0)
            FROM billing_entry e
            JOIN billing_posting p ON p.entry_id = e.id JOIN billing_account a ON a.id = p.account_id
            WHERE e.kind IN ('purchase', 'balance') AND e.subject_id = r.id AND a.kind = 'deferred')
        + (SELECT coalesce(sum(c.charged_minor - c.refunded_minor), 0)
            FROM scheduler_change c WHERE c.reservation_id = r.id)
        - (SELECT coalesce(sum(s.refunded_minor), 0)
            FROM billing_settlement s JOIN scheduler_lease l ON l.id = s.lease_id
            WHERE l.reservation_id = r.id)
        - (SELECT coalesce(sum(c.refunded_minor + c.borne_minor), 0)
            FROM billing_correction c
            JOIN billing_settlement s ON s.id = c.settlement_id
            JOIN scheduler_lease l ON l.id = s.lease_id
            WHERE l.reservation_id = r.id)
        - (SELECT coalesce(sum(p.amount), 0)
            FROM billing_account a
            JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
            WHERE a.kind = 'deferred' AND a.subject_id = r.id AND p.side = 'debit'
                AND e.kind = 'refund') AS kept
    FROM billing_reservationtax t JOIN scheduler_reservation r ON r.id = t.reservation_id
"""
_LINES = """
    SELECT n.reservation_id, sum(n.net_charged_minor - n.net_refunded_minor) AS net,
        sum(n.tax_charged_minor - n.tax_refunded_minor) AS tax
    FROM billing_taxline n WHERE NOT n.is_relief GROUP BY n.reservation_id
"""

# By entry: what was remitted, and what came back of it.
_REMITTED = """
    SELECT r.entry_id, r.jurisdiction, r.currency, r.amount_minor AS amount FROM billing_taxremittance r
    UNION ALL
    SELECT v.id, r.jurisdiction, r.currency, -r.amount_minor
    FROM billing_taxremittance r JOIN billing_entry v ON v.reverses_id = r.entry_id
"""
# What a tax office was owed when `paid` was recorded, of some lines and of what of their months was remitted.
_OWED_THEN = """
    SELECT coalesce(sum(n.tax_charged_minor - n.tax_refunded_minor), 0) - coalesce((
        SELECT sum(o.amount_minor)
        FROM billing_taxremittance o JOIN billing_entry oe ON oe.id = o.entry_id
        LEFT JOIN billing_entry back ON back.reverses_id = oe.id AND back.recorded_at < e.recorded_at
        WHERE (o.jurisdiction, o.currency) = (r.jurisdiction, r.currency) AND o.month {months} r.month
            AND oe.recorded_at < e.recorded_at AND back.id IS NULL
    ), 0)
    FROM billing_taxline n
    JOIN billing_reservationtax t ON t.reservation_id = n.reservation_id
    JOIN billing_entry ne ON ne.id = n.entry_id
    WHERE (t.jurisdiction, n.currency) = (r.jurisdiction, r.currency)
        AND to_char(n.at AT TIME ZONE 'UTC', 'YYYY-MM') {months} r.month
        AND ne.recorded_at < e.recorded_at
"""

TAX_INVARIANTS = (
    Invariant(
        "tax_is_that_of_what_was_kept",
        "The tax of each reservation is its frozen rate of the net price that it keeps.",
        f"""
        SELECT k.reservation_id || ' keeps ' || k.kept || ' and ' || {_TAX_OF_KEPT}
            || ' of tax; its lines say ' || coalesce(n.net, 0) || ' and ' || coalesce(n.tax, 0),
            k.organization_id
        FROM ({_KEPT}) k LEFT JOIN ({_LINES}) n ON n.reservation_id = k.reservation_id
        WHERE (coalesce(n.net, 0), coalesce(n.tax, 0)) <> (k.kept, {_TAX_OF_KEPT})
        """,  # noqa: S608 - constants of this file
    ),
    Invariant(
        "tax_postings_equal_their_lines",
        "Whatever an entry moved of a tax, its line says so, or what was remitted, of that jurisdiction.",
        f"""
        SELECT coalesce(posted.entry_id, told.entry_id) || ' moved ' || coalesce(posted.amount, 0)
            || ' of tax, its line says ' || coalesce(told.amount, 0), told.organization_id
        FROM (
            SELECT p.entry_id, a.subject_id AS jurisdiction, a.currency, -sum({SIGNED}) AS amount
            FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
            WHERE a.kind = 'tax_payable'
            GROUP BY p.entry_id, a.subject_id, a.currency
        ) posted
        FULL JOIN (
            SELECT n.entry_id, t.jurisdiction, n.currency, r.organization_id,
                n.tax_charged_minor - n.tax_refunded_minor AS amount
            FROM billing_taxline n
            JOIN billing_reservationtax t ON t.reservation_id = n.reservation_id
            JOIN scheduler_reservation r ON r.id = t.reservation_id
            UNION ALL
            SELECT m.entry_id, m.jurisdiction, m.currency, NULL, -m.amount FROM ({_REMITTED}) m
        ) told ON (told.entry_id, told.jurisdiction, told.currency)
            = (posted.entry_id, posted.jurisdiction, posted.currency)
        WHERE coalesce(posted.amount, 0) <> coalesce(told.amount, 0)
        """,  # noqa: S608
    ),
    Invariant(
        "tax_payable_is_what_sales_owe",
        "What a tax office is owed is the tax of what was kept there, less relief and what was remitted.",
        f"""
        SELECT coalesce(books.jurisdiction, sales.jurisdiction) || ' is owed ' || coalesce(sales.owed, 0)
            || ', the books say ' || coalesce(books.owed, 0), NULL
        FROM (
            SELECT a.subject_id AS jurisdiction, a.currency, -sum({SIGNED}) AS owed
            FROM billing_account a JOIN billing_posting p ON p.account_id = a.id
            WHERE a.kind = 'tax_payable' GROUP BY a.subject_id, a.currency
        ) books
        FULL JOIN (
            SELECT k.jurisdiction, k.currency, sum({_TAX_OF_KEPT} - coalesce((
                SELECT sum(n.tax_refunded_minor - n.tax_charged_minor) FROM billing_taxline n
                WHERE n.reservation_id = k.reservation_id AND n.is_relief
            ), 0)) - coalesce((
                SELECT sum(m.amount) FROM ({_REMITTED}) m
                WHERE (m.jurisdiction, m.currency) = (k.jurisdiction, k.currency)
            ), 0) AS owed
            FROM ({_KEPT}) k GROUP BY k.jurisdiction, k.currency
        ) sales ON (sales.jurisdiction, sales.currency) = (books.jurisdiction, books.currency)
        WHERE coalesce(books.owed, 0) <> coalesce(sales.owed, 0)
        """,  # noqa: S608
    ),
    Invariant(
        "remitted_is_at_most_what_was_owed",
        "No tax office was ever paid more than it was owed of the month, after what it owed from before.",
        f"""
        SELECT r.approval_id || ' remitted ' || r.amount_minor || ' for ' || r.jurisdiction || ' of '
            || r.month || ', owed were ' || least(owed.of_month, owed.in_all), NULL
        FROM billing_taxremittance r JOIN billing_entry e ON e.id = r.entry_id
        CROSS JOIN LATERAL (
            SELECT ({_OWED_THEN.format(months="=")}) AS of_month, ({_OWED_THEN.format(months="<=")}) AS in_all
        ) owed
        WHERE r.amount_minor > least(owed.of_month, owed.in_all)
        """,  # noqa: S608
    ),
    Invariant(
        "relief_is_at_most_the_tax_kept",
        "What a tax office gave back because nobody paid is at most the tax that the sale still keeps.",
        """
        SELECT n.reservation_id || ' keeps ' || n.kept || ' of tax, relief is ' || n.relief,
            r.organization_id
        FROM (
            SELECT n.reservation_id,
                coalesce(sum(n.tax_charged_minor - n.tax_refunded_minor)
                    FILTER (WHERE NOT n.is_relief), 0) AS kept,
                coalesce(sum(n.tax_refunded_minor - n.tax_charged_minor)
                    FILTER (WHERE n.is_relief), 0) AS relief
            FROM billing_taxline n GROUP BY n.reservation_id
        ) n JOIN scheduler_reservation r ON r.id = n.reservation_id
        WHERE n.relief > n.kept OR n.relief < 0
        """,
    ),
)
