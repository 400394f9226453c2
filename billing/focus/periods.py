"""The month as a row of Billing Period: open until all of it has its place and its documents are issued."""

import datetime as dt

from billing.focus import numbers
from billing.focus.facts import Payer
from billing.focus.frames import Row
from billing.models import MonthClose
from marketplace.models import Organization


def row_of(*, organization: Organization, month: str, payer: Payer, at: dt.datetime) -> Row:
    """Return the month as it stands: a closed one is not written to any more."""
    closed_at = (
        MonthClose.objects.filter(organization=organization, month=month)
        .values_list("closed_at", flat=True)
        .first()
    )
    created_at = max(payer.starts_at, organization.created_at)
    updated_at = closed_at or at
    return {
        "BillingPeriodCreated": numbers.instant(min(created_at, updated_at)),
        "BillingPeriodEnd": numbers.instant(payer.ends_at),
        "BillingPeriodLastUpdated": numbers.instant(updated_at),
        "BillingPeriodStart": numbers.instant(payer.starts_at),
        "BillingPeriodStatus": "Open" if closed_at is None else "Closed",
        "InvoiceIssuerName": payer.issuer_name,
    }
