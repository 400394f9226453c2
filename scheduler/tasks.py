"""The market's clock: thin tasks without input that work off what is due. Cadences: marketplace/celery.py."""

import structlog
from celery import shared_task
from django.utils import timezone

from scheduler import (
    checks,
    demand,
    drains,
    extension_holds,
    leases,
    quotes,
    reclaims,
    reindexing,
    relocations,
    repacking,
    replacements,
    reservations,
    warnings,
)
from scheduler.prices import refresh, retention

log = structlog.get_logger(__name__)


@shared_task(name="scheduler.end_due_leases")
def end_due_leases() -> None:
    """Move leases as far as time and evidence allow, and finish the reservations that are over."""
    now = timezone.now()
    reclaims.advance(at=now)
    leases.advance(at=now)
    replacements.replace_due(at=now)
    reservations.finish_due(at=now)


@shared_task(name="scheduler.start_due_reservations")
def start_due_reservations() -> None:
    """Start what begins; ends of the same instant run first."""
    reservations.start_due(at=timezone.now())


@shared_task(name="scheduler.seek_replacements")
def seek_replacements() -> None:
    """Find the leases whose GPUs failed, and put others in their place."""
    replacements.advance(at=timezone.now())


@shared_task(name="scheduler.warn_of_ends")
def warn_of_ends() -> None:
    """Tell tenants whose reservations end soon."""
    warnings.warn_due(at=timezone.now())


@shared_task(name="scheduler.protect_reservations")
def protect_reservations() -> None:
    """Move what starts soon off GPUs that could not be handed over."""
    relocations.protect_due(at=timezone.now())


@shared_task(name="scheduler.sweep_drained_nodes")
def sweep_drained_nodes() -> None:
    """Move what is sold and has not begun off machines that are withdrawn."""
    drains.sweep(at=timezone.now())


@shared_task(name="scheduler.expire_quotes")
def expire_quotes() -> None:
    """Put the GPUs of expired holds, unpaid reservations and unpaid extensions back on sale."""
    now = timezone.now()
    quotes.expire_due(at=now)
    reservations.expire_unpaid(at=now)
    extension_holds.drop_due(at=now)


@shared_task(name="scheduler.fold_calendar")
def fold_calendar() -> None:
    """Bring the calendar's index up to date where allocations have changed."""
    reindexing.fold()


@shared_task(name="scheduler.check_capacity")
def check_capacity() -> None:
    """Say which invariants of what is sold are broken, and forget the weeks of the index that are over."""
    now = timezone.now()
    for check in checks.check(at=now).checks:
        if not check.ok:
            log.error("capacity_invariant_broken", check=check.name, detail=check.detail)
    reindexing.prune(at=now)


@shared_task(name="scheduler.refresh_prices")
def refresh_prices() -> None:
    """Make the next version of the price tables that are due: every hour, and after large bookings."""
    now = timezone.now()
    refresh.refresh_due(at=now)
    refresh.refresh_after_bookings(at=now)


@shared_task(name="scheduler.count_demand")
def count_demand() -> None:
    """Decide which wishes count as demand."""
    demand.count_due(at=timezone.now())


@shared_task(name="scheduler.prune_prices")
def prune_prices() -> None:
    """Forget old samples of demand, and thin old versions of prices out."""
    now = timezone.now()
    demand.prune(at=now)
    retention.thin_out(at=now)
    """Make the next version of the price tables that are due."""
    refresh.refresh_due(at=timezone.now())


@shared_task(name="scheduler.heal_fragmentation")
def heal_fragmentation() -> None:
    """Bring shares of nodes together that have not started, so that whole nodes become free."""
    repacking.heal(at=timezone.now())
