"""What a tenant has let itself in for in a period, and what it paid in it: two views of the same orders.

`committed` counts by delivery: of each order the part of its price for the hours in the period, while it
stands, less what came back for what was not delivered, in the period in which the lease's time or the window
ended; and the fees that were kept of what was given back, when that happened. An order that waits for its
payment counts, one that expired or was not paid does not. `paid` counts by payment: charges less refunds, as
on the bill of a month. Both are net of tax.
"""

from django.db import connection

from billing import month_movements
from billing.promised import Promise
from billing.states import AccountKind, EntryKind, Side
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models import ExtensionHold, Reservation
from scheduler.states import ReservationStatus

COUNTED = (
    ReservationStatus.PAYMENT_PENDING,
    ReservationStatus.SCHEDULED,
    ReservationStatus.ACTIVE,
    ReservationStatus.COMPLETED,
    ReservationStatus.RECLAIMED,
    ReservationStatus.FAILED,
)
_ORDERS = """
    r.organization_id = %(organization)s AND r.currency = %(currency)s
    AND (%(project)s = '' OR r.project = %(project)s)
"""
# Orders that lie in the period as a whole need no tariff: those are nearly all, and PostgreSQL adds them up.
_COMMITTED = f"""
    SELECT
        (SELECT coalesce(sum(r.total_minor), 0) FROM scheduler_reservation r
         WHERE {_ORDERS} AND r.status = ANY(%(counted)s)
             AND r.starts_at >= %(starts_at)s AND r.ends_at <= %(ends_at)s)
        - (SELECT coalesce(sum(s.refunded_minor
                + (SELECT coalesce(sum(c.refunded_minor), 0) FROM billing_correction c
                   WHERE c.settlement_id = s.id)), 0)
           FROM scheduler_reservation r
           JOIN scheduler_lease l ON l.reservation_id = r.id
           JOIN billing_settlement s ON s.lease_id = l.id
           WHERE {_ORDERS} AND r.status = ANY(%(counted)s)
               AND l.ends_at > %(starts_at)s AND l.ends_at <= %(ends_at)s)
        - (SELECT coalesce(sum(p.amount), 0) FROM scheduler_reservation r
           JOIN billing_entry e ON e.subject_id = r.id AND e.kind = %(refund)s
           JOIN billing_posting p ON p.entry_id = e.id AND p.side = %(debit)s
           JOIN billing_account a ON a.id = p.account_id AND a.kind = %(deferred)s
           WHERE {_ORDERS} AND r.status = ANY(%(counted)s)
               AND r.ends_at > %(starts_at)s AND r.ends_at <= %(ends_at)s)
        + (SELECT coalesce(sum(c.fee_minor), 0) FROM scheduler_reservation r
           JOIN scheduler_change c ON c.reservation_id = r.id
           WHERE {_ORDERS} AND c.at >= %(starts_at)s AND c.at < %(ends_at)s)
"""  # noqa: S608 - constants of this file


def committed(*, organization: Organization, project: str, window: Window, currency: str) -> int:
    """Return what counts in a period, in minor units; an empty `project` is all of them."""
    with connection.cursor() as cursor:
        cursor.execute(
            _COMMITTED,
            {
                "organization": organization.pk,
                "project": project,
                "currency": currency,
                "counted": [status.value for status in COUNTED],
                "starts_at": window.starts_at,
                "ends_at": window.ends_at,
                "refund": EntryKind.REFUND.value,
                "debit": Side.DEBIT.value,
                "deferred": AccountKind.DEFERRED.value,
            },
        )
        (whole,) = cursor.fetchone()
    crossing = Reservation.objects.visible_to(organization).filter(
        status__in=COUNTED,
        currency=currency,
        starts_at__lt=window.ends_at,
        ends_at__gt=window.starts_at,
    )
    if project:
        crossing = crossing.filter(project=project)
    crossing = crossing.exclude(starts_at__gte=window.starts_at, ends_at__lte=window.ends_at)
    parts = crossing.only("total_minor", "lots", "starts_at", "ends_at")
    known = int(whole) + sum(Promise.of(each).part_minor(within=window) for each in parts)
    return known + _waiting(
        organization=organization, project=project, window=window, currency=currency
    )


def _waiting(*, organization: Organization, project: str, window: Window, currency: str) -> int:
    """Return what changes that wait for their payment will add to a period; none takes from it before."""
    held = ExtensionHold.objects.open().filter(
        reservation__organization=organization,
        reservation__status__in=COUNTED,
        reservation__currency=currency,
        quote__starts_at__lt=window.ends_at,
    )
    if project:
        held = held.filter(reservation__project=project)
    added = 0
    for each in held.select_related("reservation", "quote"):
        after = Promise.after(each.quote)
        assert after is not None, each.pk
        before = Promise.of(each.reservation)
        added += max(0, after.part_minor(within=window) - before.part_minor(within=window))
    return added


def paid(*, organization: Organization, project: str, window: Window, currency: str) -> int:
    """Return what was charged less what was refunded in a period, in minor units."""
    moved = month_movements.in_month(organization=organization, window=window, currency=currency)
    if project:
        ours = Reservation.objects.visible_to(organization).filter(project=project)
        known = set(ours.filter(pk__in=list(moved)).values_list("pk", flat=True))
        moved = {key: books for key, books in moved.items() if key in known}
    return sum(books.charged - books.refunded for books in moved.values())
