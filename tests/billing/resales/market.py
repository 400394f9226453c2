"""Time that one tenant left for a fee and another bought: what their tests share, on the real scheduler."""

import datetime as dt

from agents.models import Gpu, Node, Outage, Receipt
from agents.protocol import Cause, Health, ReceiptKind
from billing import books, ledger, releases, settlements
from billing.models import Resale, Settlement
from billing.states import AccountKind
from marketplace.core.windows import Window
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import checks, leases, replacements, reservations
from scheduler.models import Lease, Reservation
from tests.billing.bookings import FUNDS_MINOR, LONG_AFTER, a_tenant, purchase
from tests.scheduler import factories
from tests.scheduler.factories import NOW, seconds, window_in

KEPT = FUNDS_MINOR - 1882  # by who left what its tests leave


def a_node(*, currency: str) -> Organization:
    """Return an owner that sells eight GPUs for a currency."""
    owner = factories.make_organization()
    factories.make_node(owner=owner)
    factories.make_listing(owner=owner, currency=currency)
    return owner


def buy(
    *,
    by: Organization | None = None,
    gpus: int = 8,
    window: Window | None = None,
    tier: Tier = Tier.FIRM,
    at: dt.datetime = NOW,
) -> Reservation:
    """Let a tenant buy from its wallet, by default all of a node two days from NOW for two hours."""
    tenant = by or a_tenant()
    Node.objects.update(last_report_at=at)
    quote = factories.make_quote(
        tenant=tenant, at=at, gpus=gpus, window=window or window_in(48), tier=tier
    )
    return purchase(quote, at=at)


def start(reservation: Reservation) -> list[Lease]:
    """Start a reservation and let its nodes hand over at the first second."""
    Node.objects.update(last_report_at=reservation.starts_at)
    reservations.start_due(at=reservation.starts_at)
    for lease in Lease.objects.filter(reservation=reservation):
        factories.say_handed_over(lease, at=lease.starts_at)
    leases.advance(at=reservation.starts_at + seconds(1))
    return list(Lease.objects.filter(reservation=reservation).order_by("pk"))


def finish(reservation: Reservation, *, at: dt.datetime | None = None) -> None:
    """Let the nodes return what they have, by default when the window ends, and settle it."""
    at = at or reservation.ends_at
    leases.advance(at=at)
    unsaid = Lease.objects.filter(reservation=reservation, closed_at__isnull=True).exclude(
        pk__in=Receipt.objects.filter(kind=ReceiptKind.RETURN).values("lease_id")
    )
    for lease in unsaid:
        factories.say_returned(lease, at=at)
    leases.advance(at=at + seconds(5))
    replacements.advance(at=at + seconds(5))
    reservations.finish_due(at=at + seconds(5))
    settlements.settle_ended(at=at + seconds(900))


def deliver(reservation: Reservation) -> Settlement:
    """Deliver a reservation of one lease in full, and settle it."""
    start(reservation)
    finish(reservation)
    return Settlement.objects.get(lease__reservation=reservation)


def release(*, at: dt.datetime | None = None) -> None:
    releases.release_due(at=at or NOW + LONG_AFTER)


def shared(kind: AccountKind, *, currency: str = "usd") -> int:
    return ledger.balance(account=ledger.AccountRef(kind, currency))


def breaches(*, at: dt.datetime | None = None) -> list[str]:
    found = books.check(at=at or NOW + LONG_AFTER)
    return [f"{c.name}: {c.detail}" for c in found.checks if not c.ok]


def lose_a_gpu(lease: Lease, *, seconds: int, uuid: str = "") -> None:
    """Let one GPU of a lease, its first unless another is named, be lost from its beginning on."""
    Outage.objects.create(
        gpu=Gpu.objects.get(uuid=uuid or lease.gpu_uuids[0]),
        health=Health.LOST,
        cause=Cause.HARDWARE,
        reason="it was lost",
        lease_id=lease.pk,
        starts_at=lease.starts_at,
        ends_at=lease.starts_at + dt.timedelta(seconds=seconds),
    )


def slices() -> list[tuple[int, int, int, int]]:
    """Return of each slice what the lease earned, the part of the fee, what was taken, and the share."""
    columns = ("earned_minor", "fee_part_minor", "taken_minor", "share_minor")
    return list(Resale.objects.order_by("pk").values_list(*columns))


def holds() -> None:
    """Assert that every invariant of the books holds, and that of what was left."""
    assert breaches() == []
    found = checks.check(at=NOW)
    assert [c.detail for c in found.checks if c.name.startswith("released") and not c.ok] == []
