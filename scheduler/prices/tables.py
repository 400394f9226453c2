"""Price tables as search and quotes use them: the newest version of a pool, and what a window costs by it."""

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from django.conf import settings

from marketplace.core.money import (
    RATE_DECIMAL_PLACES,
    SECONDS_PER_HOUR,
    Money,
    currency_exponent,
    round_half_even,
)
from marketplace.core.windows import Window, to_seconds
from marketplace.states import Tier
from scheduler.lots import GpusAtFloor, Lot, Lots
from scheduler.models import PriceVersion
from scheduler.pool_keys import PoolKey
from scheduler.prices import breakdown
from scheduler.prices.packed import Counts, Micros, unpack
from scheduler.pricing.rule import BASIS_POINTS
from scheduler.tariffs import MICROS, Segment, Tariff, as_rate

Seconds: TypeAlias = npt.NDArray[np.int64]

METHOD_FLOORS = "owners_floors"  # of a pool that has no table yet


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedWindow:
    """What a window costs a tenant, fee included: its lots, their mean rate, and the whole amount."""

    rate: Decimal
    multiplier: Decimal
    total: Money
    lots: Lots
    fee_basis_points: int
    price_table_id: str | None
    breakdown: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """One version of a pool's prices, per UTC hour, as a tenant sees them: fee included, per GPU-hour.

    A listing's floor is not in them yet: an hour costs the larger of the table's rate and the floor with
    the fee on top. Hours before the first and after the last cost as those. A pool that has no version yet
    has the id "" and rates of 0: it sells at its owners' floors.
    """

    id: str
    key: PoolKey
    number: int
    rule_version: int
    method: str
    method_version: int
    fee_basis_points: int
    base_micros: int
    made_at: dt.datetime | None
    first_hour_seconds: int
    rate_micros: Micros
    target_micros: Micros = field(repr=False)
    other_tier_micros: Micros = field(repr=False)
    fitting_basis_points: Counts = field(repr=False)
    sold: Counts = field(repr=False)
    offered: Counts = field(repr=False)

    def gross_micros(self, floor_rate: Decimal) -> int:
        """Return the smallest rate that leaves the owner its floor."""
        micros = int(floor_rate.scaleb(RATE_DECIMAL_PLACES))
        return with_fee(micros, fee_basis_points=self.fee_basis_points)

    def multiplier(self, *, rate_micros: int, floor_rate: Decimal) -> Decimal:
        """Return a rate ÷ the larger of the base and the floor with the fee on top."""
        base = max(self.base_micros, self.gross_micros(floor_rate))
        return breakdown.multiple_of(rate_micros, base=base)

    def window_rates(
        self, *, starts: Seconds, seconds: int, floor_rates: Sequence[Decimal]
    ) -> Micros:
        """Return per floor (row) and start (column) the mean rate of a window in micros, rounded up.

        `starts` are seconds since the Unix epoch; `seconds` is the length of the windows.
        """
        whole, rest = self.window_means(starts=starts, seconds=seconds, floor_rates=floor_rates)
        return whole + (rest > 0)

    def window_means(
        self, *, starts: Seconds, seconds: int, floor_rates: Sequence[Decimal]
    ) -> tuple[Micros, Micros]:
        """Return the mean rate of each window exactly: whole micros, and the rest × seconds."""
        means = np.empty((2, len(floor_rates), len(starts)), dtype=np.int64)
        # Modulo 2⁶⁴ the differences are right, whatever the sums: a window's own sum fits.
        for row, floor_rate in enumerate(floor_rates):
            hourly = np.maximum(self.rate_micros, self.gross_micros(floor_rate)).astype(np.uint64)
            sums = np.concatenate(
                (np.zeros(1, dtype=np.uint64), np.cumsum(hourly * np.uint64(SECONDS_PER_HOUR)))
            )
            whole = self._until(starts + seconds, hourly=hourly, sums=sums)
            whole -= self._until(starts, hourly=hourly, sums=sums)
            means[:, row] = np.divmod(whole, np.uint64(seconds))
        return means[0], means[1]

    def pooled(self, floors: Iterable[GpusAtFloor], *, window: Window) -> tuple[GpusAtFloor, ...]:
        """Return the floors, rising; those that every hour of a window pays anyhow are one, the highest."""
        lowest = int(self.rate_micros[self._hours(window).index].min())
        found: list[GpusAtFloor] = []
        for each in sorted(floors):
            if found and self.gross_micros(each.floor_rate) <= lowest:
                found[-1] = GpusAtFloor(each.floor_rate, found[-1].gpus + each.gpus)
            else:
                found.append(each)
        return tuple(found)

    def price(
        self, *, window: Window, floors: Sequence[GpusAtFloor], currency: str
    ) -> PricedWindow:
        """Price GPUs at the floors of their owners, one lot for each: exact, rounded once."""
        assert floors, "something is priced"
        assert all(each.floor_rate > 0 for each in floors), floors
        hours = self._hours(window)
        table_rates = self.rate_micros[hours.index]
        gross = [self.gross_micros(each.floor_rate) for each in floors]
        rates = [np.maximum(table_rates, micros) for micros in gross]
        lots = Lots(
            tuple(
                Lot(
                    gpus=each.gpus,
                    floors=Tariff.flat(window=window, rate=each.floor_rate),
                    tariff=_tariff(bounds=hours.bounds, rates=its_rates),
                )
                for each, its_rates in zip(floors, rates, strict=True)
            )
        )
        weighted = sum(
            breakdown.weighted_sum(its_rates, hours.lengths) * each.gpus
            for each, its_rates in zip(floors, rates, strict=True)
        )
        micros = -(-weighted // (lots.gpus * window.seconds))
        exact = Fraction(weighted * 10 ** currency_exponent(currency), MICROS * SECONDS_PER_HOUR)
        total = Money(round_half_even(exact), currency)
        return PricedWindow(
            rate=as_rate(micros),
            multiplier=self.multiplier(rate_micros=micros, floor_rate=floors[-1].floor_rate),
            total=total,
            lots=lots,
            fee_basis_points=self.fee_basis_points,
            price_table_id=self.id or None,
            breakdown=breakdown.explain(
                table=breakdown.TableFacts(
                    id=self.id,
                    number=self.number,
                    tier=self.key.tier,
                    rule_version=self.rule_version,
                    method=self.method,
                    method_version=self.method_version,
                    fee_basis_points=self.fee_basis_points,
                    base_micros=self.base_micros,
                    made_at=self.made_at,
                ),
                hours=breakdown.HourFacts(
                    starts=hours.bounds[:-1],
                    lengths=hours.lengths,
                    targets=self.target_micros[hours.index],
                    table_rates=table_rates,
                    other_tier=self.other_tier_micros[hours.index],
                    fitting_basis_points=self.fitting_basis_points[hours.index],
                    sold=self.sold[hours.index],
                    offered=self.offered[hours.index],
                ),
                lots=[
                    breakdown.LotFacts(
                        gpus=each.gpus, floor_rate=each.floor_rate, gross_micros=its_gross
                    )
                    for each, its_gross in zip(floors, gross, strict=True)
                ],
                mean_micros=micros,
                total=total,
            ),
        )

    def _until(
        self,
        instants: Seconds,
        *,
        hourly: npt.NDArray[np.uint64],
        sums: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.uint64]:
        """Return the sum of rate × seconds from the first hour to each instant, modulo 2⁶⁴."""
        passed = instants - self.first_hour_seconds
        index = np.clip(passed // SECONDS_PER_HOUR, 0, len(hourly) - 1)
        rest = (passed - index * SECONDS_PER_HOUR).astype(np.uint64)
        found: npt.NDArray[np.uint64] = sums[index] + hourly[index] * rest
        return found

    def _hours(self, window: Window) -> "_Hours":
        """Return the parts of a window that lie in one hour each."""
        starts, ends = to_seconds(window.starts_at), to_seconds(window.ends_at)
        first, last = starts // SECONDS_PER_HOUR, -(-ends // SECONDS_PER_HOUR)
        bounds = np.arange(first, last + 1, dtype=np.int64) * SECONDS_PER_HOUR
        bounds[0], bounds[-1] = starts, ends
        hour = np.arange(first, last, dtype=np.int64) - self.first_hour_seconds // SECONDS_PER_HOUR
        return _Hours(
            bounds=bounds,
            lengths=np.diff(bounds),
            index=np.clip(hour, 0, len(self.rate_micros) - 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hours:
    """The hours of a window: `bounds` are one more than `lengths` and `index`, seconds since the epoch."""

    bounds: Seconds
    lengths: Seconds
    index: npt.NDArray[np.int64]


def with_fee(floor_micros: int, *, fee_basis_points: int) -> int:
    """Return the smallest rate that leaves an owner the floor after the fee."""
    return -(-floor_micros * BASIS_POINTS // (BASIS_POINTS - fee_basis_points))


def tables(*, keys: Collection[PoolKey], at: dt.datetime) -> dict[PoolKey, PriceTable]:
    """Return the version of each pool that is in force at an instant; one query.

    A pool that has none sells at its owners' floors.
    """
    distinct = sorted(set(keys))
    if not distinct:
        return {}
    rows = PriceVersion.objects.raw(
        """
        SELECT version.*
          FROM unnest(%(models)s::text[], %(regions)s::text[], %(tiers)s::text[])
               AS pool (gpu_model_id, region, tier)
         CROSS JOIN LATERAL (
               SELECT id, gpu_model_id, region, tier, number, made_at, method, method_version,
                      rule_number, fee_basis_points, base_micros, first_hour, hours, rates, inputs
                 FROM scheduler_priceversion v
                WHERE v.gpu_model_id = pool.gpu_model_id AND v.region = pool.region
                  AND v.tier = pool.tier AND v.made_at <= %(at)s
                ORDER BY v.number DESC LIMIT 1) AS version
        """,
        {
            "models": [key.gpu_model_id for key in distinct],
            "regions": [key.region for key in distinct],
            "tiers": [key.tier.value for key in distinct],
            "at": at,
        },
    )
    found = {table.key: table for table in map(table_of, rows)}
    return {key: found.get(key) or floors_only(key) for key in distinct}


def table_of(version: PriceVersion) -> PriceTable:
    """Return a stored version as it prices windows."""
    rates = unpack(bytes(version.rates), hours=version.hours)
    inputs = unpack(bytes(version.inputs), hours=version.hours)
    floors = len(inputs) - 1 - (version.tier == Tier.RECLAIMABLE)
    return PriceTable(
        id=version.pk,
        key=PoolKey(
            gpu_model_id=version.gpu_model_id, region=version.region, tier=Tier(version.tier)
        ),
        number=version.number,
        rule_version=version.rule_number,
        method=version.method,
        method_version=version.method_version,
        fee_basis_points=version.fee_basis_points,
        base_micros=version.base_micros,
        made_at=version.made_at,
        first_hour_seconds=version.first_hour * SECONDS_PER_HOUR,
        rate_micros=rates[0],
        target_micros=rates[1],
        other_tier_micros=rates[2],
        fitting_basis_points=rates[3],
        sold=inputs[0],
        offered=inputs[1 : 1 + floors].sum(axis=0),
    )


def floors_only(key: PoolKey) -> PriceTable:
    """Return the table of a pool that has no version yet."""
    nothing = np.zeros(1, dtype=np.int64)
    return PriceTable(
        id="",
        key=key,
        number=0,
        rule_version=0,
        method=METHOD_FLOORS,
        method_version=1,
        fee_basis_points=settings.PLATFORM_FEE_BASIS_POINTS,
        base_micros=0,
        made_at=None,
        first_hour_seconds=0,
        rate_micros=nothing,
        target_micros=nothing,
        other_tier_micros=nothing,
        fitting_basis_points=nothing - 1,
        sold=nothing,
        offered=nothing,
    )


def _tariff(*, bounds: Seconds, rates: Micros) -> Tariff:
    """Return the tariff of hourly rates; neighbours of one rate are one segment."""
    changes = np.flatnonzero(np.diff(rates)) + 1
    firsts = np.concatenate(([0], changes))
    begins = bounds[firsts].tolist()
    ends = [*begins[1:], int(bounds[-1])]
    return Tariff(
        tuple(
            Segment(starts, until, rate)
            for starts, until, rate in zip(begins, ends, rates[firsts].tolist(), strict=True)
        )
    )
