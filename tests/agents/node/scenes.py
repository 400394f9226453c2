"""What the stories of an agent have in common: a grant, an enrolled node, what the market then knows."""

from __future__ import annotations

import datetime as dt
from collections import Counter

from agents.protocol import DesiredState, Grant, LeaseState, Receipt, ReceiptKind
from tests.agents.node.rig import START, Rig
from tests.fakes.market import FakeMarket

MINUTE = dt.timedelta(minutes=1)


def gpus(market: FakeMarket) -> list[str]:
    return [gpu.uuid for gpu in market.enrolments[0].gpus]


def grant(
    market: FakeMarket, *, minutes: float = 3, start: float = 0.5, epoch: int = 1, count: int = 2
) -> Grant:
    first = START.replace(microsecond=0) + MINUTE * start
    return Grant(
        lease_id="lease-1",
        lease_epoch=epoch,
        gpu_uuids=gpus(market)[:count],
        not_before=first,
        not_after=first + MINUTE * minutes,
        desired_state=DesiredState.RUN,
    )


def enrolled(rig: Rig) -> None:
    rig.live(seconds=6)
    assert rig.market.enrolments


def by_kind(market: FakeMarket) -> dict[ReceiptKind, Receipt]:
    counts = Counter(r.kind for r in market.receipts)
    assert all(count == 1 for count in counts.values()), "a receipt was given twice"
    return {r.kind: r for r in market.receipts}


def assert_meters_fill_the_lease(market: FakeMarket) -> None:
    """Meters of each GPU touch each other and span exactly the time between the two receipts."""
    receipts = by_kind(market)
    handover, returned = receipts[ReceiptKind.HANDOVER], receipts[ReceiptKind.RETURN]
    for gpu_uuid in handover.gpu_uuids:
        rows = sorted(
            (m for m in market.meters.values() if m.gpu_uuid == gpu_uuid), key=lambda m: m.starts_at
        )
        bounds = [handover.at, *(row.ends_at for row in rows)]
        assert [row.starts_at for row in rows] == bounds[:-1]
        assert bounds[-1] == returned.at
        assert sum(row.up_seconds for row in rows) == (returned.at - handover.at).total_seconds()
        assert all((row.ends_at - row.starts_at).total_seconds() <= 60 for row in rows)


def last_states(market: FakeMarket) -> dict[tuple[str, int], tuple[LeaseState, str]]:
    return {
        (status.lease_id, status.lease_epoch): (status.state, status.detail)
        for report in market.reports
        for status in report.leases
    }
