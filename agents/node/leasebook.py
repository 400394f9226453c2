"""The node's own books on its leases: records, receipts and meter readings, each on the disk before use."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable
from dataclasses import replace

from agents.node.metering import MeterWindow
from agents.node.sender import Signer
from agents.node.spool import LeaseKey, LeaseRecord, Spool
from agents.protocol import MeterReading, Receipt, ReceiptEvidence, ReceiptKind


class LeaseBook:
    """What is known of every lease; `save` is the only way to change it."""

    def __init__(self, *, spool: Spool, key: Signer, epoch: int, simulated: bool) -> None:
        self.epoch = epoch
        self.node_id = ""
        self.records: dict[LeaseKey, LeaseRecord] = {
            record.key: record for record in spool.leases()
        }
        self._spool = spool
        self._key = key
        self._simulated = simulated
        self._meter_sequence = 0

    def save(
        self,
        *,
        record: LeaseRecord,
        windows: Iterable[MeterWindow] = (),
        receipt: Receipt | None = None,
    ) -> None:
        """Write a record together with the windows and the receipt that belong to its change."""
        meters = [self._reading(record, window) for window in windows]
        receipts = [] if receipt is None else [receipt]
        self._spool.commit(leases=[record], meters=meters, receipts=receipts)
        self.records[record.key] = record

    def _reading(self, record: LeaseRecord, window: MeterWindow) -> MeterReading:
        self._meter_sequence += 1
        return MeterReading(
            epoch=self.epoch,
            sequence=self._meter_sequence,
            lease_id=record.grant.lease_id,
            lease_epoch=record.grant.lease_epoch,
            gpu_uuid=window.gpu_uuid,
            starts_at=window.starts_at,
            ends_at=window.ends_at,
            up_seconds=window.up_seconds,
            busy_seconds=window.busy_seconds,
            energy_millijoules=window.energy_millijoules,
            memory_used_bytes_max=window.memory_used_bytes_max,
            temperature_celsius_max=window.temperature_celsius_max,
            attached_seconds=window.attached_seconds,
            simulated=self._simulated,
        )

    def receipt(
        self,
        *,
        record: LeaseRecord,
        kind: ReceiptKind,
        at: dt.datetime,
        energies: list[int | None],
        clean: bool = True,
        evidence: ReceiptEvidence | None = None,
    ) -> Receipt:
        """Return the signed word of this node; it counts once `save` has written it."""
        receipt = Receipt(
            kind=kind,
            lease_id=record.grant.lease_id,
            lease_epoch=record.grant.lease_epoch,
            node_id=self.node_id,
            gpu_uuids=record.grant.gpu_uuids,
            at=at,
            energy_millijoules=energies,
            access=record.access if kind is ReceiptKind.HANDOVER else None,
            clean=clean,
            detail=record.detail,
            simulated=self._simulated,
            evidence=evidence,
        )
        signature = self._key.sign(message=receipt.signed_bytes())
        return replace(receipt, signature=base64.b64encode(signature).decode())
