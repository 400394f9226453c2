"""Repackings: that a promise that had not started got other places, and why."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from scheduler.models.quotes import Quote
from scheduler.models.reservations import Reservation
from scheduler.states import RepackingReason


class Repacking(models.Model):
    """One move of a promise for the sake of others: append-only, in the transaction of the move.

    Places are lists of `{"node_id", "slot_lower", "slot_upper"}`, half-open.
    """

    reservation = models.ForeignKey(
        Reservation, null=True, on_delete=models.PROTECT, related_name="repackings"
    )
    quote = models.ForeignKey(Quote, null=True, on_delete=models.PROTECT, related_name="repackings")
    reason = models.CharField(max_length=40, choices=RepackingReason)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()
    from_places = models.JSONField()
    to_places = models.JSONField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(quote__isnull=False, reservation__isnull=True)
                | Q(quote__isnull=True, reservation__isnull=False),
                name="repacking_is_of_one_promise",
            )
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id or self.quote_id}: {self.reason}"
