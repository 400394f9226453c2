"""States of nodes, and the words of the wire as choices of columns."""

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class NodeStatus(TextChoices):
    """An active node may serve new leases, a draining one finishes what it serves, a revoked one may not report."""

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
