"""Make the machine match the grants: start, hand over, meter, end and return leases.

    preparing -> active -> stopping -> ended        preparing -> failed, stopping (not wanted any more)

A lease ends at its `not_after` by the agent's own clock, whether the market can be reached or not. Every
step is on the disk before the next one, so that an agent that was killed goes on where it was: a start is
repeated (the provisioner's verbs are idempotent), a handover is not.
"""

from agents.node.leases.keeper import (
    STOP_ATTEMPTS_MAX,
    STOP_RETRY_SECONDS,
    LeaseKeeper,
    MachineView,
)
from agents.node.leases.meters import SAMPLE_DISTANCE

__all__ = [
    "SAMPLE_DISTANCE",
    "STOP_ATTEMPTS_MAX",
    "STOP_RETRY_SECONDS",
    "LeaseKeeper",
    "MachineView",
]
