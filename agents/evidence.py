"""Meter readings and receipts of a report: what settlement rests on. Checked one by one, kept for ever."""

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence

from django.db import connection

from agents import envelope, protocol
from agents.models import Grant, Node, Receipt
from agents.refusals import Refusals

# A node's clock may be wrong by that much before its word is not taken.
CLOCK_AHEAD_SECONDS_MAX = 300
METER_SECONDS_MAX = 15 * 60  # a minute is usual; a reader that hung merges a few
METER_AGE_DAYS_MAX = 35  # a spool is kept for a month; later readings could change a closed month
POWER_MILLIWATTS_MAX = 10_000_000  # 10 kW: seven times the hungriest GPU on sale
TEMPERATURE_CELSIUS_MAX = 200  # silicon is dead above that
PORT_MAX = 65_535
GrantKey = tuple[str, int]
_METER_COLUMNS = """epoch, sequence, lease_id, lease_epoch, gpu_uuid, starts_at, ends_at, up_seconds,
    busy_seconds, energy_millijoules, memory_used_bytes_max, temperature_celsius_max, attached_seconds,
    simulated"""
_INSERT_METERS = f"""
INSERT INTO agents_meterreading (node_id, enrolment, received_at, {_METER_COLUMNS})
SELECT %s, %s, %s, {_METER_COLUMNS} FROM json_to_recordset(%s) AS meter (
    epoch bigint, sequence bigint, lease_id text, lease_epoch int, gpu_uuid text,
    starts_at timestamptz, ends_at timestamptz, up_seconds int, busy_seconds int,
    energy_millijoules bigint, memory_used_bytes_max bigint, temperature_celsius_max smallint,
    attached_seconds int, simulated boolean)
ON CONFLICT DO NOTHING
"""  # noqa: S608 - names of columns, written here


def store_meters(
    *,
    node: Node,
    meters: Sequence[protocol.MeterReading],
    grants: Mapping[GrantKey, Grant],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Store the meter readings that can be true; one that is stored already changes nothing.

    They go to PostgreSQL as one document: 2,000 a second come from a large fleet, and a statement with a
    parameter for each of their values took three times as long to build.
    """
    rows = []
    for meter in meters:
        if reason := _why_no_meter(node=node, meter=meter, grants=grants, at=at):
            example = f"{meter.lease_id}/{meter.lease_epoch} {meter.gpu_uuid} {meter.epoch}.{meter.sequence}"
            refusals.add(kind="meter", reason=reason, example=example)
            continue
        temperature_celsius_max = at_most(
            value=meter.temperature_celsius_max, maximum=TEMPERATURE_CELSIUS_MAX
        )
        rows.append(
            {
                "epoch": meter.epoch,
                "sequence": meter.sequence,
                "lease_id": meter.lease_id,
                "lease_epoch": meter.lease_epoch,
                "gpu_uuid": meter.gpu_uuid,
                "starts_at": meter.starts_at.isoformat(),
                "ends_at": meter.ends_at.isoformat(),
                "up_seconds": meter.up_seconds,
                "busy_seconds": meter.busy_seconds,
                "energy_millijoules": _plausible_energy(meter),
                "memory_used_bytes_max": meter.memory_used_bytes_max,
                "temperature_celsius_max": temperature_celsius_max,
                "attached_seconds": meter.attached_seconds,
                "simulated": meter.simulated,
            }
        )
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(_INSERT_METERS, [node.pk, node.enrolments, at, json.dumps(rows)])


def store_receipts(
    *,
    node: Node,
    receipts: Sequence[protocol.Receipt],
    grants: Mapping[GrantKey, Grant],
    refusals: Refusals,
    at: dt.datetime,
) -> None:
    """Store the receipts that the node signed about its own grants; the first of a kind stands.

    `node` is as it was before the report that brought them. The instant that counts is bounded by what the
    market saw itself (`_instant_of`); the one that was signed stays in the document.
    """
    rows = []
    for receipt in receipts:
        if reason := _why_no_receipt(node=node, receipt=receipt, grants=grants, at=at):
            example = f"{receipt.kind} of {receipt.lease_id}/{receipt.lease_epoch}"
            refusals.add(kind="receipt", reason=reason, example=example)
            continue
        document = receipt.document()
        grant = grants[receipt.lease_id, receipt.lease_epoch]
        rows.append(
            Receipt(
                node=node,
                lease_id=receipt.lease_id,
                lease_epoch=receipt.lease_epoch,
                kind=receipt.kind,
                at=_instant_of(receipt=receipt, grant=grant, at=at),
                is_clean=receipt.clean,
                access=document["access"],
                document=document,
                signature=receipt.signature,
                received_at=at,
            )
        )
    Receipt.objects.bulk_create(rows, ignore_conflicts=True)


def is_ahead(*, instant: dt.datetime, at: dt.datetime) -> bool:
    """Say whether a node's clock claims an instant that cannot have come yet."""
    return (instant - at).total_seconds() > CLOCK_AHEAD_SECONDS_MAX


def at_most(*, value: int | None, maximum: int) -> int | None:
    """Return a measurement, or None when it cannot be true: an absurd value is an unknown one."""
    return value if value is not None and value <= maximum else None


def _why_no_meter(
    *,
    node: Node,
    meter: protocol.MeterReading,
    grants: Mapping[GrantKey, Grant],
    at: dt.datetime,
) -> str:
    """Return why a meter reading cannot be taken, or nothing when it can."""
    length_seconds = (meter.ends_at - meter.starts_at).total_seconds()
    age_days = (at - meter.ends_at).total_seconds() / 86_400
    grant = grants.get((meter.lease_id, meter.lease_epoch))
    reasons = {
        "no_grant": grant is None,
        "gpu_not_granted": grant is not None and meter.gpu_uuid not in grant.gpu_uuids,
        "simulated_differs": meter.simulated != node.simulated,
        "window_upside_down": length_seconds <= 0,
        "window_too_long": length_seconds > METER_SECONDS_MAX,
        "in_the_future": is_ahead(instant=meter.ends_at, at=at),
        "too_old": age_days > METER_AGE_DAYS_MAX,
        "up_exceeds_window": meter.up_seconds > math.ceil(length_seconds),
        "busy_exceeds_up": (meter.busy_seconds or 0) > meter.up_seconds,
        "attached_exceeds_up": (meter.attached_seconds or 0) > meter.up_seconds,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _why_no_receipt(
    *,
    node: Node,
    receipt: protocol.Receipt,
    grants: Mapping[GrantKey, Grant],
    at: dt.datetime,
) -> str:
    """Return why a receipt cannot be taken, or nothing when it can. The signature is checked last."""
    grant = grants.get((receipt.lease_id, receipt.lease_epoch))
    if grant is None:
        return "no_grant"
    port = receipt.access.port if receipt.access else 1
    reasons = {
        "other_node": receipt.node_id != node.pk,
        "gpu_not_granted": sorted(receipt.gpu_uuids) != sorted(grant.gpu_uuids),
        "energy_per_gpu": len(receipt.energy_millijoules) != len(receipt.gpu_uuids),
        "simulated_differs": receipt.simulated != node.simulated,
        "no_such_port": not 1 <= port <= PORT_MAX,
    }
    reason = next((reason for reason, applies in reasons.items() if applies), "")
    # A receipt may have waited in the spool while the node got its present key.
    keys = [key for key in (node.public_key, node.previous_public_key) if key]
    if not reason and not any(
        envelope.is_receipt_signed_by(public_key=key, receipt=receipt) for key in keys
    ):
        reason = "bad_signature"
    return reason


def _instant_of(*, receipt: protocol.Receipt, grant: Grant, at: dt.datetime) -> dt.datetime:
    """Return the instant at which a receipt counts: a wrong clock loses no receipt and gains no money.

    Nothing happened after it was told, or before it was asked for. How late it comes says nothing: a spool
    may wait for hours, and be sent in any order.
    """
    return min(max(receipt.at, grant.created_at), at)


def _plausible_energy(meter: protocol.MeterReading) -> int | None:
    """Return a meter's energy unless no GPU could have used it: a counter that jumped says nothing."""
    length_seconds = math.ceil((meter.ends_at - meter.starts_at).total_seconds())
    return at_most(value=meter.energy_millijoules, maximum=POWER_MILLIWATTS_MAX * length_seconds)
