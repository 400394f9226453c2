"""Owners' rules for their nodes: when a GPU counts as idle, and what makes it unfit for sale.

A policy is never changed: a new version takes its place, and each node of the owner hears of it with the
answer to its next report.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from django.db import IntegrityError, transaction

from agents import protocol
from agents.models import Policy
from agents.protocol import NodePolicy
from marketplace.core.errors import DomainError, InvalidValue, StateConflict
from marketplace.models import Organization

log = structlog.get_logger(__name__)


class PolicyConflict(StateConflict):
    """Somebody else published a version meanwhile."""


class PolicyUnchanged(DomainError):
    """The policy in force says the same already."""

    code = "policy_unchanged"
    title = "Nothing would change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure that two versions of a policy have different; None where a table has no such entry."""

    pointer: str
    before: str | None
    after: str | None


def current(*, organization: Organization) -> NodePolicy:
    """Return the policy in force at an owner's nodes; version 0 are the defaults."""
    row = Policy.objects.filter(organization=organization).order_by("-version").first()
    return NodePolicy() if row is None else as_policy(row)


def as_policy(row: Policy) -> NodePolicy:
    """Return a stored version as nodes get it; what it does not say is as by default."""
    return protocol.from_json(NodePolicy, {**row.document, "version": row.version})


def parse(*, document: object) -> NodePolicy:
    """Read a policy strictly; `version` is not part of it.

    :raises InvalidValue: when a field is unknown, of another type, or out of its bounds; all problems of the
        bounds are named at once, the first one by its pointer.
    """
    if isinstance(document, Mapping) and "version" in document:
        raise InvalidValue("/version is given by the market", pointer="/version")
    try:
        policy = protocol.from_json(NodePolicy, document)
    except protocol.MalformedMessage as error:
        raise InvalidValue(str(error), pointer=error.pointer) from None
    if problems := protocol.policy_problems(policy):
        raise InvalidValue("; ".join(problems), pointer=problems[0].split()[0].rstrip(":"))
    return policy


def publish(
    *,
    organization: Organization,
    document: object,
    actor: str,
    at: dt.datetime,
    based_on: int | None = None,
) -> Policy:
    """Put a new version in force at all nodes of an owner and return it.

    `based_on` is the version that the actor saw, where it saw one.

    :raises InvalidValue: when the document is no policy.
    :raises PolicyUnchanged: when the policy in force says the same.
    :raises PolicyConflict: when another version was published meanwhile.
    """
    policy = parse(document=document)
    in_force = current(organization=organization)
    if based_on is not None and based_on != in_force.version:
        raise PolicyConflict(
            f"version {in_force.version} was published meanwhile: look at it first"
        )
    if not differences(before=in_force, after=policy):
        raise PolicyUnchanged(f"version {in_force.version} says the same")
    version = in_force.version + 1
    written = {name: part for name, part in protocol.to_json(policy).items() if name != "version"}
    try:
        with transaction.atomic():
            row = Policy.objects.create(
                organization=organization,
                version=version,
                document=written,
                created_at=at,
                created_by=actor,
            )
    except IntegrityError as error:
        if "policy_version_is_unique" not in str(error):
            raise
        raise PolicyConflict(f"version {version} was published by somebody else") from None
    log.info("policy_published", organization_id=organization.pk, version=version, actor=actor)
    return row


def before(*, row: Policy) -> NodePolicy:
    """Return the policy that a version took the place of."""
    return of_version(organization_id=row.organization_id, version=row.version - 1)


def differences(*, before: NodePolicy, after: NodePolicy) -> list[Difference]:
    """Return what two policies have different, field by field and entry by entry, by pointer."""
    old, new = _flat(before), _flat(after)
    return [
        Difference(pointer=pointer, before=old.get(pointer), after=new.get(pointer))
        for pointer in sorted(old.keys() | new.keys())
        if old.get(pointer) != new.get(pointer)
    ]


def _flat(policy: NodePolicy) -> dict[str, str]:
    """Return every figure of a policy but its version, as text, by its pointer."""
    found: dict[str, str] = {}
    for part in ("idle", "health"):
        for name, value in protocol.to_json(policy)[part].items():
            entries = (
                {f"/{key}": word for key, word in value.items()}
                if isinstance(value, dict)
                else {"": value}
            )
            found |= {f"/{part}/{name}{key}": str(word) for key, word in entries.items()}
    return found


def of_version(*, organization_id: str, version: int) -> NodePolicy:
    """Return a version of an owner's policy; the defaults where there is no such version."""
    row = Policy.objects.filter(organization_id=organization_id, version=version).first()
    return NodePolicy() if row is None else as_policy(row)
