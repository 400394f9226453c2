"""Allocations: who has which slots when. The database refuses an overlap."""

from typing import ClassVar

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import (
    DateTimeRangeField,
    IntegerRangeField,
    RangeOperators,
)
from django.db import models
from django.db.models import Func, Q

from agents.models import Node
from marketplace.core.limits import TURN_ROUND_SECONDS_MAX
from marketplace.models import Listing
from scheduler.models.leases import Lease
from scheduler.models.quotes import Quote
from scheduler.models.reservations import Reservation


class Allocation(models.Model):
    """A reservation's (or a held quote's) place in the calendar: a run of one node's slots × a window.

    `occupied` is when nobody else can have the slots: the window and the turn-round after it, and once the
    tenant is gone what is left of the turn-round. PostgreSQL computes it from the other columns, and refuses
    two allocations that overlap in slots and `occupied`; what is not live and not turning round has none.

    The turn-round stands at the end alone. So between two neighbours there is at least that of the earlier
    one, whichever of them was sold first; a time before the start would be the end of somebody else's.
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
    turnaround_seconds = models.PositiveIntegerField(
        default=0, db_comment="after the period, as the listing asked when this was sold"
    )
    live = models.BooleanField(
        default=True, db_comment="false: expired, cancelled or over; kept as history"
    )
    free_at = models.DateTimeField(
        null=True, db_comment="when a turn-round is over whose tenant is gone; null: there is none"
    )
    occupied = models.GeneratedField(
        expression=Func(
            "period", "turnaround_seconds", "live", "free_at", function="scheduler_occupied"
        ),
        output_field=DateTimeRangeField(null=True),
        db_persist=True,
        db_comment="half-open; null: others may have the slots",
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            ExclusionConstraint(
                name="allocation_no_overlap",
                expressions=[
                    ("slots", RangeOperators.OVERLAPS),
                    ("occupied", RangeOperators.OVERLAPS),
                ],
                condition=Q(occupied__isnull=False),
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
            models.CheckConstraint(
                condition=Q(free_at__isnull=True) | Q(live=False, turnaround_seconds__gt=0),
                name="allocation_turns_round_when_over",
            ),
            models.CheckConstraint(
                condition=Q(turnaround_seconds__lte=TURN_ROUND_SECONDS_MAX),
                name="allocation_turnaround_is_bounded",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["free_at"],
                condition=Q(free_at__isnull=False),
                name="allocation_turning_round",
            )
        ]

    def __str__(self) -> str:
        return f"slots {self.slots} for {self.reservation_id or self.quote_id}"
