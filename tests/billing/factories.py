"""Rows that the books need, made directly: a fleet of one owner, and reservations in any state."""

import datetime as dt
import itertools
import uuid
from decimal import ROUND_DOWN, Decimal

from django.conf import settings

from agents import protocol
from agents.models import Gpu, MeterReading, Node, Outage, Receipt
from billing import (
    accounts,
    approvals,
    changes,
    credit,
    invoices,
    ledger,
    purchases,
    receivables,
    tax,
    tax_rules,
    wallet,
)
from billing.models import Promotion
from billing.states import AccountKind, ApprovalKind, EntryKind
from marketplace.core.money import Money, amount_for
from marketplace.core.windows import Window
from marketplace.models import GpuModel, Organization
from scheduler import change_rules
from scheduler.lots import Lot, Lots
from scheduler.models import (
    Change,
    ChangeQuote,
    Lease,
    Quote,
    Reservation,
    ReservationTransition,
)
from scheduler.states import (
    ChangeKind,
    LeaseStatus,
    QuoteStatus,
    ReservationReason,
    ReservationStatus,
)
from scheduler.tariffs import Tariff

START = dt.datetime(2026, 11, 2, 8, tzinfo=dt.UTC)
RATE = Decimal("2.352942")
_numbers = itertools.count(1)


def owner(*, name: str = "Nordlicht Compute") -> Organization:
    return Organization.objects.get_or_create(
        name=name, defaults={"is_owner": True, "created_at": START}
    )[0]


def tenant(
    *, name: str = "Perceptron AG", funds_minor: int = 0, currency: str = "usd"
) -> Organization:
    row, _ = Organization.objects.get_or_create(
        name=name, defaults={"is_tenant": True, "created_at": START}
    )
    if funds_minor:
        fund(row, minor=funds_minor, currency=currency)
    return row


def fund(organization: Organization, *, minor: int, currency: str = "usd") -> None:
    wallet.record_deposit(
        organization=organization,
        amount=Money(minor, currency),
        idempotency_key=str(uuid.uuid4()),
        at=START,
        actor="test",
    )


def promotion(
    *, buyer: Organization, minor: int, days: int = 400, at: dt.datetime | None = None
) -> Promotion:
    """Return a grant that can be spent for some days; two people decided it."""
    at = at or START - dt.timedelta(days=1)
    asked = approvals.request(
        kind=ApprovalKind.PROMOTION,
        organization=buyer,
        subject_id=f"campaign_{next(_numbers)}",
        amount=Money(minor, settings.CURRENCY),
        reason="welcome",
        at=at,
        actor="anna",
        expires_at=at + dt.timedelta(days=days),
    )
    if asked.decided_at is None:
        approvals.approve(approval_id=asked.pk, at=at, actor="bert")
    return Promotion.objects.get(approval=asked)


def taxed(
    *, buyer: Organization, basis_points: int = 1900, treatment: str = "standard", place: str = "DE"
) -> Organization:
    """Let a tenant be taxed from the day before START on."""
    at = START - dt.timedelta(days=1)
    tax_rules.publish_rule(
        jurisdiction=place, name="VAT", rate_basis_points=basis_points, at=at, actor="test"
    )
    tax_rules.set_status(
        organization=buyer,
        jurisdiction=place,
        treatment=treatment,
        tax_id="DE123456789",
        at=at,
        actor="test",
    )
    return buyer


def node(*, of: Organization | None = None) -> Node:
    number = next(_numbers)
    return Node.objects.create(
        organization=of or owner(),
        hostname=f"gpu-{number}",
        machine_id=f"machine-{number}",
        region="eu-north",
        simulated=True,
        public_key=f"key-{number}",
        agent_version="1",
        slot_base=16 * (10_000 + number),  # away from those of the scheduler's factories
        enrolled_at=START,
    )


def reservation(
    *,
    buyer: Organization,
    gpus: int = 2,
    hours: int = 1,
    rate: Decimal = RATE,
    status: ReservationStatus = ReservationStatus.ACTIVE,
    total_minor: int | None = None,
    paid: bool = True,
    fee_basis_points: int = 1500,
    currency: str = "usd",
) -> Reservation:
    """Return a reservation that began at START; a paid one has its purchase in the books.

    It is taxed as its buyer was when it bought, half an hour before.
    """
    model, _ = GpuModel.objects.get_or_create(
        id="h100-sxm-80gb", defaults={"name": "NVIDIA H100", "memory_gib": 80, "nvml_names": []}
    )
    ends_at = START + dt.timedelta(hours=hours)
    if total_minor is None:
        seconds = gpus * hours * 3600
        total_minor = amount_for(rate=rate, gpu_seconds=seconds, currency=currency).amount_minor
    window = Window(START, ends_at)
    shared = {
        "organization": buyer,
        "gpu_model": model,
        "gpus": gpus,
        "region": "eu-north",
        "tier": "firm",
        "spread": "any",
        "starts_at": START,
        "ends_at": ends_at,
        "rate": rate,
        "total_minor": total_minor,
        "lots": lots(
            window=window, gpus=gpus, rate=rate, fee_basis_points=fee_basis_points
        ).as_json(),
        "currency": currency,
        "fee_basis_points": fee_basis_points,
        "simulated": True,
        "created_at": START - dt.timedelta(hours=1),
    }
    quote = Quote.objects.create(
        **shared,
        status=QuoteStatus.USED,
        price_breakdown={},
        expires_at=START,
        used_at=START - dt.timedelta(minutes=30),
    )
    row = Reservation.objects.create(
        **shared, quote=quote, status=status, payment_method="wallet", payment_due_at=START
    )
    ReservationTransition.objects.create(
        reservation=row,
        from_status="",
        to_status=ReservationStatus.PAYMENT_PENDING,
        reason=ReservationReason.QUOTE_ACCEPTED,
        actor="test",
        at=START,
    )
    bought_at = START - dt.timedelta(minutes=30)
    tax.freeze(reservation=row, at=bought_at)
    if paid:
        purchases.post(reservation=row, at=bought_at)
    return row


def bought_on_account(row: Reservation) -> str:
    """Invoice a reservation and post its purchase; return the invoice's id."""
    due_at = START + dt.timedelta(days=30)
    invoice = invoices.issue_for_purchase(reservation=row, due_at=due_at, at=START)
    purchases.capture_invoice(reservation=row, invoice_id=invoice.pk, at=START)
    terms = credit.terms_in_force(organization=row.organization, currency=row.currency)
    if terms is not None:
        credit.note_sale(terms=terms, reservation=row, change=None, invoice=invoice, at=START)
    return invoice.pk


def topped_up(
    *,
    buyer: Organization,
    object_id: str,
    minor: int,
    currency: str = "usd",
    at: dt.datetime = START,
) -> None:
    """Let a payment that the provider has taken come into a wallet, as `billing.payments` books it."""
    ledger.post(
        idempotency_key=f"topup:{object_id}",
        kind=EntryKind.TOP_UP,
        subject_id=object_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.of_object(
                kind=AccountKind.PSP_CLEARING, object_id=object_id, currency=currency
            ),
            credited=accounts.wallet(organization=buyer, currency=currency),
            amount=minor,
        ),
    )


def paid_by_card(row: Reservation, *, object_id: str = "pi_1", at: dt.datetime = START) -> None:
    """Buy a reservation with what the provider took for it: into the wallet, and from there."""
    if price := purchases.price_with_tax(reservation=row):
        topped_up(
            buyer=row.organization,
            object_id=object_id,
            minor=price,
            currency=row.currency,
            at=at,
        )
    purchases.post(reservation=row, at=at)


def given_back(row: Reservation) -> Change:
    """Cancel what has not begun, without a fee: nothing is owed for it any more."""
    made = change(
        of=row,
        kind=ChangeKind.CANCELLATION,
        refunded=row.total_minor,
        released=row.gpus * row.window.seconds,
    )
    changes.post(change=made)
    Reservation.objects.filter(pk=row.pk).update(status=ReservationStatus.CANCELLED)
    receivables.offset(reservation=row, at=START)
    return made


def lots(*, window: Window, gpus: int, rate: Decimal, fee_basis_points: int) -> Lots:
    """Return one lot of GPUs at a flat rate, its floor the rate less the market's fee."""
    floor = (rate * (10_000 - fee_basis_points) / 10_000).quantize(
        Decimal("0.000001"), rounding=ROUND_DOWN
    )
    lot = Lot(
        gpus=gpus,
        floors=Tariff.flat(window=window, rate=floor),
        tariff=Tariff.flat(window=window, rate=rate),
    )
    return Lots((lot,))


def change(
    *,
    of: Reservation,
    kind: ChangeKind,
    charged: int = 0,
    refunded: int = 0,
    fee: int = 0,
    added: int = 0,
    released: int = 0,
) -> Change:
    """Return a change that was made of a reservation, GPU-seconds added at its end; nothing is posted.

    The reservation is what the change makes of it, but for its status. Of what is given back all GPUs are of
    one owner.
    """
    rule = change_rules.current(at=START)
    before, total = of.window, of.total_minor
    of.ends_at += dt.timedelta(seconds=added // of.gpus)
    of.total_minor += charged - refunded - fee
    of.lots = lots(
        window=of.window, gpus=of.gpus, rate=of.rate, fee_basis_points=of.fee_basis_points
    ).as_json()
    of.save(update_fields=["ends_at", "total_minor", "lots"])
    left = None if kind == ChangeKind.CANCELLATION else of.window
    shared = {
        "reservation": of,
        "kind": kind,
        "from_starts_at": before.starts_at,
        "from_ends_at": before.ends_at,
        "starts_at": left and left.starts_at,
        "ends_at": left and left.ends_at,
        "currency": of.currency,
    }
    quote = ChangeQuote.objects.create(
        **shared,
        organization=of.organization,
        rule=rule,
        from_status=of.status,
        from_total_minor=total,
        notice_seconds=0,
        fee_basis_points=0,
        total_minor=of.total_minor,
        charge_minor=charged,
        refund_minor=refunded,
        fee_minor=fee,
        created_at=START,
        expires_at=START,
        used_at=START,
    )
    return Change.objects.create(
        **shared,
        quote=quote,
        charged_minor=charged,
        refunded_minor=refunded,
        fee_minor=fee,
        gpu_seconds_added=added,
        gpu_seconds_released=released,
        given_back_by_owner={owner().pk: of.gpus} if released else {},
        actor="test",
        at=START,
    )


def lease(
    *,
    of: Reservation,
    gpus: int | None = None,
    status: LeaseStatus = LeaseStatus.ENDED,
    handed_over_after_seconds: int | None = 0,
    returned_after_seconds: int | None = None,
    on: Node | None = None,
) -> Lease:
    """Return a lease of all or some GPUs, by default delivered to the last second of its window."""
    machine = on or node()
    count = of.gpus if gpus is None else gpus
    is_final = status in {LeaseStatus.ENDED, LeaseStatus.INTERRUPTED, LeaseStatus.FAILED}
    if returned_after_seconds is None and handed_over_after_seconds is not None and is_final:
        returned_after_seconds = of.window.seconds
    return Lease.objects.create(
        reservation=of,
        node=machine,
        status=status,
        gpu_uuids=[f"GPU-{machine.slot_base + slot}" for slot in range(count)],
        starts_at=of.starts_at,
        ends_at=of.ends_at,
        created_at=of.starts_at,
        handed_over_at=_after(of, handed_over_after_seconds),
        returned_at=_after(of, returned_after_seconds),
        closed_at=of.ends_at if is_final else None,
    )


def meter(
    *,
    of: Lease,
    gpu: int = 0,
    from_second: int = 0,
    seconds: int = 3600,
    busy: int | None = 0,
    energy_millijoules: int | None = None,
    up: int | None = None,
    attached: int | None = None,
) -> MeterReading:
    number = next(_numbers)
    return MeterReading.objects.create(
        node=of.node,
        epoch=1,
        sequence=number,
        lease_id=of.id,
        lease_epoch=of.epoch,
        gpu_uuid=of.gpu_uuids[gpu],
        starts_at=of.starts_at + dt.timedelta(seconds=from_second),
        ends_at=of.starts_at + dt.timedelta(seconds=from_second + seconds),
        up_seconds=seconds if up is None else up,
        busy_seconds=busy,
        attached_seconds=attached,
        energy_millijoules=energy_millijoules,
        simulated=True,
        received_at=of.ends_at,
    )


def meter_fully(*, of: Lease, busy_of_each: int = 1800) -> None:
    """Meter every GPU of a lease over the whole window."""
    for gpu in range(len(of.gpu_uuids)):
        meter(of=of, gpu=gpu, seconds=of.window.seconds, busy=busy_of_each)


def outage(
    *,
    of: Lease,
    gpu: int = 0,
    from_second: int = 0,
    seconds: int | None = 600,
    cause: protocol.Cause = protocol.Cause.HARDWARE,
    health: protocol.Health = protocol.Health.LOST,
    lease_id: str | None = None,
) -> Outage:
    """Return an outage of one GPU of a lease, by default under that lease; None seconds: it lasts."""
    row, _ = Gpu.objects.get_or_create(
        uuid=of.gpu_uuids[gpu],
        defaults={
            "node": of.node,
            "slot": of.node.slot_base + gpu,
            "product_name": "NVIDIA H100",
            "memory_total_bytes": 1,
            "first_seen_at": START,
        },
    )
    starts_at = of.starts_at + dt.timedelta(seconds=from_second)
    return Outage.objects.create(
        gpu=row,
        health=health,
        cause=cause,
        reason="it was lost",
        lease_id=of.id if lease_id is None else lease_id,
        starts_at=starts_at,
        ends_at=None if seconds is None else starts_at + dt.timedelta(seconds=seconds),
    )


def receipt(*, of: Lease, kind: protocol.ReceiptKind) -> Receipt:
    return Receipt.objects.create(
        node=of.node,
        lease_id=of.id,
        lease_epoch=of.epoch,
        kind=kind,
        at=of.starts_at if kind is protocol.ReceiptKind.HANDOVER else of.ends_at,
        is_clean=True,
        document={},
        signature="",
        received_at=of.ends_at,
    )


def _after(of: Reservation, seconds: int | None) -> dt.datetime | None:
    return None if seconds is None else of.starts_at + dt.timedelta(seconds=seconds)
