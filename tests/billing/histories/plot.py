"""What tenants, their banks and owners do at the provider: each story on its own, in three acts.

A story is a generator that yields between its acts: a day before, of which the market knows all; ninety
minutes later, when what was not paid is released; and the next day, of which it knows what its calls were
answered and nothing else. No story depends on when its news arrive: each has a tenant of its own, a wallet
that covers what is taken from it, and GPUs that nobody else wants.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

from billing import payments, provider
from scheduler import reservations
from tests.billing.histories.market import Market
from tests.scheduler import factories

Acts = Iterator[None]
Story = Callable[[Market, str], Acts]

# A quarter of an hour before the start of what was held for it: then it is taken.
NEXT_DAY = dt.timedelta(hours=24, minutes=46)
HELD_STARTS_IN = 25  # hours ahead
A_FORTNIGHT = 14 * 24


def told(story: Callable[..., Acts], *how: object, **which: object) -> Story:
    """Return a story of which there are several, told in one way, and named after it."""

    def acts(market: Market, name: str) -> Acts:
        return story(market, name, *how, **which)

    ways = (*how, *(f"{key} {value}" for key, value in which.items()))
    acts.__name__ = " ".join((story.__name__, *map(str, ways)))
    return acts


def play(market: Market, *, stories: Sequence[Story]) -> None:
    """Let stories happen side by side, act by act; one may happen several times, to different people."""
    running = [story(market, f"{story.__name__} {number}") for number, story in enumerate(stories)]
    _act(market, running)
    market.passes(minutes=90)
    reservations.expire_unpaid(at=market.at)
    _act(market, running)
    _release(market)
    market.passes(seconds=(factories.NOW + NEXT_DAY - market.at).total_seconds())
    reservations.expire_unpaid(at=market.at)
    _release(market)
    for story in running:
        assert next(story, "over") == "over"
        market.hears()


def _act(market: Market, running: list[Acts]) -> None:
    for story in running:
        next(story)
        market.hears()


def _release(market: Market) -> None:
    """Give up what nobody paid; who has paid in this very moment is told so by the refusal."""
    payments.give_up_due(at=market.at)
    provider.drive_due(at=market.at)
    market.hears()
