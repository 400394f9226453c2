"""Make the machine match the grants: start, hand over, meter, end and return leases.

    preparing -> active -> stopping -> ended        preparing -> failed, stopping (not wanted any more)

A lease ends at its `not_after` by the agent's own clock, whether the market can be reached or not. Every
step is on the disk before the next one, so that an agent that was killed goes on where it was: a start is
repeated (the provisioner's verbs are idempotent), a handover is not.
"""

from agents.node.leases.gate import EMPTY_SECONDS_MAX, Gate, ReportUnfit
from agents.node.leases.keeper import LeaseKeeper
from agents.node.leases.meters import SAMPLE_DISTANCE
from agents.node.leases.view import STOP_ATTEMPTS_MAX, STOP_RETRY_SECONDS, MachineView

__all__ = [
    "EMPTY_SECONDS_MAX",
    "SAMPLE_DISTANCE",
    "STOP_ATTEMPTS_MAX",
    "STOP_RETRY_SECONDS",
    "Gate",
    "LeaseKeeper",
    "MachineView",
    "ReportUnfit",
]
