"""Money that comes in through the payment provider, and what of it goes back."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.provider import PROVIDER_ID_LENGTH_MAX
from billing.provider_states import (
    PAYMENT_OPEN_STATUSES,
    CardRefundStatus,
    PaymentMeans,
    PaymentPurpose,
    PaymentStatus,
)
from billing.states import DisputeStatus
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import ExtensionHold, Reservation


class Payer(models.Model):
    """A tenant as the provider's customer, and the card that it saved there."""

    organization = models.OneToOneField(
        Organization, primary_key=True, on_delete=models.PROTECT, related_name="payer"
    )
    customer_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, unique=True)
    saved_card_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True)
    cash_minor = models.BigIntegerField(
        default=0, db_comment="on its cash balance there, when that was last read"
    )
    cash_read_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.customer_id


class PaymentQuerySet(models.QuerySet["Payment"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Payment(models.Model):
    """One attempt of a tenant to pay through the provider."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_payment_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="payments"
    )
    purpose = models.CharField(max_length=20, choices=PaymentPurpose)
    means = models.CharField(max_length=20, choices=PaymentMeans)
    status = models.CharField(max_length=20, choices=PaymentStatus, default=PaymentStatus.CREATED)
    reservation = models.ForeignKey(
        Reservation, null=True, on_delete=models.PROTECT, related_name="provider_payments"
    )
    extension = models.ForeignKey(
        ExtensionHold,
        null=True,
        on_delete=models.PROTECT,
        related_name="payments",
        db_comment="whose added hours it pays",
    )
    invoice_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX, blank=True, db_comment="what it is to pay, of an invoice's"
    )
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    is_held = models.BooleanField(
        default=False, db_comment="authorized now, captured before the start"
    )
    is_off_session = models.BooleanField(default=False, db_comment="with the saved card")
    saves_card = models.BooleanField(default=False)
    provider_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True)
    client_secret = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True)
    charge_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_index=True)
    instructions = models.JSONField(null=True, db_comment="where to send a bank transfer")
    failure_code = models.CharField(max_length=100, blank=True)
    failure_message = models.CharField(max_length=500, blank=True)
    received_minor = models.BigIntegerField(default=0)
    refunded_minor = models.BigIntegerField(default=0, db_comment="sent back or on its way back")
    capture_due_at = models.DateTimeField(null=True)
    read_due_at = models.DateTimeField(
        db_comment="asked after at the provider, if nothing is heard"
    )
    due_at = models.DateTimeField(db_comment="given up, unless paid")
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    objects = PaymentQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="payment_is_positive"),
            models.CheckConstraint(
                condition=Q(received_minor__lte=F("amount_minor"))
                & Q(refunded_minor__lte=F("received_minor"))
                & Q(refunded_minor__gte=0),
                name="payment_returns_at_most_what_came",
            ),
            models.UniqueConstraint(
                fields=["provider_id"],
                condition=~Q(provider_id=""),
                name="payment_has_its_own_object",
            ),
            models.CheckConstraint(
                condition=Q(purpose=PaymentPurpose.ADDED_HOURS)
                & Q(reservation__isnull=False, extension__isnull=False)
                | ~Q(purpose=PaymentPurpose.ADDED_HOURS) & Q(extension__isnull=True),
                name="payment_of_added_hours_names_them",
            ),
            models.UniqueConstraint(
                fields=["reservation", "purpose", "extension"],
                condition=Q(reservation__isnull=False, status__in=PAYMENT_OPEN_STATUSES),
                nulls_distinct=False,
                name="payment_is_open_once_per_purpose",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"],
                condition=Q(status__in=PAYMENT_OPEN_STATUSES),
                name="payment_due",
            )
        ]

    def __str__(self) -> str:
        return self.id


class CardRefund(models.Model):
    """Money that goes back the way it came."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_card_refund_id
    )
    payment = models.ForeignKey(Payment, on_delete=models.PROTECT, related_name="refunds")
    status = models.CharField(max_length=20, choices=CardRefundStatus, default=CardRefundStatus.DUE)
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    reason = models.CharField(max_length=100)
    provider_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_index=True)
    failure_code = models.CharField(max_length=100, blank=True)
    read_due_at = models.DateTimeField(
        db_comment="asked after at the provider, if nothing is heard"
    )
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="card_refund_is_positive")
        ]

    def __str__(self) -> str:
        return self.id


class TopUpDispute(models.Model):
    """A card holder who asks the bank for the money of a top-up back."""

    id = models.CharField(
        primary_key=True, max_length=PROVIDER_ID_LENGTH_MAX, db_comment="the provider's"
    )
    payment = models.ForeignKey(Payment, on_delete=models.PROTECT, related_name="top_up_disputes")
    status = models.CharField(max_length=10, choices=DisputeStatus, default=DisputeStatus.OPEN)
    amount_minor = models.BigIntegerField()
    fee_minor = models.BigIntegerField(db_comment="what the provider keeps, whoever wins")
    currency = models.CharField(max_length=3)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.id
