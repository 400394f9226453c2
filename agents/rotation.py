"""A node's new key: asked for in time, signed by the old one, proven by the new one, taken once."""

import binascii
import datetime as dt
from base64 import b64decode

import structlog
from django.db import IntegrityError, transaction

from agents import alarms, envelope, protocol
from agents.inventory import NodeRevoked
from agents.models import Node
from agents.states import NodeStatus
from marketplace.core.errors import DomainError

log = structlog.get_logger(__name__)

# A key that leaked unnoticed is worth a season at most. Nodes renew theirs by themselves.
KEY_LIFETIME_DAYS = 90


class KeyRotationRefused(DomainError):
    """The node cannot take this key now."""

    code = "key_rotation_refused"
    title = "The key cannot be replaced"


def is_due(*, node: Node, at: dt.datetime) -> bool:
    """Say whether a node is to bring a new key."""
    since = node.key_since or node.enrolled_at
    return at - since > dt.timedelta(days=KEY_LIFETIME_DAYS)


def rotate(
    *, request: protocol.RotateKeyRequest, signed: envelope.SignedRequest, at: dt.datetime
) -> Node:
    """Give a node the key that it brings, and return the node.

    A node that repeats its request, because the answer was lost, still signs with the key that has become
    its previous one, and is answered alike. The pair (epoch, sequence) goes on: the machine is the same.

    :raises BadSignature: when the request is not signed by the node's key, or the new key did not sign it.
    :raises ClockSkew: when it was signed at another time.
    :raises MalformedReport: when the public key is none, or the request names another node.
    :raises NodeRevoked: when the node was withdrawn.
    :raises KeyRotationRefused: when the key is in use, or two machines have the present one.
    """
    claim = envelope.read_signature(signed=signed)
    node = Node.objects.filter(pk=claim.key_id).first()
    if node is None:
        raise envelope.BadSignature("keyid names no node")
    envelope.check_protocol(protocol_version=request.protocol)
    if request.node_id != node.pk:
        raise envelope.MalformedReport("names another node than keyid", pointer="/node_id")
    public_key = envelope.normalize_public_key(request.public_key)
    is_repeated = public_key == node.public_key and node.previous_public_key != ""
    old_key = node.previous_public_key if is_repeated else node.public_key
    envelope.verify(signed=signed, claim=claim, public_key=old_key, at=at)
    _check_proof(request=request, public_key=public_key)
    if node.status == NodeStatus.REVOKED:
        raise NodeRevoked(f"node {node.pk} was revoked")
    if is_repeated:
        return node
    if public_key == node.public_key:
        raise KeyRotationRefused("the key is the node's present one", pointer="/public_key")
    if alarms.is_cloned(node=node):
        raise KeyRotationRefused(
            "two machines seem to have this node's key: drain the node and enrol the machine anew"
        )
    if not _replace(node=node, public_key=public_key, at=at):
        raise envelope.BadSignature("the node has another key since a moment ago")
    log.info("node_key_rotated", node_id=node.pk)
    return Node.objects.get(pk=node.pk)


def reply(*, node: Node, at: dt.datetime) -> protocol.RotateKeyReply:
    """Return what a node needs to know before it forgets its old key."""
    return protocol.RotateKeyReply(node_id=node.pk, public_key=node.public_key, now=at)


def _check_proof(*, request: protocol.RotateKeyRequest, public_key: str) -> None:
    try:
        proof = b64decode(request.proof, validate=True)
    except (binascii.Error, ValueError):
        proof = b""
    if len(proof) != envelope.SIGNATURE_BYTES or not envelope.is_signed_by(
        public_key=public_key, signature=proof, message=request.proven_bytes()
    ):
        raise envelope.BadSignature("the proof is not of this request by the new key")


def _replace(*, node: Node, public_key: str, at: dt.datetime) -> bool:
    """Compare and set: of two requests one wins, and what was signed by the old key stays verifiable."""
    present = Node.objects.filter(pk=node.pk, public_key=node.public_key)
    try:
        with transaction.atomic():
            replaced = present.exclude(status=NodeStatus.REVOKED).update(
                public_key=public_key, previous_public_key=node.public_key, key_since=at
            )
    except IntegrityError:
        raise KeyRotationRefused(
            "the key belongs to another machine", pointer="/public_key"
        ) from None
    return bool(replaced)
