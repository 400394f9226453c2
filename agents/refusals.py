"""Parts of a report that are not taken: counted and logged, one line per reason, whatever their number.

A part is refused alone and the report is still acknowledged: a broken agent that had to keep its report
would send it for ever, and would lose the good parts with the bad ones.
"""

from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter

log = structlog.get_logger(__name__)

REFUSED_PARTS = Counter(
    "headroom_agent_refused_parts",
    "Parts of accepted reports that were not taken, by kind (meter, receipt, reading, lease) and reason",
    ("kind", "reason"),
)


@dataclass(slots=True, kw_only=True)
class Refusals:
    """What was not taken of one report."""

    node_id: str
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, *, kind: str, reason: str, example: str) -> None:
        """Note one refused part: `kind` and `reason` come from small fixed sets, `example` names it."""
        key = (kind, reason)
        self.counts[key] = self.counts.get(key, 0) + 1
        self.examples.setdefault(key, example)

    def publish(self) -> None:
        """Write them to the log and the counter, after the report was stored."""
        for (kind, reason), count in self.counts.items():
            REFUSED_PARTS.labels(kind=kind, reason=reason).inc(count)
            log.warning(
                "part_refused",
                node_id=self.node_id,
                kind=kind,
                reason=reason,
                count=count,
                example=self.examples[kind, reason],
            )
