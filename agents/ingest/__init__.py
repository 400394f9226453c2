"""Take a node's reports: each once, in order, whole or not at all, and believe nothing that cannot be.

`standing` reads in one query all that an ordinary report is compared with. `reports` decides: what says
nothing new is a beat (`agents.beats`), the rest is stored in one transaction. `readings` and `leases` store
what a node says of its GPUs and of its grants; `agents.evidence` what settlement rests on.
"""

from agents.ingest.reports import ReportReplayed, accept, authenticate
from agents.ingest.standing import Standing, standing_of

__all__ = ["ReportReplayed", "Standing", "accept", "authenticate", "standing_of"]
