"""What a tenant may count on: the model beside which the market lives."""

import datetime as dt
from dataclasses import dataclass

from marketplace.core.windows import Window
from marketplace.states import Tier
from scheduler.states import (
    LEASE_ARROWS,
    LeaseStatus,
    ReservationStatus,
)
from tests.scheduler.factories import (
    hours,
)

NODES, GPUS_PER_NODE = 3, 4
NOTICE = hours(1)
OPEN_LEASES = [status for status in LeaseStatus if not LEASE_ARROWS.is_final(status)]
RUNNING = [LeaseStatus.ACTIVE, LeaseStatus.RECLAIMING]


@dataclass
class Promise:
    """What the tenant knows of one reservation."""

    window: Window
    gpus: int
    tier: Tier
    pay_by: dt.datetime
    is_paid: bool = False
    was_usable: bool = False
    owner_took_it: bool = False
    was_cancelled: bool = False
    tenant_left: bool = False

    def may_be(self, *, now: dt.datetime) -> set[ReservationStatus]:
        """Return what the reservation may be once the market has done all that is due."""
        if self.was_cancelled:
            return {ReservationStatus.CANCELLED}
        if not self.is_paid:
            return {
                ReservationStatus.PAYMENT_PENDING
                if now < self.pay_by
                else ReservationStatus.EXPIRED
            }
        if now < self.window.starts_at:
            return {ReservationStatus.SCHEDULED}
        found = {ReservationStatus.ACTIVE, ReservationStatus.FAILED}
        if self.was_usable and (self.tenant_left or now >= self.window.ends_at):
            found.add(ReservationStatus.COMPLETED)
        if self.owner_took_it:
            found.add(ReservationStatus.RECLAIMED)
        return found
