"""Owners' rules for their nodes: when a GPU counts as idle, and what makes it unfit for sale.

A policy is never changed: a new version takes its place, and each node of the owner hears of it with the
answer to its next report.
"""

import datetime as dt
from collections.abc import Mapping

import structlog
from django.db import IntegrityError, transaction

from agents import protocol
from agents.models import Policy
from agents.protocol import NodePolicy
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import Organization

log = structlog.get_logger(__name__)


class PolicyConflict(StateConflict):
    """Somebody else published a version at the same moment."""


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


def publish(*, organization: Organization, document: object, actor: str, at: dt.datetime) -> Policy:
    """Put a new version in force at all nodes of an owner and return it.

    :raises InvalidValue: when the document is no policy.
    :raises PolicyConflict: when another version was published at the same moment.
    """
    policy = parse(document=document)
    version = current(organization=organization).version + 1
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


def of_version(*, organization_id: str, version: int) -> NodePolicy:
    """Return a version of an owner's policy; the defaults where there is no such version."""
    row = Policy.objects.filter(organization_id=organization_id, version=version).first()
    return NodePolicy() if row is None else as_policy(row)
