"""The rules of prices: which one is in force, and how the next one comes about, by two people."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Max, Q

from marketplace import audit
from marketplace.core.errors import DomainError, NotFound, StateConflict
from marketplace.core.money import RATE_MAX, format_rate, quantize_rate
from marketplace.core.text import check_text
from marketplace.models import User
from scheduler.models import PriceRule, PriceRuleTransition
from scheduler.pricing import Rule, RuleInvalid
from scheduler.states import PRICE_RULE_ARROWS, PriceRuleStatus

REASON_LENGTH_MAX = 500  # as the column
_NUMBER_LOCK = 0x5072756C  # advisory: two proposals must not take one number


class FourEyes(DomainError):
    """Prices are changed by two people: one proposes, another decides."""

    code = "four_eyes"
    title = "Somebody else must decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWish:
    """A rule to be proposed. `gpu_model_id` `None`: for all models without one of their own."""

    rule: Rule
    gpu_model_id: str | None
    base_rate: Decimal | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInForce:
    """A rule with its number, 0 for the built-in one. `base_rate` is the operator's, per GPU-hour."""

    number: int
    rule: Rule
    base_rate: Decimal | None = None


def in_force(*, gpu_model_id: str, at: dt.datetime) -> RuleInForce:
    """Return the rule by which a model is priced at an instant: its own, else everybody's, else built in."""
    row = (
        PriceRule.objects.filter(
            Q(gpu_model_id=gpu_model_id) | Q(gpu_model=None),
            status=PriceRuleStatus.APPROVED,
            decided_at__lte=at,
        )
        .order_by(F("gpu_model").asc(nulls_last=True), "-number")
        .first()
    )
    if row is None:
        return built_in()
    return RuleInForce(number=row.number, rule=from_json(row.parameters), base_rate=row.base_rate)


def built_in() -> RuleInForce:
    """Return the rule that holds until one is approved."""
    return RuleInForce(number=0, rule=Rule(fee_basis_points=settings.PLATFORM_FEE_BASIS_POINTS))


@transaction.atomic
def propose(*, wish: RuleWish, by: User, at: dt.datetime) -> PriceRule:
    """Write down the next version of the rule; nothing follows from it before somebody else approves.

    :raises RuleInvalid: when a parameter, the base rate or the reason does not fit.
    """
    check_text(wish.reason, length_max=REASON_LENGTH_MAX, pointer="/reason")
    if not wish.reason.strip():
        raise RuleInvalid("say why prices are to change", pointer="/reason")
    rate = wish.base_rate
    if rate is not None and not (rate.is_finite() and 0 < rate <= RATE_MAX):
        raise RuleInvalid(f"must be above 0 and at most {RATE_MAX}", pointer="/base_rate")
    if rate is not None and rate != quantize_rate(rate):
        raise RuleInvalid("must have at most six decimal places", pointer="/base_rate")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_NUMBER_LOCK])
    highest = PriceRule.objects.aggregate(number=Max("number"))["number"] or 0
    row = PriceRule.objects.create(
        number=highest + 1,
        gpu_model_id=wish.gpu_model_id,
        base_rate=rate,
        parameters=as_json(wish.rule),
        reason=wish.reason,
        proposed_by=by,
        proposed_at=at,
    )
    PriceRuleTransition.objects.create(
        rule=row, to_status=PriceRuleStatus.PROPOSED, actor=_actor(by), at=at
    )
    _record(row, by=by, at=at)
    return row


def approve(*, number: int, by: User, at: dt.datetime) -> PriceRule:
    """Take the arrow proposed → approved: from the next refresh on, prices move by this rule.

    What was quoted keeps the rule that it was priced by.

    :raises NotFound: when there is no such rule.
    :raises FourEyes: when `by` is who proposed it.
    :raises StateConflict: when it was decided already.
    """
    return _decide(number=number, to=PriceRuleStatus.APPROVED, by=by, at=at)


def reject(*, number: int, by: User, at: dt.datetime) -> PriceRule:
    """Take the arrow proposed → rejected; who proposed it withdraws it instead.

    :raises NotFound: when there is no such rule.
    :raises FourEyes: when `by` is who proposed it.
    :raises StateConflict: when it was decided already.
    """
    return _decide(number=number, to=PriceRuleStatus.REJECTED, by=by, at=at)


def withdraw(*, number: int, by: User, at: dt.datetime) -> PriceRule:
    """Take the arrow proposed → withdrawn, whoever asks: nothing comes into force by it.

    :raises NotFound: when there is no such rule.
    :raises StateConflict: when it was decided already.
    """
    return _decide(number=number, to=PriceRuleStatus.WITHDRAWN, by=by, at=at)


def as_json(rule: Rule) -> dict[str, str]:
    """Return the parameters of a rule as decimal texts by name."""
    return {each.name: str(getattr(rule, each.name)) for each in fields(rule)}


def from_json(parameters: Mapping[str, str]) -> Rule:
    """Return what `as_json` wrote; a parameter that did not exist then has its default.

    :raises RuleInvalid: when a parameter lies outside its bounds.
    """
    given: dict[str, Any] = {
        each.name: Decimal(text) if isinstance(each.default, Decimal) else int(text)
        for each in fields(Rule)
        if (text := parameters.get(each.name)) is not None
    }
    return Rule(**given)


@transaction.atomic
def _decide(*, number: int, to: PriceRuleStatus, by: User, at: dt.datetime) -> PriceRule:
    """Compare and set; the winner writes the transition and the trail."""
    row = PriceRule.objects.filter(number=number).first()
    if row is None:
        raise NotFound(f"there is no price rule {number}")
    if to is not PriceRuleStatus.WITHDRAWN and row.proposed_by_id == by.pk:
        raise FourEyes(f"{by.get_username()} proposed rule {number}; somebody else must decide")
    came_from = PriceRuleStatus(row.status)
    won = PRICE_RULE_ARROWS.allows(came_from, to) and PriceRule.objects.filter(
        pk=row.pk, status=came_from
    ).update(status=to, decided_by=by, decided_at=at)
    if not won:
        raise StateConflict(f"rule {number} is {came_from} or moved on; it cannot become {to}")
    row.refresh_from_db()
    PriceRuleTransition.objects.create(
        rule=row, from_status=came_from, to_status=to, actor=_actor(by), at=at
    )
    _record(row, by=by, at=at)
    return row


def _record(row: PriceRule, *, by: User, at: dt.datetime) -> None:
    audit.record(
        at=at,
        actor=_actor(by),
        action=f"price_rule.{row.status}",
        object_id=str(row.number),
        organization=None,
        detail={
            "gpu_model": row.gpu_model_id,
            "base_rate": None if row.base_rate is None else format_rate(row.base_rate),
            "parameters": row.parameters,
            "reason": row.reason,
        },
    )


def _actor(user: User) -> str:
    return f"admin:{user.get_username()}"
