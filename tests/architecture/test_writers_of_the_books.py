"""Only the ledger writes entries and postings: nobody else calls its function, or makes or inserts rows."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.sources import dotted, violations, violations_of_project

WRITER = "billing/ledger.py"
ROWS = ("Entry", "Posting")
WRITING_CALLS = {
    "create",
    "bulk_create",
    "get_or_create",
    "update_or_create",
    "acreate",
    "abulk_create",
    "aget_or_create",
    "aupdate_or_create",
    "update",
    "aupdate",
    "bulk_update",
    "delete",
    "adelete",
}
_STATEMENT = re.compile(
    r"\bbilling_post\s*\(|\b(insert\s+into|update|delete\s+from|copy|truncate)\s+"
    r"\"?billing_(entry|posting)\b",
    re.IGNORECASE,
)


def writes_the_books(path: str, tree: ast.Module) -> Iterator[str]:
    if path == WRITER or "/migrations/" in path:
        return
    documentation = {id(text) for text in _docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _makes_rows(node.func):
            yield f"line {node.lineno} writes entries or postings outside of {WRITER}"
        elif isinstance(node, ast.Constant) and id(node) not in documentation and _writes(node):
            yield f"line {node.lineno} has a statement that writes the books outside of {WRITER}"


def _writes(node: ast.Constant) -> bool:
    return isinstance(node.value, str) and _STATEMENT.search(node.value) is not None


def _makes_rows(called: ast.expr) -> bool:
    """Say whether a call is `Entry(…)`, or ends like `Entry.objects.….create`."""
    if isinstance(called, ast.Name):
        return called.id in ROWS
    if not isinstance(called, ast.Attribute):
        return False
    if called.attr in ROWS:
        return True
    return called.attr in WRITING_CALLS and _manager_of_rows(called.value)


def _manager_of_rows(node: ast.expr) -> bool:
    """Say whether a chain of calls begins at the rows' manager, or at an entry's postings."""
    while isinstance(node, ast.Call):
        node = node.func
        if isinstance(node, ast.Attribute):
            node = node.value
    words = dotted(node).split(".")
    return words[-1] == "postings" or words[-2:] in [[row, "objects"] for row in ROWS]


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                yield first.value


def test_no_other_module_writes_the_books() -> None:
    assert violations_of_project(writes_the_books) == []


@pytest.mark.parametrize(
    "planted",
    [
        "Entry.objects.create(kind='deposit')",
        "models.Entry.objects.create(kind='deposit')",
        "Posting.objects.bulk_create(rows)",
        "Entry.objects.get_or_create(idempotency_key='k')",
        "Posting.objects.using('other').create(amount=1)",
        "Entry.objects.filter(pk=1).update(kind='deposit')",
        "Entry.objects.filter(pk=1).exclude(pk=2).delete()",
        "entry.postings.create(amount=1)",
        "Entry(kind='deposit').save()",
        "models.Posting(amount=1).save()",
        "cursor.execute('SELECT * FROM billing_post(%s)', [key])",
        "cursor.execute('INSERT INTO billing_entry VALUES (1)')",
        "cursor.execute(f'insert  into \"billing_posting\" VALUES ({n})')",
        "cursor.execute('UPDATE billing_posting SET amount = 0')",
        "cursor.copy('COPY billing_entry FROM STDIN')",
    ],
)
def test_the_rule_catches_a_planted_write(planted: str) -> None:
    assert violations(writes_the_books, path="billing/settlements.py", source=planted)
    assert not violations(writes_the_books, path=WRITER, source=planted)


@pytest.mark.parametrize(
    "innocent",
    [
        "Entry.objects.filter(kind='deposit').exists()",
        "Posting.objects.create",
        "entry.postings.order_by('id')",
        "TaxEntry.objects.create(amount=1)",
        "Account.objects.filter(pk=1).update(balance=1)",
        "'''It calls billing_post(…), which writes.'''",
        "cursor.execute('SELECT FROM billing_entry e JOIN billing_posting p ON p.entry_id = e.id')",
        "cursor.execute('INSERT INTO billing_entryview VALUES (1)')",
    ],
)
def test_the_rule_lets_reading_pass(innocent: str) -> None:
    assert not violations(writes_the_books, path="billing/settlements.py", source=innocent)
