"""Entries of the books as charges of Cost and Usage: pure, one function per kind of row.

Money is exact. `BilledCost` is what an entry took from the tenant, `EffectiveCost` what of that (or of what
was paid before) was used up by it; both come from the entry alone, so their sums are the ledger's.
"""

import datetime as dt
from dataclasses import replace

from billing.focus import numbers, shares, usage
from billing.focus.facts import NO_DOCUMENTS, Documents, Fact
from billing.focus.frames import Frames, Row, period_of
from billing.states import EntryKind
from billing.undelivered import NO_REASONS, Reasons, complete

_CREDITS = {
    EntryKind.CREDIT: "Credit for what was not delivered, beyond its price",
    EntryKind.COMPENSATION: "Compensation for GPUs that their owner took back",
    EntryKind.GOODWILL: "Credit out of goodwill",
    EntryKind.RESALE: "Share of what was given back and sold again",
    EntryKind.PROMOTION_SPENT: "Promotional credit spent",
    EntryKind.PROMOTION_RETURNED: "Promotional credit taken back with a refund",
}


def rows_of(
    fact: Fact,
    *,
    frames: Frames,
    documents: Documents = NO_DOCUMENTS,
    reasons: Reasons = NO_REASONS,
) -> list[Row]:
    """Return the charges of an entry: their BilledCost adds up to what it took from the tenant, with tax.

    Each has the document that says its amount; credits stand on none. What was not delivered is a row for
    each of its `reasons`.
    """
    match fact.kind:
        case EntryKind.EARNING:
            return usage.rows_of(fact, frames=frames, earned_minor=-fact.deferred_minor)
        case EntryKind.PURCHASE | EntryKind.BALANCE:
            rows = [shares.on_line(_purchase(fact, frames=frames), documents.charged)]
        case EntryKind.SETTLEMENT:
            rows = _settlement(fact, frames=frames, documents=documents, reasons=reasons)
        case EntryKind.REFUND:
            rows = _given_back(fact, frames=frames, documents=documents, reasons=reasons)
        case EntryKind.CHANGE:
            rows = _change(fact, frames=frames, documents=documents)
        case EntryKind.CORRECTION:
            rows = _correction(fact, frames=frames, documents=documents, reasons=reasons)
        case _ if fact.kind in _CREDITS:
            text = _CREDITS[EntryKind(fact.kind)]
            rows = [_credit(fact, frames=frames, billed_minor=fact.net_minor, text=text)]
        case _:
            rows = [_adjustment(fact, frames=frames)]
    for minor, place in shares.taxes(fact, documents=documents):
        rows.append(shares.on_line(_tax(fact, frames=frames, minor=minor), place))
    return rows


def _settlement(fact: Fact, *, frames: Frames, documents: Documents, reasons: Reasons) -> list[Row]:
    """Return what a lease's end added to its hours, and what was not delivered of it."""
    earned = fact.net_minor - fact.deferred_minor
    rows: list[Row] = []
    if fact.delivered or fact.busy or earned:
        rows = usage.rows_of(fact, frames=frames, earned_minor=earned)
        if fact.delivered < 0 or earned < 0:
            for row in rows:
                row["ChargeClass"] = _class(fact.starts_at, frames=frames)
    if fact.net_minor or fact.undelivered:
        rows += _given_back(fact, frames=frames, documents=documents, reasons=reasons)
    return rows


def _purchase(fact: Fact, *, frames: Frames) -> Row:
    """Return what was bought, or a part of its price: all hours are bought with the first of two parts."""
    text = "Reservation of GPUs, paid ahead"
    if fact.kind == EntryKind.BALANCE:
        text = "Balance of a reservation of GPUs: its hours were bought with its deposit"
    elif frames.deal is not None and frames.deal.is_in_two_parts:
        text = "Deposit on a reservation of GPUs: the balance of its price is charged later"
    return _bought(
        fact,
        frames=frames,
        billed_minor=fact.net_minor,
        seconds=fact.bought,
        price=frames.locked_price,
        text=text,
        own={"x_BoughtGpuHours": numbers.hours(fact.bought)},
    )


def _given_back(fact: Fact, *, frames: Frames, documents: Documents, reasons: Reasons) -> list[Row]:
    """Return what was paid for and not delivered: a row per line that credits it, and per reason."""
    is_released = fact.released and not fact.undelivered
    price = _price(-fact.net_minor, seconds=fact.undelivered, frames=frames)
    parts = shares.given_back(
        minor=-fact.net_minor,
        seconds=fact.undelivered or fact.released,
        places=documents.given_back,
    )
    why = complete(reasons, undelivered=fact.undelivered)
    return [
        _returned(
            fact,
            frames=frames,
            share=share,
            price=price,
            text=_because("Refund of what was not delivered", share),
            own={
                "x_UndeliveredGpuHours": numbers.hours(0 if is_released else share.seconds),
                "x_UndeliveredReason": share.reason or "",
                "x_ReleasedGpuHours": numbers.hours(share.seconds) if is_released else "",
            },
        )
        for share in shares.by_reason(parts, reasons=why)
    ]


def _because(text: str, share: shares.Share) -> str:
    return f"{text}: {share.reason.label}" if share.reason else text


def _change(fact: Fact, *, frames: Frames, documents: Documents) -> list[Row]:
    """Return what a change added, what it gave back, and the fee that was kept of that."""
    rows = []
    charged, refunded = fact.charged_minor, fact.charged_minor - fact.net_minor
    if charged or fact.bought:
        added = _bought(
            fact,
            frames=frames,
            billed_minor=charged,
            seconds=fact.bought,
            price=_price(charged, seconds=fact.bought, frames=frames),
            text="GPU time added to a reservation",
            own={"x_BoughtGpuHours": numbers.hours(fact.bought)},
        )
        rows.append(shares.on_line(added, documents.charged))
    if refunded or fact.released:
        worth = refunded + fact.fee_minor
        rows += [
            _returned(
                fact,
                frames=frames,
                share=share,
                price=_price(worth, seconds=fact.released, frames=frames),
                text="GPU time given back",
                own={"x_ReleasedGpuHours": numbers.hours(share.seconds)},
            )
            for share in shares.given_back(
                minor=refunded, seconds=fact.released, places=documents.given_back
            )
        ]
    if fact.fee_minor:
        rows.append(_fee(fact, frames=frames))
    return rows


def _returned(
    fact: Fact, *, frames: Frames, share: shares.Share, price: int, text: str, own: Row
) -> Row:
    """Return a share of what was given back as a negative purchase, on the line that credits it."""
    row = _bought(
        fact,
        frames=frames,
        billed_minor=-share.minor,
        seconds=-share.seconds,
        price=price,
        text=text,
        own=own,
    )
    return shares.on_line({**row, "ChargeClass": _class_of_refund(frames)}, share.place)


def _fee(fact: Fact, *, frames: Frames) -> Row:
    amount = numbers.money(fact.fee_minor, frames.currency)
    return {
        **frames.fee,
        **period_of(fact, frames=frames),
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


def _correction(fact: Fact, *, frames: Frames, documents: Documents, reasons: Reasons) -> list[Row]:
    """Return what late evidence changed: charged or given back, and credited beyond that.

    What the wallet did not cover of a charge is not charged: the hours are told, and their cost is less.
    """
    earned = fact.earned_minor - fact.borne_minor
    parts = shares.given_back(
        minor=-earned, seconds=-fact.delivered, places=documents.given_back if earned < 0 else ()
    )
    if earned >= 0:
        parts = [replace(part, place=documents.charged) for part in parts]
    why = complete(reasons, undelivered=-fact.delivered)
    rows = [
        # What was busy is told once.
        _corrected(fact._replace(busy=0 if number else fact.busy), frames=frames, share=share)
        for number, share in enumerate(shares.by_reason(parts, reasons=why))
    ]
    if fact.credit_minor:
        text = _CREDITS[EntryKind.CREDIT]
        rows.append(_credit(fact, frames=frames, billed_minor=-fact.credit_minor, text=text))
    return rows


def _corrected(fact: Fact, *, frames: Frames, share: shares.Share) -> Row:
    (row,) = usage.rows_of(
        fact._replace(delivered=-share.seconds, attached=None, measured=None, metered=None),
        frames=frames,
        earned_minor=-share.minor,
    )
    return shares.on_line(
        {
            **row,
            "BilledCost": numbers.money(-share.minor, frames.currency),
            "ChargeClass": _class(fact.ends_at, frames=frames),
            "ChargeDescription": _because("Correction by evidence that came late", share),
            "x_UndeliveredGpuHours": numbers.hours(share.seconds),
            "x_UndeliveredReason": share.reason or "",
        },
        share.place,
    )


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
        **period_of(fact, frames=frames),
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
        **period_of(fact, frames=frames),
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


def _class(at: dt.datetime | None, *, frames: Frames) -> str:
    """Return `Correction` for what was charged in an earlier month than the file's."""
    return "Correction" if at is not None and at <= frames.payer.starts_at else ""


def _class_of_refund(frames: Frames) -> str:
    """Return `Correction` where the purchase that is refunded was billed in an earlier month."""
    bought_at = frames.deal.purchased_at if frames.deal else None
    return "Correction" if bought_at is not None and bought_at < frames.payer.starts_at else ""
