"""What leaving early costs: the ladder, its versions, and the one formula of every change.

Hours that are kept keep the price at which they were bought; hours that are added cost what they cost today.
The difference of the two totals is charged, or it goes back less the fee. The fee is a share of what goes
back, and depends on the notice: the time that is left until the reservation's start, nothing once it has
started. A window that was moved to a later start keeps the notice of its first start, so that moving is no
way around the ladder. No sequence of small changes is cheaper than one large one: every part that goes back
has the same notice.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction

from marketplace import audit
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.money import share_of
from scheduler.models import ChangeRule

BASIS_POINTS = 10_000
LADDER_STEPS_MAX = 20  # a ladder that nobody can read at one glance is no ladder
NOTICE_SECONDS_MAX = 366 * 86_400
DAY_SECONDS = 86_400
Ladder = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a change moves, in minor units; `after = before + charge - refund - fee`."""

    charge: int
    refund: int
    fee: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWish:
    """A version to publish; lengths in seconds."""

    ladder: Ladder
    extension_opens_seconds: int
    extension_closes_seconds: int
    move_closes_seconds: int


# Version 1. A tenth of the price with a month's notice, all of it on the last day: what was kept free for one
# tenant until then finds no other. An extension from eight weeks to one hour before the end, as the nearest
# peer has it. A window moves until the day on which leaving would cost it whole.
FIRST = RuleWish(
    ladder=(
        (30 * DAY_SECONDS, 1_000),
        (7 * DAY_SECONDS, 2_500),
        (DAY_SECONDS, 5_000),
        (0, BASIS_POINTS),
    ),
    extension_opens_seconds=56 * DAY_SECONDS,
    extension_closes_seconds=3_600,
    move_closes_seconds=DAY_SECONDS,
)


def current(*, at: dt.datetime) -> ChangeRule:
    """Return the rule by which a quote of a change is made now; the first call of a market writes `FIRST`."""
    newest = ChangeRule.objects.order_by("-version").first()
    if newest is None:
        newest, _ = ChangeRule.objects.get_or_create(
            version=1, defaults={**_columns(FIRST), "created_at": at, "created_by": "market"}
        )
    return newest


def fee_basis_points(*, ladder: Ladder, notice_seconds: int) -> int:
    """Return the fee of the highest step whose notice is kept: a notice of exactly a step reaches it."""
    assert notice_seconds >= 0, notice_seconds
    return next(fee for notice, fee in ladder if notice_seconds >= notice)


def difference(*, before: int, after: int, fee_basis_points: int, unpaid: int = 0) -> Difference:
    """Return what is charged, or goes back and is kept as the fee; the fee is rounded half to even.

    `before` is what was paid. What is given back may have cost `unpaid` more: the fee is a share of all of
    that, and never more than was paid.
    """
    if after >= before:
        return Difference(charge=after - before, refund=0, fee=0)
    given_back = before - after
    fee = share_of(total_minor=given_back + unpaid, part=fee_basis_points, whole=BASIS_POINTS)
    fee = min(fee, given_back)
    return Difference(charge=0, refund=given_back - fee, fee=fee)


@transaction.atomic
def publish(*, wish: RuleWish, based_on: int, at: dt.datetime, actor: str) -> ChangeRule:
    """Put a new version in force for the quotes that are made from now on.

    :raises InvalidValue: when a step or a length makes no sense.
    :raises StateConflict: when somebody else published a version meanwhile.
    """
    check(wish)
    newest = current(at=at).version
    if newest != based_on:
        raise StateConflict(f"version {newest} was published meanwhile")
    try:
        with transaction.atomic():
            rule = ChangeRule.objects.create(
                version=newest + 1, **_columns(wish), created_at=at, created_by=actor
            )
    except IntegrityError as error:
        raise StateConflict("another version was published meanwhile") from error
    audit.record(
        at=at,
        actor=actor,
        action="change_rule.published",
        object_id=str(rule.version),
        organization=None,
        detail={"ladder": rule.ladder, "version": rule.version},
    )
    return rule


def _columns(wish: RuleWish) -> dict[str, Any]:
    return {
        "ladder": [list(step) for step in wish.ladder],
        "extension_opens_seconds": wish.extension_opens_seconds,
        "extension_closes_seconds": wish.extension_closes_seconds,
        "move_closes_seconds": wish.move_closes_seconds,
    }


def check(wish: RuleWish) -> None:
    """Refuse a rule that makes no sense.

    :raises InvalidValue: with the pointer to what is wrong.
    """
    steps = list(wish.ladder)
    if not 1 <= len(steps) <= LADDER_STEPS_MAX:
        raise InvalidValue(f"a ladder has 1 to {LADDER_STEPS_MAX} steps", pointer="/ladder")
    notices, fees = [notice for notice, _ in steps], [fee for _, fee in steps]
    if notices[-1] != 0 or notices != sorted(set(notices), reverse=True):
        raise InvalidValue("the notices must fall, and the last must be 0", pointer="/ladder")
    if not 0 <= notices[0] <= NOTICE_SECONDS_MAX:
        raise InvalidValue(f"a notice is at most {NOTICE_SECONDS_MAX} s", pointer="/ladder")
    if any(not 0 <= fee <= BASIS_POINTS for fee in fees) or fees != sorted(fees):
        raise InvalidValue(
            f"the fees must rise, from 0 to at most {BASIS_POINTS} basis points", pointer="/ladder"
        )
    if not 0 <= wish.extension_closes_seconds < wish.extension_opens_seconds:
        raise InvalidValue(
            "extensions must open before they close", pointer="/extension_opens_seconds"
        )
    for name in ("extension_opens_seconds", "extension_closes_seconds", "move_closes_seconds"):
        if not 0 <= getattr(wish, name) <= NOTICE_SECONDS_MAX:
            raise InvalidValue(f"must be 0 to {NOTICE_SECONDS_MAX} s", pointer=f"/{name}")
