"""What an owner owes for the time that it takes back: pure, exact, rounded once."""

from marketplace.core.money import Money, share_of
from marketplace.core.windows import Window
from scheduler.tariffs import Tariff

# A quarter of what is left: enough to buy the rest elsewhere at a price a quarter higher, and to make an
# owner who needs its machines for an hour wait instead. What is not delivered is refunded beside it.
COMPENSATION_BASIS_POINTS = 2_500
_BASIS_POINTS = 10_000


def remaining_value(*, tariff: Tariff, rest: Window, gpus: int, currency: str) -> Money:
    """Return the tenant's price of the time that is taken away."""
    return tariff.amount(window=rest, gpus=gpus, currency=currency)


def compensation_for(*, remaining: Money) -> Money:
    """Return what the tenant gets for losing that time, beside its refund."""
    share = share_of(
        total_minor=remaining.amount_minor, part=COMPENSATION_BASIS_POINTS, whole=_BASIS_POINTS
    )
    return Money(share, remaining.currency)
