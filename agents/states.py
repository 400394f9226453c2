"""States of nodes, and the words of the wire as choices of columns."""

from enum import StrEnum

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class NodeStatus(TextChoices):
    """Only an active node serves new leases; a draining one finishes its own, a revoked one is deaf."""

    ACTIVE = "active"
    DRAINING = "draining"
    REVOKED = "revoked"


NODE_ARROWS = Arrows(
    initial=(NodeStatus.ACTIVE,),
    moves={
        NodeStatus.ACTIVE: (NodeStatus.DRAINING, NodeStatus.REVOKED),
        NodeStatus.DRAINING: (NodeStatus.ACTIVE, NodeStatus.REVOKED),
        NodeStatus.REVOKED: (),
    },
)


class AlarmKind(TextChoices):
    """What a person must settle."""

    GPU_CLAIMED_TWICE = "gpu_claimed_twice"
    NODE_CLONED = "node_cloned"
    RETURN_OVERDUE = "return_overdue"


def choices_of(values: type[StrEnum]) -> list[tuple[str, str]]:
    """Return the choices of a column that holds a word of the wire."""
    return [(value.value, value.value) for value in values]
