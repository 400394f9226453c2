"""What a reservation cost and what it was worth: numbers that add up, also before they are final."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction

from django.db.models import Case, F, Sum, When
from django.db.models.functions import Coalesce

from billing import ledger, list_prices, undelivered
from billing.amounts import part_of_price
from billing.corrections import latest_evidence
from billing.deliveries import delivery_so_far
from billing.earnings import posted_so_far
from billing.models import Correction, Posting, Settlement, TaxLine
from billing.month_movements import CREDITS
from billing.purchases import gpu_seconds_bought, reservation_account
from billing.settlements import FINAL_RESERVATION_STATUSES
from billing.states import GPU_SECONDS, AccountKind, Side, UndeliveredReason
from marketplace.core.money import (
    SECONDS_PER_HOUR,
    Money,
    currency_exponent,
    format_rate,
    round_to,
)
from marketplace.core.windows import Window
from scheduler.models import Lease, Reservation
from scheduler.states import ReservationStatus

MILLIJOULES_PER_KWH = 3_600_000_000
KWH_QUANTUM = Decimal("0.000001")
COVERAGE_QUANTUM = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeconds:
    """`bought = delivered + undelivered + released + open`, `delivered = busy + idle`.

    `open` is 0 in a final bill; `released` is what the tenant gave back before it was delivered. The reasons
    add up to `undelivered`; what has none in the evidence is among them as unknown.

    Before a lease is settled its `delivered` is what the evidence shows so far, and the rest is `open`.
    `attached` are the delivered ones in which a process held the GPU's memory, None where nothing tells.
    """

    bought: int
    delivered: int
    busy: int
    idle: int
    undelivered: int
    open: int
    released: int = 0
    attached: int | None = None
    undelivered_by_reason: Mapping[UndeliveredReason, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """One lease. `bought = earned + refunded + open` in money; `open` is 0 once it is settled."""

    lease_id: str
    status: str
    gpus: int
    window: Window
    gpu_seconds: GpuSeconds
    bought: Money
    earned: Money
    refunded: Money
    open: Money
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The bill of one reservation. `bought = earned + refunded + fees + open`, `net = bought - refunded`.

    Bought is all that ever was, extensions too; `fees` were kept of what was given back.
    The money is the tenant's view, fee included, and without tax but for `tax` and `net_with_tax`. `credits`
    went to the wallet beyond the refund, and are no part of the price. `net` is what the reservation was
    billed, `list_cost` what that would have been at list price, `effective` what was used of it. Ratios are
    decimal strings, None where nothing was measured or the bill is not final. `meter_coverage` is the share
    of delivered GPU-seconds with readings. `final`: the reservation is over, and every GPU-second and minor
    unit has found its place.
    """

    reservation_id: str
    final: bool
    simulated: bool
    rate: str
    gpu_seconds: GpuSeconds
    bought: Money
    earned: Money
    refunded: Money
    fees: Money
    open: Money
    net: Money
    tax: Money
    net_with_tax: Money
    credits: Money
    list_cost: Money
    effective: Money
    cost_per_delivered_gpu_hour: str | None
    cost_per_attached_gpu_hour: str | None
    cost_per_busy_gpu_hour: str | None
    meter_coverage: str | None
    energy_kwh: str | None
    gpu_seconds_metered: int
    gpu_seconds_measured: int
    energy_millijoules: int | None
    lines: list[BillLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A lease's line, and what its meters add to the bill as a whole."""

    line: BillLine
    gpu_seconds_metered: int
    gpu_seconds_measured: int
    energy_millijoules: int | None


def reservation_bill(*, reservation: Reservation, at: dt.datetime) -> Bill:
    """Return the bill of a reservation as it stands at an instant.

    The money of settled leases and of a refund without a lease comes from the settlements and the books;
    what is neither is `open`.
    """
    currency = reservation.currency
    leases = list(
        reservation.leases.select_related(
            "settlement__lease", "settlement__entry", "reservation", "reclaim"
        )
        .prefetch_related("transitions", "node__transitions", "settlement__corrections")
        .order_by("pk")
    )
    measured = [_measured(lease=lease, at=at) for lease in leases]
    lines = [each.line for each in measured]
    # What was not paid in time has bought nothing, though a late payment may still bring it back.
    is_over = reservation.status in (*FINAL_RESERVATION_STATUSES, ReservationStatus.EXPIRED)
    is_paid = bool(_balance(AccountKind.U_BOUGHT, reservation=reservation))
    # What was never paid for and no longer can be has bought nothing.
    is_void = is_over and not is_paid
    made = reservation.changes.aggregate(
        charged=Coalesce(Sum("charged_minor"), 0), fees=Coalesce(Sum("fee_minor"), 0)
    )
    if is_paid:
        bought = _balance(AccountKind.U_BOUGHT, reservation=reservation)
        total = Money(
            reservation.quote.total_minor - reservation.unpaid_minor + made["charged"], currency
        )
    else:
        bought = 0 if is_void else gpu_seconds_bought(reservation=reservation)
        total = Money(0 if is_void else reservation.total_minor, currency)
    fees = Money(made["fees"], currency)
    released = _balance(AccountKind.U_RELEASED, reservation=reservation)
    delivered = sum(line.gpu_seconds.delivered for line in lines)
    busy = sum(line.gpu_seconds.busy for line in lines)
    not_delivered = _balance(AccountKind.U_UNDELIVERED, reservation=reservation)
    earned = Money(sum(line.earned.amount_minor for line in lines), currency)
    still_deferred = Money(
        _balance(AccountKind.DEFERRED, reservation=reservation, currency=currency), currency
    )
    refunded = total - earned - fees - still_deferred if is_paid else Money(0, currency)
    opened = total - earned - fees - refunded
    seconds = GpuSeconds(
        bought=bought,
        delivered=delivered,
        busy=busy,
        idle=delivered - busy,
        undelivered=not_delivered,
        open=bought - delivered - not_delivered - released,
        released=released,
        attached=_sum_known(line.gpu_seconds.attached for line in lines),
        undelivered_by_reason=_reasons(
            reservation=reservation, leases=leases, lines=lines, not_delivered=not_delivered
        ),
    )
    final = (
        is_over
        and all(line.settled for line in lines)
        and not still_deferred.amount_minor
        and not _balance(AccountKind.U_OPEN, reservation=reservation)
    )
    net = total - refunded
    taxed = Money(_tax(reservation), currency)
    metered = sum(each.gpu_seconds_metered for each in measured)
    energy = _sum_known(each.energy_millijoules for each in measured)
    billed_seconds = bought - not_delivered - released
    list_cost = list_prices.cost_minor(quote=reservation.quote, gpu_seconds=billed_seconds)
    return Bill(
        reservation_id=reservation.id,
        final=final,
        simulated=reservation.simulated,
        rate=format_rate(reservation.rate),
        gpu_seconds=seconds,
        bought=total,
        earned=earned,
        refunded=refunded,
        fees=fees,
        open=opened,
        net=net,
        tax=taxed,
        net_with_tax=net + taxed,
        credits=Money(_credits(reservation), currency),
        list_cost=Money(list_cost, currency),
        effective=earned + fees,
        cost_per_delivered_gpu_hour=cost_per_hour(net, delivered) if final else None,
        cost_per_attached_gpu_hour=cost_per_hour(net, seconds.attached or 0) if final else None,
        cost_per_busy_gpu_hour=cost_per_hour(net, busy) if final else None,
        meter_coverage=ratio(metered, delivered, COVERAGE_QUANTUM) if delivered else None,
        energy_kwh=None if energy is None else ratio(energy, MILLIJOULES_PER_KWH, KWH_QUANTUM),
        gpu_seconds_metered=metered,
        gpu_seconds_measured=sum(each.gpu_seconds_measured for each in measured),
        energy_millijoules=energy,
        lines=lines,
    )


def _reasons(
    *,
    reservation: Reservation,
    leases: list[Lease],
    lines: list[BillLine],
    not_delivered: int,
) -> Mapping[UndeliveredReason, int]:
    """Return why GPU-seconds were not delivered: of the leases, and of what no lease accounts for."""
    found: undelivered.Reasons = Counter()
    for line in lines:
        found.update(line.gpu_seconds.undelivered_by_reason)
    rest = not_delivered - sum(found.values())
    if rest > 0:
        found.update(undelivered.of_rest(leases=leases, reservation=reservation, undelivered=rest))
    return undelivered.complete(found, undelivered=not_delivered)


def _measured(*, lease: Lease, at: dt.datetime) -> _Measured:
    settlement: Settlement | None = getattr(lease, "settlement", None)
    if settlement is None:
        return _so_far(lease=lease, at=at)
    corrections = list(settlement.corrections.all())
    metered = settlement.gpu_seconds_metered + sum(c.gpu_seconds_metered or 0 for c in corrections)
    evidence = latest_evidence(settlement)
    delivered = settlement.gpu_seconds_delivered + sum(c.gpu_seconds_delivered for c in corrections)
    busy = settlement.gpu_seconds_busy + sum(c.gpu_seconds_busy for c in corrections)
    earned = settlement.earned_minor + sum(c.earned_minor for c in corrections)
    reasons: undelivered.Reasons = Counter()
    for said in undelivered.of_settlement(settlement):
        reasons.update(said.reasons)
    currency = settlement.currency
    return _Measured(
        line=BillLine(
            lease_id=lease.id,
            status=lease.status,
            gpus=len(lease.gpu_uuids),
            window=lease.window,
            gpu_seconds=GpuSeconds(
                bought=settlement.gpu_seconds_bought,
                delivered=delivered,
                busy=busy,
                idle=delivered - busy,
                undelivered=settlement.gpu_seconds_bought - delivered,
                open=0,
                attached=evidence.get("gpu_seconds_attached"),
                undelivered_by_reason=undelivered.complete(
                    reasons, undelivered=settlement.gpu_seconds_bought - delivered
                ),
            ),
            bought=Money(settlement.bought_minor, currency),
            earned=Money(earned, currency),
            refunded=Money(settlement.bought_minor - earned, currency),
            open=Money(0, currency),
            settled=True,
        ),
        gpu_seconds_metered=metered,
        gpu_seconds_measured=evidence.get("gpu_seconds_measured") or 0,
        energy_millijoules=evidence.get("energy_millijoules"),
    )


def _so_far(*, lease: Lease, at: dt.datetime) -> _Measured:
    """Return the line of a lease that is not settled: money is earned in closed hours, and open in others."""
    currency = lease.reservation.currency
    delivery = delivery_so_far(lease=lease, at=at)
    bought, delivered, busy = delivery.bought, delivery.delivered, delivery.busy
    part = Money(part_of_price(lease=lease), currency)
    earned = Money(posted_so_far(lease=lease).earned, currency)
    return _Measured(
        line=BillLine(
            lease_id=lease.id,
            status=lease.status,
            gpus=len(lease.gpu_uuids),
            window=lease.window,
            gpu_seconds=GpuSeconds(
                bought=bought,
                delivered=delivered,
                busy=busy,
                idle=delivered - busy,
                undelivered=0,
                open=bought - delivered,
                attached=delivery.attached,
            ),
            bought=part,
            earned=earned,
            refunded=Money(0, currency),
            open=part - earned,
            settled=False,
        ),
        gpu_seconds_metered=delivery.metered,
        gpu_seconds_measured=delivery.measured,
        energy_millijoules=delivery.energy_millijoules,
    )


def _sum_known(parts: Iterable[int | None]) -> int | None:
    """Return the sum of the parts that are known; None where none is."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _tax(reservation: Reservation) -> int:
    """Return the tax that was charged less what went back."""
    lines = TaxLine.objects.filter(reservation=reservation.pk, is_relief=False)
    sums = lines.aggregate(
        charged=Coalesce(Sum("tax_charged_minor"), 0),
        refunded=Coalesce(Sum("tax_refunded_minor"), 0),
    )
    return int(sums["charged"] - sums["refunded"])


def _credits(reservation: Reservation) -> int:
    """Return what the tenant got beyond refunds: credits, resales, promotions, what the market bore."""
    subjects = [
        reservation.pk,
        *reservation.leases.values_list("pk", flat=True),
        *reservation.changes.values_list("pk", flat=True),
    ]
    given = Posting.objects.filter(
        entry__subject_id__in=subjects,
        entry__kind__in=CREDITS,
        account__kind=AccountKind.WALLET,
        account__currency=reservation.currency,
    ).aggregate(
        amount=Coalesce(
            Sum(Case(When(side=Side.CREDIT, then=F("amount")), default=-F("amount"))), 0
        )
    )
    later = Correction.objects.filter(settlement__lease__reservation=reservation).aggregate(
        amount=Coalesce(Sum(F("credit_minor") + F("borne_minor")), 0)
    )
    return int(given["amount"] + later["amount"])


def _balance(kind: AccountKind, *, reservation: Reservation, currency: str = GPU_SECONDS) -> int:
    return ledger.balance(
        account=reservation_account(kind=kind, reservation=reservation, currency=currency)
    )


def cost_per_hour(net: Money, gpu_seconds: int) -> str | None:
    """Return what a GPU-hour came to, as a rate; None when there was none."""
    if not gpu_seconds:
        return None
    with localcontext() as context:
        context.prec = 40
        major = Decimal(net.amount_minor).scaleb(-currency_exponent(net.currency))
        return format_rate(major * SECONDS_PER_HOUR / gpu_seconds)


def ratio(part: int, whole: int, quantum: Decimal) -> str:
    """Return a part of a whole as a decimal string."""
    return str(round_to(Fraction(part, whole), quantum=quantum))
