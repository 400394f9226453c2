"""Invoices and credit notes: what a tenant files, exactly as it was issued.

PostgreSQL refuses any change of an issued document, a gap in its numbers, lines that do not add up, and a
credit note that gives back more than was invoiced (migration `…_guard_the_invoices`).
"""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.states import InvoiceKind
from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.models import Organization
from scheduler.models import Reservation

ISSUER_LENGTH_MAX = 12
TAX_ID_LENGTH_MAX = 40
PURCHASE_ORDER_LENGTH_MAX = 60
DESCRIPTION_LENGTH_MAX = 300
ENTRY_KEY_LENGTH_MAX = 200  # as the ledger's


class BillingProfile(models.Model):
    """To whom a tenant's invoices are made out; each document keeps it as it was when it was issued."""

    organization = models.OneToOneField(
        Organization, primary_key=True, on_delete=models.PROTECT, related_name="billing_profile"
    )
    legal_name = models.CharField(max_length=NAME_LENGTH_MAX)
    street = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    postal_code = models.CharField(max_length=20, blank=True)
    city = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    region = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    country = models.CharField(max_length=2, blank=True, db_comment="ISO 3166-1, two letters")
    tax_id = models.CharField(max_length=TAX_ID_LENGTH_MAX, blank=True)
    purchase_order_number = models.CharField(max_length=PURCHASE_ORDER_LENGTH_MAX, blank=True)
    email = models.EmailField(blank=True, db_comment="where invoices are sent")
    updated_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.legal_name


class InvoiceSeries(models.Model):
    """One row of numbers without gaps: its row lock is what hands them out, one transaction at a time."""

    issuer = models.CharField(max_length=ISSUER_LENGTH_MAX)
    kind = models.CharField(max_length=20, choices=InvoiceKind)
    year = models.PositiveSmallIntegerField()
    last_sequence = models.PositiveIntegerField(default=0)
    last_issued_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "invoice series"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["issuer", "kind", "year"], name="invoice_series_is_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.issuer} {self.kind} {self.year}"


class InvoiceQuerySet(models.QuerySet["Invoice"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Invoice(models.Model):
    """An invoice or a credit note, as it was issued. Whether it is paid, the ledger knows.

    With `due_at` it is on account; without, what it says was paid before. Amounts of a credit note are
    positive: its kind tells that they go back.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_invoice_id
    )
    kind = models.CharField(max_length=20, choices=InvoiceKind)
    issuer = models.CharField(max_length=ISSUER_LENGTH_MAX)
    year = models.PositiveSmallIntegerField()
    sequence = models.PositiveIntegerField(
        db_comment="from 1 without a gap, per issuer, kind, year"
    )
    number = models.CharField(max_length=40, unique=True)
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="invoices"
    )
    corrects = models.ForeignKey(
        "self", null=True, on_delete=models.PROTECT, related_name="credit_notes"
    )
    currency = models.CharField(max_length=3)
    net_minor = models.BigIntegerField()
    tax_minor = models.BigIntegerField()
    total_minor = models.BigIntegerField()
    issued_at = models.DateTimeField(db_comment="never before the number that precedes it")
    due_at = models.DateTimeField(null=True, db_comment="null: paid before it was issued")
    period = models.CharField(
        max_length=7, blank=True, db_comment="YYYY-MM that it closes, or empty"
    )
    seller = models.JSONField(db_comment="name, address, tax_id, … as they were")
    buyer = models.JSONField(db_comment="name, address, tax_id, … as they were")
    purchase_order_number = models.CharField(max_length=PURCHASE_ORDER_LENGTH_MAX, blank=True)
    simulated = models.BooleanField(db_comment="it is about play money")
    transaction_id = models.BigIntegerField(
        db_default=0, db_comment="pg_current_xact_id of its making, set by trigger: seals it"
    )

    objects = InvoiceQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["issuer", "kind", "year", "sequence"], name="invoice_sequence_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(net_minor__gte=0, tax_minor__gte=0)
                & Q(total_minor=F("net_minor") + F("tax_minor")),
                name="invoice_money_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(kind=InvoiceKind.INVOICE, corrects__isnull=True)
                | Q(kind=InvoiceKind.CREDIT_NOTE, corrects__isnull=False, due_at__isnull=True),
                name="invoice_kind_fits",
            ),
            models.CheckConstraint(
                condition=Q(due_at__isnull=True) | Q(due_at__gte=F("issued_at")),
                name="invoice_is_due_after_issue",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-id"], name="invoice_by_tenant"),
            models.Index(fields=["organization", "period"], name="invoice_by_period"),
        ]

    def __str__(self) -> str:
        return self.number


class InvoiceLine(models.Model):
    """One line: what one entry of the ledger charged, or gave back of one line that was invoiced before.

    `entry_key` is the entry's idempotency key: it is known before the entry is posted.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_invoice_line_id
    )
    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="lines")
    position = models.PositiveIntegerField(db_comment="from 1")
    reservation = models.ForeignKey(
        Reservation, null=True, on_delete=models.PROTECT, related_name="invoice_lines"
    )
    entry_key = models.CharField(max_length=ENTRY_KEY_LENGTH_MAX)
    corrects_line = models.ForeignKey(
        "self", null=True, on_delete=models.PROTECT, related_name="corrections"
    )
    description = models.CharField(max_length=DESCRIPTION_LENGTH_MAX)
    starts_at = models.DateTimeField(null=True, db_comment="of the window that it is about")
    ends_at = models.DateTimeField(null=True)
    gpu_seconds = models.BigIntegerField(db_comment="bought, or given back with a credit")
    net_minor = models.BigIntegerField()
    tax_minor = models.BigIntegerField()
    tax_jurisdiction = models.CharField(max_length=12, blank=True)
    tax_rate_basis_points = models.PositiveIntegerField(default=0)
    tax_treatment = models.CharField(max_length=20)
    tax_note = models.CharField(max_length=DESCRIPTION_LENGTH_MAX, blank=True)

    class Meta:
        ordering: ClassVar = ["invoice", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["invoice", "position"], name="invoice_line_position_is_unique"
            ),
            models.UniqueConstraint(
                fields=["entry_key"],
                condition=Q(corrects_line__isnull=True),
                name="entry_is_invoiced_once",
            ),
            models.UniqueConstraint(
                fields=["entry_key", "corrects_line"], name="entry_is_credited_once_per_line"
            ),
            models.CheckConstraint(
                condition=Q(net_minor__gte=0, tax_minor__gte=0, gpu_seconds__gte=0),
                name="invoice_line_is_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(starts_at__isnull=True, ends_at__isnull=True)
                | Q(ends_at__gt=F("starts_at")),
                name="invoice_line_ends_after_start",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.invoice_id} line {self.position}"


class MonthClose(models.Model):
    """A tenant's month of which all documents are issued: append-only, what comes later is in a later one."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="month_closes"
    )
    month = models.CharField(max_length=7, db_comment="YYYY-MM, of UTC")
    closed_at = models.DateTimeField()
    recorded_at = models.DateTimeField(
        db_default=models.functions.Now(), db_comment="database clock"
    )
    names = models.JSONField(
        default=dict,
        db_comment="what the month's exports call things: later names are of later months",
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "month"], name="month_is_closed_once")
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.month}"
