"""What has become of an invoice: derived from what is owed on it in the ledger, and from its credit notes."""

from django.db.models import (
    BigIntegerField,
    Case,
    CharField,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Concat

from billing.models import Invoice, InvoiceLine, Posting
from billing.month_movements import month_window
from billing.states import AccountKind, EntryKind, InvoiceKind, InvoiceState, Side
from marketplace.models import Organization
from scheduler.models import Reservation


def with_state(invoices: QuerySet[Invoice]) -> QuerySet[Invoice]:
    """Add `state` and `owed_minor` to documents; a credit note has no state, and owes nothing.

    On account, an invoice is what its receivable holds: open, part-paid, or at zero by payment, credit or
    write-off. What was paid before it was issued is paid, until credit notes have taken all of it back.
    """
    debits, credits_ = Q(side=Side.DEBIT), Q(side=Side.CREDIT)
    return invoices.annotate(
        owed_minor=_posted(debits) - _posted(credits_),
        paid_minor=_posted(credits_ & Q(entry__kind=EntryKind.PAYMENT)),
        written_off_minor=_posted(credits_ & Q(entry__kind=EntryKind.WRITE_OFF)),
        has_postings=_posted(debits),
        credited_minor=Coalesce(
            Subquery(
                Invoice.objects.filter(corrects=OuterRef("pk"))
                .order_by()
                .values("corrects")
                .annotate(sum=Sum("total_minor"))
                .values("sum")
            ),
            Value(0),
            output_field=BigIntegerField(),
        ),
    ).annotate(
        state=Case(
            When(kind=InvoiceKind.CREDIT_NOTE, then=Value(None)),
            When(due_at__isnull=True, then=_prepaid()),
            When(owed_minor__gt=0, paid_minor__gt=0, then=Value(InvoiceState.PART_PAID)),
            When(owed_minor__gt=0, then=Value(InvoiceState.OPEN)),
            When(written_off_minor__gt=0, then=Value(InvoiceState.WRITTEN_OFF)),
            When(Q(paid_minor__gt=0) | Q(total_minor=0), then=Value(InvoiceState.PAID)),
            When(has_postings__gt=0, then=Value(InvoiceState.CREDITED)),
            default=Value(InvoiceState.OPEN),
            output_field=CharField(null=True),
        )
    )


def of_reservation(*, reservation: Reservation) -> QuerySet[Invoice]:
    """Return the documents that have a line of a reservation, the first one first."""
    lines = InvoiceLine.objects.filter(reservation=reservation).values("invoice")
    return with_state(Invoice.objects.filter(pk__in=lines)).order_by("issued_at", "pk")


def for_month(*, organization: Organization, month: str) -> QuerySet[Invoice]:
    """Return the documents of a tenant that belong to a month, the first one first."""
    rows = of_month(Invoice.objects.visible_to(organization), month=month)
    return with_state(rows).order_by("issued_at", "pk")


def _prepaid() -> Case:
    return Case(
        When(
            total_minor__gt=0,
            credited_minor__gte=F("total_minor"),
            then=Value(InvoiceState.CREDITED),
        ),
        default=Value(InvoiceState.PAID),
    )


def _posted(condition: Q) -> Coalesce:
    """Return what the postings under a condition add up to on the account of what is owed."""
    code = Concat(Value(f"{AccountKind.RECEIVABLE.value}:"), OuterRef("pk"))
    sums = (
        Posting.objects.filter(
            condition, account__code=code, account__currency=OuterRef("currency")
        )
        .order_by()
        .values("account")
        .annotate(sum=Sum("amount"))
        .values("sum")
    )
    return Coalesce(Subquery(sums), Value(0), output_field=BigIntegerField())


def of_month(invoices: QuerySet[Invoice], *, month: str) -> QuerySet[Invoice]:
    """Keep the documents that were issued in a month of UTC, or that the close of that month issued.

    :raises ValueError: when `month` names no month.
    """
    window = month_window(month=month)
    issued = Q(issued_at__gte=window.starts_at, issued_at__lt=window.ends_at)
    return invoices.filter(issued | Q(period=month))
