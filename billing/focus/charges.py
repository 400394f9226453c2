"""Entries of the books as charges of Cost and Usage: pure, one function per kind of row.

Money is exact. `BilledCost` is what an entry took from the tenant, `EffectiveCost` what of that (or of what
was paid before) was used up by it; both come from the entry alone, so their sums are the ledger's.
"""

import datetime as dt

from billing.focus import numbers
from billing.focus.columns import TAX_SUFFIX
from billing.focus.facts import NO_DOCUMENTS, Documents, Fact
from billing.focus.frames import UNIT, Frames, Row, resource_name
from billing.states import EntryKind

_DAY = dt.timedelta(days=1)
_CREDITS = {
    EntryKind.CREDIT: "Credit for what was not delivered, beyond its price",
    EntryKind.COMPENSATION: "Compensation for GPUs that their owner took back",
    EntryKind.GOODWILL: "Credit out of goodwill",
    EntryKind.PROMOTION_SPENT: "Promotional credit spent",
    EntryKind.PROMOTION_RETURNED: "Promotional credit taken back with a refund",
}


def rows_of(fact: Fact, *, frames: Frames, documents: Documents = NO_DOCUMENTS) -> list[Row]:
    """Return the charges of an entry: their BilledCost adds up to what it took from the tenant, with tax."""
    match fact.kind:
        case EntryKind.EARNING:
            return _usage(fact, frames=frames, earned_minor=-fact.deferred_minor)
        case EntryKind.PURCHASE:
            rows = [_purchase(fact, frames=frames)]
        case EntryKind.SETTLEMENT:
            rows = _settlement(fact, frames=frames)
        case EntryKind.REFUND | EntryKind.INVOICE_VOID:
            rows = [_given_back(fact, frames=frames)]
        case EntryKind.CHANGE:
            rows = _change(fact, frames=frames)
        case EntryKind.CORRECTION:
            rows = _correction(fact, frames=frames)
        case _ if fact.kind in _CREDITS:
            text = _CREDITS[EntryKind(fact.kind)]
            rows = [_credit(fact, frames=frames, billed_minor=fact.net_minor, text=text)]
        case _:
            rows = [_adjustment(fact, frames=frames)]
    taxes = (fact.tax_minor + fact.tax_refunded_minor, -fact.tax_refunded_minor)
    rows += [_tax(fact, frames=frames, minor=minor) for minor in taxes if minor]
    _name_documents(rows, documents=documents)
    return rows


def _name_documents(rows: list[Row], *, documents: Documents) -> None:
    """Name the document on which a row was charged or given back; credits stand on none."""
    for row in rows:
        billed = row["BilledCost"]
        place = documents.given_back if billed.startswith("-") else documents.charged
        if place and billed != "0.0" and row["ChargeCategory"] != "Credit":
            number, line_id = place
            is_tax = row["ChargeCategory"] == "Tax"
            row["InvoiceId"] = number
            row["InvoiceDetailId"] = f"{line_id}{TAX_SUFFIX}" if is_tax else line_id


def _usage(fact: Fact, *, frames: Frames, earned_minor: int) -> list[Row]:
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
        attached=numbers.hours(min(seconds, fact.attached or 0)) if is_known else "",
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
        **_period(fact, frames=frames),
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


def _settlement(fact: Fact, *, frames: Frames) -> list[Row]:
    """Return what a lease's end added to its hours, and what was not delivered of it."""
    earned = fact.net_minor - fact.deferred_minor
    rows: list[Row] = []
    if fact.delivered or fact.busy or earned:
        rows = _usage(fact, frames=frames, earned_minor=earned)
        if fact.delivered < 0 or earned < 0:
            for row in rows:
                row["ChargeClass"] = _class(fact.starts_at, frames=frames)
    if fact.net_minor or fact.undelivered:
        rows.append(_given_back(fact, frames=frames))
    return rows


def _purchase(fact: Fact, *, frames: Frames) -> Row:
    return _bought(
        fact,
        frames=frames,
        billed_minor=fact.net_minor,
        seconds=fact.bought,
        price=frames.locked_price,
        text="Reservation of GPUs, paid ahead",
        own={"x_BoughtGpuHours": numbers.hours(fact.bought)},
    )


def _given_back(fact: Fact, *, frames: Frames) -> Row:
    """Return what was paid for and not delivered."""
    return {
        **_bought(
            fact,
            frames=frames,
            billed_minor=fact.net_minor,
            seconds=-(fact.undelivered or fact.released),
            price=_price(-fact.net_minor, seconds=fact.undelivered, frames=frames),
            text="Refund of what was not delivered",
            own={
                "x_UndeliveredGpuHours": numbers.hours(fact.undelivered),
                "x_ReleasedGpuHours": numbers.hours(fact.released) if fact.released else "",
            },
        ),
        "ChargeClass": _class_of_refund(frames),
    }


def _change(fact: Fact, *, frames: Frames) -> list[Row]:
    """Return what a change added, what it gave back, and the fee that was kept of that."""
    rows = []
    charged, refunded = fact.charged_minor, fact.charged_minor - fact.net_minor
    if charged or fact.bought:
        rows.append(
            _bought(
                fact,
                frames=frames,
                billed_minor=charged,
                seconds=fact.bought,
                price=_price(charged, seconds=fact.bought, frames=frames),
                text="GPU time added to a reservation",
                own={"x_BoughtGpuHours": numbers.hours(fact.bought)},
            )
        )
    if refunded or fact.released:
        worth = refunded + fact.fee_minor
        back = _bought(
            fact,
            frames=frames,
            billed_minor=-refunded,
            seconds=-fact.released,
            price=_price(worth, seconds=fact.released, frames=frames),
            text="GPU time given back",
            own={"x_ReleasedGpuHours": numbers.hours(fact.released)},
        )
        rows.append({**back, "ChargeClass": _class_of_refund(frames)})
    if fact.fee_minor:
        rows.append(_fee(fact, frames=frames))
    return rows


def _fee(fact: Fact, *, frames: Frames) -> Row:
    amount = numbers.money(fact.fee_minor, frames.currency)
    return {
        **frames.fee,
        **_period(fact, frames=frames),
        "BilledCost": "0.0",
        "EffectiveCost": amount,
        "ChargeDescription": "Fee kept of what was given back",
        "ContractedCost": amount,
        "ContractedUnitPrice": amount,
        "ListCost": amount,
        "ListUnitPrice": amount,
        "PricingQuantity": "1.0",
        "x_LedgerEntryId": fact.entry_id,
        "x_EventType": fact.kind,
    }


def _correction(fact: Fact, *, frames: Frames) -> list[Row]:
    """Return what late evidence changed: charged or given back, and credited beyond that.

    What the wallet did not cover of a charge is not charged: the hours are told, and their cost is less.
    """
    earned = fact.earned_minor - fact.borne_minor
    (row,) = _usage(
        fact._replace(attached=None, measured=None, metered=None),
        frames=frames,
        earned_minor=earned,
    )
    row["BilledCost"] = numbers.money(earned, frames.currency)
    row["ChargeClass"] = _class(fact.ends_at, frames=frames)
    row["ChargeDescription"] = "Correction by evidence that came late"
    row["x_UndeliveredGpuHours"] = numbers.hours(-fact.delivered)
    rows = [row]
    if fact.credit_minor:
        text = _CREDITS[EntryKind.CREDIT]
        rows.append(_credit(fact, frames=frames, billed_minor=-fact.credit_minor, text=text))
    return rows


def _credit(fact: Fact, *, frames: Frames, billed_minor: int, text: str) -> Row:
    return _unpriced(fact, frame=frames.credit, frames=frames, minor=billed_minor, text=text)


def _adjustment(fact: Fact, *, frames: Frames) -> Row:
    """Return an entry that no other rule knows, such as a reversal: its money is told all the same."""
    row = _unpriced(
        fact,
        frame=frames.adjustment,
        frames=frames,
        minor=fact.net_minor,
        text="Adjustment of the account",
    )
    effective = fact.net_minor - fact.deferred_minor
    row["EffectiveCost"] = numbers.money(effective, frames.currency)
    return row


def _tax(fact: Fact, *, frames: Frames, minor: int) -> Row:
    text = "Tax on the charge" if minor > 0 else "Tax on what was given back"
    return _unpriced(fact, frame=frames.tax, frames=frames, minor=minor, text=text)


def _unpriced(fact: Fact, *, frame: Row, frames: Frames, minor: int, text: str) -> Row:
    amount = numbers.money(minor, frames.currency)
    return {
        **frame,
        **_period(fact, frames=frames),
        "BilledCost": amount,
        "EffectiveCost": amount,
        "ChargeDescription": text,
        "ContractedCost": amount,
        "ListCost": amount,
        "x_LeaseId": fact.lease_id or "",
        "x_LedgerEntryId": fact.entry_id,
        "x_EventType": fact.kind,
    }


def _bought(
    fact: Fact,
    *,
    frames: Frames,
    billed_minor: int,
    seconds: int,
    price: int,
    text: str,
    own: Row,
) -> Row:
    """Return a row of what is paid ahead: charged now, effective when it is delivered."""
    return {
        **frames.purchase,
        **_period(fact, frames=frames),
        "BilledCost": numbers.money(billed_minor, frames.currency),
        "EffectiveCost": "0.0",
        "ChargeDescription": text,
        "ContractedCost": numbers.cost(price, seconds),
        "ContractedUnitPrice": numbers.price(price),
        "ListCost": numbers.cost(frames.list_price, seconds),
        "ListUnitPrice": numbers.price(frames.list_price),
        "PricingQuantity": numbers.hours(seconds),
        "x_LeaseId": fact.lease_id or "",
        "x_LedgerEntryId": fact.entry_id,
        "x_EventType": fact.kind,
        **own,
    }


def _price(amount_minor: int, *, seconds: int, frames: Frames) -> int:
    """Return what an hour of a part of a reservation cost: its hours need not all cost the same."""
    if not seconds or not amount_minor:
        return frames.locked_price
    return numbers.price_of(amount_minor, seconds=seconds, currency=frames.currency)


def _period(fact: Fact, *, frames: Frames) -> Row:
    """Return the time that a charge is for; the day of the entry where it is for none."""
    starts_at, ends_at = fact.starts_at, fact.ends_at
    if starts_at is None or ends_at is None:
        if frames.deal is not None:
            starts_at, ends_at = frames.deal.starts_at, frames.deal.ends_at
        else:
            starts_at = fact.effective_at.replace(hour=0, minute=0, second=0, microsecond=0)
            ends_at = starts_at + _DAY
    return {
        "ChargePeriodStart": numbers.instant(starts_at),
        "ChargePeriodEnd": numbers.instant(ends_at),
    }


def _class(at: dt.datetime | None, *, frames: Frames) -> str:
    """Return `Correction` for what was charged in an earlier month than the file's."""
    return "Correction" if at is not None and at <= frames.payer.starts_at else ""


def _class_of_refund(frames: Frames) -> str:
    """Return `Correction` where the purchase that is refunded was billed in an earlier month."""
    bought_at = frames.deal.purchased_at if frames.deal else None
    return "Correction" if bought_at is not None and bought_at < frames.payer.starts_at else ""


def _applied(reservation_id: str, hours: str) -> str:
    """Return how much of the commitment a charge used: a quantity, and so no cost."""
    return (
        f'{{"Elements": [{{"ContractId": "{reservation_id}", '
        f'"ContractCommitmentId": "{reservation_id}", '
        f'"ContractCommitmentAppliedQuantity": {hours}, "ContractCommitmentAppliedUnit": "{UNIT}"}}]}}'
    )
