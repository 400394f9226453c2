"""The end of a month: one invoice of what was paid before, and credit notes of what went back.

A month of a tenant is closed once, in one transaction, some time after its end: late enough for what a lease
of its last hour still adds. What is posted later falls into the next month's documents, so nothing is lost
and nothing is told twice. Months are closed in their order, however late the tick comes.
"""

import datetime as dt
import logging
from collections.abc import Iterator

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, Min, OuterRef, QuerySet

from billing import parking, steps
from billing.invoices import movements
from billing.invoices.credit_notes import credit, credit_on_account
from billing.invoices.issuing import LINES_MAX, LineDraft, issue
from billing.invoices.movements import Movement
from billing.models import Account, Entry, Invoice, MonthClose
from billing.month_movements import closes_at, in_month, month_window
from billing.states import AccountKind
from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Reservation

logger = logging.getLogger(__name__)

TENANTS_PER_RUN_MAX = 200  # about twenty seconds of work; the next tick takes the rest
# A lease is settled, and its settlement reviewed, within a month of its end; what is found later waits
# for the close of the month.
CREDITED_FOR_DAYS = 40


class MonthNotOver(StateConflict):
    """The month is not over, or things may still happen to it."""

    code = "month_not_over"
    title = "The month is not over"


def run_due(*, at: dt.datetime) -> int:
    """Close the months that are over, and credit what went back of purchases on account; count documents.

    Safe to run twice, late or side by side. A tenant that cannot be served is logged, and holds up nobody.
    """
    issued = 0
    for organization in _to_close(at=at)[:TENANTS_PER_RUN_MAX]:
        try:
            for month in _months_due(organization, at=at):
                issued += len(issue_month(organization=organization, month=month, at=at))
        except Exception:
            logger.exception("the month of %s could not be closed", organization.pk)
    for organization in _on_account(at=at)[:TENANTS_PER_RUN_MAX]:
        try:
            issued += len(credit_on_account(organization=organization, at=at))
        except Exception:
            logger.exception("credit notes of %s could not be issued", organization.pk)
    return issued


@transaction.atomic
def issue_month(*, organization: Organization, month: str, at: dt.datetime) -> list[Invoice]:
    """Close a tenant's month and return its documents: none where somebody else does, did, or nothing moved.

    None too while its money is parked: what the books say of it is being looked into.

    :raises MonthNotOver: before its end, or before what its last hours may still add.
    :raises ValueError: when `month` names no month.
    """
    window = month_window(month=month)
    if at < closes_at(ends_at=window.ends_at):
        raise MonthNotOver(f"{month} is closed after {closes_at(ends_at=window.ends_at)}.")
    tenant = (
        Organization.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(pk=organization.pk)
        .first()
    )
    if tenant is None or parking.is_parked(organizations=[tenant]):
        return []
    if MonthClose.objects.filter(organization=tenant, month=month).exists():
        return []
    found = movements.untold(organization=tenant, before=window.ends_at)
    invoices = [
        issue(organization=tenant, currency=currency, lines=lines, at=at, period=month)
        for currency, lines in _documents(found.charges)
    ]
    steps.reached("month.invoiced")
    notes = credit(organization=tenant, returns=found.returns, at=at, period=month)
    steps.reached("month.credited")
    names = _names(tenant, window=window)
    MonthClose.objects.create(organization=tenant, month=month, closed_at=at, names=names)
    steps.reached("month.closed")
    return [*invoices, *notes]


def _names(organization: Organization, *, window: Window) -> dict[str, object]:
    """Return what the account and each reservation of a month are called as it is closed.

    Projects and tags have a history of their own: see `billing.budgets.labels`.
    """
    moved = in_month(organization=organization, window=window, currency=settings.CURRENCY)
    rows = Reservation.objects.filter(pk__in=moved).select_related("gpu_model")
    return {
        "account": organization.name,
        "issuer": settings.SELLER["name"],
        "reservations": {
            row.pk: {
                "name": row.name,
                "gpu_model_name": row.gpu_model.name,
            }
            for row in rows
        },
    }


def _documents(charges: list[Movement]) -> Iterator[tuple[str, list[LineDraft]]]:
    """Yield the lines of each invoice: one per currency, and another where one is full."""
    for currency in sorted({charge.reservation.currency for charge in charges}):
        lines = [
            LineDraft(
                entry_key=charge.entry_key,
                reservation=charge.reservation,
                description=charge.description,
                window=charge.window,
                gpu_seconds=charge.gpu_seconds,
                net_minor=charge.net_minor,
                tax_minor=charge.tax_minor,
                terms=charge.terms,
            )
            for charge in charges
            if charge.reservation.currency == currency
        ]
        for start in range(0, len(lines), LINES_MAX):
            yield currency, lines[start : start + LINES_MAX]


def _to_close(*, at: dt.datetime) -> QuerySet[Organization]:
    """Return who has bought anything and whose last month that is over has not been closed."""
    bought = Account.objects.filter(organization=OuterRef("pk"), kind=AccountKind.DEFERRED)
    closed = MonthClose.objects.filter(organization=OuterRef("pk"), month=_last_due(at=at))
    return Organization.objects.filter(Exists(bought), ~Exists(closed)).order_by("pk")


def _on_account(*, at: dt.datetime) -> QuerySet[Organization]:
    """Return who has bought on account lately: an invoice is credited while its reservation may change."""
    since = at - dt.timedelta(days=CREDITED_FOR_DAYS)
    invoices = Invoice.objects.filter(
        organization=OuterRef("pk"), due_at__isnull=False, lines__ends_at__gt=since
    )
    return Organization.objects.filter(Exists(invoices)).order_by("pk")


def _months_due(organization: Organization, *, at: dt.datetime) -> Iterator[str]:
    """Yield the months that are over and not closed, from the first in which anything was bought."""
    last = organization.month_closes.order_by("-month").values_list("month", flat=True).first()
    if last is not None:
        month = _after(last)
    else:
        entries = Entry.objects.filter(
            postings__account__organization=organization,
            postings__account__kind=AccountKind.DEFERRED,
        )
        first: dt.datetime | None = entries.aggregate(at=Min("effective_at"))["at"]
        month = _name(first or at)
    while month <= _last_due(at=at):
        yield month
        month = _after(month)


def _last_due(*, at: dt.datetime) -> str:
    """Return the last month whose documents are due."""
    instant = at - dt.timedelta(seconds=settings.MONTH_CLOSE_DELAY_SECONDS)
    return _name(instant.astimezone(dt.UTC).replace(day=1) - dt.timedelta(days=1))


def _after(month: str) -> str:
    return _name(month_window(month=month).ends_at)


def _name(instant: dt.datetime) -> str:
    return f"{instant.astimezone(dt.UTC):%Y-%m}"
