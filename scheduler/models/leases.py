"""Leases: the fact, and every move of it."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import (
    ArrayField,
)
from django.db import models
from django.db.models import F, Q

from agents.models import Node
from marketplace.core import ids
from marketplace.core.windows import Window
from marketplace.models import Organization
from scheduler.models.reservations import Reservation
from scheduler.states import (
    LEASE_ARROWS,
    LeaseStatus,
)


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
    gpu_lots = ArrayField(
        models.PositiveSmallIntegerField(),
        default=list,
        db_comment="number of the lot of each of gpu_uuids; empty: all are of the first",
    )
    starts_at = models.DateTimeField(db_comment="promised")
    ends_at = models.DateTimeField(
        db_comment="promised; earlier where the lease is replaced, reclaimed or left"
    )
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
    released_at = models.DateTimeField(
        null=True, db_comment="when its node was known to have the GPUs back, or is not waited for"
    )
    overdue_at = models.DateTimeField(
        null=True, db_comment="when the node was found not to give the GPUs back"
    )
    access = models.JSONField(null=True, db_comment="host, port, username, host_key_fingerprint")
    replaces = models.ForeignKey(
        "self",
        null=True,
        on_delete=models.PROTECT,
        related_name="replaced_by",
        db_comment="the lease in whose place it came",
    )

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
            models.CheckConstraint(
                condition=Q(gpu_lots__len=0) | Q(gpu_lots__len=F("gpu_uuids__len")),
                name="lease_has_a_lot_per_gpu",
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
            models.Index(
                fields=["closed_at"],
                condition=Q(closed_at__isnull=False, released_at__isnull=True),
                name="lease_not_released",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def window(self) -> Window:
        return Window(self.starts_at, self.ends_at)

    @property
    def lot_numbers(self) -> tuple[int, ...]:
        """Return the number of each GPU's lot, in the order of `gpu_uuids`."""
        return tuple(self.gpu_lots) or (0,) * len(self.gpu_uuids)

    @property
    def gpu_seconds_bought(self) -> int:
        """Return the GPU-seconds of the promised window."""
        return len(self.gpu_uuids) * self.window.seconds


class LeaseTransition(models.Model):
    """One move of a lease: append-only, written by the winner in the transaction of the move."""

    lease = models.ForeignKey(Lease, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=LeaseStatus)
    reason = models.CharField(max_length=40, db_comment="of LeaseReason")
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
