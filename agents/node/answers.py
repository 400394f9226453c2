"""Turn what the driver's process answers into the agent's types."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from agents.node.reader import GpuProcess, ReaderUnavailable, Sample
from agents.protocol import (
    GpuCounters,
    GpuIdentity,
    GpuSettings,
    HostFacts,
    MalformedMessage,
    MessageT,
    from_json,
    to_json,
)


class AnsweringReader(ABC):
    """The verbs of a reader whose answers come as JSON from wherever `_ask` gets them."""

    simulated = False

    @abstractmethod
    def _ask(self, **request: object) -> Any:  # noqa: ANN401 - a JSON value
        """Return the answer to a request.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """

    def host(self) -> HostFacts:
        """Return what the driver knows of the machine.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        return _checked(HostFacts, self._ask(verb="host"))

    def identify(self) -> list[GpuIdentity]:
        """Return the GPUs in PCI order; one that is lost stays while it is known.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        return [_checked(GpuIdentity, item) for item in self._ask(verb="identify")]

    def read(
        self,
        *,
        at: dt.datetime,
        gpu_uuids: Collection[str] | None = None,
        with_processes: Collection[str] = (),
    ) -> list[Sample]:
        """Return one sample of each of these GPUs.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        answer = self._ask(
            verb="read",
            at=to_json(at),
            gpu_uuids=None if gpu_uuids is None else sorted(gpu_uuids),
            with_processes=sorted(with_processes),
        )
        return [_checked(Sample, item) for item in answer]

    def counters(self, *, gpu_uuids: Collection[str]) -> list[GpuCounters]:
        """Return what speaks for or against the health of each of these GPUs.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        answer = self._ask(verb="counters", gpu_uuids=sorted(gpu_uuids))
        return [_checked(GpuCounters, item) for item in answer]

    def settings(self, *, gpu_uuids: Collection[str]) -> list[GpuSettings]:
        """Return what root has set on each of these GPUs.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        answer = self._ask(verb="settings", gpu_uuids=sorted(gpu_uuids))
        return [_checked(GpuSettings, item) for item in answer]

    def restore(self, *, settings: Sequence[GpuSettings]) -> dict[str, str]:
        """Set what these say; return by UUID what could not be set, in words.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        answer = self._ask(verb="restore", settings=to_json(list(settings)))
        return {str(gpu_uuid): str(words) for gpu_uuid, words in answer.items()}

    def processes(self, *, gpu_uuids: Collection[str]) -> dict[str, list[GpuProcess]]:
        """Return the processes of each of these GPUs; one that cannot tell is missing.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        answer = self._ask(verb="processes", gpu_uuids=sorted(gpu_uuids))
        return {
            str(gpu_uuid): [_checked(GpuProcess, item) for item in listed]
            for gpu_uuid, listed in answer.items()
        }

    def call_milliseconds(self) -> dict[str, float]:
        """Return how long each NVML function took when it was last called.

        :raises ReaderUnavailable: when there is no driver, or it does not answer.
        """
        return dict(self._ask(verb="timings"))


def _checked(message_type: type[MessageT], value: object) -> MessageT:
    try:
        return from_json(message_type, value)
    except MalformedMessage as error:
        raise ReaderUnavailable(f"the reader of the GPUs answered nonsense: {error}") from None
