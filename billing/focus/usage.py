"""What was delivered, as charges: the part that a workload had, and the part that none had."""

from billing.focus import numbers
from billing.focus.facts import Fact
from billing.focus.frames import UNIT, Frames, Row, period_of, resource_name


def rows_of(fact: Fact, *, frames: Frames, earned_minor: int) -> list[Row]:
    """Return what was delivered: the part that a workload had, and the part that none had.

    Where nothing tells, all of it counts as used: what nobody saw idle is not called so.
    """
    delivered = fact.delivered
    used = delivered
    if fact.attached is not None:
        used = max(fact.attached, fact.busy)
    elif fact.measured:
        used = fact.busy
    if delivered <= 0 or used >= delivered:
        return [_used(fact, frames=frames, seconds=delivered, effective_minor=earned_minor)]
    if used <= 0:
        whole = numbers.money(earned_minor, frames.currency)
        return [_unused(fact, frames=frames, seconds=delivered, effective=whole, is_all=True)]
    of_used, of_rest = numbers.shares(
        earned_minor, part=used, whole=delivered, currency=frames.currency
    )
    return [
        _used(fact, frames=frames, seconds=used, effective=of_used),
        _unused(fact, frames=frames, seconds=delivered - used, effective=of_rest, is_all=False),
    ]


def _used(
    fact: Fact,
    *,
    frames: Frames,
    seconds: int,
    effective: str = "",
    effective_minor: int = 0,
) -> Row:
    is_known = fact.attached is not None
    effective = effective or numbers.money(effective_minor, frames.currency)
    return _metered(
        fact,
        frames=frames,
        seconds=seconds,
        effective=effective,
        status="Used",
        consumed=numbers.hours(seconds),
        # A kernel ran only where a process was.
        attached=numbers.hours(min(seconds, max(fact.attached or 0, fact.busy)))
        if is_known
        else "",
        busy=numbers.hours(fact.busy) if fact.measured or fact.busy else "",
        energy=numbers.kilowatt_hours(fact.energy_millijoules),
        text="GPU time delivered",
    )


def _unused(fact: Fact, *, frames: Frames, seconds: int, effective: str, is_all: bool) -> Row:
    """Return the part that no workload had; the hour's energy stands with its used part, if there is one."""
    return _metered(
        fact,
        frames=frames,
        seconds=seconds,
        effective=effective,
        status="Unused",
        consumed="0.0",
        attached="0.0" if fact.attached is not None else "",
        busy="0.0" if fact.measured else "",
        energy=numbers.kilowatt_hours(fact.energy_millijoules) if is_all else "",
        text="GPU time delivered, without a workload",
    )


def _metered(
    fact: Fact,
    *,
    frames: Frames,
    seconds: int,
    effective: str,
    status: str,
    consumed: str,
    attached: str,
    busy: str,
    energy: str,
    text: str,
) -> Row:
    deal = frames.deal
    assert deal is not None, fact.entry_id
    locked = frames.locked_price
    if fact.worth_micros is not None and fact.delivered > 0:
        locked = numbers.half_even(fact.worth_micros, fact.delivered)
    quantity = numbers.hours(seconds)
    return {
        **frames.usage,
        **period_of(fact, frames=frames),
        "BilledCost": "0.0",
        "EffectiveCost": effective,
        "CapacityReservationStatus": status,
        "ChargeDescription": f"{text}: {deal.gpu_model} in {deal.region}",
        "ConsumedQuantity": consumed,
        "ContractApplied": _applied(deal.reservation_id, quantity),
        "ContractedCost": numbers.cost(locked, seconds),
        "ContractedUnitPrice": numbers.price(locked),
        "ListCost": numbers.cost(frames.list_price, seconds),
        "ListUnitPrice": numbers.price(frames.list_price),
        "PricingQuantity": quantity,
        "ResourceId": resource_name(
            deal_region=deal.region,
            account_id=frames.payer.account_id,
            kind="lease",
            object_id=fact.lease_id or "",
        ),
        "x_LeaseId": fact.lease_id or "",
        "x_LedgerEntryId": fact.entry_id,
        "x_EventType": fact.kind,
        "x_DeliveredGpuHours": quantity,
        "x_AttachedGpuHours": attached,
        "x_BusyGpuHours": busy,
        "x_EnergyKilowattHours": energy,
        "x_MeterCoverageRatio": numbers.ratio(fact.metered, fact.delivered),
    }


def _applied(reservation_id: str, hours: str) -> str:
    """Return how much of the commitment a charge used: a quantity, and so no cost."""
    return (
        f'{{"Elements": [{{"ContractId": "{reservation_id}", '
        f'"ContractCommitmentId": "{reservation_id}", '
        f'"ContractCommitmentAppliedQuantity": {hours}, "ContractCommitmentAppliedUnit": "{UNIT}"}}]}}'
    )
