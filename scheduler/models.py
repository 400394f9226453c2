"""Quotes, reservations, their places in the calendar, and leases."""

from typing import ClassVar, Self

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import (
    ArrayField,
    DateTimeRangeField,
    IntegerRangeField,
    RangeOperators,
)
from django.db import models
from django.db.models import F, Q

from agents.models import Node
from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.core.windows import Window
from marketplace.models import GpuModel, Listing, Organization
from marketplace.states import Tier
from scheduler.states import (
    LEASE_ARROWS,
    RESERVATION_ARROWS,
    LeaseReason,
    LeaseStatus,
    PaymentMethod,
    QuoteStatus,
    ReservationReason,
    ReservationStatus,
    Spread,
)


class QuoteQuerySet(models.QuerySet["Quote"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Quote(models.Model):
    """A price promise with an expiry; with `hold` also a capacity promise."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_quote_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="quotes")
    status = models.CharField(max_length=20, choices=QuoteStatus, default=QuoteStatus.OPEN)
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT)
    gpus = models.PositiveIntegerField(verbose_name="GPUs")
    region = models.CharField(max_length=60)
    tier = models.CharField(max_length=20, choices=Tier)
    spread = models.CharField(max_length=20, choices=Spread)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    floor_rate = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        db_comment="per GPU-hour; only listings with at most this floor may serve",
    )
    listing_ids = ArrayField(
        models.CharField(max_length=ids.ID_LENGTH_MAX),
        default=list,
        db_comment="listings that would have served: they honour the price though they raise their floor",
    )
    rate = models.DecimalField(
        max_digits=18, decimal_places=6, db_comment="per GPU-hour, tenant's view, locked"
    )
    total_minor = models.BigIntegerField(
        db_comment="minor units of currency, tenant's view, locked"
    )
    currency = models.CharField(max_length=3)
    fee_basis_points = models.PositiveIntegerField(
        db_comment="platform's share of the price, locked"
    )
    price_breakdown = models.JSONField(
        db_comment="inputs and steps from which the rate can be recomputed"
    )
    hold = models.BooleanField(default=False)
    simulated = models.BooleanField(db_comment="priced on GPUs that do not exist")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    objects = QuoteQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="quote_ends_after_start"
            ),
            models.CheckConstraint(
                condition=Q(total_minor__gte=0, gpus__gte=1, rate__gt=0), name="quote_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(status=QuoteStatus.USED, used_at__isnull=False)
                | (~Q(status=QuoteStatus.USED) & Q(used_at__isnull=True)),
                name="quote_is_used_at_an_instant",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["expires_at"],
                condition=Q(status=QuoteStatus.OPEN),
                name="quote_open_by_expiry",
            ),
            models.Index(
                fields=["organization"],
                condition=Q(status=QuoteStatus.OPEN),
                name="quote_open_by_tenant",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        return Window(self.starts_at, self.ends_at)


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
        max_digits=18, decimal_places=6, db_comment="per GPU-hour, locked by the quote"
    )
    total_minor = models.BigIntegerField(db_comment="minor units, tenant's view; never changes")
    currency = models.CharField(max_length=3)
    fee_basis_points = models.PositiveIntegerField()
    payment_method = models.CharField(max_length=20, choices=PaymentMethod)
    simulated = models.BooleanField()
    name = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    project = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    tags = models.JSONField(default=dict, blank=True, db_comment="text to text")
    ssh_public_keys = models.JSONField(default=list, blank=True)
    image = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField()
    payment_due_at = models.DateTimeField(db_comment="payment_pending ends here")

    objects = ReservationQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="reservation_ends_after_start"
            )
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


class LeaseQuerySet(models.QuerySet["Lease"]):
    def visible_to(self, organization: Organization) -> Self:
        """Keep the leases that a tenant bought; an owner sees its own through `on_nodes_of`."""
        return self.filter(reservation__organization=organization)

    def on_nodes_of(self, organization: Organization) -> Self:
        return self.filter(node__organization=organization)


class Lease(models.Model):
    """The fact: one node's GPUs handed over to the tenant, metered, and returned."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_lease_id)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="leases")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="leases")
    status = models.CharField(max_length=20, choices=LeaseStatus, default=LeaseStatus.PROVISIONING)
    epoch = models.PositiveIntegerField(default=1, db_comment="fencing: the grant's lease_epoch")
    gpu_uuids = ArrayField(models.CharField(max_length=100))
    starts_at = models.DateTimeField(db_comment="promised")
    ends_at = models.DateTimeField(db_comment="promised")
    created_at = models.DateTimeField()
    handed_over_at = models.DateTimeField(
        null=True, db_comment="from the handover receipt, clipped to the promise"
    )
    returned_at = models.DateTimeField(
        null=True, db_comment="from the return receipt, clipped to the promise"
    )
    closed_at = models.DateTimeField(
        null=True, db_comment="when a final status was reached, server's clock"
    )
    access = models.JSONField(null=True, db_comment="host, port, username, host_key_fingerprint")

    objects = LeaseQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")), name="lease_ends_after_start"
            ),
            models.UniqueConstraint(
                fields=["reservation", "node", "epoch"], name="lease_is_unique"
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["ends_at"],
                condition=Q(status__in=["provisioning", "active", "returning", "reclaiming"]),
                name="lease_open_by_end",
            ),
            models.Index(
                fields=["closed_at"], condition=Q(closed_at__isnull=False), name="lease_by_close"
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        return Window(self.starts_at, self.ends_at)

    @property
    def gpu_seconds_bought(self) -> int:
        """Return the GPU-seconds of the promised window."""
        return len(self.gpu_uuids) * self.window.seconds


class Allocation(models.Model):
    """A reservation's (or a held quote's) place in the calendar: a run of one node's slots × a window.

    The database refuses two live allocations that overlap in both.
    """

    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="allocations")
    listing = models.ForeignKey(Listing, on_delete=models.PROTECT, related_name="allocations")
    quote = models.ForeignKey(
        Quote, null=True, on_delete=models.PROTECT, related_name="allocations"
    )
    reservation = models.ForeignKey(
        Reservation, null=True, on_delete=models.PROTECT, related_name="allocations"
    )
    lease = models.ForeignKey(
        Lease, null=True, on_delete=models.PROTECT, related_name="allocations"
    )
    slots = IntegerRangeField(db_comment="half-open, within the node's block")
    period = DateTimeRangeField(db_comment="half-open")
    live = models.BooleanField(
        default=True, db_comment="false: expired, cancelled or over; kept as history"
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            ExclusionConstraint(
                name="allocation_no_overlap",
                expressions=[
                    ("slots", RangeOperators.OVERLAPS),
                    ("period", RangeOperators.OVERLAPS),
                ],
                condition=Q(live=True),
            ),
            models.CheckConstraint(
                condition=Q(quote__isnull=False, reservation__isnull=True)
                | Q(quote__isnull=True, reservation__isnull=False),
                name="allocation_serves_one_promise",
            ),
            models.CheckConstraint(
                condition=Q(slots__isempty=False, period__isempty=False),
                name="allocation_is_not_empty",
            ),
        ]

    def __str__(self) -> str:
        return f"slots {self.slots} for {self.reservation_id or self.quote_id}"


class ReservationTransition(models.Model):
    """One move of a reservation: append-only, written by the winner in the transaction of the move."""

    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="transitions"
    )
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ReservationStatus)
    reason = models.CharField(max_length=40, choices=ReservationReason)
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


class LeaseTransition(models.Model):
    """One move of a lease: append-only, written by the winner in the transaction of the move."""

    lease = models.ForeignKey(Lease, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=LeaseStatus)
    reason = models.CharField(max_length=40, choices=LeaseReason)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=LEASE_ARROWS.as_check(), name="lease_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.lease_id}: {self.from_status or '∅'} → {self.to_status}"
