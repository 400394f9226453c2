"""What the parts of the keeper share: one look at the machine, and small words on records."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from agents.node.provision import ProvisionFailed
from agents.node.reader import Sample
from agents.node.spool import LeaseRecord
from agents.protocol import TEXT_LENGTH_MAX, DesiredState, Grant

# A tenant's workload that survives three orders to end is the owner's to look at.
STOP_ATTEMPTS_MAX = 3
STOP_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """What the loop knows of the machine at one instant; `samples` is `None` when nothing can be read."""

    at: dt.datetime
    gpu_uuids: frozenset[str]
    samples: dict[str, Sample] | None
    may_start: bool


def is_over(*, record: LeaseRecord, at: dt.datetime) -> bool:
    """Return whether a lease's time has passed, or the market wants it no more."""
    return at >= record.grant.not_after or record.grant.desired_state is DesiredState.STOP


def whole_second(*, at: dt.datetime) -> dt.datetime:
    """Return the second that `at` is in: receipts and meters meet on whole seconds."""
    return at.replace(microsecond=0)


def energies(*, grant: Grant, samples: dict[str, Sample] | None) -> list[int | None]:
    """Return the energy counter of each GPU of a grant, in its order."""
    found = [(samples or {}).get(gpu_uuid) for gpu_uuid in grant.gpu_uuids]
    return [None if sample is None else sample.energy_millijoules for sample in found]


def words(*, error: BaseException) -> str:
    """Return what went wrong, as the market is told."""
    known = isinstance(error, ProvisionFailed)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text[:TEXT_LENGTH_MAX]
