"""Where a demand goes: `supply` reads what may serve it, `planning` chooses, `assignment` takes."""

from scheduler.placement.assignment import Take, assign
from scheduler.placement.demand import Ask, Demand, admits, asks_of, offers, totals
from scheduler.placement.shares import FreeNode, NodeShare, choose, free_nodes

__all__ = [
    "Ask",
    "Demand",
    "FreeNode",
    "NodeShare",
    "Take",
    "admits",
    "asks_of",
    "assign",
    "choose",
    "free_nodes",
    "offers",
    "totals",
]
