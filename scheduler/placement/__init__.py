"""Where a demand goes: `supply` reads what may serve it, `planning` chooses, `assignment` takes."""

from scheduler.placement.assignment import Take, assign
from scheduler.placement.demand import Demand, admits
from scheduler.placement.shares import NodeShare

__all__ = ["Demand", "NodeShare", "Take", "admits", "assign"]
