"""Every invariant of the books is a query for its breaches, and stands in the room of its subject.

Each derives everything from postings, trusts neither the guards nor the verbs, and returns a row per breach,
with the organization whose money is to be parked for it; NULL where the money is nobody's, or only late.
`billing.books` runs them.
"""

from dataclasses import dataclass

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


def balances_of(*kinds: str) -> str:
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
