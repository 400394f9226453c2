"""Settlements: what became of a finished lease."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from marketplace.core import ids
from marketplace.models import Organization
from scheduler.models import Lease


class SettlementQuerySet(models.QuerySet["Settlement"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(lease__reservation__organization=organization)


class Settlement(models.Model):
    """A finished lease as final money and GPU-seconds, with the evidence it rests on."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_settlement_id
    )
    lease = models.OneToOneField(Lease, on_delete=models.PROTECT, related_name="settlement")
    owner = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="settlements")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="settlement")
    currency = models.CharField(max_length=3)
    gpu_seconds_bought = models.BigIntegerField()
    gpu_seconds_delivered = models.BigIntegerField(
        db_comment="between the receipts, within the window"
    )
    gpu_seconds_busy = models.BigIntegerField(db_comment="a kernel ran; at most delivered")
    gpu_seconds_metered = models.BigIntegerField(
        db_comment="covered by meter readings; at most delivered"
    )
    bought_minor = models.BigIntegerField(db_comment="the lease's part of the reservation's price")
    earned_minor = models.BigIntegerField(
        db_comment="for what was delivered: owner's part plus fee"
    )
    fee_minor = models.BigIntegerField()
    owner_minor = models.BigIntegerField()
    refunded_minor = models.BigIntegerField(db_comment="for what was not delivered; to the wallet")
    credit_minor = models.BigIntegerField(
        default=0, db_comment="beyond the refund, for what was not delivered or was reclaimed"
    )
    credit_of_owner_minor = models.BigIntegerField(
        default=0, db_comment="the part of the credit that the owner bears"
    )
    evidence = models.JSONField(db_comment="ids of receipts, meter coverage, statuses")
    settled_at = models.DateTimeField()
    release_due_at = models.DateTimeField(db_comment="becomes payable to the owner")
    released_at = models.DateTimeField(null=True)
    review_due_at = models.DateTimeField(
        null=True, db_comment="when evidence that came late is looked for; null: no more"
    )

    objects = SettlementQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(bought_minor=F("earned_minor") + F("refunded_minor"))
                & Q(earned_minor=F("owner_minor") + F("fee_minor")),
                name="settlement_money_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(gpu_seconds_busy__lte=F("gpu_seconds_delivered"))
                & Q(gpu_seconds_delivered__lte=F("gpu_seconds_bought")),
                name="settlement_seconds_are_ordered",
            ),
            models.CheckConstraint(
                condition=Q(credit_of_owner_minor__gte=0)
                & Q(credit_of_owner_minor__lte=F("credit_minor")),
                name="settlement_credit_is_borne",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["release_due_at"],
                condition=Q(released_at__isnull=True),
                name="settlement_due_to_release",
            ),
            models.Index(
                fields=["review_due_at"],
                condition=Q(review_due_at__isnull=False),
                name="settlement_due_to_review",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Correction(models.Model):
    """What evidence that came after a settlement changed of it: differences, posted when they were found.

    A settlement and its corrections together are what the lease came to. One without an entry moved nothing
    in the books: it notes what more the meters cover, or what energy they counted.
    """

    settlement = models.ForeignKey(Settlement, on_delete=models.PROTECT, related_name="corrections")
    entry = models.OneToOneField(
        Entry,
        null=True,
        on_delete=models.PROTECT,
        related_name="correction",
        db_comment="null: nothing moved, only more was measured",
    )
    number = models.PositiveIntegerField(db_comment="from 1 for each settlement")
    gpu_seconds_delivered = models.BigIntegerField(db_comment="difference")
    gpu_seconds_busy = models.BigIntegerField(db_comment="difference")
    gpu_seconds_metered = models.BigIntegerField(
        null=True, db_comment="difference; null: made before it was noted"
    )
    earned_minor = models.BigIntegerField(db_comment="difference")
    fee_minor = models.BigIntegerField(db_comment="difference")
    owner_minor = models.BigIntegerField(db_comment="difference")
    refunded_minor = models.BigIntegerField(db_comment="difference; negative: charged again")
    borne_minor = models.BigIntegerField(
        db_comment="of what was charged again, the part that the wallet did not cover"
    )
    credit_minor = models.BigIntegerField(
        default=0, db_comment="beyond what was refunded; what a settlement would have given as well"
    )
    credit_of_owner_minor = models.BigIntegerField(
        default=0,
        db_comment="difference; what more of all credits the owner bears, negative: the market does",
    )
    evidence = models.JSONField(db_comment="as a settlement's")
    released_at = models.DateTimeField(
        null=True,
        db_comment="when what it adds for the owner became payable; null: that is due",
    )
    corrected_at = models.DateTimeField(db_comment="falls into the period in which it is reported")

    class Meta:
        ordering: ClassVar = ["settlement", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["settlement", "number"], name="correction_number_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(earned_minor=F("owner_minor") + F("fee_minor"))
                & Q(refunded_minor=-F("earned_minor")),
                name="correction_money_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(entry__isnull=False)
                | Q(
                    gpu_seconds_delivered=0,
                    gpu_seconds_busy=0,
                    earned_minor=0,
                    fee_minor=0,
                    borne_minor=0,
                    credit_minor=0,
                    credit_of_owner_minor=0,
                ),
                name="correction_without_entry_moves_nothing",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["settlement"],
                condition=Q(released_at__isnull=True),
                name="correction_due_to_release",
            )
        ]

    def __str__(self) -> str:
        return f"{self.settlement_id} correction {self.number}"
