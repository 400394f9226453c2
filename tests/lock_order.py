"""Listen to which rows a transaction locks, and tell where that is not in the order of billing's README.

A row is known by the id in the statement that locks it; budgets, which are locked by their organization,
count as one. Accounts that only those lock who hold another's lock already are left out: what is held, given
or owed has an account of its own, behind the row of its hold, promotion, refund or tenant. A row that a
transaction has made itself counts as held, wherever it comes: nobody else waits for what nobody can see.

Only tests that are rolled back are listened to: in these the end of a transaction is a statement.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.db import connection

from tests.architecture.sources import ROOT

_ROW = re.compile(r"^\| Rows are locked in one order: (?P<places>[^|]+?); ", flags=re.MULTILINE)
_LOCKS = re.compile(r"\bFOR (NO KEY )?UPDATE\b")
_TABLE = re.compile(r'(?:FROM|UPDATE|INTO)\s+"?(\w+)"?')
_PLACE_OF_TABLE = {
    "billing_budget": "budgets",
    "scheduler_reservation": "reservation",
    "billing_wallethold": "wallet hold",
    "marketplace_organization": "organization",
    "billing_reserve": "reserve",
    "billing_promotion": "promotions",
    "agents_gpu": "GPUs",
    "scheduler_allocation": "GPUs",
}
_CLAIMED = {"billing_payment", "billing_deposit", "billing_settlement", "billing_correction"}
_PREFIXES = {"reservation": "rsv_", "organization": "org_", "promotions": "prm_"}
_BEHIND_A_ROW = {"hold", "promo", "receivable", "dispute_withheld"}
_QUOTAS = 0x51756F74  # `scheduler.quotas`: counted before GPUs are taken


class Row(NamedTuple):
    """A row that is locked: its place in the order, and what tells it from others of the place."""

    place: str
    key: str


def order() -> list[str]:
    """Return the order as the README tells it."""
    found = _ROW.search((ROOT / "billing/README.md").read_text(encoding="utf-8"))
    assert found is not None, "billing/README.md tells no order of locks"
    return [place.strip() for place in found["places"].split("→")]


class Listener:
    """Follow the locks of this thread's connection, one transaction at a time."""

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.seen: set[str] = set()
        self._rank = {place: rank for rank, place in enumerate(order())}
        self._held: list[Row] = []
        self._marks: dict[str, int] = {}

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,  # noqa: FBT001 - the framework's signature
        context: dict[str, Any],
    ) -> Any:
        result = execute(sql, params, many, context)
        if not self._is_in_product():
            self.end()
        elif sql.startswith("SAVEPOINT"):
            self._marks[sql.split()[1]] = len(self._held)
        elif sql.startswith("ROLLBACK TO SAVEPOINT"):
            del self._held[self._marks.get(sql.split()[-1], 0) :]
        else:
            self._hear(sql, params)
        return result

    def end(self) -> None:
        """Forget what a transaction held: it is over."""
        self._held.clear()
        self._marks.clear()

    @staticmethod
    def _is_in_product() -> bool:
        # Django marks the blocks that its own test case has opened; the stubs do not know that.
        blocks: list[Any] = list(connection.atomic_blocks)
        return bool(blocks) and blocks[0]._from_testcase and not blocks[-1]._from_testcase

    def _hear(self, sql: str, params: Any) -> None:
        if "billing_post(" in sql:
            # Of one entry the accounts are locked by their ids: all at once, for all who lock several.
            self._take(_accounts(json.loads(params[-1])), sql="billing_post")
            return
        if "pg_advisory_xact_lock" in sql:
            if params and params[0] == _QUOTAS:
                self._take([Row("GPUs", "")], sql="quota")
            return
        table = _TABLE.search(sql)
        if table is None:
            return
        name, verb = table[1], sql.split(maxsplit=1)[0]
        if verb not in {"UPDATE", "INSERT"} and not _LOCKS.search(sql):
            return
        if name == "billing_account" and verb == "SELECT" and "balance" in sql.split("FROM")[0]:
            code = str(params[0])
            self._take([Row(_place_of_account(code.partition(":")[0]), code)], sql=sql)
        elif name in _CLAIMED and verb == "SELECT":
            self._take([Row("what a step claims", name)], sql=sql)
        elif name in _PLACE_OF_TABLE:
            self._rows(_PLACE_OF_TABLE[name], verb=verb, params=params, sql=sql)

    def _rows(self, place: str, *, verb: str, params: Any, sql: str) -> None:
        prefix = _PREFIXES.get(place)
        takes_gpus = place == "GPUs" and 'SET "period"' in sql
        if verb == "UPDATE" and not prefix and not takes_gpus:
            return  # GPUs that are given up, or a row that its verb has read under its lock
        ids = [each for each in _flat(params) if prefix and str(each).startswith(prefix)]
        rows = [Row(place, str(each)) for each in ids] or [Row(place, "")]
        if verb == "INSERT" and place != "GPUs":
            self._held += [row for row in rows if row not in self._held]
        else:
            self._take(rows[:1] if verb == "UPDATE" and prefix else rows, sql=sql)

    def _take(self, rows: list[Row], *, sql: str) -> None:
        new = [row for row in rows if row not in self._held]
        for row in new:
            self.seen.add(row.place)
            late = [held for held in self._held if self._comes_after(held, row)]
            if late:
                self.breaches.append(f"{row} after {late[-1]}: {sql[:200]}")
        self._held += new

    def _comes_after(self, held: Row, row: Row) -> bool:
        return self._rank[held.place] > self._rank[row.place]


def _accounts(legs: list[dict[str, Any]]) -> list[Row]:
    guarded = [leg for leg in legs if leg["guarded"] and not _is_behind_a_row(leg)]
    rows = [Row(_place_of_account(leg["kind"]), leg["code"]) for leg in guarded]
    return sorted(rows, key=lambda row: row.place != "wallet")


def _is_behind_a_row(leg: dict[str, Any]) -> bool:
    return leg["kind"] in _BEHIND_A_ROW or leg["code"].startswith("refund_payable:ref_")


def _place_of_account(kind: str) -> str:
    return "wallet" if kind == "wallet" else "other accounts"


def _flat(params: Any) -> Iterator[Any]:
    for each in params or ():
        if isinstance(each, list | tuple):
            yield from _flat(each)
        else:
            yield each


@contextmanager
def listening() -> Iterator[Listener]:
    """Listen to the connection of this thread; the caller looks at the breaches."""
    listener = Listener()
    with connection.execute_wrapper(listener):
        yield listener
