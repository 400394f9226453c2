"""Only the arrow functions write a status: their modules are named here, and nobody else's may."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import violations, violations_of_project

WRITERS = {
    "marketplace/listings/verbs.py",
    "agents/enrolment.py",
    "agents/inventory.py",
    "scheduler/holds.py",
    "scheduler/price_rules.py",
    "scheduler/quotes.py",
    "scheduler/reservations/due.py",
    "scheduler/reservations/moves.py",
    "scheduler/leases.py",
    "billing/card_refunds.py",
    "billing/deposits/plans.py",
    "billing/top_up_disputes.py",
    "billing/intents.py",
    "billing/payments/moves.py",
    "billing/transfers.py",
    "billing/approvals.py",
    "billing/approval_limits.py",
    "billing/disputes.py",
    "billing/dunning.py",
    "billing/payouts.py",
    "billing/purchase_requests.py",
    "billing/refunds.py",
}
# The program on the GPU host and the start-up of the market have no tables; migrations describe columns; the
# loader of large fleets makes rows as the verbs would have left them.
OUTSIDE = (
    "agents/node/",
    "/migrations/",
    "marketplace/management/bootstrap.py",
    "marketplace/management/loading/",
)
WRITING_CALLS = {"update", "create", "get_or_create", "update_or_create", "aupdate", "acreate"}


def writes_status(path: str, tree: ast.Module) -> Iterator[str]:
    if path in WRITERS or any(part in path for part in OUTSIDE):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = any(isinstance(t, ast.Attribute) and t.attr == "status" for t in targets)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = node.func.attr in WRITING_CALLS and "status" in {k.arg for k in node.keywords}
            found |= node.func.attr == "bulk_update" and "'status'" in ast.dump(node)
        elif isinstance(node, ast.Call):
            found = getattr(node.func, "id", "") == "setattr" and "'status'" in ast.dump(node)
        else:
            continue
        if found:
            yield f"line {node.lineno} writes a status outside of the arrow functions"


def test_no_other_module_writes_a_status() -> None:
    assert violations_of_project(writes_status) == []


@pytest.mark.parametrize(
    "planted",
    [
        "lease.status = 'ended'",
        "lease.status: str = 'ended'",
        "Lease.objects.filter(pk=1).update(status='ended', closed_at=at)",
        "Lease.objects.create(status='ended')",
        "Lease.objects.bulk_update(rows, ['status'])",
        "setattr(lease, 'status', 'ended')",
    ],
)
def test_the_rule_catches_a_planted_write(planted: str) -> None:
    assert violations(writes_status, path="billing/settlements.py", source=planted)
    assert not violations(writes_status, path="scheduler/leases.py", source=planted)


@pytest.mark.parametrize(
    "innocent",
    ["Response(body, status=201)", "if lease.status == 'ended': pass", "lease.state = 'ended'"],
)
def test_the_rule_lets_reading_pass(innocent: str) -> None:
    assert not violations(writes_status, path="billing/settlements.py", source=innocent)
