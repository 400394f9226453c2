"""Leases of whose time nobody tells, as operators see them."""

from typing import ClassVar

from scheduler.models import Lease


class SilentLease(Lease):
    """A lease that may wait for somebody to tell what became of it; see `billing.silences`."""

    class Meta:
        proxy = True
        ordering: ClassVar = ["closed_at"]
