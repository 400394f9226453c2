"""Make the next version of every pool's price table.

Safe twice, late and side by side: a pool is refreshed under an advisory lock, there is one version per pool
and clock hour, and what may change is counted from what was in force when the clock hour began. So a
refresh more, in the same hour, allows no step more.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

import numpy as np
import structlog
from django.db import connection, transaction

from marketplace.core.money import RATE_DECIMAL_PLACES, SECONDS_PER_HOUR
from marketplace.core.windows import grid_floor
from marketplace.states import Tier
from scheduler import demand, price_rules
from scheduler.models import DemandSample, PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.price_rules import RuleInForce
from scheduler.prices import counts
from scheduler.prices.counts import HOURS, PoolCounts
from scheduler.prices.packed import Counts, Micros, pack, unpack
from scheduler.prices.tables import tables, with_fee
from scheduler.pricing import Rule, clearing, forecast, reclaimable
from scheduler.pricing.clearing import Demand, Supply, Vector
from scheduler.pricing.limits import RATE_MICROS_MAX, UNKNOWN, aligned
from scheduler.states import DemandKind, PriceCause

log = structlog.get_logger(__name__)

METHOD_CLEARING = "forward_clearing_price"
METHOD_SMALL_POOL = "small_pool"
METHOD_RECLAIMABLE = "reclaimable"
METHOD_VERSION = 2  # grows with every change of a formula; old versions keep theirs
METHOD_BASE_AT_ONCE = 1  # a base that moved held at once, whatever the limit of a step
BOOKINGS_SECONDS = 2 * SECONDS_PER_HOUR  # no version in force is older for long
LARGE_BOOKING_PARTS = 50  # a fiftieth of a pool: less moves no price that anybody would see
MILLI = 1_000  # demand is used in thousandths of a GPU, as it is stored
MILLION = 1_000_000
_LOCK_SPACE = 0x50726963  # namespace of the advisory locks: one per pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Demand still to come per hour, in thousandths of a GPU, and its lumpiness in millionths."""

    milligpus: Counts
    size_ratio_millionths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that the rates of one version follow from.

    `opening` is what was in force when the clock hour began, `latest` what is in force now. `firm` are the
    rates of the firm pool beside a reclaimable one.
    """

    key: PoolKey
    rule: RuleInForce
    base_micros: int
    floors: tuple[Decimal, ...]
    offered: Counts
    sold: Counts
    opening: Micros
    latest: Micros
    reclaim_likelihood_basis_points: int
    firm: Micros | None = None
    forecast: Forecast | None = None
    method_version: int = METHOD_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """The rates of one version, what they would be without limits, and those of the other tier."""

    rates: Micros
    targets: Micros
    other_tier: Micros
    fitting_basis_points: Counts


@dataclass(slots=True, kw_only=True)
class _Run:
    """What the pools of one refresh have in common, read once."""

    likelihoods: Mapping[tuple[str, str], int]
    firm: dict[tuple[str, str], Micros] = field(default_factory=dict)
    rules: dict[str, RuleInForce] = field(default_factory=dict)

    def rule(self, *, gpu_model_id: str, at: dt.datetime) -> RuleInForce:
        if gpu_model_id not in self.rules:
            self.rules[gpu_model_id] = price_rules.in_force(gpu_model_id=gpu_model_id, at=at)
        return self.rules[gpu_model_id]


def refresh(*, at: dt.datetime, cause: PriceCause, found: Iterable[PoolCounts]) -> int:
    """Make a version of each pool where one is due; return how many were made.

    With the cause `hour` that is one per clock hour; with `booking`, one whose rates are not those in force.
    """
    made = 0
    run = _Run(likelihoods=counts.reclaim_likelihoods_basis_points(at=at))
    for pool in sorted(found, key=lambda each: (each.key.tier is not Tier.FIRM, each.key)):
        try:
            version = _refresh_pool(pool, at=at, cause=cause, run=run)
        except Exception:
            log.exception("prices_left_a_pool", pool=str(pool.key))
            continue
        made += version is not None
    return made


def refresh_after_bookings(*, at: dt.datetime) -> int:
    """Refresh the pools of which much was sold since their last version; return how many were made."""
    booked = DemandSample.objects.filter(
        kind=DemandKind.RESERVATION,
        asked_at__gt=at - dt.timedelta(seconds=BOOKINGS_SECONDS),
        asked_at__lte=at,
    ).values_list("gpu_model_id", "region", "tier", "asked_at", "gpus")
    gpus_since: dict[PoolKey, list[tuple[dt.datetime, int]]] = defaultdict(list)
    for model, region, tier, asked_at, gpus in booked:
        key = PoolKey(gpu_model_id=model, region=region, tier=Tier(tier))
        gpus_since[key].append((asked_at, gpus))
    due: set[PoolKey] = set()
    for key, table in tables(keys=gpus_since, at=at).items():
        sold = sum(
            gpus
            for asked_at, gpus in gpus_since[key]
            if table.made_at is not None and asked_at > table.made_at
        )
        if sold * LARGE_BOOKING_PARTS >= int(table.offered[0]) and sold:
            # The tiers share their GPUs.
            due |= {replace(key, tier=tier) for tier in Tier}
    return refresh(at=at, cause=PriceCause.BOOKING, found=counts.read(at=at, keys=due))


def vectors_of(inputs: Inputs) -> Vectors:
    """Compute the rates of a version: nothing else goes into them, so that anybody can repeat it."""
    if inputs.firm is not None:
        vector = _reclaimable(inputs, firm=inputs.firm, opening=inputs.opening)
        other = inputs.firm
    else:
        vector = clearing.refresh(
            supply=Supply(
                base_micros=inputs.base_micros,
                floor_micros=_floor_micros(inputs),
                capacity=inputs.offered,
                sold=inputs.sold,
            ),
            demand=_demand(inputs.forecast),
            rule=inputs.rule.rule,
            opening=inputs.opening,
            latest=inputs.latest,
            base_holds_at_once=inputs.method_version == METHOD_BASE_AT_ONCE,
        )
        unlimited = np.full(len(inputs.sold), UNKNOWN, dtype=np.int64)
        beside = _reclaimable(inputs, firm=vector.rate_micros, opening=unlimited)
        other = np.minimum(beside.rate_micros, vector.rate_micros)
    return Vectors(
        rates=vector.rate_micros,
        targets=vector.target_micros,
        other_tier=other,
        fitting_basis_points=vector.fitting_basis_points,
    )


def _reclaimable(inputs: Inputs, *, firm: Micros, opening: Micros) -> Vector:
    left = np.cumsum(inputs.offered, axis=0) > inputs.sold
    level = np.where(left.any(axis=0), left.argmax(axis=0), len(inputs.floors) - 1)
    return reclaimable.refresh(
        firm_micros=firm,
        base_micros=inputs.base_micros,
        floor_micros=_floor_micros(inputs)[level],
        capacity=inputs.offered.sum(axis=0),
        used=inputs.sold,
        likelihood=np.full(len(firm), inputs.reclaim_likelihood_basis_points, dtype=np.int64),
        rule=inputs.rule.rule,
        opening=opening,
        base_holds_at_once=inputs.method_version == METHOD_BASE_AT_ONCE,
    )


def _demand(forecast: Forecast | None) -> Demand | None:
    if forecast is None:
        return None
    return Demand(
        gpus=forecast.milligpus / MILLI, size_ratio=forecast.size_ratio_millionths / MILLION
    )


def _floor_micros(inputs: Inputs) -> Micros:
    return np.array([_micros(floor) for floor in inputs.floors], dtype=np.int64)


@transaction.atomic
def _refresh_pool(
    pool: PoolCounts,
    *,
    at: dt.datetime,
    cause: PriceCause,
    run: _Run,
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
    opening = latest
    if latest is not None and latest.clock_hour == clock_hour:
        opening = versions.filter(clock_hour__lt=clock_hour).first()
    in_force = run.rule(gpu_model_id=pool.key.gpu_model_id, at=at)
    base = _base_micros(pool, in_force=in_force)
    inputs = Inputs(
        key=pool.key,
        rule=in_force,
        base_micros=base,
        floors=pool.floors,
        offered=pool.offered,
        sold=pool.sold,
        opening=_aligned(opening, first_hour=pool.first_hour, base_micros=base),
        latest=_aligned(latest, first_hour=pool.first_hour, base_micros=base),
        reclaim_likelihood_basis_points=run.likelihoods.get(
            (pool.key.gpu_model_id, pool.key.region), counts.RECLAIM_LIKELIHOOD_UNKNOWN
        ),
        firm=_firm_rates(pool, known=run.firm, base_micros=base),
        forecast=_forecast(pool, rule=in_force.rule, at=at),
    )
    vectors = vectors_of(inputs)
    if pool.key.tier is Tier.FIRM:
        run.firm[pool.key.gpu_model_id, pool.key.region] = vectors.rates
    unchanged = latest is not None and np.array_equal(vectors.rates, inputs.latest)
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
    facts = {"reclaim_likelihood_basis_points": inputs.reclaim_likelihood_basis_points}
    if inputs.firm is not None:
        rows.append(inputs.firm[None])
    if inputs.forecast is not None:
        facts["size_ratio_millionths"] = inputs.forecast.size_ratio_millionths
    return {
        "method": _method(inputs, vectors),
        "method_version": METHOD_VERSION,
        "rule_number": inputs.rule.number,
        "rule": price_rules.as_json(inputs.rule.rule),
        "fee_basis_points": inputs.rule.rule.fee_basis_points,
        "base_micros": inputs.base_micros,
        "floors": [f"{floor:f}" for floor in inputs.floors],
        "hours": len(vectors.rates),
        "rates": pack(
            np.stack(
                [
                    vectors.rates,
                    vectors.targets,
                    vectors.other_tier,
                    vectors.fitting_basis_points,
                ]
            )
        ),
        "inputs": pack(np.concatenate(rows)),
        "reference": pack(np.stack([inputs.opening, inputs.latest])),
        "forecast": None
        if inputs.forecast is None
        else pack(inputs.forecast.milligpus[None].astype(np.int64)),
        "facts": facts,
    }


def _method(inputs: Inputs, vectors: Vectors) -> str:
    if inputs.key.tier is Tier.RECLAIMABLE:
        return METHOD_RECLAIMABLE
    is_small = int(vectors.fitting_basis_points.max()) < 0
    return METHOD_SMALL_POOL if is_small else METHOD_CLEARING


def inputs_of(version: PriceVersion) -> Inputs:
    """Return what a stored version was made of."""
    tier = Tier(version.tier)
    rows = unpack(bytes(version.inputs), hours=version.hours)
    opening, latest = unpack(bytes(version.reference), hours=version.hours)
    floors = tuple(Decimal(floor) for floor in version.floors)
    forecast = None
    if version.forecast is not None:
        forecast = Forecast(
            milligpus=unpack(bytes(version.forecast), hours=version.hours)[0],
            size_ratio_millionths=version.facts["size_ratio_millionths"],
        )
    return Inputs(
        key=PoolKey(gpu_model_id=version.gpu_model_id, region=version.region, tier=tier),
        rule=RuleInForce(number=version.rule_number, rule=price_rules.from_json(version.rule)),
        base_micros=version.base_micros,
        floors=floors,
        offered=rows[1 : 1 + len(floors)],
        sold=rows[0],
        opening=opening,
        latest=latest,
        reclaim_likelihood_basis_points=version.facts["reclaim_likelihood_basis_points"],
        firm=rows[-1] if tier is Tier.RECLAIMABLE else None,
        forecast=forecast,
        method_version=version.method_version,
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


def _forecast(pool: PoolCounts, *, rule: Rule, at: dt.datetime) -> Forecast | None:
    """Forecast a large firm pool's demand from the wishes of four weeks, where there are enough."""
    if pool.key.tier is not Tier.FIRM or pool.gpus < rule.small_pool_gpus:
        return None
    now_hour = pool.first_hour
    asked = demand.requests(key=pool.key, first_hour=now_hour - forecast.FIT_HOURS, at=at)
    shape = forecast.fit(requests=asked, now_hour=now_hour, rule=rule)
    if shape is None:
        return None
    gpus = forecast.remaining(
        shape=shape,
        learnt=forecast.learn(shape=shape, requests=asked, now_hour=now_hour, rule=rule),
        first_hour=now_hour,
        hours=HOURS,
        rule=rule,
    )
    return Forecast(
        milligpus=np.rint(gpus * MILLI).astype(np.int64),
        size_ratio_millionths=round(shape.size_ratio * MILLION),
    )


def _base_micros(pool: PoolCounts, *, in_force: RuleInForce) -> int:
    """Return the operator's base rate, or the pool's middle floor with the fee on top."""
    if in_force.base_rate is not None:
        return _micros(in_force.base_rate)
    gross = with_fee(_micros(pool.middle_floor), fee_basis_points=in_force.rule.fee_basis_points)
    return min(gross, RATE_MICROS_MAX)


def _firm_rates(
    pool: PoolCounts, *, known: dict[tuple[str, str], Micros], base_micros: int
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
    found = _aligned(stored, first_hour=pool.first_hour, base_micros=base_micros)
    # An hour that the firm curve does not reach yet costs as its last one.
    found[found == UNKNOWN] = found[found != UNKNOWN][-1]
    return found


def _aligned(version: PriceVersion | None, *, first_hour: int, base_micros: int) -> Micros:
    """Return a version's rates from another hour on; a pool without one starts at its base."""
    if version is None:
        return np.full(HOURS, base_micros, dtype=np.int64)
    return aligned(
        micros=unpack(bytes(version.rates), hours=version.hours)[0],
        first_hour=version.first_hour,
        to_first_hour=first_hour,
        hours=HOURS,
    )


def _micros(rate: Decimal) -> int:
    return int(rate.scaleb(RATE_DECIMAL_PLACES))
