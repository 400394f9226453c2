"""What the meters of leases add up to in a period: sums made by the database, for bills and reports.

Settlement reads every reading and weighs it against outages (`agents.metering`). A report of a month does not
need that care for what carries no money, and cannot read millions of rows for one answer.
"""

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from django.db.models import Sum

from agents.models import MeterReading
from marketplace.core.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSum:
    """The readings of a lease that begin in a period; None is what none of them measured."""

    up_seconds: int
    busy_seconds: int | None
    attached_seconds: int | None
    energy_millijoules: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """For how many of the GPU-seconds of which it is known a process held the GPU's memory."""

    known_seconds: int
    attached_seconds: int

    @property
    def share(self) -> Fraction:
        return Fraction(self.attached_seconds, self.known_seconds)


def attachment_by_lease(*, lease_ids: Collection[str], window: Window) -> dict[str, Attachment]:
    """Return for each lease of which anything is known how long its GPUs were attached; one query."""
    rows = (
        MeterReading.objects.filter(
            lease_id__in=lease_ids,
            starts_at__gte=window.starts_at,
            starts_at__lt=window.ends_at,
            attached_seconds__isnull=False,
            up_seconds__gt=0,
        )
        .values("lease_id")
        .annotate(known=Sum("up_seconds"), attached=Sum("attached_seconds"))
        .order_by()
    )
    return {
        row["lease_id"]: Attachment(known_seconds=row["known"], attached_seconds=row["attached"])
        for row in rows
    }


def sums_by_lease(*, lease_ids: Collection[str], window: Window) -> dict[str, MeterSum]:
    """Return the sums of each lease that has a reading; one query.

    A reading belongs to the period in which it begins: they are of a minute.
    """
    rows = (
        MeterReading.objects.filter(
            lease_id__in=lease_ids, starts_at__gte=window.starts_at, starts_at__lt=window.ends_at
        )
        .values("lease_id")
        .annotate(
            up=Sum("up_seconds"),
            busy=Sum("busy_seconds"),
            attached=Sum("attached_seconds"),
            energy=Sum("energy_millijoules"),
        )
        .order_by()
    )
    return {
        row["lease_id"]: MeterSum(
            up_seconds=row["up"],
            busy_seconds=row["busy"],
            attached_seconds=row["attached"],
            energy_millijoules=row["energy"],
        )
        for row in rows
    }
