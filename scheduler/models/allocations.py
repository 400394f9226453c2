"""Allocations: who has which slots when. The database refuses an overlap."""

from typing import ClassVar

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import (
    DateTimeRangeField,
    IntegerRangeField,
    RangeOperators,
)
from django.db import models
from django.db.models import Q

from agents.models import Node
from marketplace.models import Listing
from scheduler.models.leases import Lease
from scheduler.models.quotes import Quote
from scheduler.models.reservations import Reservation


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
    lot = models.PositiveSmallIntegerField(
        db_default=0, default=0, db_comment="number of the promise's lot that all the slots are of"
    )
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
