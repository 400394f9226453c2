"""Say how a GPU is: healthy, suspect, quarantined or lost, each with a reason and whom it is put down to.

`findings` says what one look tells by the owner's policy, `track` what is remembered, and `steps` how the
one changes the other. Nothing here reads a GPU, a clock or a disk.
"""

from agents.node.health.findings import rule_of, xid_in_words
from agents.node.health.steps import BlamedXid, begin, judge, quarantine, step, vouch, with_xids
from agents.node.health.track import HealthTrack

__all__ = [
    "BlamedXid",
    "HealthTrack",
    "begin",
    "judge",
    "quarantine",
    "rule_of",
    "step",
    "vouch",
    "with_xids",
    "xid_in_words",
]
