"""Say how a GPU is from what could be read of it. The catalogue of Xids and counters has its place here."""

from __future__ import annotations

from agents.node.reader import LOST, NOT_SUPPORTED, Sample
from agents.protocol import Health


def judge(*, sample: Sample) -> tuple[Health, str]:
    """Return the health of a GPU and the reason in words, empty when it is healthy.

    A value that the product does not have says nothing about its health; a value that could not be read
    although the product has it makes the GPU suspect; a GPU that answers `lost` fell off the bus.
    """
    lost = sorted(name for name, reason in sample.unread.items() if reason == LOST)
    if lost:
        return Health.LOST, "the driver says that this GPU is lost"
    failed = sorted(f"{name}: {why}" for name, why in sample.unread.items() if why != NOT_SUPPORTED)
    if failed:
        return Health.SUSPECT, "could not read " + ", ".join(failed)
    return Health.HEALTHY, ""
