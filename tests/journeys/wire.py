"""A market lived through its real edges: HTTP for people, signed reports for machines, tasks for time."""

import base64
import dataclasses
import datetime as dt
import itertools
import secrets
from typing import Any

import time_machine
from django.conf import settings

from agents import protocol
from billing import books, wallet
from billing import tasks as billing_tasks
from marketplace import catalog
from marketplace.core.money import Money
from marketplace.core.windows import format_instant
from marketplace.models import Organization
from scheduler import checks
from scheduler import tasks as scheduler_tasks
from tests.agents import factories as make
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

MORNING = dt.datetime(2026, 11, 23, 10, tzinfo=dt.UTC)
NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
TWO = dt.datetime(2026, 11, 23, 14, tzinfo=dt.UTC)
DEPOSIT_MINOR = 1_000_000
FLOOR = "2.000000"
MODEL = "h100-sxm-80gb"
METER_SECONDS = 600
ACCESS = protocol.Access(host="203.0.113.7", port=2222, username="tenant")
HANDOVER, RETURN = protocol.ReceiptKind.HANDOVER, protocol.ReceiptKind.RETURN
_numbers = itertools.count(1)


class Host:
    """One machine: it keeps its key, counts its reports and meters, and says what a test tells it to."""

    def __init__(self, *, token: str, gpus: int, at: dt.datetime) -> None:
        self.key = make.new_key()
        self.inventory = make.identities(gpus)
        self.sequence = 0
        self.last_body = b""
        self._meters = itertools.count(1)
        request = make.enrol_request(
            token=token, key=self.key, hostname=f"host-{next(_numbers)}", gpus=self.inventory
        )
        response = make.post(
            make.sign(
                key=self.key,
                key_id=protocol.ENROL_KEY_ID,
                path=protocol.ENROL_PATH,
                body=protocol.encode(request),
                at=at,
            )
        )
        assert response.status_code == 200, response.content
        self.node_id = protocol.decode(protocol.EnrolReply, response.content).node_id

    def report(self, *, at: dt.datetime, **parts: Any) -> list[protocol.Grant]:
        """Send the next report, with a healthy look at every GPU; return the grants of the answer."""
        self.sequence += 1
        response = self.send(body=self.body(at=at, sequence=self.sequence, **parts), at=at)
        assert response.status_code == 200, response.content
        return protocol.decode(protocol.ReportReply, response.content).grants

    def body(self, *, at: dt.datetime, sequence: int, **parts: Any) -> bytes:
        readings = [
            make.reading(
                gpu_uuid=gpu.uuid, measured_at=at, idle_since=at - dt.timedelta(seconds=60)
            )
            for gpu in self.inventory
        ]
        values: dict[str, Any] = {
            "protocol": protocol.PROTOCOL_VERSION,
            "node_id": self.node_id,
            "epoch": 1,
            "sequence": sequence,
            "boot_id": "boot-1",
            "sent_at": at,
            "agent_version": "0.1.0",
            "simulated": True,
            "readings": readings,
            **parts,
        }
        return protocol.encode(protocol.Report(**values))

    def send(self, *, body: bytes, at: dt.datetime) -> Any:
        """Send a body as it is, signed at `at`; return the response."""
        self.last_body = body
        sealed = make.sign(
            key=self.key, key_id=self.node_id, path=protocol.REPORT_PATH, body=body, at=at
        )
        return make.post(sealed)

    def receipt(
        self,
        grant: protocol.Grant,
        kind: protocol.ReceiptKind,
        *,
        at: dt.datetime,
        clean: bool = True,
    ) -> protocol.Receipt:
        unsigned = protocol.Receipt(
            kind=kind,
            lease_id=grant.lease_id,
            lease_epoch=grant.lease_epoch,
            node_id=self.node_id,
            gpu_uuids=grant.gpu_uuids,
            at=at,
            energy_millijoules=[None for _ in grant.gpu_uuids],
            access=ACCESS if kind is HANDOVER else None,
            clean=clean,
            simulated=True,
        )
        signature = base64.b64encode(self.key.sign(unsigned.signed_bytes())).decode()
        return dataclasses.replace(unsigned, signature=signature)

    def meters(
        self,
        grant: protocol.Grant,
        *,
        since: dt.datetime,
        until: dt.datetime,
        gpu_uuids: list[str] | None = None,
        is_up: bool = True,
    ) -> list[protocol.MeterReading]:
        """Return readings of a span in steps of ten minutes, each half busy; a GPU not up does nothing."""
        found = []
        for gpu_uuid in grant.gpu_uuids if gpu_uuids is None else gpu_uuids:
            begin = since
            while begin < until:
                end = min(begin + dt.timedelta(seconds=METER_SECONDS), until)
                up = (end - begin) // dt.timedelta(seconds=1) if is_up else 0
                found.append(
                    protocol.MeterReading(
                        epoch=1,
                        sequence=next(self._meters),
                        lease_id=grant.lease_id,
                        lease_epoch=grant.lease_epoch,
                        gpu_uuid=gpu_uuid,
                        starts_at=begin,
                        ends_at=end,
                        up_seconds=up,
                        busy_seconds=up // 2,
                        simulated=True,
                    )
                )
                begin = end
        return found


class Market:
    """The whole market at a clock that the test moves."""

    def __init__(self, *, clock: time_machine.Traveller) -> None:
        catalog.seed_gpu_models()
        self._clock = clock
        self.at = MORNING
        self.owner, self.tenant = an_organization(), an_organization()
        self.owner_api, self.tenant_api = self._client(self.owner), self._client(self.tenant)
        wallet.record_deposit(
            organization=self.tenant,
            amount=Money(DEPOSIT_MINOR, settings.CURRENCY),
            idempotency_key=secrets.token_hex(8),
            at=MORNING,
            actor="test",
        )

    def _client(self, organization: Organization) -> ApiClient:
        return ApiClient(secret=a_key(organization=organization)[1])

    def go_to(self, at: dt.datetime) -> None:
        self._clock.move_to(at, tick=False)
        self.at = at

    def post(self, client: ApiClient, path: str, body: object = None) -> Any:
        answer = client.post(path, body, key=f"journey {next(_numbers)}")
        assert answer.status in (200, 201), answer.content
        return answer.json

    def add_host(self, *, gpus: int, **parts: Any) -> Host:
        """Make a token, enrol a machine with it and let it report."""
        body = {
            "region": "eu-north",
            "fabric": "ib-1",
            "max_nodes": 1,
            "expires_at": format_instant(self.at + dt.timedelta(days=1)),
        }
        token = self.post(self.owner_api, "/v1/enrolment-tokens", body)["token"]
        host = Host(token=token, gpus=gpus, at=self.at)
        host.report(at=self.at, inventory=host.inventory, **parts)
        return host

    def list_everything(self) -> dict[str, Any]:
        body = {
            "name": "everything",
            "selector": {"gpu_model": MODEL},
            "starts_at": "now",
            "floor_rate": FLOOR,
        }
        listing = self.post(self.owner_api, "/v1/listings", body)
        published: dict[str, Any] = self.post(
            self.owner_api, f"/v1/listings/{listing['id']}/publish"
        )
        return published

    def quote(
        self,
        *,
        gpus: int,
        starts_at: dt.datetime | str = NOON,
        ends_at: dt.datetime = TWO,
        **wishes: Any,
    ) -> dict[str, Any]:
        start = starts_at if isinstance(starts_at, str) else format_instant(starts_at)
        body = {"gpu_model": MODEL, "gpus": gpus, "starts_at": start}
        body |= {"ends_at": format_instant(ends_at), "spread": "any", **wishes}
        found: dict[str, Any] = self.post(self.tenant_api, "/v1/quotes", body)
        return found

    def buy(self, **quote: Any) -> dict[str, Any]:
        """Quote, reserve and pay from the wallet."""
        body = {"quote_id": self.quote(**quote)["id"], "payment_method": "wallet"}
        reservation: dict[str, Any] = self.post(self.tenant_api, "/v1/reservations", body)
        return reservation

    def start(self) -> None:
        scheduler_tasks.start_due_reservations()

    def tick(self) -> None:
        """Let every task of the beat run once, each as the beat calls it."""
        scheduler_tasks.end_due_leases()
        scheduler_tasks.start_due_reservations()
        scheduler_tasks.expire_quotes()
        billing_tasks.settle_leases()
        billing_tasks.release_earnings()

    def tick_at(self, at: dt.datetime) -> None:
        self.go_to(at)
        self.tick()

    def reservation(self, reservation: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.tenant_api.get(f"/v1/reservations/{reservation['id']}").json
        return found

    def bill(self, reservation: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.tenant_api.get(
            f"/v1/reservations/{reservation['id']}/bill"
        ).json
        return found

    def wallet_minor(self) -> int:
        return wallet.balance(organization=self.tenant).amount_minor

    def payouts_minor(self) -> list[int]:
        """Return what is due to the owner, after the delay of payouts has passed."""
        self.tick_at(self.at + dt.timedelta(seconds=settings.PAYOUT_DELAY_SECONDS + 60))
        data = self.owner_api.get("/v1/payouts").json["data"]
        assert all(payout["status"] == "due" for payout in data)
        return sorted(payout["amount"]["amount_minor"] for payout in data)

    def assert_books_are_sound(self) -> None:
        report = books.check(at=self.at + dt.timedelta(days=1))
        assert report.ok, [check for check in report.checks if not check.ok]
        capacity = checks.check(at=self.at)
        assert capacity.ok, [check for check in capacity.checks if not check.ok]
