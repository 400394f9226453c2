"""What a request says in words and numbers, before anything is looked up."""

from marketplace.core.errors import InvalidValue
from marketplace.core.limits import GPUS_PER_REQUEST_MAX
from marketplace.core.text import check_text
from marketplace.states import Tier
from scheduler.states import Spread

REGION_LENGTH_MAX = 60  # as the column


def check_gpus(gpus: int) -> None:
    """Refuse a number of GPUs that nobody can mean.

    :raises InvalidValue: when it is below 1 or above `GPUS_PER_REQUEST_MAX`.
    """
    if not 1 <= gpus <= GPUS_PER_REQUEST_MAX:
        raise InvalidValue(f"must be from 1 to {GPUS_PER_REQUEST_MAX}", pointer="/gpus")


def check_region(region: str | None) -> None:
    """Refuse text that can be no region's name; an unknown region simply has nothing on offer.

    :raises InvalidValue: then.
    """
    if region is not None:
        check_text(region, length_max=REGION_LENGTH_MAX, pointer="/region")


def parse_tier(text: str) -> Tier:
    """Return the tier of this name.

    :raises InvalidValue: when there is none.
    """
    if text not in Tier.values:
        raise InvalidValue(f"must be one of {', '.join(Tier.values)}", pointer="/tier")
    return Tier(text)


def parse_spread(text: str | None) -> Spread:
    """Return a spread; `None` is one fabric, and within it one node if one has room.

    :raises InvalidValue: when there is no such spread.
    """
    if text is None:
        return Spread.SAME_FABRIC
    if text not in Spread.values:
        raise InvalidValue(f"must be one of {', '.join(Spread.values)}", pointer="/spread")
    return Spread(text)
