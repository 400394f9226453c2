"""The list price: what a GPU-hour costs before any surge, as it was published when it was quoted.

FOCUS and the bills take it from here, so that a bill's list cost is what its file says.
"""

from decimal import Decimal, InvalidOperation

from marketplace.core.money import amount_for
from scheduler.models import Quote


def base_rate(quote: Quote) -> Decimal | None:
    """Return the published rate per GPU-hour that a quote names; None in one of a time when it named none."""
    text = quote.price_breakdown.get("base_rate")
    try:
        return Decimal(str(text)) if text is not None else None
    except InvalidOperation:
        return None


def cost_minor(*, quote: Quote, gpu_seconds: int) -> int:
    """Return what GPU-seconds cost at list price, in minor units, negative where they were given back.

    Where a quote names no list price it is the locked one.
    """
    rate = base_rate(quote)
    amount = amount_for(
        rate=quote.rate if rate is None else rate, gpu_seconds=gpu_seconds, currency=quote.currency
    )
    return amount.amount_minor
