"""The meters of the leases that run: one a GPU, from the handover to the return."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from agents.node.metering import GpuMeter, MeterWindow
from agents.node.reader import Sample
from agents.node.spool import LeaseKey, LeaseRecord

# A sample this much older or younger than the end of a lease does not tell about the end.
SAMPLE_DISTANCE = dt.timedelta(seconds=5)


class LeaseMeters:
    """All meters of one node."""

    def __init__(self) -> None:
        self._meters: dict[LeaseKey, list[GpuMeter]] = {}

    def open(
        self, *, record: LeaseRecord, samples: Mapping[str, Sample] | None, blind: bool
    ) -> None:
        """Count from where the lease was metered last; `blind` says that nobody watched since then."""
        starts_at = record.metered_until or record.handed_over_at
        assert starts_at is not None, "a lease that was handed over knows when"
        self._meters[record.key] = [
            GpuMeter(
                gpu_uuid=gpu_uuid,
                starts_at=starts_at,
                sample=(samples or {}).get(gpu_uuid),
                blind=blind,
            )
            for gpu_uuid in record.grant.gpu_uuids
        ]

    def advance(
        self,
        *,
        record: LeaseRecord,
        until: dt.datetime,
        samples: Mapping[str, Sample] | None,
        window_max: int,
    ) -> list[MeterWindow]:
        """Account for the time until then; return the windows that became full."""
        windows: list[MeterWindow] = []
        for gpu_uuid, meter in zip(record.grant.gpu_uuids, self._meters[record.key], strict=True):
            sample = None if samples is None else samples.get(gpu_uuid)
            windows += meter.advance(at=until, sample=sample, window_max=window_max)
        return windows

    def finish(
        self, *, record: LeaseRecord, end: dt.datetime, samples: Mapping[str, Sample]
    ) -> list[MeterWindow]:
        """Account for the time until the end of the lease and forget its meters; return the last windows."""
        windows: list[MeterWindow] = []
        for gpu_uuid, meter in zip(
            record.grant.gpu_uuids, self._meters.pop(record.key), strict=True
        ):
            windows += meter.finish(at=end, sample=samples.get(gpu_uuid))
        return windows
