"""Where a demand goes: `supply` reads what may serve it, `planning` chooses, `assignment` takes."""

from scheduler.placement.assignment import Take, assign
from scheduler.placement.demand import Demand, admits, offers, totals
from scheduler.placement.shares import FreeNode, NodeShare, choose, free_nodes

__all__ = [
    "Demand",
    "FreeNode",
    "NodeShare",
    "Take",
    "admits",
    "assign",
    "choose",
    "free_nodes",
    "offers",
    "totals",
]
