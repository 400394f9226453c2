"""Prepaid money that a tenant wants back."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import Exists, OuterRef, Q

from billing.models.books import Entry
from billing.models.controls import Approval
from billing.models.payments import CardRefund
from billing.states import ApprovalKind, ApprovalStatus
from marketplace.core import ids
from marketplace.models import Organization


class WithdrawalQuerySet(models.QuerySet["Withdrawal"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def with_refusal(self) -> Self:
        """Add to each whether operators refused it, as `is_refused`."""
        refused = Approval.objects.filter(
            kind=ApprovalKind.WITHDRAWAL, status=ApprovalStatus.REFUSED, subject_id=OuterRef("pk")
        )
        return self.annotate(is_refused=Exists(refused))

    def waiting(self) -> Self:
        return self.with_refusal().filter(carried_out_at__isnull=True, is_refused=False)


class Withdrawal(models.Model):
    """One wish of a tenant: carried out at once, or by two operators, or refused by them."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_withdrawal_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="withdrawals"
    )
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    requested_by = models.CharField(max_length=100)
    requested_at = models.DateTimeField()
    approval = models.OneToOneField(
        Approval,
        null=True,
        on_delete=models.PROTECT,
        related_name="withdrawal",
        db_comment="of the operators who carried it out; null: it took none, or was not yet",
    )
    entry = models.OneToOneField(
        Entry,
        null=True,
        on_delete=models.PROTECT,
        related_name="withdrawal",
        db_comment="what of it went to a bank account",
    )
    bank_minor = models.BigIntegerField(default=0, db_comment="of the amount, the entry's part")
    carried_out_at = models.DateTimeField(null=True)

    objects = WithdrawalQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="withdrawal_is_positive"),
            models.CheckConstraint(
                condition=Q(bank_minor=0) | Q(approval__isnull=False),
                name="withdrawal_by_bank_takes_two",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class WithdrawalPart(models.Model):
    """A part of a withdrawal that goes back the way it came."""

    withdrawal = models.ForeignKey(Withdrawal, on_delete=models.PROTECT, related_name="parts")
    refund = models.OneToOneField(CardRefund, on_delete=models.PROTECT, related_name="withdrawal")

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.withdrawal_id}: {self.refund_id}"
