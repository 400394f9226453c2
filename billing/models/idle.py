"""Times in which a running lease had no work, as its tenant was told of them."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from scheduler.models import Lease


class IdleStretch(models.Model):
    """A stretch of a lease without work: open until work is seen again, and told once."""

    lease = models.ForeignKey(Lease, on_delete=models.PROTECT, related_name="idle_stretches")
    told_at = models.DateTimeField(db_comment="when it was found; it began the look-back before")
    over_at = models.DateTimeField(null=True, db_comment="when work was seen again")

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["lease"],
                condition=Q(over_at__isnull=True),
                name="idle_stretch_is_one_at_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"{self.lease_id} since before {self.told_at:%F %T}"
