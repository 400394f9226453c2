"""Buying on account: how much a tenant may owe, and what it bought that way."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from billing.models.books import Account
from billing.models.controls import Approval
from billing.models.invoices import Invoice
from billing.states import DUNNING_ARROWS, AccountKind, DunningStatus
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Change, Reservation

# What enterprises are used to; anything longer is a loan.
NET_DAYS = ((14, "net 14 days"), (30, "net 30 days"))


class CreditTerms(models.Model):
    """One version of how much an organization may owe; the highest is in force. A limit of 0: nothing."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_credit_terms_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="credit_terms"
    )
    currency = models.CharField(max_length=3)
    version = models.PositiveIntegerField()
    limit_minor = models.BigIntegerField(db_comment="0: no credit any more")
    net_days = models.PositiveSmallIntegerField(
        choices=NET_DAYS, db_comment="from the invoice to the day on which it is due"
    )
    approval = models.OneToOneField(Approval, on_delete=models.PROTECT, related_name="credit_terms")
    granted_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["organization", "currency", "-version"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "currency", "version"], name="credit_terms_have_versions"
            ),
            models.CheckConstraint(
                condition=Q(limit_minor__gte=0), name="credit_limit_is_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(net_days__in=[days for days, _ in NET_DAYS]),
                name="credit_days_are_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} v{self.version}"


class CreditSaleQuerySet(models.QuerySet["CreditSale"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def with_open(self) -> Self:
        """Add to each sale what of it is still owed, as `open_minor`."""
        kept = Account.objects.filter(
            kind=AccountKind.RECEIVABLE,
            subject_id=OuterRef("invoice_id"),
            currency=OuterRef("currency"),
        )
        return self.annotate(open_minor=Coalesce(Subquery(kept.values("balance")[:1]), 0))


class CreditSale(models.Model):
    """Something bought on account, and the invoice by which it is owed; what is still open, the books say."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_credit_sale_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="credit_sales"
    )
    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="credit_sales"
    )
    change = models.OneToOneField(
        Change,
        null=True,
        on_delete=models.PROTECT,
        related_name="credit_sale",
        db_comment="what was added later; null: the reservation itself",
    )
    invoice = models.OneToOneField(Invoice, on_delete=models.PROTECT, related_name="credit_sale")
    terms = models.ForeignKey(CreditTerms, on_delete=models.PROTECT, related_name="sales")
    amount_minor = models.BigIntegerField(db_comment="of the invoice, tax included")
    currency = models.CharField(max_length=3)
    due_at = models.DateTimeField(db_comment="to be paid by then")
    created_at = models.DateTimeField()

    objects = CreditSaleQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gte=0), name="credit_sale_is_not_negative"
            ),
            models.UniqueConstraint(
                fields=["reservation"],
                condition=Q(change__isnull=True),
                name="credit_sale_is_once_per_reservation",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "due_at"], name="credit_sale_due"),
        ]

    def __str__(self) -> str:
        return self.invoice_id


class DunningCase(models.Model):
    """How far the collection of one sale on account has come."""

    sale = models.OneToOneField(
        CreditSale, primary_key=True, on_delete=models.PROTECT, related_name="dunning"
    )
    status = models.CharField(max_length=20, choices=DunningStatus, default=DunningStatus.WAITING)
    act_due_at = models.DateTimeField(
        null=True,
        db_comment="the next step is taken then, unless nothing is owed; null: none is left",
    )

    class Meta:
        ordering: ClassVar = ["-sale"]
        indexes: ClassVar = [
            models.Index(
                fields=["act_due_at"],
                condition=Q(act_due_at__isnull=False),
                name="dunning_due",
            ),
            models.Index(
                fields=["sale"],
                condition=~Q(status=DunningStatus.CLOSED),
                name="dunning_open",
            ),
        ]

    def __str__(self) -> str:
        return self.sale_id


class DunningTransition(models.Model):
    """One move of a case: append-only, written by the winner in the transaction of the move."""

    case = models.ForeignKey(DunningCase, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=DunningStatus)
    reason = models.CharField(
        max_length=20, blank=True, db_comment="of an end: paid, credited, written_off"
    )
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=DUNNING_ARROWS.as_check(), name="dunning_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.case_id}: {self.from_status or '∅'} → {self.to_status}"
