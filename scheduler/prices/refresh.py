"""Make the next version of every pool's price table.

Safe twice, late and side by side: a pool is refreshed under an advisory lock, there is one version per pool
and clock hour, and what may change is counted from what was in force when the clock hour began. So a
refresh more, in the same hour, allows no step more.
"""

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import structlog
from django.db import connection, transaction

from marketplace.core.money import RATE_DECIMAL_PLACES, SECONDS_PER_HOUR
from marketplace.core.windows import grid_floor
from marketplace.states import Tier
from scheduler import price_rules
from scheduler.models import PriceVersion
from scheduler.price_rules import RuleInForce
from scheduler.prices import counts, formula, rule
from scheduler.prices.counts import HOURS, PoolCounts
from scheduler.prices.packed import Micros, pack, unpack
from scheduler.prices.tables import PoolKey
from scheduler.states import PriceCause

log = structlog.get_logger(__name__)

METHOD_SMALL_POOL = "small_pool"
METHOD_RECLAIMABLE = "reclaimable"
METHOD_VERSION = 1  # grows with every change of a formula; old versions keep theirs
_LOCK_SPACE = 0x50726963  # namespace of the advisory locks: one per pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that the rates of one version follow from. `reference` and `latest` are `None` for the first."""

    key: PoolKey
    rule: RuleInForce
    base_micros: int
    floors: tuple[Decimal, ...]
    offered: Micros
    sold: Micros
    firm: Micros | None
    reference: Micros | None
    latest: Micros | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """The rates of one version, what they would be without limits, and those of the other tier."""

    rates: Micros
    targets: Micros
    other_tier: Micros


def refresh(*, at: dt.datetime, cause: PriceCause, found: Iterable[PoolCounts]) -> int:
    """Make a version of each pool where one is due; return how many were made.

    With the cause `hour` that is one per clock hour; with `booking`, one whose rates are not those in force.
    """
    made = 0
    firm: dict[tuple[str, str], Micros] = {}
    for pool in sorted(found, key=lambda each: (each.key.tier is not Tier.FIRM, each.key)):
        try:
            version = _refresh_pool(pool, at=at, cause=cause, firm=firm)
        except Exception:
            log.exception("prices_left_a_pool", pool=str(pool.key))
            continue
        made += version is not None
    return made


def refresh_after_bookings(*, at: dt.datetime, keys: Collection[PoolKey]) -> int:
    """Refresh pools of which much was sold since their last version; return how many were made."""
    return refresh(at=at, cause=PriceCause.BOOKING, found=counts.read(at=at, keys=keys))


def vectors_of(inputs: Inputs) -> Vectors:
    """Compute the rates of a version: nothing else goes into them, so that anybody can repeat it."""
    its_rule = inputs.rule.rule
    offered = inputs.offered.sum(axis=0)
    gross = formula.with_fee(_micros(inputs.floors[0]), fee_basis_points=its_rule.fee_basis_points)
    if inputs.key.tier is Tier.FIRM:
        targets = formula.small_pool(
            base_micros=inputs.base_micros, offered=offered, sold=inputs.sold, rule=its_rule
        )
    else:
        assert inputs.firm is not None, inputs.key
        targets = formula.reclaimable(
            firm=inputs.firm, floor_micros=gross, offered=offered, sold=inputs.sold, rule=its_rule
        )
    start = np.full(len(targets), inputs.base_micros, dtype=np.int64)
    reference = start if inputs.reference is None else inputs.reference
    rates = formula.limited(
        targets=targets,
        reference=reference,
        latest=reference if inputs.latest is None else inputs.latest,
        cap=formula.cap_micros(inputs.base_micros, its_rule),
        rule=its_rule,
    )
    if inputs.firm is not None:
        return Vectors(rates=rates, targets=targets, other_tier=inputs.firm)
    other = formula.reclaimable(
        firm=rates, floor_micros=gross, offered=offered, sold=inputs.sold, rule=its_rule
    )
    return Vectors(rates=rates, targets=targets, other_tier=np.minimum(other, rates))


@transaction.atomic
def _refresh_pool(
    pool: PoolCounts,
    *,
    at: dt.datetime,
    cause: PriceCause,
    firm: dict[tuple[str, str], Micros],
) -> PriceVersion | None:
    """Make the pool's next version, or return `None` where none is due or another process makes it."""
    with connection.cursor() as cursor:
        name = f"{pool.key.gpu_model_id} {pool.key.region} {pool.key.tier}"
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", [_LOCK_SPACE, name])
        if not cursor.fetchone()[0]:
            return None
    clock_hour = grid_floor(at, grid_seconds=SECONDS_PER_HOUR)
    versions = PriceVersion.objects.filter(
        gpu_model_id=pool.key.gpu_model_id, region=pool.key.region, tier=pool.key.tier
    ).order_by("-number")
    latest = versions.first()
    if latest is not None and latest.made_at > at:
        return None
    if cause is PriceCause.HOUR and versions.filter(clock_hour=clock_hour, cause=cause).exists():
        return None
    reference = latest
    if latest is not None and latest.clock_hour == clock_hour:
        reference = versions.filter(clock_hour__lt=clock_hour).first()
    in_force = price_rules.in_force(gpu_model_id=pool.key.gpu_model_id, at=at)
    base = _base_micros(pool, in_force=in_force)
    before = _aligned(reference, first_hour=pool.first_hour)
    if latest is not None and before is None:
        before = np.full(HOURS, base, dtype=np.int64)
    inputs = Inputs(
        key=pool.key,
        rule=in_force,
        base_micros=base,
        floors=pool.floors,
        offered=pool.offered,
        sold=pool.sold,
        firm=_firm_rates(pool, known=firm, in_force=in_force),
        reference=before,
        latest=_aligned(latest, first_hour=pool.first_hour),
    )
    vectors = vectors_of(inputs)
    if pool.key.tier is Tier.FIRM:
        firm[pool.key.gpu_model_id, pool.key.region] = vectors.rates
    unchanged = inputs.latest is not None and np.array_equal(vectors.rates, inputs.latest)
    if cause is PriceCause.BOOKING and unchanged:
        return None
    return PriceVersion.objects.create(
        gpu_model_id=pool.key.gpu_model_id,
        region=pool.key.region,
        tier=pool.key.tier,
        number=1 if latest is None else latest.number + 1,
        clock_hour=clock_hour,
        cause=cause,
        made_at=at,
        gpus=pool.gpus,
        first_hour=pool.first_hour,
        **columns_of(inputs, vectors),
    )


def columns_of(inputs: Inputs, vectors: Vectors) -> dict[str, object]:
    """Return inputs and rates as the columns of a version."""
    rows = [inputs.sold[None], inputs.offered]
    if inputs.firm is not None:
        rows.append(inputs.firm[None])
    reference = None
    if inputs.reference is not None and inputs.latest is not None:
        reference = pack(np.stack([inputs.reference, inputs.latest]))
    return {
        "method": METHOD_SMALL_POOL if inputs.key.tier is Tier.FIRM else METHOD_RECLAIMABLE,
        "method_version": METHOD_VERSION,
        "rule_number": inputs.rule.number,
        "rule": rule.as_json(inputs.rule.rule),
        "fee_basis_points": inputs.rule.rule.fee_basis_points,
        "base_micros": inputs.base_micros,
        "floors": [f"{floor:f}" for floor in inputs.floors],
        "hours": len(vectors.rates),
        "rates": pack(np.stack([vectors.rates, vectors.targets, vectors.other_tier])),
        "inputs": pack(np.concatenate(rows)),
        "reference": reference,
    }


def inputs_of(version: PriceVersion) -> Inputs:
    """Return what a stored version was made of."""
    tier = Tier(version.tier)
    rows = unpack(bytes(version.inputs), hours=version.hours)
    floors = tuple(Decimal(floor) for floor in version.floors)
    steps = (
        None if version.reference is None else unpack(bytes(version.reference), hours=version.hours)
    )
    return Inputs(
        key=PoolKey(gpu_model_id=version.gpu_model_id, region=version.region, tier=tier),
        rule=RuleInForce(number=version.rule_number, rule=rule.from_json(version.rule)),
        base_micros=version.base_micros,
        floors=floors,
        offered=rows[1 : 1 + len(floors)],
        sold=rows[0],
        firm=rows[-1] if tier is Tier.RECLAIMABLE else None,
        reference=None if steps is None else steps[0],
        latest=None if steps is None else steps[1],
    )


def refresh_due(*, at: dt.datetime) -> int:
    """Refresh the pools that have no version of the running clock hour; return how many were made.

    A pool that comes on offer within an hour does not wait for the next one.
    """
    known = set(
        PriceVersion.objects.filter(
            clock_hour=grid_floor(at, grid_seconds=SECONDS_PER_HOUR), cause=PriceCause.HOUR
        ).values_list("gpu_model_id", "region", "tier")
    )
    missing = [
        key
        for key in counts.keys_on_offer(at=at)
        if (key.gpu_model_id, key.region, key.tier.value) not in known
    ]
    return refresh(at=at, cause=PriceCause.HOUR, found=counts.read(at=at, keys=missing))


def _base_micros(pool: PoolCounts, *, in_force: RuleInForce) -> int:
    """Return the operator's base rate, or the pool's middle floor with the fee on top."""
    if in_force.base_rate is not None:
        return _micros(in_force.base_rate)
    gross = formula.with_fee(
        _micros(pool.middle_floor), fee_basis_points=in_force.rule.fee_basis_points
    )
    return min(gross, formula.RATE_MICROS_MAX)


def _firm_rates(
    pool: PoolCounts, *, known: dict[tuple[str, str], Micros], in_force: RuleInForce
) -> Micros | None:
    """Return the firm curve beside a reclaimable pool; where nothing firm was ever sold, the base."""
    if pool.key.tier is Tier.FIRM:
        return None
    place = (pool.key.gpu_model_id, pool.key.region)
    if place in known:
        return known[place]
    stored = (
        PriceVersion.objects.filter(gpu_model_id=place[0], region=place[1], tier=Tier.FIRM)
        .order_by("-number")
        .first()
    )
    found = _aligned(stored, first_hour=pool.first_hour)
    if found is not None:
        return found
    return np.full(HOURS, _base_micros(pool, in_force=in_force), dtype=np.int64)


def _aligned(version: PriceVersion | None, *, first_hour: int) -> Micros | None:
    """Return a version's rates from another hour on; beyond its end they go on as they are there."""
    if version is None:
        return None
    rates = unpack(bytes(version.rates), hours=version.hours)[0]
    index = np.arange(HOURS, dtype=np.int64) + first_hour - version.first_hour
    found: Micros = rates[np.clip(index, 0, version.hours - 1)]
    return found


def _micros(rate: Decimal) -> int:
    return int(rate.scaleb(RATE_DECIMAL_PLACES))
