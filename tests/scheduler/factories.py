"""Fleets, listings, quotes and the words of nodes: plain functions, valid unless told otherwise."""

import datetime as dt
import itertools
import secrets
from decimal import Decimal
from typing import Any

from django.db import transaction

from agents import protocol
from agents.models import SLOTS_PER_NODE, Gpu, Grant, MeterReading, Node, Receipt
from marketplace import catalog
from marketplace.core.windows import Window
from marketplace.models import Listing, Organization
from marketplace.states import ListingStatus
from scheduler import change_rules, quotes, reservations
from scheduler.change_rules import RuleWish
from scheduler.details import ReservationDetails
from scheduler.lots import Lot, Lots
from scheduler.models import ChangeQuote, Lease, Quote, Reservation
from scheduler.quotes import QuoteRequest

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
MODEL = "h100-sxm-80gb"
REGION = "eu-north"
_numbers = itertools.count(1)


def hours(count: float) -> dt.timedelta:
    return dt.timedelta(hours=count)


def seconds(count: float) -> dt.timedelta:
    return dt.timedelta(seconds=count)


def window_in(starts_in: float, *, length: float = 2) -> Window:
    """Return a window by hours: how far from NOW it starts, and how long it is."""
    return Window(NOW + hours(starts_in), NOW + hours(starts_in + length))


def publish_ladder(*steps: tuple[int, int], at: dt.datetime = NOW) -> None:
    """Put a ladder of fees in force: (seconds of notice, basis points of the price) a step."""
    change_rules.publish(
        wish=RuleWish(
            ladder=steps,
            extension_opens_seconds=7_200,
            extension_closes_seconds=3_600,
            move_closes_seconds=0,
        ),
        based_on=change_rules.current(at=at).version,
        at=at,
        actor="test",
    )


def make_organization(**changes: Any) -> Organization:
    values = {"is_owner": True, "is_tenant": True, "created_at": NOW, **changes}
    return Organization.objects.create(name=f"Organization {next(_numbers)}", **values)


def make_node(*, owner: Organization, gpus: int = 8, **changes: Any) -> Node:
    """Make a healthy node that has just reported, with idle GPUs."""
    catalog.seed_gpu_models()
    number = next(_numbers)
    gpu_changes = {
        k.removeprefix("gpu_"): changes.pop(k) for k in list(changes) if k.startswith("gpu_")
    }
    values: dict[str, Any] = {
        "organization": owner,
        "hostname": f"node-{number}",
        "machine_id": f"machine-{number}",
        "region": REGION,
        "fabric": "ib-1",
        "labels": {"rack": "a1"},
        "simulated": True,
        "public_key": secrets.token_hex(20),
        "agent_version": "0.1.0",
        "slot_base": number * SLOTS_PER_NODE,
        "last_report_at": NOW,
        "enrolled_at": NOW,
        **changes,
    }
    node = Node.objects.create(**values)
    gpu: dict[str, Any] = {
        "product_name": "NVIDIA H100 80GB HBM3",
        "gpu_model_id": MODEL,
        "memory_total_bytes": 85_520_809_984,
        "mig_enabled": False,
        "idle_state": protocol.IdleState.OFFERABLE,
        "idle_since": NOW - hours(1),
        "first_seen_at": NOW,
        **gpu_changes,
    }
    Gpu.objects.bulk_create(
        Gpu(node=node, uuid=f"GPU-{number}-{place}", slot=node.slot_base + place, **gpu)
        for place in range(gpus)
    )
    return node


def make_listing(*, owner: Organization, **changes: Any) -> Listing:
    catalog.seed_gpu_models()
    values: dict[str, Any] = {
        "organization": owner,
        "name": f"Listing {next(_numbers)}",
        "status": ListingStatus.PUBLISHED,
        "gpu_model_id": MODEL,
        "starts_at": NOW - hours(24),
        "floor_rate": Decimal("2.000000"),
        "currency": "usd",
        "created_at": NOW,
        "updated_at": NOW,
        **changes,
    }
    return Listing.objects.create(**values)


def make_pool(*, nodes: int = 1, gpus: int = 8) -> Organization:
    """Make an owner with some nodes in one fabric and a listing over all of them."""
    owner = make_organization()
    for _ in range(nodes):
        make_node(owner=owner, gpus=gpus)
    make_listing(owner=owner)
    return owner


def a_request(*, window: Window | None = None, **changes: Any) -> QuoteRequest:
    window = window or window_in(24)
    values: dict[str, Any] = {
        "gpu_model": MODEL,
        "gpus": 1,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
        **changes,
    }
    return QuoteRequest(**values)


def make_quote(
    *, tenant: Organization | None = None, at: dt.datetime = NOW, **changes: Any
) -> Quote:
    return quotes.create(
        organization=tenant or make_organization(), request=a_request(**changes), at=at
    )


def lots_of(row: Quote | Reservation | ChangeQuote) -> tuple[Lot, ...]:
    """Return what a promise is made of."""
    return Lots.from_json(row.lots).lots


def floors_of(row: Quote | Reservation | ChangeQuote) -> list[tuple[int, Decimal]]:
    """Return of how many GPUs each lot is, and its floor."""
    return [(lot.gpus, lot.floor_rate) for lot in lots_of(row)]


def resize(promise: Quote | Reservation, *, gpus: int) -> None:
    """Change of how many GPUs a promise of one lot is, and nothing else."""
    (lot,) = promise.lots
    type(promise).objects.filter(pk=promise.pk).update(gpus=gpus, lots=[lot | {"gpus": gpus}])


def reserve(quote: Quote, *, at: dt.datetime = NOW, **details: Any) -> Reservation:
    with transaction.atomic():  # a refusal ends it
        return reservations.reserve(
            organization=quote.organization,
            quote_id=quote.pk,
            payment_method="wallet",
            details=ReservationDetails(**details),
            at=at,
            actor="test",
        )


def make_reservation(*, at: dt.datetime = NOW, **changes: Any) -> Reservation:
    """Quote, reserve and confirm."""
    reservation = reserve(make_quote(at=at, **changes), at=at)
    return reservations.confirm(reservation_id=reservation.pk, at=at, actor="test")


def make_lease(**changes: Any) -> Lease:
    """Return a lease whose window has just begun: the node has not yet handed it over."""
    reservation = make_reservation(**changes)
    reservations.start_due(at=reservation.starts_at)
    return Lease.objects.get(reservation=reservation)


def say_handed_over(lease: Lease, *, at: dt.datetime | None = None) -> Receipt:
    return _say(lease, kind=protocol.ReceiptKind.HANDOVER, at=at or lease.starts_at + seconds(3))


def say_returned(lease: Lease, *, at: dt.datetime | None = None, clean: bool = True) -> Receipt:
    return _say(lease, kind=protocol.ReceiptKind.RETURN, at=at or lease.ends_at, clean=clean)


def say_failed(lease: Lease) -> None:
    Grant.objects.filter(lease_id=lease.pk).update(
        reported_state=protocol.LeaseState.FAILED, reported_detail="no such image"
    )


def say_metered(lease: Lease, *, until: dt.datetime) -> None:
    MeterReading.objects.create(
        node=lease.node,
        epoch=1,
        sequence=next(_numbers),
        lease_id=lease.pk,
        lease_epoch=lease.epoch,
        gpu_uuid=lease.gpu_uuids[0],
        starts_at=until - seconds(60),
        ends_at=until,
        up_seconds=60,
        busy_seconds=30,
        simulated=True,
        received_at=until,
    )


def _say(
    lease: Lease, *, kind: protocol.ReceiptKind, at: dt.datetime, clean: bool = True
) -> Receipt:
    return Receipt.objects.create(
        node=lease.node,
        lease_id=lease.pk,
        lease_epoch=lease.epoch,
        kind=kind,
        at=at,
        is_clean=clean,
        access={"host": "203.0.113.7", "port": 2222, "username": "tenant"},
        document={},
        signature="",
        received_at=at,
    )
