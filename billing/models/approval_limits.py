"""The limit above which an order takes a second person, and what is asked for to have it higher."""

from typing import ClassVar, Self

from django.db import models
from django.db.models import F, Q

from billing.states import APPROVAL_ARROWS, ApprovalStatus
from marketplace.core import ids
from marketplace.core.money import Money
from marketplace.models import Organization


class ApprovalLimit(models.Model):
    """What one person alone may order; without a row, or without an amount, that is anything."""

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, related_name="approval_limit"
    )
    amount_minor = models.BigIntegerField(
        null=True, db_comment="net of tax; an order above it takes two; null: none does any more"
    )
    currency = models.CharField(max_length=3)
    updated_by = models.CharField(max_length=100)
    updated_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gte=0), name="approval_limit_is_not_negative"
            )
        ]

    def __str__(self) -> str:
        return f"{self.amount or 'no limit'} of {self.organization_id}"

    @property
    def amount(self) -> Money | None:
        return None if self.amount_minor is None else Money(self.amount_minor, self.currency)


class LimitRequestQuerySet(models.QuerySet["LimitRequest"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class LimitRequest(models.Model):
    """A limit that is to be raised or taken away: one asks, another one decides."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_approval_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="limit_requests"
    )
    status = models.CharField(
        max_length=20, choices=ApprovalStatus, default=ApprovalStatus.REQUESTED
    )
    before_minor = models.BigIntegerField(db_comment="the limit when it was asked for")
    amount_minor = models.BigIntegerField(
        null=True, db_comment="what is asked for; null: no limit any more"
    )
    currency = models.CharField(max_length=3)
    requested_by = models.CharField(max_length=100)
    requested_at = models.DateTimeField()
    decided_by = models.CharField(max_length=100, blank=True)
    decided_at = models.DateTimeField(null=True)

    objects = LimitRequestQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(status=ApprovalStatus.REQUESTED),
                name="limit_is_asked_for_once",
            ),
            models.CheckConstraint(
                condition=Q(amount_minor=None) | Q(amount_minor__gt=F("before_minor")),
                name="limit_is_asked_for_to_be_higher",
            ),
            # Who asked may take it back.
            models.CheckConstraint(
                condition=~Q(status=ApprovalStatus.APPROVED) | ~Q(decided_by=F("requested_by")),
                name="limit_needs_four_eyes",
            ),
            models.CheckConstraint(
                condition=Q(status=ApprovalStatus.REQUESTED, decided_by="", decided_at=None)
                | (
                    ~Q(status=ApprovalStatus.REQUESTED)
                    & ~Q(decided_by="")
                    & Q(decided_at__isnull=False)
                ),
                name="limit_is_decided_by_somebody",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-id"], name="limit_request_by_tenant")
        ]

    def __str__(self) -> str:
        return f"{self.amount or 'no limit'} for {self.organization_id}"

    @property
    def before(self) -> Money:
        return Money(self.before_minor, self.currency)

    @property
    def amount(self) -> Money | None:
        return None if self.amount_minor is None else Money(self.amount_minor, self.currency)


class LimitRequestTransition(models.Model):
    """One move of a request: append-only, written by the winner in the transaction of the move."""

    limit_request = models.ForeignKey(
        LimitRequest, on_delete=models.PROTECT, related_name="transitions"
    )
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ApprovalStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=APPROVAL_ARROWS.as_check(), name="limit_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.limit_request_id}: {self.from_status or '∅'} → {self.to_status}"
