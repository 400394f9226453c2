"""No float near money: neither the type nor a literal of it."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import violations, violations_of_project

EXACT_FILES = {
    "marketplace/core/money.py",
    "scheduler/pricing/explain.py",
    "scheduler/pricing/limits.py",
    "scheduler/pricing/reclaimable.py",
    "scheduler/pricing/rule.py",
    "scheduler/pricing/small_pool.py",
    "scheduler/tariffs.py",
}


def uses_float(path: str, tree: ast.Module) -> Iterator[str]:
    if path not in EXACT_FILES and not path.startswith("billing/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "float":
            yield f"line {node.lineno} names float"
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield f"line {node.lineno} holds the float {node.value}"
        elif isinstance(node, ast.Attribute) and node.attr == "FloatField":
            yield f"line {node.lineno} stores a float"


def test_no_float_stands_near_money() -> None:
    assert violations_of_project(uses_float) == []


@pytest.mark.parametrize(
    "planted",
    [
        "fee = amount * 0.15",
        "def share(part: float) -> int: ...",
        "rate = float(text)",
        "rate = models.FloatField()",
    ],
)
def test_the_rule_catches_a_planted_float(planted: str) -> None:
    assert violations(uses_float, path="billing/settlements.py", source=planted)
    assert violations(uses_float, path="scheduler/pricing/limits.py", source=planted)


def test_the_rule_leaves_temperatures_alone() -> None:
    assert not violations(uses_float, path="agents/health.py", source="limit = 0.9")
