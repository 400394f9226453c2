"""The project's own Python files, as the rules see them."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agents", "billing", "marketplace", "scheduler")
Rule = Callable[[str, ast.Module], Iterator[str]]


def project_files() -> list[str]:
    """Return every Python file of the four packages, as paths from the root."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    )


def violations(rule: Rule, *, path: str, source: str | None = None) -> list[str]:
    """Apply a rule to a file of the project, or to a planted source that stands in its place."""
    text = (ROOT / path).read_text(encoding="utf-8") if source is None else source
    return [f"{path}: {complaint}" for complaint in rule(path, ast.parse(text))]


def violations_of_project(rule: Rule) -> list[str]:
    return [v for path in project_files() for v in violations(rule, path=path)]


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every module that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression, and what can be read of any other."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
