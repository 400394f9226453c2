"""Reservations: the promise, and every move of it."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.core.windows import Window
from marketplace.models import GpuModel, Organization
from marketplace.states import Tier
from scheduler.models.quotes import Quote
from scheduler.states import (
    RESERVATION_ARROWS,
    PaymentMethod,
    ReservationStatus,
    Spread,
)


class ReservationQuerySet(models.QuerySet["Reservation"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Reservation(models.Model):
    """The promise: N GPUs of a model for a window, at a locked rate."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_reservation_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="reservations"
    )
    quote = models.OneToOneField(Quote, on_delete=models.PROTECT, related_name="reservation")
    status = models.CharField(
        max_length=20, choices=ReservationStatus, default=ReservationStatus.PAYMENT_PENDING
    )
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT)
    gpus = models.PositiveIntegerField(verbose_name="GPUs")
    region = models.CharField(max_length=60)
    tier = models.CharField(max_length=20, choices=Tier)
    spread = models.CharField(max_length=20, choices=Spread)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    rate = models.DecimalField(
        max_digits=18, decimal_places=6, db_comment="per GPU-hour, mean of the lots rounded up"
    )
    total_minor = models.BigIntegerField(db_comment="minor units, the lots over the whole window")
    unpaid_minor = models.BigIntegerField(
        default=0,
        db_default=0,
        db_comment="of the total, what is paid after it was confirmed and before it begins, and was not yet",
    )
    lots = models.JSONField(
        db_comment="what the GPUs cost and who may serve: of `scheduler.lots`, one object per lot"
    )
    currency = models.CharField(max_length=3)
    fee_basis_points = models.PositiveIntegerField()
    payment_method = models.CharField(max_length=20, choices=PaymentMethod)
    reclaim_notice_seconds = models.PositiveIntegerField(
        default=0, db_comment="the shortest of its listings when it was sold; 0 for the firm tier"
    )
    simulated = models.BooleanField()
    name = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    project = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    tags = models.JSONField(default=dict, blank=True, db_comment="text to text")
    ssh_public_keys = models.JSONField(default=list, blank=True)
    image = models.CharField(max_length=500, blank=True)
    warn_before_seconds = ArrayField(
        models.PositiveIntegerField(),
        default=list,
        blank=True,
        db_comment="how long before the end the tenant wants to be told; rising, empty: not",
    )
    created_at = models.DateTimeField()
    payment_due_at = models.DateTimeField(db_comment="payment_pending ends here")
    is_payment_held = models.BooleanField(
        default=False, db_comment="confirmed by a price that is held, and was not taken"
    )

    objects = ReservationQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="reservation_ends_after_start"
            ),
            models.CheckConstraint(
                condition=Q(is_payment_held=False)
                | Q(
                    status__in=(
                        ReservationStatus.SCHEDULED,
                        ReservationStatus.PAYMENT_FAILED,
                        ReservationStatus.CANCELLED,
                    )
                ),
                name="reservation_is_taken_before_it_begins",
            ),
            models.CheckConstraint(
                condition=Q(unpaid_minor=0)
                | Q(unpaid_minor__gt=0, unpaid_minor__lte=F("total_minor"))
                & ~Q(
                    status__in=(
                        ReservationStatus.ACTIVE,
                        ReservationStatus.COMPLETED,
                        ReservationStatus.RECLAIMED,
                    )
                ),
                name="reservation_is_paid_before_it_begins",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["starts_at"],
                condition=Q(status=ReservationStatus.SCHEDULED),
                name="reservation_due_to_start",
            ),
            models.Index(
                fields=["ends_at"],
                condition=Q(status=ReservationStatus.ACTIVE),
                name="reservation_due_to_end",
            ),
            models.Index(
                fields=["payment_due_at"],
                condition=Q(status=ReservationStatus.PAYMENT_PENDING),
                name="reservation_due_to_pay",
            ),
            models.Index(fields=["organization", "-id"], name="reservation_by_tenant"),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        return Window(self.starts_at, self.ends_at)

    @property
    def is_paid(self) -> bool:
        """Say whether its price was taken: not still waited for, and not only held."""
        return self.status != ReservationStatus.PAYMENT_PENDING and not self.is_payment_held


class ReservationTransition(models.Model):
    """One move of a reservation: append-only, written by the winner in the transaction of the move."""

    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="transitions"
    )
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ReservationStatus)
    reason = models.CharField(max_length=40, db_comment="of ReservationReason")
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=RESERVATION_ARROWS.as_check(), name="reservation_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id}: {self.from_status or '∅'} → {self.to_status}"


class EndWarning(models.Model):
    """A tenant was told that its reservation ends: once for each notice and each end."""

    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="warnings")
    notice_seconds = models.PositiveIntegerField()
    ends_at = models.DateTimeField(db_comment="the end that it was told of")
    told_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["reservation", "notice_seconds", "ends_at"], name="end_is_told_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id} ends at {self.ends_at:%F %T}"
