"""A fleet for benchmarks: nodes in the database, and their signed requests as bytes."""

import base64
import datetime as dt
import hashlib
import uuid
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents import protocol

GPUS_PER_NODE = 8
METER_SECONDS = 60
BATCH_ROWS = 5_000


def instant(at: dt.datetime) -> str:
    """Return an instant as the wire has it."""
    return str(protocol.to_json(at))


@dataclass(slots=True, kw_only=True)
class SimulatedNode:
    """One node as its agent knows itself."""

    number: int
    node_id: str
    gpu_uuids: list[str]
    lease_id: str
    authority: str
    key: Ed25519PrivateKey
    sequence: int = 0
    meter_sequence: int = 0

    def report(self, *, at: dt.datetime, meters: int) -> bytes:
        """Return the whole HTTP request of the next report, with so many meter readings."""
        self.sequence += 1
        now = instant(at)
        meter_rows = ",".join(self._meter(at) for _ in range(meters))
        body = (
            f'{{"agent_version":"0.2.0","boot_id":"boot-1","epoch":1,"leases":[{self._lease()}],'
            f'"meters":[{meter_rows}],"node_id":"{self.node_id}","protocol":2,"readings":['
            + ",".join(self._reading(gpu_uuid, now) for gpu_uuid in self.gpu_uuids)
            + f'],"sent_at":"{now}","sequence":{self.sequence},"simulated":false}}'
        ).encode()
        return self.sealed(body=body, at=at)

    def sealed(self, *, body: bytes, at: dt.datetime) -> bytes:
        """Return a signed HTTP request with this body."""
        digest = protocol.content_digest(body)
        parameters = protocol.signature_parameters(key_id=self.node_id, created_at=at)
        base = protocol.signature_base(
            method="POST",
            authority=self.authority,
            path=protocol.REPORT_PATH,
            digest=digest,
            parameters=parameters,
        )
        signature = base64.b64encode(self.key.sign(base)).decode()
        head = (
            f"POST {protocol.REPORT_PATH} HTTP/1.1\r\nHost: {self.authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Content-Digest: {digest}\r\nSignature-Input: sig1={parameters}\r\n"
            f"Signature: sig1=:{signature}:\r\n\r\n"
        )
        return head.encode() + body

    def _lease(self) -> str:
        return f'{{"lease_epoch":1,"lease_id":"{self.lease_id}","state":"active"}}'

    def _reading(self, gpu_uuid: str, now: str) -> str:
        return (
            f'{{"energy_millijoules":987654321,"gpu_uuid":"{gpu_uuid}","health":"healthy",'
            f'"health_reason":"","idle_reason":"a process holds its memory","idle_since":null,'
            f'"idle_state":"busy","measured_at":"{now}","memory_used_bytes":34359738368,'
            f'"power_draw_milliwatts":412000,"process_count":1,"temperature_celsius":61,'
            f'"unread":{{}},"utilization_percent":97}}'
        )

    def _meter(self, at: dt.datetime) -> str:
        self.meter_sequence += 1
        gpu_uuid = self.gpu_uuids[self.meter_sequence % GPUS_PER_NODE]
        starts_at = instant(at - dt.timedelta(seconds=METER_SECONDS))
        return (
            f'{{"attached_seconds":60,"busy_seconds":58,"ends_at":"{instant(at)}",'
            f'"energy_millijoules":24720000,"epoch":1,"gpu_uuid":"{gpu_uuid}","lease_epoch":1,'
            f'"lease_id":"{self.lease_id}","memory_used_bytes_max":34359738368,'
            f'"sequence":{self.meter_sequence},"simulated":false,"starts_at":"{starts_at}",'
            f'"temperature_celsius_max":63,"up_seconds":60}}'
        )


def make_fleet(*, count: int, authority: str, at: dt.datetime) -> list[SimulatedNode]:
    """Store nodes with eight leased GPUs each, as they are a while after their enrolment."""
    from agents import inventory
    from agents.models import Gpu, Grant, Node
    from agents.states import NodeStatus
    from marketplace.models import GpuModel, Organization

    owner = Organization.objects.create(name="Bench", is_owner=True, created_at=at)
    model = GpuModel.objects.get(id="h100-sxm-80gb")
    fleet, nodes, gpus, grants = [], [], [], []
    for number in range(count):
        seed = hashlib.sha256(f"bench node {number}".encode()).digest()
        key = Ed25519PrivateKey.from_private_bytes(seed)
        simulated = SimulatedNode(
            number=number,
            node_id=f"nde_{number:026d}",
            gpu_uuids=[
                f"GPU-{uuid.UUID(int=number * 16 + place + 1)}" for place in range(GPUS_PER_NODE)
            ],
            lease_id=f"lse_{number:026d}",
            authority=authority,
            key=key,
        )
        fleet.append(simulated)
        node = Node(
            id=simulated.node_id,
            organization=owner,
            hostname=f"gpu-{number}",
            machine_id=f"machine-{number}",
            region="bench",
            status=NodeStatus.ACTIVE,
            simulated=False,
            public_key=base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode(),
            agent_version="0.2.0",
            slot_base=inventory.next_slot_base(),
            boot_id="boot-1",
            last_epoch=1,
            last_report_at=at,
            enrolled_at=at,
            key_since=at,
            protocol_version=2,
        )
        nodes.append(node)
        # Their last samples are spread over the five minutes after which the next one is due.
        measured_at = at - dt.timedelta(seconds=300 * (number % 300) / 300)
        gpus += [
            Gpu(
                node=node,
                uuid=gpu_uuid,
                slot=node.slot_base + place,
                product_name="NVIDIA H100",
                gpu_model=model,
                memory_total_bytes=2**36,
                idle_state=protocol.IdleState.BUSY,
                measured_at=measured_at,
                first_seen_at=at,
            )
            for place, gpu_uuid in enumerate(simulated.gpu_uuids)
        ]
        grants.append(
            Grant(
                node=node,
                lease_id=simulated.lease_id,
                gpu_uuids=simulated.gpu_uuids,
                not_before=at - dt.timedelta(hours=1),
                not_after=at + dt.timedelta(hours=6),
                desired_state=protocol.DesiredState.RUN,
                reported_state=protocol.LeaseState.ACTIVE,
                created_at=at - dt.timedelta(hours=1),
                ssh_public_keys=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFJvb20= tenant"],
            )
        )
    Node.objects.bulk_create(nodes, BATCH_ROWS)
    Gpu.objects.bulk_create(gpus, BATCH_ROWS)
    Grant.objects.bulk_create(grants, BATCH_ROWS)
    return fleet
