"""What an owner owes for the time that it takes back: pure, exact, rounded once."""

from collections.abc import Sequence

from marketplace.core.money import Money, share_of
from marketplace.core.windows import Window
from scheduler.lots import Lots

_BASIS_POINTS = 10_000


def remaining_value(*, lots: Lots, numbers: Sequence[int], rest: Window, currency: str) -> Money:
    """Return the tenant's price of the time that is taken away; `numbers` has the lot of each GPU."""
    return lots.amount_of(numbers=numbers, window=rest, currency=currency)


def compensation_for(*, remaining: Money, basis_points: int) -> Money:
    """Return what the tenant gets for losing that time, beside its refund: a share of its price."""
    share = share_of(total_minor=remaining.amount_minor, part=basis_points, whole=_BASIS_POINTS)
    return Money(share, remaining.currency)
