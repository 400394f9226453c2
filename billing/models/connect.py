"""Owners as receivers at the payment provider, and what is sent to them."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.models.payouts import Payout
from billing.models.provider import PROVIDER_ID_LENGTH_MAX
from billing.provider_states import ReversalStatus, TransferStatus
from marketplace.core import ids
from marketplace.models import Organization


class PayoutAccount(models.Model):
    """Where an owner's money goes. One per owner is current; a new one waits until it has cooled off."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_payout_account_id
    )
    owner = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="payout_accounts"
    )
    provider_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True)
    receives = models.BooleanField(default=False, db_comment="as the provider said when last asked")
    missing = models.JSONField(default=list, db_comment="what the provider wants to know")
    seen_at = models.DateTimeField(null=True, db_comment="when it was last asked")
    requested_by = models.CharField(max_length=100)
    requested_at = models.DateTimeField()
    approved_by = models.CharField(max_length=100, blank=True)
    usable_at = models.DateTimeField(null=True, db_comment="approved, and cooled off from then on")
    retired_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(approved_by="") | ~Q(approved_by=F("requested_by")),
                name="payout_account_has_four_eyes",
            ),
            models.UniqueConstraint(
                fields=["owner"],
                condition=Q(usable_at__isnull=True, retired_at__isnull=True),
                name="payout_account_is_asked_for_once",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Transfer(models.Model):
    """One attempt to send a payout to its owner."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_transfer_id
    )
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="transfers")
    account = models.ForeignKey(PayoutAccount, on_delete=models.PROTECT, related_name="transfers")
    status = models.CharField(max_length=20, choices=TransferStatus, default=TransferStatus.SENDING)
    payout = models.ForeignKey(Payout, on_delete=models.PROTECT, related_name="transfers")
    amount_minor = models.BigIntegerField()
    reversed_minor = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3)
    provider_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_index=True)
    failure_code = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, reversed_minor__lte=F("amount_minor")),
                name="transfer_amounts_make_sense",
            ),
            models.UniqueConstraint(
                fields=["payout"],
                condition=Q(status__in=(TransferStatus.SENDING, TransferStatus.PAID)),
                name="payout_is_sent_once",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Reversal(models.Model):
    """One attempt to take a part of a transfer back."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_reversal_id
    )
    transfer = models.ForeignKey(Transfer, on_delete=models.PROTECT, related_name="reversals")
    status = models.CharField(max_length=20, choices=ReversalStatus, default=ReversalStatus.ASKED)
    amount_minor = models.BigIntegerField()
    provider_id = models.CharField(max_length=PROVIDER_ID_LENGTH_MAX, blank=True, db_index=True)
    failure_code = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="reversal_is_positive")
        ]

    def __str__(self) -> str:
        return self.id
