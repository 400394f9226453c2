"""What stops money, and what needs a second person: parked organizations and approvals."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.states import APPROVAL_ARROWS, MARKETS_OWN, ApprovalKind, ApprovalStatus
from marketplace.core import ids
from marketplace.models import Organization


class BooksRun(models.Model):
    """One check of the books by the beat, and what it found."""

    at = models.DateTimeField()
    ok = models.BooleanField()
    checks = models.JSONField(db_comment="name, ok and detail of each invariant")

    class Meta:
        ordering: ClassVar = ["-at"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {'holds' if self.ok else 'BROKEN'}"


class Parking(models.Model):
    """An organization whose money does not move, because its books are not in order."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="parkings"
    )
    reason = models.TextField(db_comment="the breaches, as the check of the books words them")
    parked_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-parked_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(ended_at__isnull=True),
                name="parking_is_once_at_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} since {self.parked_at:%Y-%m-%d %H:%M}"


class Approval(models.Model):
    """A movement of money that one person asks for and another one lets happen, or not."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_approval_id
    )
    kind = models.CharField(max_length=20, choices=ApprovalKind)
    status = models.CharField(
        max_length=20, choices=ApprovalStatus, default=ApprovalStatus.REQUESTED
    )
    organization = models.ForeignKey(
        Organization,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="approvals",
        db_comment="null: it concerns the market alone",
    )
    subject_id = models.CharField(
        max_length=ids.ID_LENGTH_MAX,
        db_comment="reservation, invoice, organization, remittance, or a place and a month",
    )
    amount_minor = models.BigIntegerField(db_comment="0 where no amount is asked for")
    currency = models.CharField(max_length=3)
    net_days = models.PositiveSmallIntegerField(
        null=True, db_comment="of credit: from the invoice to the day on which it is due"
    )
    expires_at = models.DateTimeField(
        null=True, db_comment="of a promotion: it can be spent until then"
    )
    reason = models.TextField()
    requested_by = models.CharField(max_length=100)
    requested_at = models.DateTimeField()
    decided_by = models.CharField(max_length=100, blank=True)
    decided_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-requested_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~Q(decided_by=F("requested_by")), name="approval_needs_four_eyes"
            ),
            models.CheckConstraint(
                condition=Q(status=ApprovalStatus.REQUESTED, decided_by="", decided_at=None)
                | (
                    ~Q(status=ApprovalStatus.REQUESTED)
                    & ~Q(decided_by="")
                    & Q(decided_at__isnull=False)
                ),
                name="approval_is_decided_by_somebody",
            ),
            models.CheckConstraint(
                condition=Q(amount_minor__gte=0), name="approval_is_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(kind=ApprovalKind.CREDIT, net_days__isnull=False)
                | (~Q(kind=ApprovalKind.CREDIT) & Q(net_days__isnull=True)),
                name="approval_of_credit_has_days",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=MARKETS_OWN, organization__isnull=True)
                | (~Q(kind__in=MARKETS_OWN) & Q(organization__isnull=False)),
                name="approval_is_of_somebody_or_the_market",
            ),
            models.CheckConstraint(
                condition=Q(kind=ApprovalKind.PROMOTION, expires_at__isnull=False)
                | (~Q(kind=ApprovalKind.PROMOTION) & Q(expires_at__isnull=True)),
                name="approval_of_promotion_expires",
            ),
            models.UniqueConstraint(
                fields=["kind", "subject_id"],
                condition=Q(status=ApprovalStatus.REQUESTED),
                name="approval_is_asked_for_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject_id}"


class ApprovalTransition(models.Model):
    """One move of an approval: append-only, written by the winner in the transaction of the move."""

    approval = models.ForeignKey(Approval, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ApprovalStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=APPROVAL_ARROWS.as_check(), name="approval_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.approval_id}: {self.from_status or '∅'} → {self.to_status}"
