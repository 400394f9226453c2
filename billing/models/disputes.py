"""Payments that a tenant's bank has called into question."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from billing.models.controls import Approval
from billing.models.payments import Payment
from billing.states import DISPUTE_ARROWS, DisputeStatus
from marketplace.models import Organization
from scheduler.models import Reservation


class Dispute(models.Model):
    """A dispute at the payment provider. While it is open nothing goes to owners, or back to the tenant."""

    id = models.CharField(primary_key=True, max_length=64, db_comment="the provider's")
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="disputes")
    payment = models.ForeignKey(
        Payment,
        null=True,
        on_delete=models.PROTECT,
        related_name="disputes",
        db_comment="which the bank took back; null: of before that was written down",
    )
    status = models.CharField(max_length=20, choices=DisputeStatus, default=DisputeStatus.OPEN)
    amount_minor = models.BigIntegerField()
    fee_minor = models.BigIntegerField()
    set_off_minor = models.BigIntegerField(
        default=0,
        db_comment="of the amount: what the reservation owed the tenant, once it was lost",
    )
    currency = models.CharField(max_length=3)
    opened_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-opened_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, fee_minor__gte=0), name="dispute_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(set_off_minor__gte=0, set_off_minor__lte=F("amount_minor"))
                & (Q(status=DisputeStatus.LOST) | Q(set_off_minor=0)),
                name="dispute_sets_off_what_was_lost",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class DisputeTransition(models.Model):
    """One move of a dispute: append-only, written by the winner in the transaction of the move."""

    dispute = models.ForeignKey(Dispute, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=DisputeStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=DISPUTE_ARROWS.as_check(), name="dispute_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.dispute_id}: {self.from_status or '∅'} → {self.to_status}"


class CardInquiry(models.Model):
    """What a tenant's bank asks about a card payment before it takes anything back: no money has moved.

    It is open until the bank is content, or makes a dispute of it, which has a row of its own by the same id.
    """

    id = models.CharField(primary_key=True, max_length=64, db_comment="the provider's")
    payment = models.ForeignKey(Payment, on_delete=models.PROTECT, related_name="inquiries")
    state = models.CharField(max_length=30, db_comment="the provider's last word of it")
    amount_minor = models.BigIntegerField(db_comment="asked about, and not taken")
    currency = models.CharField(max_length=3)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, db_comment="the bank was content")
    disputed_at = models.DateTimeField(null=True, db_comment="the bank made a dispute of it")

    class Meta:
        ordering: ClassVar = ["-opened_at"]
        verbose_name_plural = "card inquiries"
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="inquiry_is_positive"),
            models.CheckConstraint(
                condition=Q(closed_at__isnull=True) | Q(disputed_at__isnull=True),
                name="inquiry_ends_once",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class DisputeCharge(models.Model):
    """What an owner bears of a dispute that was lost, as two people decided. Nothing of it changes."""

    dispute = models.ForeignKey(Dispute, on_delete=models.PROTECT, related_name="charges")
    owner = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="dispute_charges"
    )
    approval = models.OneToOneField(
        Approval, on_delete=models.PROTECT, related_name="dispute_charge"
    )
    amount_minor = models.BigIntegerField()
    drawn_minor = models.BigIntegerField(db_comment="of it, out of what was kept in reserve")
    currency = models.CharField(max_length=3)
    charged_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-charged_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dispute", "owner"], name="dispute_is_charged_once"),
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, drawn_minor__gte=0)
                & Q(drawn_minor__lte=F("amount_minor")),
                name="dispute_charge_makes_sense",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.dispute_id} to {self.owner_id}"


class DisputeReturn(models.Model):
    """What an owner got back of a charge, because it was set off as well. Nothing of it changes."""

    charge = models.ForeignKey(DisputeCharge, on_delete=models.PROTECT, related_name="returns")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="dispute_return")
    amount_minor = models.BigIntegerField()
    netted_minor = models.BigIntegerField(
        db_comment="of it, what the owner owed and owes no more; the rest is a payout"
    )
    currency = models.CharField(max_length=3)
    returned_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, netted_minor__gte=0)
                & Q(netted_minor__lte=F("amount_minor")),
                name="dispute_return_makes_sense",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount_minor} of {self.charge}"
