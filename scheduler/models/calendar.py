"""The calendar's index: derived from the allocations, for searches. It can be rebuilt at any time."""

from typing import ClassVar

from django.contrib.postgres.fields import DateTimeRangeField, IntegerRangeField
from django.db import models
from django.db.models import F, Func, IntegerField
from django.db.models.lookups import Exact

WEEK_BYTES = 2 * 168


class CalendarWeek(models.Model):
    """Which slots of one node's block are taken in each hour of one week; no row: none is.

    168 little-endian words of 16 bits, the first for the hour that begins `week` × 168 hours after the Unix
    epoch. Bit i stands for slot 16 × `block` + i, and is set when a live allocation has any of that hour.
    Only hours without a `CalendarMark` on them are right.
    """

    pk = models.CompositePrimaryKey("week", "block")
    week = models.IntegerField(db_comment="of 168 hours, since the Unix epoch")
    block = models.IntegerField(db_comment="a node's slot_base / 16")
    busy = models.BinaryField(db_comment="168 little-endian uint16; bit i: slot 16 × block + i")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Exact(
                    Func(F("busy"), function="octet_length", output_field=IntegerField()),
                    WEEK_BYTES,
                ),
                name="calendar_week_has_168_hours",
            )
        ]

    def __str__(self) -> str:
        return f"block {self.block} in week {self.week}"


class CalendarMark(models.Model):
    """Slots and hours for which `CalendarWeek` is out of date: there the allocations themselves tell.

    Triggers write one with every change of an allocation, in its transaction. So the index is right at every
    instant, and whoever sells locks no row of it.
    """

    slots = IntegerRangeField()
    period = DateTimeRangeField()

    def __str__(self) -> str:
        return f"slots {self.slots} in {self.period}"
