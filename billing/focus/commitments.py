"""Reservations as rows of Contract Commitment: what is promised for a window, and how far it has come."""

import datetime as dt
import json
from collections.abc import Iterator

from django.db.models import Exists, Max, OuterRef, Prefetch, Q

from billing.focus import numbers
from billing.focus.facts import Payer
from billing.focus.frames import UNIT, Row, resource_name
from billing.models import Deposit, Entry
from billing.states import EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import Change, Reservation, ReservationTransition
from scheduler.states import ReservationStatus

ROWS_PER_PAGE = 500  # each with its changes
_LIFECYCLE = {
    ReservationStatus.PAYMENT_PENDING: "Proposed",
    ReservationStatus.SCHEDULED: "Pending",
    ReservationStatus.ACTIVE: "Active",
    ReservationStatus.COMPLETED: "Expired",
    ReservationStatus.FAILED: "Expired",
    ReservationStatus.CANCELLED: "Canceled",
    ReservationStatus.RECLAIMED: "Canceled",
    ReservationStatus.EXPIRED: "Canceled",
    ReservationStatus.PAYMENT_FAILED: "Canceled",
}


def pages(*, organization: Organization, payer: Payer) -> Iterator[list[Row]]:
    """Yield the commitments that have a part in the month, in the order in which they were made.

    Those are the reservations whose window touches it, and those that were bought in it for another month.
    """
    bought = Entry.objects.filter(
        kind=EntryKind.PURCHASE,
        subject_id=OuterRef("pk"),
        effective_at__gte=payer.starts_at,
        effective_at__lt=payer.ends_at,
    )
    touching = Q(starts_at__lt=payer.ends_at, ends_at__gt=payer.starts_at)
    last = ""
    while True:
        page = list(
            Reservation.objects.visible_to(organization)
            .filter(touching | Exists(bought), pk__gt=last)
            .select_related("deposit", "quote")
            .prefetch_related(Prefetch("changes", queryset=Change.objects.order_by("pk")))
            .order_by("pk")[:ROWS_PER_PAGE]
        )
        moved = ReservationTransition.objects.filter(reservation__in=page).order_by()
        moved_at = dict(moved.values_list("reservation").annotate(at=Max("at")))
        yield [row_of(each, moved_at=moved_at.get(each.pk), payer=payer) for each in page]
        if len(page) < ROWS_PER_PAGE:
            return
        last = page[-1].pk


def row_of(reservation: Reservation, *, moved_at: dt.datetime | None, payer: Payer) -> Row:
    """Return the commitment as it stands now: an extension or a move has given it its present window."""
    window = reservation.window
    changed = [change.at for change in reservation.changes.all()]
    updated = max(filter(None, [reservation.created_at, moved_at, *changed]))
    deposit: Deposit | None = getattr(reservation, "deposit", None)
    starts_at, ends_at = numbers.instant(window.starts_at), numbers.instant(window.ends_at)
    return {
        "BillingCurrency": reservation.currency.upper(),
        "ContractCommitmentApplicability": _applicability(reservation, payer=payer),
        "ContractCommitmentBenefitCategory": "Availability",
        "ContractCommitmentCategory": "Usage",
        "ContractCommitmentCost": "",
        "ContractCommitmentCreated": numbers.instant(reservation.created_at),
        "ContractCommitmentDescription": (
            f"{reservation.gpus} × {reservation.gpu_model_id} in {reservation.region}, "
            f"{reservation.tier}"
        ),
        "ContractCommitmentDiscountPercentage": "",
        "ContractCommitmentDurationType": _duration(window),
        "ContractCommitmentFulfillmentInterval": "Full Period",
        "ContractCommitmentId": reservation.pk,
        "ContractCommitmentLastUpdated": numbers.instant(updated),
        "ContractCommitmentLifecycleStatus": _LIFECYCLE[ReservationStatus(reservation.status)],
        "ContractCommitmentModel": "Continuous",
        "ContractCommitmentOfferCategory": "Public",
        "ContractCommitmentPaymentInterval": "Custom" if deposit else "One-Time",
        "ContractCommitmentPaymentModel": "Partial Upfront" if deposit else "All Upfront",
        "ContractCommitmentPaymentUpfrontPercentage": (
            numbers.ratio(deposit.net_minor, whole=reservation.quote.total_minor)
            if deposit
            else "1.0"
        ),
        "ContractCommitmentPeriodEnd": ends_at,
        "ContractCommitmentPeriodStart": starts_at,
        "ContractCommitmentQuantity": numbers.hours(reservation.gpus * window.seconds),
        "ContractCommitmentType": "GPU Capacity Reservation",
        "ContractCommitmentUnit": UNIT,
        "ContractId": reservation.pk,
        "ContractPeriodEnd": ends_at,
        "ContractPeriodStart": starts_at,
        "InvoiceIssuerName": payer.issuer_name,
        "ServiceProviderName": payer.issuer_name,
        "x_PriceMinor": str(reservation.total_minor),
        "x_ReservationStatus": reservation.status,
    }


def _duration(window: Window) -> str:
    """Return `48 Hours`, or whole minutes where a market's grid is finer."""
    hours, rest = divmod(window.seconds, 3600)
    if not rest:
        return f"{hours} Hour" if hours == 1 else f"{hours} Hours"
    return f"{window.seconds // 60} Minutes"


def _applicability(reservation: Reservation, *, payer: Payer) -> str:
    """Return which charges the commitment is for: those of its own capacity reservation."""
    name = resource_name(
        deal_region=reservation.region,
        account_id=payer.account_id,
        kind="reservation",
        object_id=reservation.pk,
    )
    rule = {"Dimension": "CapacityReservationId", "Operator": "In", "Values": [name]}
    return json.dumps({"InclusionOperator": "And", "Inclusions": [rule]})
