"""How a machine becomes a node: tokens of owners, and the first signed message of an agent."""

import datetime as dt
import hashlib
import ipaddress
import secrets
from collections.abc import Mapping, Sequence

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F

from agents import alarms, envelope, inventory, pacing, protocol
from agents.models import EnrolmentToken, Node, NodeTransition
from agents.states import NodeStatus
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.core.limits import TAGS_MAX
from marketplace.models import Organization

log = structlog.get_logger(__name__)

TOKEN_PREFIX = "hr_enrol_"  # noqa: S105 - a prefix by which a leaked secret is recognised
TOKEN_SECRET_BYTES = 32
TOKEN_NODES_MAX = 10_000  # one token images the largest fleet that the market was sized for
TOKEN_LIFETIME_DAYS_MAX = 31  # long enough to image a fleet, short enough to be forgotten safely
# A key that reported within a day is in use: taking its place needs the owner, who drains the node first.
KEY_IN_USE_HOURS = 24
LABEL_LENGTH_MAX = 100
TOKEN_NETWORKS_MAX = 32  # a data centre's uplinks, with room


_REPLACED_WITH_KEY = (
    *("public_key", "previous_public_key", "hostname", "agent_version", "protocol_version"),
    *("boot_id", "previous_boot_id", "last_epoch", "last_sequence", "stale_epoch", "stale_epochs"),
    *("enrolments", "enrolled_at", "key_since"),
)


class EnrolmentTokenInvalid(DomainError):
    """The token is unknown, expired, revoked or used up."""

    code = "enrolment_token_invalid"
    title = "The enrolment token cannot be used"


class EnrolmentNetworkRefused(DomainError):
    """The request came from an address that is in none of the token's networks."""

    code = "enrolment_network_refused"
    title = "The enrolment token is not for this network"


class SimulatedHardwareRefused(DomainError):
    """GPUs that do not exist are offered where only real ones are sold, or a node changed its nature."""

    code = "simulated_hardware_refused"
    title = "Simulated hardware is refused here"


class GpuAlreadyEnrolled(DomainError):
    """A GPU with the same UUID belongs to another node."""

    code = "gpu_already_enrolled"
    title = "A GPU is already enrolled"


class NodeAlreadyEnrolled(DomainError):
    """The machine is enrolled with another key that is in use, or the key is another machine's."""

    code = "node_already_enrolled"
    title = "The machine is already enrolled"


def create_token(
    *,
    organization: Organization,
    region: str,
    fabric: str,
    labels: Mapping[str, str],
    nodes_max: int,
    expires_at: dt.datetime,
    at: dt.datetime,
    allowed_networks: Sequence[str] = (),
) -> tuple[EnrolmentToken, str]:
    """Make a token with which up to `nodes_max` machines may enrol; return it and its secret, shown once.

    Region, fabric and labels become those of the nodes. `allowed_networks` are CIDR blocks from which it may
    be used; without any, from anywhere.

    :raises InvalidValue: when the organization owns no machines, or a value is out of bounds.
    """
    lifetime = dt.timedelta(days=TOKEN_LIFETIME_DAYS_MAX)
    checks = (
        (organization.is_owner, None, "only an owner enrols machines"),
        (1 <= len(region) <= 60, "/region", "must have 1 to 60 characters"),
        (len(fabric) <= 100, "/fabric", "must have at most 100 characters"),
        (1 <= nodes_max <= TOKEN_NODES_MAX, "/nodes_max", f"must be 1 to {TOKEN_NODES_MAX}"),
        (
            at < expires_at <= at + lifetime,
            "/expires_at",
            f"must lie within the next {TOKEN_LIFETIME_DAYS_MAX} days",
        ),
        (_are_labels(labels), "/labels", f"must be at most {TAGS_MAX} short texts by short names"),
    )
    for holds, pointer, detail in checks:
        if not holds:
            raise InvalidValue(detail, pointer=pointer)
    networks = _networks(allowed_networks)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_SECRET_BYTES)
    token = EnrolmentToken.objects.create(
        organization=organization,
        secret_sha256=_digest(secret),
        region=region,
        fabric=fabric,
        labels=dict(labels),
        nodes_max=nodes_max,
        created_at=at,
        expires_at=expires_at,
        allowed_networks=networks,
    )
    return token, secret


def revoke_token(*, token: EnrolmentToken, at: dt.datetime) -> None:
    """Make a token useless; the nodes that enrolled with it stay. Safe to call twice."""
    EnrolmentToken.objects.filter(pk=token.pk, revoked_at__isnull=True).update(revoked_at=at)
    token.refresh_from_db()


def verify_request(
    *, request: protocol.EnrolRequest, signed: envelope.SignedRequest, at: dt.datetime
) -> None:
    """Check that a machine holds the key that it brings.

    :raises BadSignature: when the request is not signed by `request.public_key`.
    :raises ClockSkew: when the machine's clock is wrong.
    :raises MalformedReport: when the public key is none.
    """
    claim = envelope.read_signature(signed=signed)
    if claim.key_id != protocol.ENROL_KEY_ID:
        raise envelope.BadSignature(f'keyid must be "{protocol.ENROL_KEY_ID}"')
    public_key = envelope.normalize_public_key(request.public_key)
    envelope.verify(signed=signed, claim=claim, public_key=public_key, at=at)


@transaction.atomic
def enrol(
    *, request: protocol.EnrolRequest, at: dt.datetime, client_address: str | None = None
) -> Node:
    """Make a machine a node of the token's organization, or give a known machine its new key.

    The signature was checked with `verify_request`. A machine that repeats its request, because the answer
    was lost, gets the same node again and uses nothing up. A new key for a known machine starts its
    (epoch, sequence) anew; its place, labels, GPUs, slots and status stay. `client_address` is whence the
    request came, None where that is not known: then a token that is bound to networks is refused.

    :raises MalformedReport: when a text is too long or one GPU is named twice.
    :raises SimulatedHardwareRefused: when simulated GPUs are not sold here, or the machine was real before.
    :raises EnrolmentTokenInvalid: when the token is unknown, revoked, expired or used up.
    :raises EnrolmentNetworkRefused: when the token is not for the network of `client_address`.
    :raises NodeRevoked: when the machine was withdrawn for good.
    :raises NodeAlreadyEnrolled: when its present key is in use and the node is not draining.
    :raises GpuAlreadyEnrolled: when a GPU belongs to another node.
    """
    _check(request=request)
    public_key = envelope.normalize_public_key(request.public_key)
    token = (
        EnrolmentToken.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization")
        .filter(secret_sha256=_digest(request.token))
        .first()
    )
    if token is None or token.revoked_at is not None:
        raise EnrolmentTokenInvalid("the token is unknown or revoked", pointer="/token")
    _check_network(token=token, client_address=client_address)
    node = (
        Node.objects.select_for_update(no_key=True)
        .filter(organization=token.organization, machine_id=request.machine_id)
        .first()
    )
    if node is not None and node.status == NodeStatus.REVOKED:
        raise inventory.NodeRevoked(f"node {node.pk} was revoked")
    if node is not None and node.simulated != request.simulated:
        raise SimulatedHardwareRefused(
            "a machine does not change between real and simulated", pointer="/simulated"
        )
    if node is not None and node.public_key == public_key:
        return node
    _use_up(token=token, at=at)
    if Node.objects.filter(public_key=public_key).exists():
        raise NodeAlreadyEnrolled("the key belongs to another machine", pointer="/public_key")
    node = (
        _create(token=token, request=request, public_key=public_key, at=at)
        if node is None
        else _replace_key(node=node, request=request, public_key=public_key, at=at)
    )
    if foreign := inventory.apply(node=node, gpus=request.gpus, at=at):
        raise GpuAlreadyEnrolled(f"{', '.join(foreign)}: enrolled at another node", pointer="/gpus")
    return node


def reply(*, node: Node, at: dt.datetime) -> protocol.EnrolReply:
    """Return what an enrolled machine needs to know."""
    interval_seconds = pacing.granted_interval_seconds(node_id=node.pk, at=at)
    return protocol.EnrolReply(node_id=node.pk, report_interval_seconds=interval_seconds, now=at)


def _check(*, request: protocol.EnrolRequest) -> None:
    """Refuse what the tables could not hold, and hardware that is not sold here."""
    envelope.check_protocol(protocol_version=request.protocol)
    envelope.check_length(text=request.hostname, length_max=255, pointer="/hostname")
    envelope.check_length(text=request.machine_id, length_max=100, pointer="/machine_id")
    envelope.check_length(text=request.agent_version, length_max=40, pointer="/agent_version")
    inventory.check_identities(gpus=request.gpus, pointer="/gpus")
    if request.simulated and not settings.ALLOW_SIMULATED_HARDWARE:
        raise SimulatedHardwareRefused("only real GPUs are sold here", pointer="/simulated")


def _networks(texts: Sequence[str]) -> list[str]:
    """Return CIDR blocks as they are written in full, each once.

    :raises InvalidValue: when one is none.
    """
    if len(texts) > TOKEN_NETWORKS_MAX:
        raise InvalidValue(
            f"must be at most {TOKEN_NETWORKS_MAX} networks", pointer="/allowed_networks"
        )
    networks = []
    for position, text in enumerate(texts):
        try:
            networks.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise InvalidValue(
                f"{error}: write it like 203.0.113.0/24", pointer=f"/allowed_networks/{position}"
            ) from None
    return list(dict.fromkeys(networks))


def _check_network(*, token: EnrolmentToken, client_address: str | None) -> None:
    """Refuse a request from outside the token's networks."""
    if not token.allowed_networks:
        return
    try:
        address = ipaddress.ip_address(client_address or "")
    except ValueError:
        raise EnrolmentNetworkRefused("the client's address is not known") from None
    # A listener for both families shows an IPv4 client as ::ffff:203.0.113.7.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not any(address in ipaddress.ip_network(network) for network in token.allowed_networks):
        log.warning("enrolment_network_refused", token_id=token.pk, address=str(address))
        raise EnrolmentNetworkRefused(f"the token cannot be used from {address}")


def _use_up(*, token: EnrolmentToken, at: dt.datetime) -> None:
    """Count one use of a token whose row is held."""
    if token.expires_at <= at:
        raise EnrolmentTokenInvalid("the token has expired", pointer="/token")
    if token.nodes_enrolled >= token.nodes_max:
        raise EnrolmentTokenInvalid("the token is used up", pointer="/token")
    EnrolmentToken.objects.filter(pk=token.pk).update(nodes_enrolled=F("nodes_enrolled") + 1)


def _create(
    *, token: EnrolmentToken, request: protocol.EnrolRequest, public_key: str, at: dt.datetime
) -> Node:
    """Store a machine that was not known before."""
    try:
        with transaction.atomic():
            node = Node.objects.create(
                organization=token.organization,
                hostname=request.hostname,
                machine_id=request.machine_id,
                region=token.region,
                fabric=token.fabric,
                labels=token.labels,
                simulated=request.simulated,
                public_key=public_key,
                agent_version=request.agent_version,
                slot_base=inventory.next_slot_base(),
                enrolled_at=at,
                key_since=at,
                protocol_version=request.protocol,
            )
    except IntegrityError:
        raise NodeAlreadyEnrolled("the machine or its key was enrolled a moment ago") from None
    NodeTransition.objects.create(
        node=node, from_status="", to_status=node.status, actor=token.pk, at=at
    )
    log.info("node_enrolled", node_id=node.pk, hostname=node.hostname, simulated=node.simulated)
    return node


def _replace_key(
    *, node: Node, request: protocol.EnrolRequest, public_key: str, at: dt.datetime
) -> Node:
    """Give a known machine its new key; the row of the node is held."""
    in_use_since = at - dt.timedelta(hours=KEY_IN_USE_HOURS)
    heard = node.last_report_at is not None and node.last_report_at > in_use_since
    if heard and not node.simulated and node.status != NodeStatus.DRAINING:
        raise NodeAlreadyEnrolled(
            f"node {node.pk} reported with its present key within {KEY_IN_USE_HOURS} h;"
            " drain it first if the key is lost",
            pointer="/machine_id",
        )
    node.public_key = public_key
    node.hostname = request.hostname
    node.agent_version = request.agent_version
    node.previous_public_key = ""
    node.boot_id = node.previous_boot_id = ""
    node.last_epoch = node.last_sequence = 0
    node.stale_epoch = node.stale_epochs = 0
    node.protocol_version = request.protocol
    node.enrolments += 1
    node.enrolled_at = node.key_since = at
    try:
        with transaction.atomic():
            node.save(update_fields=_REPLACED_WITH_KEY)
    except IntegrityError:
        raise NodeAlreadyEnrolled("the key was enrolled a moment ago") from None
    alarms.settle_for_new_key(node=node, at=at)
    log.warning("node_key_replaced", node_id=node.pk, enrolments=node.enrolments)
    return node


def _digest(secret: str) -> str:
    """Return the hash under which a secret of 256 random bits is kept: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _are_labels(labels: Mapping[str, str]) -> bool:
    texts = [text for pair in labels.items() for text in pair]
    return len(labels) <= TAGS_MAX and all(
        isinstance(text, str) and len(text) <= LABEL_LENGTH_MAX for text in texts
    )
