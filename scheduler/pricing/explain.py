"""Say in words which hour drives a window's price, and why it costs what it costs."""

import datetime as dt
from dataclasses import dataclass

from marketplace.core.windows import to_instant
from scheduler.pricing.rule import BASIS_POINTS

SECONDS_PER_HOUR = 3600
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class HourFacts:
    """What is known of one hour: how much of it is offered, sold, and still asked for.

    `fitting_basis_points` is -1 where there is no forecast.
    """

    rate_micros: int
    base_micros: int
    on_offer: int
    sold: int
    fitting_basis_points: int


def words(*, hour: int, facts: HourFacts) -> str:
    """Describe the hour that drives a price; `hour` is in whole hours since the Unix epoch."""
    when = _name(to_instant(hour * SECONDS_PER_HOUR))
    if facts.on_offer <= 0:
        return f"{when}: nothing is on offer in this hour, so that it costs the base rate."
    sold = 100 * min(facts.sold, facts.on_offer) // facts.on_offer
    multiple = facts.rate_micros * 100 // facts.base_micros
    costs = f"it costs {multiple // 100}.{multiple % 100:02d} times the base rate"
    if facts.fitting_basis_points < 0:
        return f"{when} is the dearest hour: {sold} % of it is sold, and {costs}."
    if facts.fitting_basis_points >= BASIS_POINTS:
        asked = "there is room for all the demand expected for it"
    else:
        asked = (
            f"there is room for {facts.fitting_basis_points // 100} % of the demand expected for it"
        )
    return f"{when} is the dearest hour: {sold} % of it is sold, {asked}, and {costs}."


def _name(instant: dt.datetime) -> str:
    """Return an hour as people write it, in every locale alike."""
    return (
        f"{WEEKDAYS[instant.weekday()]} {instant.day} {MONTHS[instant.month - 1]}"
        f" {instant.hour:02d}:00 UTC"
    )
