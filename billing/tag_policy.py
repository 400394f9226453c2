"""The tags that a tenant requires of its own orders, so that every hour has somebody who answers for it.

An order without a required tag, or with a value that is not allowed, is refused before it takes anything. A
rule holds for what comes: what is booked keeps its tags, and so does what is added to it.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db import transaction

from billing.models import TagRule
from marketplace import audit
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.core.limits import TAG_KEY_LENGTH_MAX, TAG_VALUE_LENGTH_MAX, TAGS_MAX
from marketplace.core.text import check_text
from marketplace.models import Organization

VALUES_MAX = 200  # of one tag: more is a register that belongs elsewhere
VALUES_NAMED_MAX = 20  # in a refusal; the policy has them all


class TagRequired(DomainError):
    """The organization requires a tag that the order does not carry; `extra` names all that are missing."""

    code = "tag_required"
    title = "A tag that the organization requires is missing"


class TagValueNotAllowed(DomainError):
    """A required tag has a value that the organization does not allow; `extra` says which it does."""

    code = "tag_value_not_allowed"
    title = "The organization does not allow this value of a tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagWish:
    """One required tag as its keeper wants it; without values any will do."""

    key: str
    allowed_values: Sequence[str] = ()


def rules_of(*, organization: Organization) -> list[TagRule]:
    """Return the tags that an organization requires, by key."""
    return list(TagRule.objects.visible_to(organization))


def require(*, organization: Organization, tags: Mapping[str, str]) -> None:
    """Refuse tags that the organization's policy does not take.

    :raises TagRequired: when a required tag is missing, or has nothing in it.
    :raises TagValueNotAllowed: when one has a value that is not allowed.
    """
    rules = rules_of(organization=organization)
    missing = [rule.key for rule in rules if not tags.get(rule.key)]
    if missing:
        raise TagRequired(
            f"{', '.join(missing)} must be among the tags; see GET /v1/tag-policy",
            pointer="/tags",
            extra={"required_tags": missing},
        )
    for rule in rules:
        value = tags[rule.key]
        if rule.allowed_values and value not in rule.allowed_values:
            named = rule.allowed_values[:VALUES_NAMED_MAX]
            raise TagValueNotAllowed(
                f"{rule.key} must be one of {', '.join(named)}"
                + ("" if len(named) == len(rule.allowed_values) else " and others"),
                pointer="/tags",
                extra={"tag": rule.key, "allowed_values": named},
            )


@transaction.atomic
def put(
    *, organization: Organization, wishes: Sequence[TagWish], at: dt.datetime, actor: str
) -> None:
    """Replace the tags that an organization requires by those wished for, all or nothing.

    It holds for orders that come; what is booked keeps its tags.

    :raises InvalidValue: when a key or a value could not be stored, or stands twice.
    """
    _check(wishes)
    # Two who replace the policy of one organization do so one after the other.
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    known = {rule.key: rule for rule in rules_of(organization=organization)}
    for wish in wishes:
        rule = known.pop(wish.key, None) or TagRule(organization=organization, key=wish.key)
        rule.allowed_values = list(wish.allowed_values)
        rule.updated_at, rule.updated_by = at, actor[: audit.ACTOR_LENGTH_MAX]
        rule.save()
    TagRule.objects.filter(pk__in=[rule.pk for rule in known.values()]).delete()
    audit.record(
        at=at,
        actor=actor,
        action="tag_policy.replaced",
        object_id=organization.pk,
        organization=organization,
        detail={
            "required": [
                {"key": wish.key, "allowed_values": list(wish.allowed_values)} for wish in wishes
            ]
        },
    )


def _check(wishes: Sequence[TagWish]) -> None:
    if len(wishes) > TAGS_MAX:
        raise InvalidValue(
            f"a reservation carries at most {TAGS_MAX} tags", pointer="/required_tags"
        )
    seen = set()
    for index, wish in enumerate(wishes):
        pointer = f"/required_tags/{index}"
        if not wish.key:
            raise InvalidValue("a tag needs a name", pointer=f"{pointer}/key")
        check_text(wish.key, length_max=TAG_KEY_LENGTH_MAX, pointer=f"{pointer}/key")
        if wish.key in seen:
            raise InvalidValue("there is one rule for a tag", pointer=f"{pointer}/key")
        seen.add(wish.key)
        if len(wish.allowed_values) > VALUES_MAX:
            raise InvalidValue(f"at most {VALUES_MAX} values", pointer=f"{pointer}/allowed_values")
        if len(set(wish.allowed_values)) != len(wish.allowed_values):
            raise InvalidValue("name each once", pointer=f"{pointer}/allowed_values")
        for place, value in enumerate(wish.allowed_values):
            at_value = f"{pointer}/allowed_values/{place}"
            if not value:
                raise InvalidValue("a value must not be empty", pointer=at_value)
            check_text(value, length_max=TAG_VALUE_LENGTH_MAX, pointer=at_value)
