"""Where a demand goes: `supply` reads what may serve it, `planning` chooses, `assignment` takes."""

from scheduler.placement.assignment import Take, assign
from scheduler.placement.demand import Ask, Demand, admits, asks_of
from scheduler.placement.shares import NodeShare

__all__ = ["Ask", "Demand", "NodeShare", "Take", "admits", "asks_of", "assign"]
