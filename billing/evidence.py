"""What a settlement rests on, in a form that its tenant and its owner may both read: no name, no tag."""

import datetime as dt
from dataclasses import dataclass

from billing.bills import COVERAGE_QUANTUM, ratio
from billing.models import Correction, Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt:
    """What the node signed when it handed the GPUs over, or had them back."""

    kind: str
    id: str
    at: dt.datetime
    clean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsideredOutage:
    """An outage within the lease, and whether its time was given back to the tenant."""

    gpu_uuid: str
    starts_at: dt.datetime
    ends_at: dt.datetime
    health: str
    cause: str
    reason: str
    refunded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence of a settlement, or of its last correction, in GPU-seconds.

    `metered` of what was delivered is covered by readings; `coverage` is its share, None where nothing was
    delivered. `outage_count` counts all outages, of which the first hundreds are listed.
    """

    settlement_id: str
    settled_at: dt.datetime
    corrected_at: dt.datetime | None
    corrections: int
    handed_over_at: dt.datetime | None
    returned_at: dt.datetime | None
    receipts: list[SignedReceipt]
    gpu_seconds_bought: int
    gpu_seconds_delivered: int
    gpu_seconds_metered: int
    coverage: str | None
    outage_count: int
    outages: list[ConsideredOutage]


def of_settlement(settlement: Settlement) -> Evidence:
    """Return what a settlement rests on, as its last correction found it where there is one.

    Prefetch `corrections` where there are many settlements.
    """
    corrections = sorted(settlement.corrections.all(), key=lambda each: each.number)
    last: Settlement | Correction = corrections[-1] if corrections else settlement
    noted = last.evidence
    delivered = settlement.gpu_seconds_delivered + sum(
        each.gpu_seconds_delivered for each in corrections
    )
    noted_later = sum(each.gpu_seconds_metered or 0 for each in corrections)
    metered = min(settlement.gpu_seconds_metered + noted_later, delivered)
    return Evidence(
        settlement_id=settlement.pk,
        settled_at=settlement.settled_at,
        corrected_at=corrections[-1].corrected_at if corrections else None,
        corrections=len(corrections),
        handed_over_at=_instant(noted["handed_over_at"]),
        returned_at=_instant(noted["returned_at"]),
        receipts=[
            SignedReceipt(
                kind=kind,
                id=str(receipt["id"]),
                at=dt.datetime.fromisoformat(receipt["at"]),
                clean=receipt["clean"],
            )
            for kind, receipt in sorted(noted["receipts"].items())
        ],
        gpu_seconds_bought=settlement.gpu_seconds_bought,
        gpu_seconds_delivered=delivered,
        gpu_seconds_metered=metered,
        coverage=ratio(metered, delivered, COVERAGE_QUANTUM) if delivered else None,
        outage_count=noted["outage_count"],
        outages=[
            ConsideredOutage(
                gpu_uuid=outage["gpu_uuid"],
                starts_at=dt.datetime.fromisoformat(outage["starts_at"]),
                ends_at=dt.datetime.fromisoformat(outage["ends_at"]),
                health=outage["health"],
                cause=outage["cause"],
                reason=outage["reason"],
                refunded=outage["refunded"],
            )
            for outage in noted["outages"]
        ],
    )


def _instant(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None
