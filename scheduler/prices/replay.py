"""Replay a quote's price from what is stored, and compare."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from marketplace.core.errors import DomainError
from marketplace.core.money import Money, format_rate
from marketplace.core.windows import format_instant, to_instant
from marketplace.states import Tier
from scheduler.lots import GpusAtFloor, Lots
from scheduler.models import Quote
from scheduler.pool_keys import PoolKey
from scheduler.prices.refresh import METHOD_VERSION, inputs_of, vectors_of
from scheduler.prices.tables import METHOD_FLOORS, PriceTable, floors_only, table_of
from scheduler.tariffs import as_rate


class NotReplayable(DomainError):
    """The quote was priced by a formula that this program does not have any more."""

    code = "price_not_replayable"
    title = "The price cannot be replayed by this version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure as it is stored and as it comes out again."""

    name: str
    stored: str
    recomputed: str

    @property
    def agrees(self) -> bool:
        return self.stored == self.recomputed


def replay(*, quote: Quote) -> list[Comparison]:
    """Compute a table's hours from their inputs and a quote from these; return each figure beside its own.

    :raises NotReplayable: when the price was made by a formula that is gone.
    """
    method = str(quote.price_breakdown.get("method"))
    found: list[Comparison] = []
    if quote.price_version is None:
        if method != METHOD_FLOORS:
            raise NotReplayable(f"{quote.pk} was priced by {method}")
        key = PoolKey(gpu_model_id=quote.gpu_model_id, region=quote.region, tier=Tier(quote.tier))
        table = replace(floors_only(key), fee_basis_points=quote.fee_basis_points)
    else:
        version = quote.price_version
        if version.method_version > METHOD_VERSION:
            raise NotReplayable(f"{version.pk} was made by {method} {version.method_version}")
        stored = table_of(version)
        vectors = vectors_of(inputs_of(version))
        table = replace(
            stored,
            rate_micros=vectors.rates,
            target_micros=vectors.targets,
            other_tier_micros=vectors.other_tier,
            fitting_basis_points=vectors.fitting_basis_points,
        )
        found += _hours(stored, table)
    stored_lots = Lots.from_json(quote.lots)
    price = table.price(
        window=quote.window,
        floors=[GpusAtFloor(lot.floor_rate, lot.gpus) for lot in stored_lots.lots],
        currency=quote.currency,
    )
    recomputed_lots = [
        replace(lot, listing_ids=its.listing_ids)
        for lot, its in zip(price.lots.lots, stored_lots.lots, strict=True)
    ]
    found += [
        Comparison(name="rate", stored=format_rate(quote.rate), recomputed=format_rate(price.rate)),
        Comparison(
            name="lots",
            stored=str(stored_lots.as_json()),
            recomputed=str(Lots(tuple(recomputed_lots)).as_json()),
        ),
        Comparison(
            name="total",
            stored=str(Money(quote.total_minor, quote.currency)),
            recomputed=str(price.total),
        ),
        Comparison(
            name="fee",
            stored=f"{quote.fee_basis_points} basis points",
            recomputed=f"{price.fee_basis_points} basis points",
        ),
    ]
    names = sorted(quote.price_breakdown.keys() | price.breakdown.keys())
    return found + [
        Comparison(
            name=f"price_breakdown.{name}",
            stored=_text(quote.price_breakdown.get(name)),
            recomputed=_text(price.breakdown.get(name)),
        )
        for name in names
    ]


def _text(value: object) -> str:
    """Return a figure, or several of them, in one order for both sides."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list) else str(value)


def _hours(stored: PriceTable, recomputed: PriceTable) -> Iterator[Comparison]:
    """Yield the first hour of the table that does not come out again, or one line for all of them."""
    differs = np.flatnonzero(stored.rate_micros != recomputed.rate_micros)
    hours = len(stored.rate_micros)
    if not len(differs):
        same = f"{hours} hours"
        yield Comparison(name="table", stored=same, recomputed=same)
        return
    place = int(differs[0])
    hour = format_instant(to_instant(stored.first_hour_seconds + 3600 * place))
    yield Comparison(
        name=f"table, {len(differs)} of {hours} hours, first {hour}",
        stored=format_rate(as_rate(int(stored.rate_micros[place]))),
        recomputed=format_rate(as_rate(int(recomputed.rate_micros[place]))),
    )
