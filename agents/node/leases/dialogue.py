"""What is said between the market and the node: which leases are wanted, and how far each is known to be."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from dataclasses import replace

from agents.node.leasebook import LeaseBook
from agents.node.spool import TERMINAL_STATES, LeaseKey, LeaseRecord
from agents.protocol import REPORT_LEASES_MAX, DesiredState, Grant, LeaseState, LeaseStatus

logger = logging.getLogger(__name__)


class Dialogue:
    """The market's wishes, as they reach the book, and the states that the market was told."""

    def __init__(self, *, book: LeaseBook) -> None:
        self._book = book
        self._listed: set[LeaseKey] = set()
        self._told: dict[LeaseKey, LeaseState] = {}

    def apply(self, *, grants: Iterable[Grant], complete: bool, at: dt.datetime) -> None:
        """Take in the grants of an answer; `complete` says that a grant that is not listed is not wanted."""
        listed = {(grant.lease_id, grant.lease_epoch): grant for grant in grants}
        for key, grant in listed.items():
            record = self._book.records.get(key)
            if record is None:
                logger.info(
                    "lease %s (epoch %d): %d GPUs from %s to %s", *key, len(grant.gpu_uuids),
                    grant.not_before.isoformat(), grant.not_after.isoformat(),
                )  # fmt: skip
                self._book.save(
                    record=LeaseRecord(grant=grant, state=LeaseState.PREPARING, changed_at=at)
                )
            elif record.state in (LeaseState.PREPARING, LeaseState.ACTIVE):
                # Only the term and the wish may change under one (lease, epoch), never the GPUs.
                changed = replace(grant, gpu_uuids=record.grant.gpu_uuids)
                if changed != record.grant:
                    self._book.save(record=replace(record, grant=changed))
        for key, record in list(self._book.records.items()):
            fenced = any(k[0] == key[0] and k[1] > key[1] for k in listed)
            unlisted = complete and key not in listed
            wanted = record.grant.desired_state is DesiredState.RUN
            if (fenced or unlisted) and wanted and record.state not in TERMINAL_STATES:
                stopped = replace(record.grant, desired_state=DesiredState.STOP)
                self._book.save(record=replace(record, grant=stopped))
        if complete:
            self._listed = set(listed)

    def statuses(self) -> list[LeaseStatus]:
        """Return how far each lease is that runs, is listed by the market or has news, newest first."""
        told = [
            record
            for key, record in self._book.records.items()
            if record.state not in TERMINAL_STATES
            or key in self._listed
            or self._told.get(key) is not record.state
        ]
        told.sort(key=lambda record: record.changed_at, reverse=True)
        return [
            LeaseStatus(
                lease_id=record.grant.lease_id,
                lease_epoch=record.grant.lease_epoch,
                state=record.state,
                detail=record.detail,
            )
            for record in told[:REPORT_LEASES_MAX]
        ]

    def told(self, *, statuses: Iterable[LeaseStatus]) -> None:
        """Remember that the market knows these."""
        self._told.update({(s.lease_id, s.lease_epoch): s.state for s in statuses})

    def has_news(self) -> bool:
        """Return whether a lease changed its state since the market was told."""
        return any(
            self._told.get(key) is not record.state
            for key, record in self._book.records.items()
            if record.state not in TERMINAL_STATES or key in self._listed or key in self._told
        )
