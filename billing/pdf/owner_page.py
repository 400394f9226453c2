"""The statement of an owner for a month: from one balance to the next, every lease, fee and adjustment.

The first page has the whole; leases and movements follow on as many pages as they take.
"""

import datetime as dt
from decimal import Decimal

from reportlab.platypus import Flowable

from billing.bills import cost_per_hour
from billing.evidence import Evidence
from billing.owner_statements import LeaseLine, Line, LineKind, Move, Statement
from billing.pdf.bill_parts import hours, in_percent, signed
from billing.pdf.layout import QUIET, as_it_stands, beside, build, head, heading, table, text
from billing.states import EntryKind
from marketplace.core.money import Money
from marketplace.models import Organization

WORDS = {
    LineKind.EARNED: "Earned by leases",
    LineKind.SLA_SHARE: "Share of tenants' credits",
    LineKind.COMPENSATION: "Compensation for reclaimed leases",
    LineKind.CORRECTION: "Corrections by late evidence",
    LineKind.FEE_SHARE: "Shares of cancellation fees",
    LineKind.RESALE: "Given back for time sold again",
    LineKind.TRANSFER: "Transfers sent",
    LineKind.TRANSFER_RETURNED: "Transfers that came back",
    LineKind.TRANSFER_REVERSED: "Taken back of transfers",
    LineKind.DISPUTE: "Disputes lost",
    LineKind.WRITE_OFF: "Debts that were given up",
    LineKind.ADJUSTMENT: "Other adjustments",
}
_RESOLD = (
    "Given back for time sold again: you had a part of the fee of who left, and the lease named here sold "
    "the same time once more. What you got twice goes back."
)
_MOVES = {
    EntryKind.RELEASE: "Earnings",
    EntryKind.RESERVE_RELEASE: "Reserve",
    EntryKind.CORRECTION_RELEASE: "Correction",
}


def owner_statement(*, statement: Statement, owner: Organization, at: dt.datetime) -> bytes:
    """Return an owner's month as PDF; that of a final month is the same bytes whenever it is asked for."""
    title = f"Statement of {statement.month}"
    currency = statement.currency
    story = [
        *_head(statement, owner=owner, at=at),
        beside(
            [*heading("From balance to balance"), _summary(statement)],
            [*heading("Where it stands"), _accounts(statement)],
        ),
        *_leases(statement),
        *_lines(statement),
        *_moves(statement),
    ]
    return build(
        story,
        title=f"{title}, {owner.name}",
        subject=f"{statement.window.starts_at:%Y-%m-%d} to {statement.window.ends_at:%Y-%m-%d}",
        footer=f"{title} · amounts in {currency.upper()} · hours are GPU-hours · an hour counts in the "
        "month in which it begins",
    )


def _head(found: Statement, *, owner: Organization, at: dt.datetime) -> list[Flowable]:
    last = found.window.ends_at - dt.timedelta(days=1)
    words = "Final: what is found later is in a later month." if found.final else as_it_stands(at)
    is_simulated = any(line.lease.reservation.simulated for line in found.leases)
    return head(
        f"Statement of {found.month}",
        party=owner.name,
        party_id=owner.pk,
        about=f"{found.window.starts_at:%Y-%m-%d} to {last:%Y-%m-%d} UTC. {words}",
        simulated="there are leases in it of GPUs that do not exist." if is_simulated else "",
    )


def _summary(found: Statement) -> Flowable:
    rows = [["Balance at the beginning", _signed(found.opening.total, found)]]
    rows += [
        [words, _signed(found.totals[kind], found)]
        for kind, words in WORDS.items()
        if found.totals[kind]
    ]
    rows.append(["Balance at the end", _signed(found.closing.total, found)])
    return table(rows, widths=[3, 2], size=8, head=False, strong_last=True, columns=2)


def _accounts(found: Statement) -> Flowable:
    def row(words: str, before: int, after: int) -> list[str]:
        return [words, _signed(before, found), _signed(after, found)]

    one, two = found.opening, found.closing
    return table(
        [
            ["", "Beginning", "End"],
            row("Earned, not yet payable", one.accrued, two.accrued),
            row("Payable", one.payable, two.payable),
            row("Kept in reserve", one.reserve, two.reserve),
            row("Owed by you", -one.owed_by_owner, -two.owed_by_owner),
            row("Balance", one.total, two.total),
        ],
        widths=[4, 3, 3],
        size=8,
        strong_last=True,
        columns=2,
    )


def _leases(found: Statement) -> list[Flowable]:
    if not found.leases:
        return [*heading("Leases"), text("No lease ran in the month.")]
    rows = [["Lease", "Hours", "per hour", "Price", "Fee", "Credits", "Late", "Net"]]
    rows += [_lease(line, found) for line in found.leases]
    sums = {
        name: sum(getattr(line, name) for line in found.leases)
        for name in ("price", "fee", "sla_share", "compensation", "correction", "net")
    }
    rows.append(
        [
            "All leases",
            hours(sum(line.gpu_seconds_delivered for line in found.leases)),
            "",
            _signed(sums["price"], found),
            _signed(-sums["fee"], found),
            _signed(sums["sla_share"] + sums["compensation"], found),
            _signed(sums["correction"], found),
            _signed(sums["net"], found),
        ]
    )
    return [
        *heading("Leases"),
        table(rows, widths=[14, 4, 5, 5, 5, 4, 4, 5], strong_last=True),
    ]


def _lease(line: LeaseLine, found: Statement) -> list[str]:
    lease = line.lease
    price = Money(line.price, found.currency)
    # A correction changes the hours and not the price: one by the other would be a rate that nobody paid.
    per_hour = None if line.correction else cost_per_hour(price, line.gpu_seconds_delivered)
    return [
        "\n".join(
            [
                lease.pk,
                f"{len(lease.gpu_uuids)} × {lease.reservation.gpu_model_id} on {lease.node.hostname}",
                f"{lease.starts_at:%m-%d %H:%M} to {lease.ends_at:%m-%d %H:%M} · {lease.status}",
                *_undelivered(line, found),
                *([_proof(line.evidence)] if line.evidence else ["not settled yet"]),
            ]
        ),
        hours(line.gpu_seconds_delivered),
        per_hour or "—",
        _signed(line.price, found),
        _signed(-line.fee, found),
        _signed(line.sla_share + line.compensation, found),
        _signed(line.correction, found),
        _signed(line.net, found),
    ]


def _undelivered(line: LeaseLine, found: Statement) -> list[str]:
    if not line.gpu_seconds_undelivered:
        return []
    back = _signed(line.given_back, found)
    return [f"{hours(line.gpu_seconds_undelivered)} not delivered, {back} given back"]


def _proof(shown: Evidence) -> str:
    """Say in a line what the lease's settlement rests on."""
    receipts = " and ".join(receipt.kind for receipt in shown.receipts)
    words = [f"receipts: {receipts}" if receipts else "no receipt"]
    if shown.coverage is not None:
        words.append(f"metered {in_percent(Decimal(shown.coverage))} %")
    if shown.outage_count:
        refunded = sum(outage.refunded for outage in shown.outages)
        words.append(f"outages {shown.outage_count}, refunded {refunded}")
    return " · ".join(words)


def _lines(found: Statement) -> list[Flowable]:
    if not found.lines:
        return []
    rows = [["Date", "Movement", "Reference", f"Amount, {found.currency.upper()}"]]
    rows += [_row(line, found) for line in found.lines]
    resold = any(line.kind == LineKind.RESALE for line in found.lines)
    return [
        *heading("Other movements"),
        *([text(_RESOLD, size=7, color=QUIET)] if resold else []),
        table(rows, widths=[3, 6, 7, 4], texts=3),
    ]


def _row(line: Line, found: Statement) -> list[str]:
    return [
        f"{line.at:%Y-%m-%d %H:%M}",
        WORDS[line.kind],
        line.reference,
        _signed(line.amount, found),
    ]


def _moves(found: Statement) -> list[Flowable]:
    if not found.moves:
        return []
    rows = [["Date", "Released", "Of", "Amount", "Set off", "In reserve", "Payable"]]
    rows += [_move(move, found) for move in found.moves]
    return [
        *heading("Between your accounts"),
        text("These change no balance: what a lease earned becomes payable.", size=7, color=QUIET),
        table(rows, widths=[11, 8, 20, 8, 8, 8, 8], texts=3),
    ]


def _move(move: Move, found: Statement) -> list[str]:
    return [
        f"{move.at:%Y-%m-%d %H:%M}",
        _MOVES[move.kind],
        move.lease_id or move.reference,
        *(_signed(minor, found) for minor in (move.released, move.netted, move.kept, move.payable)),
    ]


def _signed(minor: int, found: Statement) -> str:
    return signed(minor, found.currency)
