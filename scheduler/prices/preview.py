"""What a rule would do, before it is in force: to an example pool, and to the largest pools there are."""

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np
from django.utils.safestring import SafeString

from marketplace.core.money import SECONDS_PER_HOUR
from marketplace.core.windows import to_instant
from marketplace.states import Tier
from scheduler import price_rules
from scheduler.models import PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.price_rules import RuleInForce
from scheduler.prices.chart import Mark, Series, draw
from scheduler.prices.packed import Micros
from scheduler.prices.refresh import Forecast, Inputs, inputs_of, vectors_of
from scheduler.pricing.limits import UNKNOWN
from scheduler.tariffs import as_rate

STEPS = 101  # shares of an hour that is sold, from 0 to 100 %
EXAMPLE_GPUS = 1_000
EXAMPLE_BASE_MICROS = 2_000_000
EXAMPLE_SIZE_RATIO = 8  # E[n²] ÷ E[n] of a market of small and large requests
WEEK_HOURS = 168
POOLS_MAX = 3  # as much as one screen shows
MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Charts, the example first."""

    charts: tuple[SafeString, ...]


def of_rule(rule: RuleInForce, *, gpu_model_id: str | None, at: dt.datetime) -> Preview:
    """Draw where prices would stand by a rule, without limits, beside those of the rules in force."""
    current = price_rules.in_force(gpu_model_id=gpu_model_id or "", at=at)
    return Preview(charts=(_example(rule, current=current), *_pools(rule, gpu_model_id, at=at)))


def _example(rule: RuleInForce, *, current: RuleInForce) -> SafeString:
    """Draw an hour's rate by the share of it that is sold, a day ahead."""
    lines = [
        (f"small, {_name(rule)}", _by_use(rule, small=True)),
        (f"small, rule {current.number}", _by_use(current, small=True)),
        ("with a forecast", _by_use(rule, small=False)),
        ("reclaimable", _by_use(rule, small=True, reclaimable=True)),
    ]
    return draw(
        title=f"By share sold: base {as_rate(_base(rule))}, demand to come as large as the pool",
        series=[Series(name=name, micros=rates.tolist()) for name, rates in lines],
        marks=[Mark(place=share, text=f"{share} %") for share in range(0, STEPS, 20)],
    )


def _by_use(rule: RuleInForce, *, small: bool, reclaimable: bool = False) -> Micros:
    sold = np.arange(STEPS, dtype=np.int64) * EXAMPLE_GPUS // (STEPS - 1)
    unlimited = np.full(STEPS, UNKNOWN, dtype=np.int64)
    forecast = Forecast(
        milligpus=np.full(STEPS, EXAMPLE_GPUS * 1_000, dtype=np.int64),
        size_ratio_millionths=EXAMPLE_SIZE_RATIO * MILLION,
    )
    base = _base(rule)
    fee = rule.rule.fee_basis_points
    vectors = vectors_of(
        Inputs(
            key=PoolKey(gpu_model_id="", region="", tier=Tier.FIRM),
            rule=RuleInForce(
                number=rule.number,
                rule=replace(rule.rule, no_fall_hours=0, small_pool_gpus=EXAMPLE_GPUS),
            ),
            base_micros=base,
            floors=(as_rate(base * (10_000 - fee) // 10_000),),
            offered=np.full((1, STEPS), EXAMPLE_GPUS, dtype=np.int64),
            sold=sold,
            opening=unlimited,
            latest=unlimited,
            reclaim_likelihood_basis_points=500,
            forecast=None if small else forecast,
        )
    )
    return vectors.other_tier if reclaimable else vectors.targets


def _pools(rule: RuleInForce, gpu_model_id: str | None, *, at: dt.datetime) -> list[SafeString]:
    """Draw the next week of the largest firm pools: now, and where the rule would lead."""
    recent = PriceVersion.objects.filter(
        tier=Tier.FIRM, made_at__gt=at - dt.timedelta(days=1), made_at__lte=at
    )
    if gpu_model_id is not None:
        recent = recent.filter(gpu_model_id=gpu_model_id)
    newest = recent.order_by("gpu_model_id", "region", "-number").distinct("gpu_model_id", "region")
    largest = sorted(newest, key=lambda version: version.gpus, reverse=True)[:POOLS_MAX]
    return [_pool(version, rule=rule) for version in largest]


def _pool(version: PriceVersion, *, rule: RuleInForce) -> SafeString:
    inputs = inputs_of(version)
    base = inputs.base_micros
    if rule.base_rate is not None:
        base = _base(rule)
    now = vectors_of(inputs)
    then = vectors_of(replace(inputs, rule=rule, base_micros=base))
    first = version.first_hour * SECONDS_PER_HOUR
    return draw(
        title=f"{version.gpu_model_id} in {version.region}, {version.gpus} GPUs: the next week",
        series=[
            Series(name="in force", micros=now.rates[:WEEK_HOURS].tolist()),
            Series(name="where it is heading", micros=now.targets[:WEEK_HOURS].tolist()),
            Series(name=_name(rule), micros=then.targets[:WEEK_HOURS].tolist()),
        ],
        marks=[
            Mark(place=hour, text=f"{to_instant(first + hour * SECONDS_PER_HOUR):%a %H:00}")
            for hour in range(0, WEEK_HOURS, 24)
        ],
    )


def _base(rule: RuleInForce) -> int:
    return EXAMPLE_BASE_MICROS if rule.base_rate is None else int(rule.base_rate * MILLION)


def _name(rule: RuleInForce) -> str:
    return f"rule {rule.number}" if rule.number else "as proposed"
