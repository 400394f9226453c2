"""What an owner owes for the time that it takes back: pure, exact, rounded once."""

from marketplace.core.money import Money, share_of
from marketplace.core.windows import Window
from scheduler.tariffs import Tariff

_BASIS_POINTS = 10_000


def remaining_value(*, tariff: Tariff, rest: Window, gpus: int, currency: str) -> Money:
    """Return the tenant's price of the time that is taken away."""
    return tariff.amount(window=rest, gpus=gpus, currency=currency)


def compensation_for(*, remaining: Money, basis_points: int) -> Money:
    """Return what the tenant gets for losing that time, beside its refund: a share of its price."""
    share = share_of(total_minor=remaining.amount_minor, part=basis_points, whole=_BASIS_POINTS)
    return Money(share, remaining.currency)
