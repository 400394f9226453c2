"""`GET /v1/owner/statements/{YYYY-MM}`: an owner's month, every lease, fee and adjustment of it."""

import csv
import datetime as dt
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import owner_statements, pdf
from billing.month_movements import month_window
from billing.owner_movements import Balances
from billing.owner_statements import LeaseLine, Line, LineKind, Move, Statement
from billing.states import EntryKind
from marketplace.api.evidence import EvidenceSerializer
from marketplace.api.fields import ChoiceField, InstantField, MoneySerializer, StrictSerializer
from marketplace.api.invoices import pdf_response
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.states import Scope
from scheduler.states import LeaseStatus

_LINE_KINDS = [(kind.value, kind.value) for kind in LineKind]
_RELEASES = (EntryKind.RELEASE, EntryKind.RESERVE_RELEASE, EntryKind.CORRECTION_RELEASE)


class StatementQuery(StrictSerializer):
    """The form of the answer."""

    vars()["format"] = ChoiceField(
        choices=[(form, form) for form in ("json", "csv", "pdf")], required=False, default="json"
    )


class BalancesSerializer(serializers.Serializer[Any]):
    """`total = accrued + payable + reserve - owed_by_owner`; what is on its way to the owner is in none."""

    accrued = MoneySerializer(help_text="earned and not yet payable")
    payable = MoneySerializer()
    reserve = MoneySerializer(help_text="kept back against disputes")
    owed_by_owner = MoneySerializer()
    total = MoneySerializer()


class StatementLeaseSerializer(serializers.Serializer[Any]):
    """`price - fee = earned`; `net = earned + sla_share + compensation + correction`."""

    lease_id = serializers.CharField()
    status = ChoiceField(choices=LeaseStatus.choices)
    node_id = serializers.CharField()
    region = serializers.CharField()
    gpu_model = serializers.CharField()
    gpus = serializers.IntegerField()
    starts_at = InstantField()
    ends_at = InstantField()
    simulated = serializers.BooleanField()
    gpu_seconds_delivered = serializers.IntegerField(help_text="in the month")
    gpu_seconds_undelivered = serializers.IntegerField()
    price = MoneySerializer(help_text="of what was delivered in the month")
    fee = MoneySerializer(help_text="the platform's")
    earned = MoneySerializer()
    given_back = MoneySerializer(help_text="to the tenant, for what was not delivered")
    sla_share = MoneySerializer(help_text="negative: the owner's part of the tenant's credit")
    compensation = MoneySerializer(help_text="negative: for taking the lease back")
    correction = MoneySerializer(help_text="of what had been settled")
    net = MoneySerializer()
    evidence = EvidenceSerializer(allow_null=True, help_text="null before the settlement")


class StatementLineSerializer(serializers.Serializer[Any]):
    """What changed the balance and is not of a lease's own price."""

    kind = ChoiceField(choices=_LINE_KINDS)
    reference = serializers.CharField(
        help_text="the part of a fee, the payout, the lease that sold time again, or the entry"
    )
    entry_id = serializers.CharField()
    at = InstantField()
    amount = MoneySerializer(help_text="in the owner's favour; negative: against it")


class StatementMoveSerializer(serializers.Serializer[Any]):
    """What moved between the owner's own accounts: `released = netted + kept + payable`."""

    kind = ChoiceField(choices=[(kind.value, kind.value) for kind in _RELEASES])
    reference = serializers.CharField(help_text="the settlement or the part of a fee")
    lease_id = serializers.CharField(allow_null=True)
    at = InstantField()
    released = MoneySerializer()
    netted = MoneySerializer(help_text="set off against what the owner owed")
    kept = MoneySerializer(help_text="in reserve")
    payable = MoneySerializer()


class StatementTotalSerializer(serializers.Serializer[Any]):
    """What all lines of a kind added to the balance."""

    kind = ChoiceField(choices=_LINE_KINDS)
    amount = MoneySerializer()


class StatementSerializer(serializers.Serializer[Any]):
    """A month of UTC: `opening.total` and all totals make `closing.total`."""

    month = serializers.CharField()
    starts_at = InstantField()
    ends_at = InstantField()
    final = serializers.BooleanField(help_text="later evidence is in a later month")
    opening = BalancesSerializer()
    closing = BalancesSerializer()
    totals = StatementTotalSerializer(many=True)
    leases = StatementLeaseSerializer(many=True)
    lines = StatementLineSerializer(many=True)
    moves = StatementMoveSerializer(many=True)


class StatementView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": StatementQuery}

    @operation(
        summary="An owner's month: every lease, fee and adjustment",
        description="The statement of a month of UTC, `YYYY-MM`, as it stands now. With `format=csv` a row "
        "per line, amounts in minor units that add up to the change of the balance; with `format=pdf` a "
        "file to keep. Of tenants nothing is told.",
        responses={200: StatementSerializer},
        files={(200, "text/csv"): OpenApiTypes.STR, (200, "application/pdf"): OpenApiTypes.BINARY},
        query=StatementQuery,
        refusals=("invalid_value",),
        operation_id="get_owner_statement",
    )
    def get(self, request: Request, month: str) -> HttpResponse:
        _require_begun(month, at=self.now)
        found = owner_statements.statement(owner=self.organization, month=month, at=self.now)
        if self.query["format"] == "csv":
            name = f'attachment; filename="statement-{month}.csv"'
            return HttpResponse(
                csv_text(found),
                content_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": name},
            )
        if self.query["format"] == "pdf":
            content = pdf.owner_statement(statement=found, owner=self.organization, at=self.now)
            return pdf_response(content, name=f"statement-{month}")
        return Response(StatementSerializer(_statement(found)).data)


def _require_begun(month: str, *, at: dt.datetime) -> None:
    """Refuse what is no month, or has not begun.

    :raises InvalidValue: then.
    """
    try:
        window = month_window(month=month)
    except ValueError:
        raise InvalidValue("a month is written as YYYY-MM, such as 2026-11") from None
    if window.starts_at > at:
        raise InvalidValue(f"{month} has not begun")


def _statement(found: Statement) -> dict[str, Any]:
    def money(minor: int) -> Money:
        return Money(minor, found.currency)

    return {
        "month": found.month,
        "starts_at": found.window.starts_at,
        "ends_at": found.window.ends_at,
        "final": found.final,
        "opening": _balances(found.opening, currency=found.currency),
        "closing": _balances(found.closing, currency=found.currency),
        "totals": [
            {"kind": kind.value, "amount": money(minor)} for kind, minor in found.totals.items()
        ],
        "leases": [_lease(line, currency=found.currency) for line in found.leases],
        "lines": [
            {
                "kind": line.kind.value,
                "reference": line.reference,
                "entry_id": line.entry_id,
                "at": line.at,
                "amount": money(line.amount),
            }
            for line in found.lines
        ],
        "moves": [_move(move, currency=found.currency) for move in found.moves],
    }


def _balances(held: Balances, *, currency: str) -> dict[str, Money]:
    names = ("accrued", "payable", "reserve", "owed_by_owner", "total")
    return {name: Money(getattr(held, name), currency) for name in names}


def _identity(line: LeaseLine) -> dict[str, Any]:
    lease = line.lease
    return {
        "lease_id": lease.pk,
        "status": lease.status,
        "node_id": lease.node_id,
        "region": lease.node.region,
        "gpu_model": lease.reservation.gpu_model_id,
        "gpus": len(lease.gpu_uuids),
        "starts_at": lease.starts_at,
        "ends_at": lease.ends_at,
        "simulated": lease.reservation.simulated,
    }


def _lease(line: LeaseLine, *, currency: str) -> dict[str, Any]:
    names = (
        *("price", "fee", "earned", "given_back"),
        *("sla_share", "compensation", "correction", "net"),
    )
    return {
        **_identity(line),
        "gpu_seconds_delivered": line.gpu_seconds_delivered,
        "gpu_seconds_undelivered": line.gpu_seconds_undelivered,
        **{name: Money(getattr(line, name), currency) for name in names},
        "evidence": line.evidence,
    }


def _move(move: Move, *, currency: str) -> dict[str, Any]:
    names = ("released", "netted", "kept", "payable")
    return {
        "kind": move.kind.value,
        "reference": move.reference,
        "lease_id": move.lease_id,
        "at": move.at,
        **{name: Money(getattr(move, name), currency) for name in names},
    }


_COLUMNS = (
    *("line", "reference", "at", "amount_minor", "balance_minor", "currency"),
    *("lease_id", "status", "node_id", "region", "gpu_model", "gpus", "starts_at", "ends_at"),
    *("simulated", "gpu_seconds_delivered", "gpu_seconds_undelivered", "price_minor", "fee_minor"),
)


def csv_text(found: Statement) -> str:
    """Return the statement as CSV: the opening balance, a row per line, the closing balance.

    A lease has a row for each kind of line, so that every amount is in one row and they all add up.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for row in _rows(found):
        writer.writerow({"currency": found.currency, **row})
    return text.getvalue()


def _rows(found: Statement) -> Iterator[dict[str, Any]]:
    yield {
        "line": "opening",
        "at": _instant(found.window.starts_at),
        "balance_minor": found.opening.total,
    }
    for lease in found.leases:
        yield from _rows_of_lease(lease)
    for line in found.lines:
        yield _row_of_line(line)
    yield {
        "line": "closing",
        "at": _instant(found.window.ends_at),
        "balance_minor": found.closing.total,
    }


def _rows_of_lease(line: LeaseLine) -> Iterator[dict[str, Any]]:
    identity = _identity(line)
    times = {name: _instant(identity[name]) for name in ("starts_at", "ends_at")}
    shared = {**identity, **times, "reference": line.lease.pk}
    yield {
        **shared,
        "line": LineKind.EARNED.value,
        "amount_minor": line.earned,
        "gpu_seconds_delivered": line.gpu_seconds_delivered,
        "gpu_seconds_undelivered": line.gpu_seconds_undelivered,
        "price_minor": line.price,
        "fee_minor": line.fee,
    }
    for kind, minor in (
        (LineKind.SLA_SHARE, line.sla_share),
        (LineKind.COMPENSATION, line.compensation),
        (LineKind.CORRECTION, line.correction),
    ):
        if minor:
            yield {**shared, "line": kind.value, "amount_minor": minor}


def _row_of_line(line: Line) -> dict[str, Any]:
    return {
        "line": line.kind.value,
        "reference": line.reference,
        "at": _instant(line.at),
        "amount_minor": line.amount,
    }


def _instant(instant: dt.datetime) -> str:
    return str(InstantField().to_representation(instant))
