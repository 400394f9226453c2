"""How numbers and instants stand in a FOCUS file: exact decimals with a point, UTC to the second.

A decimal always has a point: readers that guess a column's type from its text would take `2` for an integer.
"""

import datetime as dt
from functools import lru_cache

from marketplace.core.money import SECONDS_PER_HOUR, currency_exponent, divide_half_even

half_even = divide_half_even

# A price of six places times hours of eight makes a cost of fourteen, exactly: common readers keep no more.
PRICE_PLACES = 6
HOURS_PLACES = 8
COST_PLACES = PRICE_PLACES + HOURS_PLACES
# In these units what is earned in an hour is divided into what was used and what was not.
SHARE_PLACES = 6
KWH_PLACES = 6
MILLIJOULES_PER_KWH = 3_600_000_000
RATIO_PLACES = 4
_TEXTS_KEPT = 65_536  # hours and instants repeat: of a full month there are a few thousand


def decimal(number: int, places: int) -> str:
    """Return `number / 10 ** places` exactly, without trailing zeros and with at least one place."""
    if not places:
        return f"{number}.0"
    sign = "-" if number < 0 else ""
    digits = str(abs(number)).rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:].rstrip('0') or '0'}"


def money(amount_minor: int, currency: str) -> str:
    """Return minor units in the currency's major unit."""
    return decimal(amount_minor, currency_exponent(currency))


@lru_cache(maxsize=_TEXTS_KEPT)
def hours_number(seconds: int) -> int:
    """Return GPU-seconds as GPU-hours, in units of the last of `HOURS_PLACES`."""
    return half_even(seconds * 10**HOURS_PLACES, SECONDS_PER_HOUR)


@lru_cache(maxsize=_TEXTS_KEPT)
def hours(seconds: int) -> str:
    """Return GPU-seconds as GPU-hours."""
    return decimal(hours_number(seconds), HOURS_PLACES)


@lru_cache(maxsize=_TEXTS_KEPT)
def cost(price_micros: int, seconds: int) -> str:
    """Return the exact product of a price per GPU-hour and the hours as they are printed."""
    return decimal(price_micros * hours_number(seconds), COST_PLACES)


@lru_cache(maxsize=_TEXTS_KEPT)
def price(price_micros: int) -> str:
    """Return a price of micros."""
    return decimal(price_micros, PRICE_PLACES)


@lru_cache(maxsize=_TEXTS_KEPT)
def instant(at: dt.datetime) -> str:
    """Return an instant of UTC, to the second."""
    return f"{at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def price_of(amount_minor: int, *, seconds: int, currency: str) -> int:
    """Return what a GPU-hour of an amount cost, in micros; both may be negative, and `seconds` is not 0."""
    scale = 10 ** (PRICE_PLACES - currency_exponent(currency))
    return half_even(abs(amount_minor) * scale * SECONDS_PER_HOUR, abs(seconds))


def shares(amount_minor: int, *, part: int, whole: int, currency: str) -> tuple[str, str]:
    """Return the part of an amount and the rest of it, which add up to it exactly."""
    total = amount_minor * 10 ** (SHARE_PLACES - currency_exponent(currency))
    first = half_even(total * part, whole)
    return decimal(first, SHARE_PLACES), decimal(total - first, SHARE_PLACES)


def kilowatt_hours(millijoules: int | None) -> str:
    """Return energy; empty where nothing measured it."""
    if millijoules is None:
        return ""
    return decimal(half_even(millijoules * 10**KWH_PLACES, MILLIJOULES_PER_KWH), KWH_PLACES)


def ratio(part: int | None, whole: int) -> str:
    """Return a share of a whole; empty where one of them is not known or there is no whole."""
    if part is None or whole <= 0:
        return ""
    return decimal(half_even(min(part, whole) * 10**RATIO_PLACES, whole), RATIO_PLACES)
