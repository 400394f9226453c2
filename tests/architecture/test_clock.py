"""The clock is an argument: it is read at the edges alone."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import dotted, violations, violations_of_project

EDGES = (
    *("marketplace/api/", "marketplace/console/", "marketplace/management/", "agents/node/"),
    *("billing/admin/", "marketplace/admin/"),
)
EDGE_FILES = {"tasks.py", "admin.py", "rule_admin.py"}
READERS = {
    "timezone.now",
    "timezone.localtime",
    "timezone.localdate",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.time",
}


def reads_clock(path: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith(EDGES) or path.rpartition("/")[2] in EDGE_FILES or "/migrations/" in path:
        return
    for node in ast.walk(tree):
        # Naming the function is reading the clock too: `default=timezone.now` runs it on every save.
        if isinstance(node, ast.Attribute) and (name := dotted(node)):
            if ".".join(name.split(".")[-2:]) in READERS:
                yield f"line {node.lineno} reads the clock with {name}"
        elif isinstance(node, ast.ImportFrom) and node.module in {"django.utils.timezone", "time"}:
            for alias in node.names:
                if f"{node.module.rpartition('.')[2]}.{alias.name}" in READERS:
                    yield f"line {node.lineno} imports {alias.name} out of {node.module}"


def test_the_clock_is_read_at_the_edges_alone() -> None:
    assert violations_of_project(reads_clock) == []


@pytest.mark.parametrize(
    "planted",
    [
        "at = timezone.now()",
        "at = dt.datetime.now(tz=dt.UTC)",
        "at = datetime.utcnow()",
        "created_at = models.DateTimeField(default=timezone.now)",
        "from django.utils.timezone import now",
        "seconds = time.time()",
    ],
)
def test_the_rule_catches_a_planted_reading(planted: str) -> None:
    assert violations(reads_clock, path="scheduler/leases.py", source=planted)
    assert not violations(reads_clock, path="scheduler/tasks.py", source=planted)
