"""A market's days with its payment provider, of which it hears at once, or late, twice and in any order."""

from tests.billing.histories.market import Market, Restless, TakenBack
from tests.billing.histories.plot import play, told
from tests.billing.histories.state import final_state
from tests.billing.histories.stories import A_CUT, STORIES

__all__ = ["A_CUT", "STORIES", "Market", "Restless", "TakenBack", "final_state", "play", "told"]
