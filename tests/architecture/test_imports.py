"""Who may import what, where import contracts cannot see it: migrations, vendors, signals."""

import ast
import sys
from collections.abc import Iterator

import pytest

from tests.architecture.sources import (
    PACKAGES,
    Rule,
    dotted,
    imported_modules,
    violations,
    violations_of_project,
)

VENDORS = {"stripe": "billing/stripe_gateway.py", "pynvml": "agents/node/nvml.py"}
MODEL_BASES = {"models.Model", "Model", "AbstractUser"}
# Defaults of columns point at the core and at words of the wire, which are never renamed; one migration
# installs the data of the catalogue. All else in a migration must stay what it was when it was written.
FROZEN_IMPORTS = ("marketplace.core", "agents.protocol")
DATA_MIGRATIONS = {"marketplace/migrations/0003_built_in_gpu_models.py": ("marketplace.catalog",)}


def imports_vendor(path: str, tree: ast.Module) -> Iterator[str]:
    for line, module in imported_modules(tree):
        vendor = module.partition(".")[0]
        gateway = VENDORS.get(vendor)
        if gateway is not None and path != gateway and path.partition("/")[2] != gateway:
            yield f"line {line} imports {vendor}; only {gateway} may"


def imports_project_in_migration(path: str, tree: ast.Module) -> Iterator[str]:
    if "/migrations/" not in path:
        return
    allowed = FROZEN_IMPORTS + DATA_MIGRATIONS.get(path, ())
    for line, module in imported_modules(tree):
        ours = module.partition(".")[0] in PACKAGES
        if ours and not any(module == name or module.startswith(f"{name}.") for name in allowed):
            yield f"line {line} imports {module} into a migration"


def hooks_into_saving(_path: str, tree: ast.Module) -> Iterator[str]:
    for line, module in imported_modules(tree):
        if module.startswith(("django.dispatch", "django.db.models.signals")):
            yield f"line {line} imports {module}: nothing calls upward, and nothing calls unseen"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and {dotted(b) for b in node.bases} & MODEL_BASES:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name in {"save", "delete"}:
                    yield f"line {member.lineno} overrides {node.name}.{member.name}"


def imports_beyond_the_standard_library(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("agents/protocol/"):
        return
    for line, module in imported_modules(tree):
        own = module == "agents.protocol" or module.startswith("agents.protocol.")
        if not own and module.partition(".")[0] not in sys.stdlib_module_names:
            yield f"line {line} imports {module}: the wire knows the standard library alone"


@pytest.mark.parametrize(
    "rule",
    [
        imports_vendor,
        imports_project_in_migration,
        hooks_into_saving,
        imports_beyond_the_standard_library,
    ],
)
def test_no_file_breaks_the_rule(rule: Rule) -> None:
    assert violations_of_project(rule) == []


@pytest.mark.parametrize("planted", ["import stripe", "from stripe import error", "import pynvml"])
def test_a_planted_vendor_is_caught(planted: str) -> None:
    assert violations(imports_vendor, path="billing/checkout.py", source=planted)


def test_a_vendor_passes_at_its_gateway() -> None:
    assert not violations(imports_vendor, path="agents/node/nvml.py", source="import pynvml")
    assert not violations(imports_vendor, path="billing/stripe_gateway.py", source="import stripe")


@pytest.mark.parametrize(
    "planted",
    [
        "from billing.models import Entry",
        "import agents.states",
        "from marketplace.catalog import x",
    ],
)
def test_project_code_in_a_migration_is_caught(planted: str) -> None:
    rule = imports_project_in_migration
    assert violations(rule, path="billing/migrations/0002_guard_the_books.py", source=planted)
    assert not violations(rule, path="billing/books.py", source=planted)


@pytest.mark.parametrize(
    "planted",
    [
        "from django.db.models.signals import post_save",
        "from django.dispatch import receiver",
        "class Lease(models.Model):\n    def save(self): ...",
    ],
)
def test_a_planted_hook_is_caught(planted: str) -> None:
    assert violations(hooks_into_saving, path="scheduler/models.py", source=planted)


def test_a_planted_dependency_of_the_wire_is_caught() -> None:
    rule = imports_beyond_the_standard_library
    path = "agents/protocol/parsing.py"
    assert violations(rule, path=path, source="import httpx")
    assert violations(rule, path=path, source="from agents import models")
    assert not violations(rule, path=path, source="import json")
    assert not violations(rule, path=path, source="from agents.protocol.messages import Report")
