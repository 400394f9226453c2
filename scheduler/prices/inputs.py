"""The inputs of a price, published: enough for a stranger to compute every hour of a quote again."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from marketplace.core.money import SECONDS_PER_HOUR, format_rate
from marketplace.core.windows import format_instant, to_instant, to_seconds
from scheduler.models import PriceVersion, Quote
from scheduler.prices.packed import unpack
from scheduler.prices.refresh import inputs_of
from scheduler.tariffs import as_rate


def of_quote(quote: Quote) -> dict[str, Any] | None:
    """Return what a quote's price follows from, hour by hour; neighbours that are alike are one row.

    `None` where the pool had no table yet: then the price is the floor with the fee on top.
    """
    version = quote.price_version
    if version is None:
        return None
    return {
        "price_table": version.pk,
        "number": version.number,
        "made_at": format_instant(version.made_at),
        "cause": version.cause,
        "method": version.method,
        "method_version": version.method_version,
        "rule_version": version.rule_number,
        "rule": version.rule,
        "fee_basis_points": version.fee_basis_points,
        "base_rate": format_rate(as_rate(version.base_micros)),
        "floors": version.floors,
        "facts": version.facts,
        "hours": list(_rows(version, quote=quote)),
    }


def _rows(version: PriceVersion, *, quote: Quote) -> Iterator[dict[str, Any]]:
    inputs = inputs_of(version)
    rates = unpack(bytes(version.rates), hours=version.hours)
    first = to_seconds(quote.starts_at) // SECONDS_PER_HOUR
    last = -(-to_seconds(quote.ends_at) // SECONDS_PER_HOUR)
    place = np.clip(np.arange(first, last) - version.first_hour, 0, version.hours - 1)
    ahead = np.arange(first, last) - version.first_hour
    nothing = np.full(version.hours, -1, dtype=np.int64)
    firm = nothing if inputs.firm is None else inputs.firm
    demand = nothing if inputs.forecast is None else inputs.forecast.milligpus
    columns = np.stack(
        [inputs.sold, inputs.opening, inputs.latest, rates[1], rates[0], firm, demand]
    )
    facts = np.concatenate([columns, inputs.offered])[:, place]
    # A limit counts the hours ahead, so that near ones stand alone.
    near = ahead < inputs.rule.rule.no_fall_hours
    is_new = np.ones(len(place), dtype=bool)
    is_new[1:] = (facts[:, 1:] != facts[:, :-1]).any(axis=0) | (near[1:] != near[:-1])
    begins = np.flatnonzero(is_new)
    lengths = np.diff(np.append(begins, len(place)))
    for begin, hours in zip(begins.tolist(), lengths.tolist(), strict=True):
        sold, opening, latest, target, rate, firm_rate, milligpus, *offered = facts[
            :, begin
        ].tolist()
        yield {
            "starts_at": format_instant(to_instant((first + begin) * SECONDS_PER_HOUR)),
            "hours": hours,
            "hours_ahead": int(ahead[begin]),
            "gpus_on_offer_by_floor": offered,
            "gpus_sold": sold,
            "demand_milligpus": None if milligpus < 0 else milligpus,
            "firm_rate": None if firm_rate < 0 else _rate(firm_rate),
            "rate_when_the_hour_began": _rate(opening),
            "rate_before": _rate(latest),
            "target_rate": _rate(target),
            "rate": _rate(rate),
        }


def _rate(micros: int) -> str | None:
    """Return a rate; `None` stands for an hour that the earlier table did not reach."""
    return format_rate(as_rate(micros)) if micros else None
