"""Nodes, grants and signed messages for tests: plain functions, valid unless told otherwise."""

import base64
import dataclasses
import datetime as dt
import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client

from agents import enrolment, envelope, grants, protocol
from agents.models import EnrolmentToken, Gpu, Grant, Node
from marketplace.core import ids
from marketplace.core.windows import Window
from marketplace.models import GpuModel, Organization

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
H100_NAME = "NVIDIA H100 80GB HBM3"
H100_BYTES = 85_520_809_984
AUTHORITY = "testserver"
_numbers = itertools.count(1)


def seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an agent keeps for itself: its key, and the node that it became."""

    key: Ed25519PrivateKey
    node: Node
    gpu_uuids: tuple[str, ...]

    @property
    def node_id(self) -> str:
        return self.node.pk


def make_owner(**changes: Any) -> Organization:
    values = {"name": f"Owner {next(_numbers)}", "is_owner": True, "created_at": NOW, **changes}
    return Organization.objects.create(**values)


def make_gpu_model() -> GpuModel:
    model, _ = GpuModel.objects.get_or_create(
        id="h100-sxm-80gb",
        defaults={"name": "NVIDIA H100 SXM 80 GB", "memory_gib": 80, "nvml_names": [H100_NAME]},
    )
    return model


def make_token(
    *, organization: Organization | None = None, **changes: Any
) -> tuple[EnrolmentToken, str]:
    values: dict[str, Any] = {
        "organization": organization or make_owner(),
        "region": "eu-north",
        "fabric": "ib-1",
        "labels": {"rack": "a1"},
        "nodes_max": 8,
        "expires_at": NOW + dt.timedelta(hours=1),
        "at": NOW,
        **changes,
    }
    return enrolment.create_token(**values)


def new_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def public_key_of(key: Ed25519PrivateKey) -> str:
    return base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()


def new_gpu_uuid() -> str:
    return f"GPU-{secrets.token_hex(16)}"


def identity(*, uuid: str | None = None, index: int = 0, **changes: Any) -> protocol.GpuIdentity:
    values: dict[str, Any] = {
        "uuid": uuid or new_gpu_uuid(),
        "index": index,
        "product_name": H100_NAME,
        "memory_total_bytes": H100_BYTES,
        "serial": "1650000000001",
        "pci_bus_id": f"00000000:{index + 1:02X}:00.0",
        "mig_enabled": False,
        **changes,
    }
    return protocol.GpuIdentity(**values)


def identities(count: int) -> list[protocol.GpuIdentity]:
    return [identity(index=index) for index in range(count)]


def enrol_request(
    *, token: str, key: Ed25519PrivateKey, gpu_count: int = 2, **changes: Any
) -> protocol.EnrolRequest:
    values: dict[str, Any] = {
        "protocol": protocol.PROTOCOL_VERSION,
        "token": token,
        "public_key": public_key_of(key),
        "hostname": "gpu-01",
        "machine_id": secrets.token_hex(16),
        "agent_version": "0.1.0",
        "simulated": True,
        "gpus": identities(gpu_count),
        **changes,
    }
    return protocol.EnrolRequest(**values)


def make_machine(
    *,
    organization: Organization | None = None,
    gpus: int = 2,
    at: dt.datetime = NOW,
    **changes: Any,
) -> Machine:
    """Enrol a machine through the verb, with GPUs of a model that the catalogue knows."""
    make_gpu_model()
    _, secret = make_token(organization=organization, at=at, expires_at=at + dt.timedelta(hours=1))
    key = new_key()
    request = enrol_request(token=secret, key=key, gpu_count=gpus, **changes)
    node = enrolment.enrol(request=request, at=at)
    return Machine(key=key, node=node, gpu_uuids=tuple(g.uuid for g in request.gpus))


def make_node(
    *,
    organization: Organization | None = None,
    gpus: int = 2,
    at: dt.datetime = NOW,
    **changes: Any,
) -> Node:
    """Return an enrolled node that reported at `at`; `changes` are columns of the node."""
    node = make_machine(organization=organization, gpus=gpus, at=at).node
    Node.objects.filter(pk=node.pk).update(**{"last_report_at": at, **changes})
    node.refresh_from_db()
    return node


def make_grant(
    *,
    node: Node,
    lease_id: str | None = None,
    lease_epoch: int = 1,
    gpu_uuids: list[str] | None = None,
    window: Window | None = None,
    at: dt.datetime = NOW,
) -> Grant:
    """Grant a lease on a node: by default all of its GPUs, for the hour around `at`."""
    uuids = gpu_uuids or list(Gpu.objects.filter(node=node).values_list("uuid", flat=True))
    half_an_hour = dt.timedelta(minutes=30)
    return grants.issue(
        node=node,
        lease_id=lease_id or ids.new_lease_id(),
        lease_epoch=lease_epoch,
        gpu_uuids=uuids,
        window=window or Window(at - half_an_hour, at + half_an_hour),
        ssh_public_keys=["ssh-ed25519 AAAA tenant"],
        image="",
        at=at,
    )


def reading(*, gpu_uuid: str, measured_at: dt.datetime = NOW, **changes: Any) -> protocol.Reading:
    values: dict[str, Any] = {
        "gpu_uuid": gpu_uuid,
        "measured_at": measured_at,
        "health": protocol.Health.HEALTHY,
        "idle_state": protocol.IdleState.OFFERABLE,
        "idle_since": NOW - seconds(600),
        "utilization_percent": 0,
        "memory_used_bytes": 4 * 2**20,
        "power_draw_milliwatts": 71_000,
        "energy_millijoules": 10**9,
        "temperature_celsius": 31,
        "process_count": 0,
        **changes,
    }
    return protocol.Reading(**values)


def meter(*, grant: Grant, gpu_uuid: str | None = None, **changes: Any) -> protocol.MeterReading:
    values: dict[str, Any] = {
        "epoch": 1,
        "sequence": next(_numbers),
        "lease_id": grant.lease_id,
        "lease_epoch": grant.lease_epoch,
        "gpu_uuid": gpu_uuid or grant.gpu_uuids[0],
        "starts_at": NOW - seconds(60),
        "ends_at": NOW,
        "up_seconds": 60,
        "busy_seconds": 45,
        "energy_millijoules": 30_000_000,
        "memory_used_bytes_max": 2**34,
        "temperature_celsius_max": 64,
        "simulated": grant.node.simulated,
        **changes,
    }
    return protocol.MeterReading(**values)


def receipt(*, grant: Grant, key: Ed25519PrivateKey, **changes: Any) -> protocol.Receipt:
    """Return a signed receipt of a grant; `signature` among the changes replaces the right one."""
    values: dict[str, Any] = {
        "kind": protocol.ReceiptKind.HANDOVER,
        "lease_id": grant.lease_id,
        "lease_epoch": grant.lease_epoch,
        "node_id": grant.node_id,
        "gpu_uuids": grant.gpu_uuids,
        "at": NOW,
        "energy_millijoules": [10**9 for _ in grant.gpu_uuids],
        "access": protocol.Access(host="203.0.113.7", port=2222, username="tenant"),
        "simulated": grant.node.simulated,
        **{name: value for name, value in changes.items() if name != "signature"},
    }
    unsigned = protocol.Receipt(**values)
    signature = base64.b64encode(key.sign(unsigned.signed_bytes())).decode()
    return dataclasses.replace(unsigned, signature=changes.get("signature", signature))


def report(*, machine: Machine, sequence: int = 1, **changes: Any) -> protocol.Report:
    values: dict[str, Any] = {
        "protocol": protocol.PROTOCOL_VERSION,
        "node_id": machine.node_id,
        "epoch": 1,
        "sequence": sequence,
        "boot_id": "boot-1",
        "sent_at": NOW,
        "agent_version": "0.1.0",
        "simulated": machine.node.simulated,
        **changes,
    }
    return protocol.Report(**values)


def sign(
    *,
    key: Ed25519PrivateKey,
    key_id: str,
    path: str,
    body: bytes,
    at: dt.datetime = NOW,
    authority: str = AUTHORITY,
    content_encoding: str = "",
) -> envelope.SignedRequest:
    """Seal a body as an agent does."""
    digest = protocol.content_digest(body)
    parameters = protocol.signature_parameters(key_id=key_id, created_at=at)
    base = protocol.signature_base(
        method="POST", authority=authority, path=path, digest=digest, parameters=parameters
    )
    signature = base64.b64encode(key.sign(base)).decode()
    return envelope.SignedRequest(
        method="POST",
        authority=authority,
        path=path,
        body=body,
        content_encoding=content_encoding,
        content_digest=digest,
        signature_input=f"sig1={parameters}",
        signature=f"sig1=:{signature}:",
    )


def post(
    signed: envelope.SignedRequest,
    *,
    query: str = "",
    host: str = AUTHORITY,
    forwarded_for: str = "",
) -> Any:
    """Send a sealed request over HTTP, as Django's client sees it; return the response."""
    headers: Mapping[str, str] = {
        "Content-Digest": signed.content_digest,
        "Signature-Input": signed.signature_input,
        "Signature": signed.signature,
        "Content-Encoding": signed.content_encoding,
        "Host": host,
        "X-Forwarded-For": forwarded_for,
    }
    client = Client(enforce_csrf_checks=True)
    return client.post(
        signed.path + query,
        data=signed.body,
        content_type="application/json",
        headers={name: value for name, value in headers.items() if value},
    )
