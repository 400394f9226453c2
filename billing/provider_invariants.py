"""Invariants of what comes in and goes out through the payment provider, and of what is only held there.

As in `billing.books`, each query derives everything from postings and returns a row per breach, with the
organization whose money is to be parked for it.
"""

from billing.invariants import Invariant

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
)
