"""Post a journal again, into empty books, and compare what all accounts hold then."""

from dataclasses import dataclass

from django.db import connection, transaction
from django.db.models import Min

from billing import ledger
from billing.ledger import AccountRef, Leg
from billing.models import Account, Entry, Parking
from billing.states import AccountKind, EntryKind, Side
from tests.properties.ledger.model import balances

# What the journal alone does not make, and what refers to it: gone while it is posted again.
_EMPTIED = ("billing_posting", "billing_entry", "billing_account")


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An entry as it was posted."""

    entry: Entry
    legs: list[Leg]


@dataclass(frozen=True, slots=True)
class _State:
    """What the books say: guarded balances as they are kept, and all of them as postings make them."""

    kept: dict[tuple[str, str], int]
    derived: dict[str, int]

    @classmethod
    def read(cls) -> "_State":
        guarded = Account.objects.filter(guarded=True).values_list("code", "currency", "balance")
        return cls(
            kept={(code, currency): balance for code, currency, balance in guarded},
            derived=balances(*AccountKind),
        )


def journal() -> list[_Recorded]:
    """Return all entries in the order in which they were posted.

    `recorded_at` is the start of a transaction, so entries of one have the same; and ids are ordered by
    milliseconds only. The order is that of their first postings: those are numbered by a sequence as they
    are written, and every account that is guarded was locked by whoever wrote first.
    """
    posted = Entry.objects.annotate(first=Min("postings__id")).order_by("first")
    return [
        _Recorded(
            entry,
            [
                Leg(
                    AccountRef(
                        AccountKind(posting.account.kind),
                        posting.account.currency,
                        posting.account.subject_id,
                        posting.account.organization,
                    ),
                    Side(posting.side),
                    posting.amount,
                )
                for posting in sorted(entry.postings.all(), key=lambda each: each.pk)
            ],
        )
        for entry in posted.select_related("reverses").prefetch_related(
            "postings__account__organization"
        )
    ]


def require_same() -> int:
    """Empty the books, post their journal again, compare, and leave all as it was; return how many entries.

    A guard of PostgreSQL looks at every entry, so no balance that is guarded is negative after any part of
    the journal. Whoever is parked now was not when its entries were posted: nobody is, meanwhile.
    """
    recorded, before = journal(), _State.read()
    mark = transaction.savepoint()
    try:
        _empty()
        assert _State.read() == _State(kept={}, derived={})
        again: dict[str, Entry] = {}
        for each in recorded:
            undone = each.entry.reverses_id
            again[each.entry.pk] = ledger.post(
                idempotency_key=each.entry.idempotency_key,
                kind=EntryKind(each.entry.kind),
                subject_id=each.entry.subject_id,
                effective_at=each.entry.effective_at,
                legs=each.legs,
                reverses=None if undone is None else again[undone],
            )
        _check_constraints()
        after = _State.read()
        assert after == before, (after, before)
        assert Entry.objects.count() == len(recorded)
        assert Entry.objects.filter(reverses__isnull=False).count() == sum(
            each.entry.reverses_id is not None for each in recorded
        )
    finally:
        transaction.savepoint_rollback(mark)
    return len(recorded)


def _empty() -> None:
    """Delete the books, and end all parking, behind the back of the guards; its caller takes it back."""
    _check_constraints()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        for table in _EMPTIED:
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute(f"DELETE FROM {Parking._meta.db_table}")
        cursor.execute("SET LOCAL session_replication_role = DEFAULT")


def _check_constraints() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
