"""Other GPUs in the place of those that failed: of a lease, and of a reservation that has not started."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents.models import Node
from scheduler.models.leases import Lease
from scheduler.models.reservations import Reservation
from scheduler.states import ReplacementOutcome


class Replacement(models.Model):
    """The search for other GPUs in the place of a lease's: tried when due, until it has an outcome."""

    lease = models.ForeignKey(Lease, on_delete=models.PROTECT, related_name="replacements")
    opened_at = models.DateTimeField()
    due_at = models.DateTimeField(db_comment="when it is tried next")
    attempts = models.PositiveIntegerField(default=0)
    closed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=20, blank=True, choices=ReplacementOutcome)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["lease"],
                condition=Q(closed_at__isnull=True),
                name="replacement_is_sought_once",
            ),
            models.CheckConstraint(
                condition=Q(closed_at__isnull=True, outcome="")
                | (Q(closed_at__gte=F("opened_at")) & ~Q(outcome="")),
                name="replacement_is_closed_with_an_outcome",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"], condition=Q(closed_at__isnull=True), name="replacement_by_due"
            )
        ]

    def __str__(self) -> str:
        return f"{self.lease_id}: {self.outcome or 'sought'}"


class Relocation(models.Model):
    """One move of a reservation that has not started to another node: append-only."""

    reservation = models.ForeignKey(
        Reservation, on_delete=models.PROTECT, related_name="relocations"
    )
    from_node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="+")
    gpus = models.PositiveIntegerField(verbose_name="GPUs")
    reason = models.CharField(max_length=40, db_comment="RelocationReason")
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.reservation_id} left {self.from_node_id}: {self.reason}"
